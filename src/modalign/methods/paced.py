"""Methods whose aligning terms come in along a curriculum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, get_args

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from modalign.embeddings import Embeddings
from modalign.errors import RecipeError
from modalign.methods.base import Diagnosis, Method
from modalign.objectives.kernels import AnyKernel
from modalign.objectives.validation import require_choice, require_range
from modalign.training.curriculum import PRESETS, Curriculum, OnConflict, Phase, Shape, base_strength

AnyPhase = Phase | tuple[float, float, float] | tuple[float, float, float, Shape]


def _phase(given: Any) -> Phase:
    """One phase as a recipe writes it: a mapping or a list."""
    try:
        phase = given if isinstance(given, Phase) else Phase(**given) if isinstance(given, Mapping) else Phase(*given)
    except TypeError:  # an unknown key, one too few, no list
        phase = None
    shapes = get_args(Shape)
    if phase is None or phase.shape not in shapes or not all(map(_is_number, (phase.share, phase.start, phase.end))):
        told = f"write {{share: 0.5, start: 0, end: 1, shape: linear}}; a shape is {', '.join(shapes)}"
        raise ValueError(f"{given!r} is no phase; {told}")
    return phase


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _readable(given: Any) -> Any:
    """Refuses what no phases can be read from: pydantic would tell of every type that it tried."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list | tuple):
        raise ValueError(f"write {', '.join(PRESETS)}, or a list such as [{{share: 1, start: 0, end: 1}}]")
    for phase in given:
        _phase(phase)
    return given


@dataclass(kw_only=True)
class Paced(Method):
    """Base of the methods on a curriculum: it holds α and says how a conflict of gradients changes it.

    Args:
        alpha_target: α_target, what the strength of the aligning terms rises to; 0 leaves them out.
        phases: "anchor-ramp-stabilise", "article", "constant", or a list of (share of the steps, start, end, shape),
            start and end as shares of α_target and shape "linear", "cosine" or "smoothstep".
        on_conflict: what a conflict between the aligning and the base terms' gradients changes: "strength",
            "learning_rate", "project", or "ignore" (see `Curriculum`).
        conflict_every: K, the gradients are compared at every K-th step.
        ratio_max: ρ_max, above which the aligning gradient is too large beside the base one.
        cosine_min: c_min, below which the two gradients conflict.
        kappa_min: κ_min, the factor at opposite gradients.
    """

    _largest: ClassVar[float] = 1.0

    alpha_target: float = 0.05
    phases: Annotated[str | Sequence[AnyPhase], BeforeValidator(_readable)] = "anchor-ramp-stabilise"
    on_conflict: OnConflict = "strength"
    conflict_every: int = 1
    ratio_max: float = 1.0
    cosine_min: float = -0.2
    kappa_min: float = 0.1

    def __post_init__(self) -> None:
        require_range("alpha_target", self.alpha_target, 0, self._largest)
        require_choice("on_conflict", self.on_conflict, get_args(OnConflict))
        require_range("conflict_every", self.conflict_every, 1)
        require_range("ratio_max", self.ratio_max, 0, open_low=True)
        require_range("cosine_min", self.cosine_min, -1, 1, open_low=True)
        require_range("kappa_min", self.kappa_min, 0, 1)
        if isinstance(self.phases, str):
            require_choice("phases", self.phases, tuple(PRESETS))
        phases = PRESETS[self.phases] if isinstance(self.phases, str) else tuple(map(_phase, self.phases))
        self._own = Curriculum(
            self.alpha_target,
            phases,
            on_conflict=self.on_conflict,
            every=self.conflict_every,
            ratio_max=self.ratio_max,
            cosine_min=self.cosine_min,
            kappa_min=self.kappa_min,
        )
        self.curriculum = self._own

    def strength(self, embeddings: Embeddings, progress: float) -> float:
        """α of one step: the batch's, or what the phases plan where it names none."""
        if embeddings.strength is not None:
            return embeddings.strength
        return self.alpha_target * base_strength(self._own.phases, progress)

    def module(self) -> nn.Module | None:
        """The curriculum, which remembers gradients and α; it has no parameters."""
        return self._own


