"""How strongly the aligning terms of a method act as training goes on: phases, held back where gradients conflict.

    α(t) = min(planned(t)·κ(t), α(t−1) + δ),   planned(t) = α_target·(the phases' share at t)
    δ = 2·α_target / ramp steps

κ compares the aligning terms' gradient with the base terms' at the embeddings, where it costs nothing:

    ρ = ‖g_align‖ / ‖g_base‖,   c = cos(g_align, g_base),   both as bias-corrected moving averages
    κ = min(1, ρ_max/ρ) · (1 where c ≥ c_min, else 1 − (1 − κ_min)·(c_min − c)/(1 + c_min))

It knows no method and no loop: whoever computes the gradients hands them to `observe`.

Source: a reconstruction of arXiv 2604.00279; the constants are this library's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Shape = Literal["linear", "cosine", "smoothstep"]
OnConflict = Literal["strength", "learning_rate", "project", "ignore"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        share: of the steps.
        start: the strength at its beginning, as a share of α_target.
        end: the strength at its end.
        shape: how it moves from one to the other.
    """

    share: float
    start: float
    end: float
    shape: Shape = "linear"


PRESETS: dict[str, tuple[Phase, ...]] = {
    "anchor-ramp-stabilise": (Phase(0.2, 0, 0), Phase(0.5, 0, 1), Phase(0.3, 1, 1)),
    # The article names three phases and the 0.2 between the last two; how long each lasts is this library's choice.
    "article": (Phase(0.2, 0, 0), Phase(0.3, 0, 0.2), Phase(0.5, 0.2, 1)),
    "constant": (Phase(1, 1, 1),),
}


def base_strength(phases: Sequence[Phase], progress: float) -> float:
    """The phases' strength at one moment, as a share of α_target.

    Args:
        phases: their shares sum to 1.
        progress: (step counted from 1) / steps, in (0, 1]; a first phase of share 0.2 ends at 0.2.

    Returns:
        Between 0 and 1.
    """
    begin = 0.0
    for number, phase in enumerate(phases):
        end = 1.0 if number == len(phases) - 1 else begin + phase.share
        if progress <= end + 1e-12:
            part = min(1.0, (progress - begin) / (end - begin)) if end > begin else 1.0
            return phase.start + (phase.end - phase.start) * _risen(phase.shape, part)
        begin = end
    return phases[-1].end


def _risen(shape: Shape, part: float) -> float:
    if shape == "cosine":
        return (1 - math.cos(math.pi * part)) / 2
    if shape == "smoothstep":
        return part * part * (3 - 2 * part)
    return part


def check_phases(phases: Sequence[Phase]) -> None:
    """Refuses phases that are no plan of a run.

    Raises:
        ValueError: shares that are negative or do not sum to 1, or a strength outside 0 … 1.
    """
    if not phases:
        raise ValueError("phases is empty; give at least one, such as {share: 1, start: 0, end: 1}")
    for phase in phases:
        if not phase.share >= 0 or not all(0 <= value <= 1 for value in (phase.start, phase.end)):  # nan too
            raise ValueError(f"{phase}: a share is ≥ 0, start and end are shares of alpha_target between 0 and 1")
    total = sum(phase.share for phase in phases)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the phases' shares sum to {total:g}; they must sum to 1")


def ramp_share(phases: Sequence[Phase]) -> float:
    """The share of the steps in which the strength moves."""
    return sum(phase.share for phase in phases if phase.start != phase.end)


def hold_back(
    ratio: float, cosine: float, *, ratio_max: float = 1.0, cosine_min: float = -0.2, kappa_min: float = 0.1
) -> float:
    """κ: 1 where the aligning gradient is neither larger than the base one nor against it, less otherwise.

    Args:
        ratio: ρ = ‖g_align‖ / ‖g_base‖.
        cosine: c, between −1 and 1.
        ratio_max: ρ_max.
        cosine_min: c_min, from where on a conflict counts.
        kappa_min: what the second factor falls to at c = −1.

    Returns:
        κ in [0, 1].
    """
    size = min(1.0, ratio_max / ratio) if ratio > 0 else 1.0
    conflict = 1.0 if cosine >= cosine_min else 1 - (1 - kappa_min) * (cosine_min - cosine) / (1 + cosine_min)
    return size * conflict


