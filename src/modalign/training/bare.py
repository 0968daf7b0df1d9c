"""Training on two sets of vectors: what takes the place of pictures, captions and frozen networks."""

from __future__ import annotations

from modalign.data.records import Pairs
from modalign.errors import RecipeError
from modalign.methods.base import Method
from modalign.models.vectors import KIND, StoredVectors, VectorModel
from modalign.recipe import Recipe
from modalign.training.inputs import TrainingSet

WORKS = ("kuea", "feature", "am-radio")
"""The methods that two sets of vectors are enough for."""


def read_target(model: VectorModel, method: Method, recipe: Recipe) -> StoredVectors:
    """The target's vectors; what a recipe on bare vectors must and must not say is checked here.

    Raises:
        RecipeError: names the key and what to set.
        DataError: a file that cannot be read.
    """
    if model.vectors is None:
        raise RecipeError(f"model = {recipe.model!r} is a fitted map; name the vectors it maps, {KIND}:<file>.npy")
    if recipe.data.train not in ("", recipe.model):
        raise RecipeError(f"data.train = {recipe.data.train!r}: {recipe.model} is its own data; leave data.train out")
    if recipe.train != "projection":
        raise RecipeError(f"train = {recipe.train!r}: {recipe.model} has no tower to train; set train: projection")
    if recipe.evaluation.tasks:
        raise RecipeError(f"evaluation.tasks: {recipe.model} has no network for a task's pictures; leave them out")
    refuse_method(method)
    if not (recipe.target or "").startswith(f"{KIND}:"):
        raise RecipeError(
            f"target = {recipe.target!r}: vectors are aligned with vectors; set target: {KIND}:<file>.npy"
        )
    target = StoredVectors(recipe.target or "")
    if len(target) != len(model.vectors):
        raise RecipeError(
            f"{model.spec} has {len(model.vectors):,} rows and {target.spec} {len(target):,}; "
            "row i of both must belong to the same thing"
        )
    target.follow(model.vectors)
    return target


def refuse_method(method: Method) -> None:
    """Refuses a method that does not train an image tower on its own frozen features and a target's alone.

    Raises:
        RecipeError: names those that do.
    """
    if method.towers != {"image"} or not method.needs <= {"frozen_image", "target"}:
        raise RecipeError(
            f"method {method.name!r}, as it is set, does not train an image tower on a target's vectors alone; "
            f"use {', '.join(WORKS)} on the image tower"
        )


def prepare(model: VectorModel, target: StoredVectors, pairs: Pairs) -> TrainingSet:
    """The rows of both sets that some pairs (of `StoredVectors.as_pairs`) stand for.

    Args:
        model: its vectors are trunk outputs and, under the map's start, initial features.
        target: the other set.
        pairs: which rows.
    """
    assert model.vectors is not None
    numbers = [int(row.where.rpartition(" ")[2]) for row in pairs.rows]
    own = model.vectors.tensor()[numbers]
    return TrainingSet(pairs, trunk={"image": own}, features={"image": own, "target": target.tensor()[numbers]})
