"""Which parameters a recipe trains, and which stored signals follow from that."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from modalign.errors import RecipeError
from modalign.methods.base import Method
from modalign.models.dual_encoder import TOWERS, DualEncoder, TowerName
from modalign.recipe import Recipe
from modalign.training.inputs import Plan
from modalign.training.optimizer import check_groups, frozen_by_group


@dataclass
class Scope:
    """The outcome of `choose`.

    Attributes:
        parameters: tower → trained parameters by name; a tower that does not train is missing.
        projection: whether the trained towers are projections on stored trunk outputs.
        reads: the towers whose features the method reads.
        plan: the stored signals.
        live: the frozen signals to compute at every step instead.
    """

    parameters: dict[TowerName, dict[str, nn.Parameter]]
    projection: bool
    reads: list[TowerName]
    plan: Plan
    live: tuple[TowerName, ...]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """All trained parameters by name."""
        return {name: p for group in self.parameters.values() for name, p in group.items()}


def choose(model: DualEncoder, method: Method, recipe: Recipe) -> Scope:
    """Freezes everything the recipe does not train and says what must be stored.

    Args:
        model: its parameters' `requires_grad` is set here.
        method: which towers it can train and what it reads.
        recipe: scope, parameter groups, `frozen`.

    Raises:
        RecipeError: nothing would train, or a parameter group matches no parameter.
    """
    wanted: set[str] = {"image", "text"} if recipe.train in ("full", "projection") else {recipe.train}
    reads = [tower for tower in TOWERS if tower in method.towers]
    parameters: dict[TowerName, dict[str, nn.Parameter]] = {}
    module = method.module()
    own = [f"method.{name}" for name, _ in module.named_parameters()] if module is not None else []
    check_groups([name for name, _ in model.module.named_parameters()] + own, recipe.optimizer)
    model.module.requires_grad_(False)
    for tower in reads:
        if tower not in wanted:
            continue
        named = dict(model.named_parameters(tower))
        if recipe.train == "projection":
            named = {name: named[name] for name in model.projection_names(tower)}
        for name in frozen_by_group(list(named), recipe.optimizer):
            del named[name]
        for parameter in named.values():
            parameter.requires_grad_(True)
        if named:
            parameters[tower] = named
    if not parameters:
        raise RecipeError(
            f"train = {recipe.train!r}: nothing is left to train with method {method.name!r} and the freezing groups "
            "given; choose another scope or remove a group"
        )
    projection = recipe.train == "projection"
    signals = tuple(
        tower for tower in TOWERS if f"frozen_{tower}" in method.needs or (tower in reads and tower not in parameters)
    )
    stored = recipe.frozen == "stored"
    plan = Plan(
        trunk=frozenset(parameters if projection else ()),
        features=frozenset((signals if stored else ()) + (tuple(reads) if method.needs_fit else ())),
    )
    return Scope(parameters, projection, reads, plan, () if stored else signals)
