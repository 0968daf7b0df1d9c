"""Parameter groups by regular expression, AdamW, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import nn

from modalign.errors import RecipeError
from modalign.recipe import OptimizerRecipe, ScheduleRecipe


def build(
    parameters: Mapping[str, nn.Parameter],
    method_parameters: Mapping[str, nn.Parameter],
    recipe: OptimizerRecipe,
    parts: Mapping[str, str] | None = None,
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; the first group whose expression matches a name decides.

    Args:
        parameters: the towers' trained parameters under their library's names.
        method_parameters: the method's own; they take the base rate and no weight decay unless a group says so.
        recipe: rates, decay and groups. What a group with `freeze: true` matches must have been taken out already.
        parts: parameter name → the part of its tower whose rate changes on its own; None = no part's does.
    """
    named = {**parameters, **{f"method.{name}": p for name, p in method_parameters.items()}}
    members: dict[tuple[float, float, str], list[str]] = {}
    for name in named:
        rate, decay = recipe.lr, 0.0 if name.startswith("method.") else recipe.weight_decay
        for group in recipe.groups:
            if re.search(group.match, name):
                rate = group.lr if group.lr is not None else rate
                decay = group.weight_decay if group.weight_decay is not None else decay
                break
        members.setdefault((rate, decay, (parts or {}).get(name, "")), []).append(name)
    groups = [
        {
            "params": [named[n] for n in names],
            "names": names,
            "lr": rate,
            "base_lr": rate,
            "weight_decay": decay,
            "part": part,
        }
        for (rate, decay, part), names in members.items()
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)


def check_groups(names: list[str], recipe: OptimizerRecipe) -> None:
    """Refuses a group that could never apply.

    Args:
        names: of all parameters of the model, trained or not, and of the method ("method.…").
        recipe: the groups.

    Raises:
        RecipeError: a group's expression matches none of them.
    """
    for group in recipe.groups:
        if not any(re.search(group.match, name) for name in names):
            raise RecipeError(
                f"optimizer.groups: {group.match!r} matches none of the {len(names)} parameters (one is {names[0]!r}); "
                "correct the expression or remove the group"
            )


def frozen_by_group(names: list[str], recipe: OptimizerRecipe) -> set[str]:
    """The names that a group with `freeze: true` takes out of training (the first matching group decides)."""
    frozen = set()
    for name in names:
        for group in recipe.groups:
            if re.search(group.match, name):
                if group.freeze:
                    frozen.add(name)
                break
    return frozen


def factor(schedule: ScheduleRecipe, step: int, steps: int) -> float:
    """What multiplies every base rate at one step.

    With w warm-up steps: (s + 1)/w while s < w; then 1 (constant) or ½(1 + cos π(s − w)/(steps − w)) (cosine).
    With `published_lr` it is 1 at s = 0, whatever comes after.

    Args:
        schedule: its name and warm-up length.
        step: s, counted from 0.
        steps: the run's length.
    """
    warmup = schedule.warmup_steps
    if schedule.published_lr and step == 0:
        return 1.0
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, multiplier: float, parts: Mapping[str, float] | None = None) -> float:
    """Applies the schedule's factor to every group; returns the first group's, for the log, without its part's.

    Args:
        optimizer: from `build`.
        multiplier: the factor.
        parts: what multiplies the rate of each part of a tower as well.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * multiplier * (parts or {}).get(group["part"], 1.0)
    return float(optimizer.param_groups[0]["base_lr"] * multiplier)
