"""Recipes: the sections and their defaults, how one is read, shown, checked, and described to an editor."""

from __future__ import annotations

from modalign.recipe.loading import Given, find, gather, load, located, resolve, shipped, validate
from modalign.recipe.sections import (
    DEFAULT_METHOD,
    SCOPES,
    CheckpointRecipe,
    DataRecipe,
    EvaluationRecipe,
    GroupRecipe,
    LoraRecipe,
    OptimizerRecipe,
    Precision,
    Recipe,
    ScheduleRecipe,
    Section,
    SourceRecipe,
)

__all__ = [
    "DEFAULT_METHOD",
    "SCOPES",
    "CheckpointRecipe",
    "DataRecipe",
    "EvaluationRecipe",
    "Given",
    "GroupRecipe",
    "LoraRecipe",
    "OptimizerRecipe",
    "Precision",
    "Recipe",
    "ScheduleRecipe",
    "Section",
    "SourceRecipe",
    "find",
    "gather",
    "load",
    "located",
    "resolve",
    "shipped",
    "validate",
]
