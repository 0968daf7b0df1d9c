"""Linear probes on a few examples a class, over several draws that are the same for every model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.evaluation.linear_probe import PENALTIES, Scale, fit_probe
from modalign.evaluation.splits import draw_shots

SHOTS = (1, 2, 4, 8, 16)
DECADES = PENALTIES[::2]
SEEDS = 5
MOST_VALIDATION = 4
PROTOCOL = (
    "logistic regression on so many pictures a class, drawn by (seed, class), fewer among more; the penalty of 13 "
    f"from 1e-6 to 1e6 chosen on as many others of each class, {MOST_VALIDATION} at most (of equals the lowest log "
    "loss), which are not learned from"
)


@dataclass(frozen=True)
class FewShot:
    """What probes on so many examples a class did.

    Attributes:
        shots: examples a class.
        outcomes: S×N zeros and ones, a row a draw.
        penalties: S, chosen.
    """

    shots: int
    outcomes: NDArray[np.float64]
    penalties: tuple[float, ...]

    @property
    def accuracies(self) -> list[float]:
        """The accuracy of each draw."""
        return [float(value) for value in self.outcomes.mean(1)]

    @property
    def deviation(self) -> float:
        """The standard deviation of the draws' accuracies (S − 1); 0 for one draw."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.outcomes) > 1 else 0.0


def few_shot(
    features: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    scale: Scale = "unit",
    penalties: Sequence[float] = DECADES,
    groups: Tensor | None = None,
) -> list[FewShot]:
    """Probes on a few examples a class.

    The draws depend on the seed and the labels alone: two models' outcomes are paired example by example, draw by draw.

    Args:
        features: N×d, raw, to draw from.
        labels: N class numbers.
        test: M×d, raw.
        test_labels: M class numbers.
        classes: C.
        shots: how many examples a class; a class that has fewer gives all.
        seeds: how many draws of each.
        scale: as in `fit_probe`.
        penalties: likewise.
        groups: N ids of the pictures; none is drawn twice.

    Returns:
        One `FewShot` for each of `shots`.
    """
    found = []
    for count in shots:
        rows, chosen = [], []
        for seed in range(seeds):
            learn, validate = draw_shots(labels, count, min(count, MOST_VALIDATION), seed, groups)
            rows_used = torch.cat([learn, validate])
            probe = fit_probe(
                features[rows_used],
                labels[rows_used],
                classes,
                validation=torch.arange(len(rows_used)) >= len(learn),
                scale=scale,
                penalties=penalties,
                refit=False,
            )
            rows.append(probe.outcomes(test, test_labels, ks=(1,))["acc1"])
            chosen.append(float(probe.notes["penalty"]))
        found.append(FewShot(count, np.stack(rows), tuple(chosen)))
    return found