@dataclass(kw_only=True)
class OnCurriculum(Paced):
    """Any method with some of its terms on a curriculum.

        L = Σ base terms + α(t)·Σ aligning terms

    Args:
        method: the method; its weights stay its own.
        aligning: the names of its aligning terms; none = those that the method itself calls so (CLIP-Refine's "rafa",
            KUEA's "kernel").
        alpha_target: α_target; at 1 the method ends as it is alone, unless conflicting gradients hold it back. The
            other fields are `Paced`'s.
    """

    name: ClassVar[str] = "curriculum"
    __pydantic_config__: ClassVar[Any] = {"arbitrary_types_allowed": True}
    _largest: ClassVar[float] = math.inf

    method: Method
    aligning: Sequence[str] = ()
    alpha_target: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method.curriculum is not None:
            raise ValueError(f"{self.method.name} is on a curriculum of its own already; name another method")
        self.aligning = tuple(self.aligning) or self.method.aligning_terms
        if not self.aligning:
            raise ValueError(f"aligning is empty and {self.method.name} names no terms as aligning; list at least one")
        self.towers = self.method.towers
        self.weight_anchor = self.method.weight_anchor
        self.needs_logit_bias = self.method.needs_logit_bias
        self.fewest_rows = self.method.fewest_rows

    @property
    def needs(self) -> frozenset[str]:
        """What the method needs."""
        return self.method.needs

    @property
    def needs_fit(self) -> bool:
        """Whether the method is to be fitted."""
        return self.method.needs_fit

    def fit(self, features: Mapping[str, Tensor]) -> None:
        """Fits the method."""
        self.method.fit(features)

    def draw(self, seed: int, step: int, rows: int, dim: int) -> dict[str, Tensor]:
        """The method's own draws."""
        return self.method.draw(seed, step, rows, dim)

    def effective_logit_scale(self, embeddings: Embeddings) -> float | None:
        """The method's."""
        return self.method.effective_logit_scale(embeddings)

    def diagnose(self, embeddings: Embeddings) -> Diagnosis:
        """What the method says."""
        return self.method.diagnose(embeddings)

    def stand_in(self, target: Tensor) -> Tensor | None:
        """The method's."""
        return self.method.stand_in(target)

    def kernels(self, target: Tensor) -> tuple[AnyKernel, AnyKernel] | None:
        """The method's."""
        return self.method.kernels(target)

    def module(self) -> nn.Module | None:
        """The curriculum, and the method's own parameters."""
        own = self.method.module()
        return self._own if own is None else nn.ModuleDict({"curriculum": self._own, "method": own})

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        """The method's terms, the aligning ones times α; without them while α is 0."""
        strength, terms = self.strength(embeddings, progress), self._known(embeddings, progress)
        base = {name: term for name, term in terms.items() if name not in self.aligning}
        if strength == 0:
            return base
        return {name: base[name] if name in base else strength * term for name, term in terms.items()}

    def parts(self, embeddings: Embeddings, progress: float) -> tuple[Tensor | None, Tensor | None]:
        """Both sums, unweighted by α."""
        terms = self._known(embeddings, progress)
        base = [term for name, term in terms.items() if name not in self.aligning]
        aligning = [terms[name] for name in self.aligning]
        return torch.stack(base).sum() if base else None, torch.stack(aligning).sum()

    def _known(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        terms = self.method.terms(embeddings, progress)
        if unknown := [name for name in self.aligning if name not in terms]:
            raise RecipeError(
                f"method.aligning names {unknown[0]!r}, which {self.method.name} does not compute with these weights; "
                f"use some of {', '.join(terms)}",
                keys=["method.aligning"],
            )
        return terms
