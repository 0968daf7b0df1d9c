"""Which parameters a recipe trains, and which stored signals follow from that."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from modalign.errors import RecipeError
from modalign.methods.base import Method
from modalign.models.dual_encoder import TOWERS, DualEncoder, TowerName
from modalign.recipe import SCOPES, Recipe
from modalign.training import blocks, modes
from modalign.training.gradient_checkpointing import recomputed
from modalign.training.inputs import Plan
from modalign.training.lora import Adapters
from modalign.training.optimizer import check_groups, frozen_by_group

SignalName = Literal["image", "text", "target"]
SIGNALS: tuple[SignalName, ...] = (*TOWERS, "target")


@dataclass
class Scope:
    """The outcome of `choose`.

    Attributes:
        parameters: tower → trained parameters by name; a tower that does not train is missing. LoRA's adapters are
            there from `begin` on.
        projection: whether the trained towers are projections on stored trunk outputs.
        reads: the towers whose features the method reads.
        plan: the stored signals.
        live: the frozen signals to compute at every step instead.
        modes: what leaves `eval()` during a step.
        adapters: LoRA's, or None.
        recomputed: blocks whose gradient is checkpointed.
    """

    parameters: dict[TowerName, dict[str, nn.Parameter]]
    projection: bool
    reads: list[TowerName]
    plan: Plan
    live: tuple[SignalName, ...]
    modes: modes.Modes = field(default_factory=modes.Modes)
    adapters: Adapters | None = None
    recomputed: list[nn.Module] = field(default_factory=list)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """All trained parameters by name."""
        return {name: p for group in self.parameters.values() for name, p in group.items()}

    @property
    def changing(self) -> dict[str, Tensor]:
        """The tensors of the library's own layout that training changes, by name: what differs before and after."""
        weights = self.adapters.weights if self.adapters is not None else self.trained
        statistics = {name: t for name, t in self.modes.statistics.items() if t.is_floating_point()}
        return {**weights, **statistics}

    def begin(self, recipe: Recipe) -> None:
        """Puts LoRA's adapters into the model; everything that reads the initial model must be done."""
        if self.adapters is None:
            return
        put_in = self.adapters.put_in(recipe.seed)
        for tower in self.parameters:
            names = self.adapters.names[tower]
            frozen = frozen_by_group(names, recipe.optimizer)
            self.parameters[tower] = {name: put_in[name] for name in names if name not in frozen}
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        if self.modes.masks:
            self.modes.modules += self.adapters.dropouts

    def end(self) -> None:
        """Merges LoRA's adapters: the model is in its library's own layout again."""
        if self.adapters is not None:
            self.adapters.merge()

    @contextmanager
    def training(self) -> Iterator[None]:
        """One step, its backward pass included: dropout, batch statistics and recomputed blocks as chosen."""
        with ExitStack() as stack:
            contexts: list[AbstractContextManager[None]] = [self.modes.training(), recomputed(self.recomputed)]
            for context in contexts:
                stack.enter_context(context)
            yield


