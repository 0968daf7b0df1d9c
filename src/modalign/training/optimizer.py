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
    parameters: Mapping[str, nn.Parameter], method_parameters: Mapping[str, nn.Parameter], recipe: OptimizerRecipe
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; the first group whose expression matches a name decides.

    Args:
        parameters: the towers' trained parameters under their library's names.
        method_parameters: the method's own; they take the base rate and no weight decay unless a group says so.
        recipe: rates, decay and groups. A group with `freeze: true` must have been taken out already.

    Raises:
        RecipeError: a group's expression matches no trained parameter.
    """
    named = {**parameters, **{f"method.{name}": p for name, p in method_parameters.items()}}
    members: dict[tuple[float, float], list[str]] = {}
    used = [0] * len(recipe.groups)
    for name in named:
        rate, decay = recipe.lr, 0.0 if name.startswith("method.") else recipe.weight_decay
        for index, group in enumerate(recipe.groups):
            if re.search(group.match, name):
                used[index] += 1
                rate = group.lr if group.lr is not None else rate
                decay = group.weight_decay if group.weight_decay is not None else decay
                break
        members.setdefault((rate, decay), []).append(name)
    for group, count in zip(recipe.groups, used, strict=True):
        if count == 0 and not group.freeze:
            example = next(iter(named), "none")
            raise RecipeError(
                f"optimizer.groups: {group.match!r} matches none of the {len(named)} trained parameters "
                f"(one is {example!r}); correct the expression or remove the group"
            )
    groups = [
        {"params": [named[n] for n in names], "names": names, "lr": rate, "base_lr": rate, "weight_decay": decay}
        for (rate, decay), names in members.items()
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)


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

    Args:
        schedule: its name and warm-up length.
        step: s, counted from 0.
        steps: the run's length.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, multiplier: float) -> float:
    """Applies the schedule's factor to every group; returns the first group's rate, for the log."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * multiplier
    return float(optimizer.param_groups[0]["lr"])