class Curriculum(nn.Module):
    """The strength α(t) and what it remembers; its buffers are checkpointed, so that a resumed run goes on exactly.

    What a conflict changes (`on_conflict`):

    - "strength": α, through κ.
    - "learning_rate": the rate of every group of parameters (a block of a tower) in which the two gradients conflict,
      through the second factor of κ; α follows the phases. It costs one more backward pass at every measured step.
    - "project": the aligning gradient at the embeddings loses its component against the base gradient. This is the
      half of PCGrad (arXiv 2001.06782) that protects the base terms: the other half takes the conflicting part out of
      the base gradient however small α is.
    - "ignore": nothing; no gradient is measured.

    Args:
        target: α_target.
        phases: the plan.
        on_conflict: as above.
        every: K, gradients are measured at every K-th step ("project" acts at those steps alone).
        decay: of the moving averages of ρ and c.
        ratio_max: ρ_max.
        cosine_min: c_min.
        kappa_min: κ_min.
    """

    average: Tensor
    seen: Tensor
    last: Tensor
    moment: Tensor
    steps: Tensor
    group_average: Tensor
    group_seen: Tensor

    def __init__(
        self,
        target: float,
        phases: Sequence[Phase],
        *,
        on_conflict: OnConflict = "strength",
        every: int = 1,
        decay: float = 0.9,
        ratio_max: float = 1.0,
        cosine_min: float = -0.2,
        kappa_min: float = 0.1,
    ) -> None:
        super().__init__()
        check_phases(phases)
        self.target, self.phases, self.on_conflict, self.every = target, tuple(phases), on_conflict, every
        self.decay = decay
        self.limits = {"ratio_max": ratio_max, "cosine_min": cosine_min, "kappa_min": kappa_min}
        self.groups: tuple[str, ...] = ()
        self._buffer("average", 2)  # of ρ and c, not yet bias-corrected
        self._buffer("seen")  # the weight the averages have gathered
        self._buffer("last")  # α of the step before
        self._buffer("moment")  # progress at the step before
        self._buffer("steps")  # taken so far

    def _buffer(self, name: str, *shape: int) -> None:
        self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @property
    def strength(self) -> float:
        """α of the latest step, 0 before the first."""
        return float(self.last)

    @property
    def due(self) -> bool:
        """Whether the next step's gradients are to be measured."""
        return self.on_conflict != "ignore" and self.target > 0 and int(self.steps) % self.every == 0

    def planned(self, progress: float) -> float:
        """α of the next step if no gradient conflicts.

        Args:
            progress: (step counted from 1) / steps.
        """
        return self._limited(self.target * base_strength(self.phases, progress), progress)

    def _limited(self, wanted: float, progress: float) -> float:
        ramp = ramp_share(self.phases)
        rise = 2 * self.target * max(0.0, progress - float(self.moment)) / ramp if ramp > 0 else math.inf
        return min(wanted, float(self.last) + rise, self.target)

    def observe(self, aligning: Tensor, base: Tensor) -> None:
        """Takes in both gradients at the embeddings; one that is zero says nothing and is passed over.

        Args:
            aligning: the aligning terms' gradient, flat.
            base: the base terms' gradient, flat.
        """
        a, b = float(aligning.norm()), float(base.norm())
        if a == 0 or b == 0:
            return
        now = torch.tensor([a / b, float(aligning @ base) / (a * b)], dtype=torch.float64)
        self.average.mul_(self.decay).add_((1 - self.decay) * now.to(self.average.device))
        self.seen.mul_(self.decay).add_(1 - self.decay)

    def advance(self, progress: float) -> dict[str, float]:
        """Moves to one step's strength.

        Args:
            progress: (step counted from 1) / steps.

        Returns:
            "alpha", "planned", "kappa", and "ratio" and "cosine" once gradients were observed: a line of the log.
        """
        planned = self.target * base_strength(self.phases, progress)
        kappa, told = 1.0, dict[str, float]()
        if float(self.seen) > 0:
            ratio, cosine = (self.average / self.seen).tolist()
            told = {"ratio": ratio, "cosine": cosine}
            if self.on_conflict == "strength":
                kappa = hold_back(ratio, cosine, **self.limits)
        alpha = self._limited(planned * kappa, progress)
        self.last.fill_(alpha)
        self.moment.fill_(progress)
        self.steps.add_(1)
        return {"alpha": alpha, "planned": planned, "kappa": kappa, **told}

    # ---- on_conflict = "learning_rate" ------------------------------------------------------------------------------

    def watch(self, groups: Sequence[str]) -> None:
        """Names the groups of parameters whose gradients will be compared, before a checkpoint is read."""
        self.groups = tuple(groups)
        self._buffer("group_average", len(groups))
        self._buffer("group_seen", len(groups))
        self.group_average, self.group_seen = (t.to(self.last.device) for t in (self.group_average, self.group_seen))

    def observe_groups(self, cosines: Mapping[str, float]) -> None:
        """Takes in the cosine of both gradients in each group; one that has none (a gradient of 0) is passed over."""
        for number, group in enumerate(self.groups):
            if group in cosines:
                self.group_average[number].mul_(self.decay).add_((1 - self.decay) * cosines[group])
                self.group_seen[number].mul_(self.decay).add_(1 - self.decay)

    def rates(self) -> dict[str, float]:
        """What multiplies each group's learning rate: 1 without a conflict."""
        averages, seen = self.group_average.tolist(), self.group_seen.tolist()
        return {
            group: hold_back(0.0, average / weight, **self.limits) if weight > 0 else 1.0
            for group, average, weight in zip(self.groups, averages, seen, strict=True)
        }