def choose(model: DualEncoder, method: Method, recipe: Recipe, world: int = 1) -> Scope:
    """Freezes everything the recipe does not train and says what must be stored.

    Args:
        model: its parameters' `requires_grad` is set here.
        method: which towers it can train and what it reads.
        recipe: scope, parameter groups, `frozen`.
        world: how many processes share a batch.

    Raises:
        RecipeError: the scope does not fit the model, nothing would train, or a parameter group matches no parameter.
    """
    if method.needs_logit_bias and model.logit_bias is None:
        raise RecipeError(
            f"method {method.name!r} needs a logit bias and {model.spec} has none; use a SigLIP, or method contrastive"
        )
    if problem := target_problem(method, recipe):
        raise RecipeError(problem)
    if method.weight_anchor and recipe.lora is not None:
        raise RecipeError(
            "anchor: weights holds the weights that train, which of LoRA are adapters; use anchor: features"
        )
    reads = [tower for tower in TOWERS if tower in method.towers]
    adapters = Adapters(model, reads, recipe.lora) if recipe.lora is not None else None
    names = adapters.names if adapters is not None else _names(model, reads, recipe.train)
    module = method.module()
    own = [f"method.{name}" for name, _ in module.named_parameters()] if module is not None else []
    library = dict(model.module.named_parameters())
    check_groups([*library, *(adapters.all_names if adapters is not None else ()), *own], recipe.optimizer)
    model.module.requires_grad_(False)
    parameters: dict[TowerName, dict[str, nn.Parameter]] = {}
    for tower in reads:
        frozen = frozen_by_group(names.get(tower, []), recipe.optimizer)
        kept = [name for name in names.get(tower, []) if name not in frozen]
        if kept:
            parameters[tower] = {name: library[name] for name in kept if adapters is None}
    for group in parameters.values():
        for parameter in group.values():
            parameter.requires_grad_(True)
    if not library and method.towers:
        raise RecipeError(f"{model.spec} holds no parameters to train; wrap it with module=, the network that has them")
    if not parameters and method.towers:
        raise RecipeError(
            f"train = {recipe.train!r}: nothing is left to train with method {method.name!r} and the freezing groups "
            "given; choose another scope or remove a group"
        )
    if recipe.norm == "batch" and world > 1:
        raise RecipeError(
            f"norm = 'batch' takes BatchNorm's statistics from the whole batch, and {world} processes hold a share "
            "each; run one process, or set norm: frozen"
        )
    projection = recipe.train == "projection"
    wanted = {name.removeprefix("frozen_") for name in method.needs} | (set(reads) - set(parameters))
    signals = tuple(name for name in SIGNALS if name in wanted)
    stored = recipe.frozen == "stored"
    fitted = {*signals, *reads} if method.needs_fit else set()
    plan = Plan(
        trunk=frozenset(parameters if projection else ()),
        features=frozenset((set(signals) if stored else set()) | fitted),
    )
    return Scope(
        parameters,
        projection,
        reads,
        plan,
        () if stored else signals,
        modes.choose(model, parameters, recipe),
        adapters,
        _checkpointed(model, list(parameters)) if recipe.gradient_checkpointing else [],
    )


def target_problem(method: Method, recipe: Recipe) -> str:
    """What is wrong between a method and the recipe's target; "" where nothing is."""
    if "target" in method.needs and not recipe.target:
        return (
            f"method {method.name!r} aligns with a target and the recipe names none; add --target SPEC, such as "
            "--target hf:facebook/dinov2-with-registers-large"
        )
    if "target" not in method.needs and recipe.target:
        return f"method {method.name!r} reads no target; remove --target {recipe.target}, or use method kuea"
    return ""


def _names(model: DualEncoder, towers: list[TowerName], train: str) -> dict[TowerName, list[str]]:
    """Tower → the parameters a scope names in it, in the library's order."""
    every = {tower: [name for name, _ in model.named_parameters(tower)] for tower in towers}
    if train == "full":
        return every
    if train in TOWERS:
        return {tower: names for tower, names in every.items() if tower == train}
    if train == "projection":
        return {tower: model.projection_names(tower) for tower in towers}
    if train.startswith("last:"):
        return {tower: _last(model, tower, int(train.removeprefix("last:")), names) for tower, names in every.items()}
    expression = train.removeprefix("match:")
    found = {tower: [n for n in names if re.search(expression, n)] for tower, names in every.items()}
    if not any(found.values()):
        flat = [name for names in every.values() for name in names]
        near = difflib.get_close_matches(expression, (*SCOPES, "last:2"), n=1) or difflib.get_close_matches(
            expression, flat, n=3, cutoff=0.3
        )
        hint = f"did you mean {' or '.join(near)}?" if near else f"the first is {flat[0]!r}"
        raise RecipeError(f"train = {train!r} is no scope and matches none of the {len(flat)} parameters; {hint}")
    return found


def _last(model: DualEncoder, tower: TowerName, count: int, names: list[str]) -> list[str]:
    setting = f"train = 'last:{count}'"
    found = blocks.told(model, tower, setting, "name the parameters by an expression instead")
    if count > len(found.names):
        raise RecipeError(
            f"{setting}: the {tower} tower of {model.spec} has {len(found.names)} blocks; use at most "
            f"last:{len(found.names)}, or train: full"
        )
    return found.last(count, names)


def _checkpointed(model: DualEncoder, towers: list[TowerName]) -> list[nn.Module]:
    told = [blocks.told(model, tower, "gradient_checkpointing", "set it to false") for tower in towers]
    return [module for found in told for module in blocks.modules(model, found)]
