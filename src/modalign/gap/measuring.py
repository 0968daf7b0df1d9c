"""`measure` and `compare`: the gap of one set of pairs, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.gap.collapse import collapse
from modalign.gap.features import FeatureError, Features, checked, enough
from modalign.gap.gaussian_pair import Shrinkage
from modalign.gap.modalities import GapMatrix
from modalign.gap.report import SIGNED, GapChange, GapReport, Measure
from modalign.gap.resampling import PairMeasures, bootstrap_weights

Draws = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class GapComparison:
    """The gap before and after on the same pairs.

    Attributes:
        before: the report before.
        after: the report after, on the same pairs, subsample and splits.
        change: name → after − before, with a paired interval.
        collapse: a warning where features only drew together; None = no sign of it.
    """

    before: GapReport
    after: GapReport
    change: dict[str, GapChange]
    collapse: str | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "change": {name: asdict(change) for name, change in self.change.items() if _told(change)},
            "collapse": self.collapse,
        }


@overload
def measure(
    image: Features,
    text: Features,
    *,
    normalize: bool = True,
    seed: int = 0,
    resamples: int = 1_000,
    shrinkage: Shrinkage = None,
) -> GapReport: ...
@overload
def measure(
    image: Mapping[str, Features],
    *,
    normalize: bool = True,
    seed: int = 0,
    resamples: int = 1_000,
    shrinkage: Shrinkage = None,
) -> GapMatrix: ...
def measure(
    image: Features | Mapping[str, Features],
    text: Features | None = None,
    *,
    normalize: bool = True,
    seed: int = 0,
    resamples: int = 1_000,
    shrinkage: Shrinkage = None,
) -> GapReport | GapMatrix:
    """Measures the gap between paired image and text features, in float64.

    G_raw² = E‖x−t‖² = ‖μx−μt‖² + E‖(x−μx)−(t−μt)‖² = G_C² + G_D², with 1/N means and covariances; the other measures
    are given in `modalign.gap.report.GROUPS` and docs/gap.md. Intervals are percentiles of a bootstrap over pairs,
    shifted by the bootstrap's own bias; the order of the pairs does not matter.

    Args:
        image: N×d, raw or unit; row i belongs to row i of `text`. Or a dictionary of at least two modalities, name →
            N×d, without `text`.
        text: N×d, raw or unit.
        normalize: scale every row to unit length first.
        seed: of the probe's cut, the directions, the permutations, the subsample beyond 5,000 pairs and the resamples.
        resamples: bootstrap resamples; 0 gives no intervals.
        shrinkage: of the covariances, for shape gap, Fréchet distance and KL: a share in (0, 1] or "ledoit-wolf". None
            shrinks nothing, and these are not available where there are fewer pairs than dimensions.

    Returns:
        A `GapReport`; for a dictionary a `GapMatrix`, with a report for each pair of modalities.

    Raises:
        FeatureError: (a `DataError` and a `ValueError`) shapes that differ, fewer than 3 pairs, NaN or infinite
            numbers, zero rows that cannot be normalised, a shrinkage out of range.

    Source: docs/gap.md names that of each measure; arXiv 2604.00279 (decomposition), 2203.02053 (centroid gap).
    """
    if isinstance(image, Mapping):
        if text is not None or len(image) < 2:
            raise FeatureError(f"{len(image)} modalities in a dictionary: pass two or more, and no text beside it")
        pairs = combinations(image, 2)
        facts: dict[str, Any] = {"normalize": normalize, "seed": seed, "resamples": resamples, "shrinkage": shrinkage}
        return GapMatrix({(a, b): _named(image[a], image[b], a, b, **facts) for a, b in pairs})
    if text is None:
        raise FeatureError("image features without text features: pass both, or a dictionary of modalities")
    return _named(image, text, normalize=normalize, seed=seed, resamples=resamples, shrinkage=shrinkage)


def compare(
    before: tuple[Features, Features],
    after: tuple[Features, Features],
    *,
    normalize: bool = True,
    seed: int = 0,
    resamples: int = 1_000,
    shrinkage: Shrinkage = None,
) -> GapComparison:
    """Measures the gap before and after on the same pairs; says where it fell by collapse alone.

    Args:
        before: image and text features, N×d each.
        after: image and text features of the same pairs in the same order, N×d' each.
        normalize: as in `measure`.
        seed: as in `measure`.
        resamples: as in `measure`; each resample draws the same pairs on both sides.
        shrinkage: as in `measure`.

    Returns:
        Both reports, each measure's change with a paired interval, and the collapse warning if there is one.

    Raises:
        FeatureError: as `measure`, and when the numbers of pairs differ.
    """
    x, t = checked(*before, normalize)
    y, u = checked(*after, normalize)
    if len(x) != len(y):
        raise FeatureError(f"before has {len(x):,} pairs, after has {len(y):,}: measure both on the same pairs")
    enough(len(x), shrinkage)
    order = _order(x, t)
    sides = [PairMeasures(a[order], b[order], seed, shrinkage) for a, b in ((x, t), (y, u))]
    drawn = _drawn(sides, resamples, seed)
    first, second = (_report(side, draws, normalize, seed, resamples) for side, draws in zip(sides, drawn, strict=True))
    changes = {}
    for name, start in first.measures.items():
        difference = second.measures[name].value - start.value
        interval = _interval(drawn[1][name] - drawn[0][name], difference) if resamples else None
        changes[name] = GapChange(start.value, second.measures[name].value, difference, interval)
    return GapComparison(first, second, changes, collapse(changes))


def change(
    before: tuple[Features, Features],
    after: tuple[Features, Features],
    *,
    normalize: bool = True,
    seed: int = 0,
    resamples: int = 1_000,
    shrinkage: Shrinkage = None,
) -> dict[str, GapChange]:
    """Each measure's change on the same pairs, after − before, with a paired bootstrap interval: `compare(…).change`.

    Args:
        before: image and text features, N×d each.
        after: image and text features of the same pairs in the same order, N×d' each.
        normalize: as in `measure`.
        seed: as in `measure`.
        resamples: as in `compare`.
        shrinkage: as in `measure`.

    Returns:
        Name → `GapChange`.

    Raises:
        FeatureError: as `compare`.
    """
    return compare(before, after, normalize=normalize, seed=seed, resamples=resamples, shrinkage=shrinkage).change


def _named(
    image: Features,
    text: Features,
    first: str = "image",
    second: str = "text",
    *,
    normalize: bool,
    seed: int,
    resamples: int,
    shrinkage: Shrinkage,
) -> GapReport:
    x, t = checked(image, text, normalize, (first, second))
    enough(len(x), shrinkage)
    order = _order(x, t)
    pairs = PairMeasures(x[order], t[order], seed, shrinkage)
    return _report(pairs, _drawn([pairs], resamples, seed)[0], normalize, seed, resamples)


def _report(pairs: PairMeasures, drawn: Draws, normalize: bool, seed: int, resamples: int) -> GapReport:
    measures: dict[str, Any] = {}
    for name, value in pairs.values().items():
        interval = _interval(drawn[name], value) if resamples else None
        if interval is not None and name not in SIGNED:
            # The shift by the bias could make the lower end negative.
            interval = (max(0.0, interval[0]), interval[1])
        measures[name] = Measure(value, interval)
    mixing = pairs.compared.mixing
    return GapReport(
        **measures,
        pairs=pairs.count,
        dim=pairs.dim,
        normalized=normalize,
        compared=len(pairs.rows),
        resamples=resamples,
        seed=seed,
        shrinkage=pairs.moments.gaussians.intensities,
        knn_mixing_null=None if mixing is None else mixing.null,
        unavailable=pairs.unavailable,
    )


def _order(image: Tensor, text: Tensor) -> Tensor:
    """The pairs sorted by their distance: what is drawn by seed then depends on no row order and on no rotation."""
    return (image - text).square().sum(1).argsort(stable=True)


def _drawn(sides: list[PairMeasures], resamples: int, seed: int) -> list[Draws]:
    """Each side's resampled measures; a resample weighs the same pairs on every side."""
    chunks: list[list[dict[str, Tensor]]] = [[] for _ in sides]
    for weights in bootstrap_weights(sides[0].count, resamples, seed):
        for side, kept in zip(sides, chunks, strict=True):
            kept.append(side.at(weights))
    return [
        {name: torch.cat([chunk[name] for chunk in kept]).numpy() for name in kept[0]} if kept else {}
        for kept in chunks
    ]


def _interval(drawn: NDArray[np.float64], estimate: float) -> tuple[float, float] | None:
    if not math.isfinite(estimate):
        return None
    # A resampled distance is longer on average than the one it was drawn around (by its own noise): without the shift
    # the interval of a centroid gap of 0 would not hold 0.
    low, high = np.quantile(drawn, [0.025, 0.975]) - (drawn.mean() - estimate)
    return float(low), float(high)


def _told(change: GapChange) -> bool:
    return math.isfinite(change.difference)
