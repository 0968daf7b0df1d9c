"""`measure`: every gap measure of one set of pairs, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.errors import DataError
from modalign.gap.resampling import PAIRS_COMPARED, PairMeasures, bootstrap_weights

FORMAT = "modalign.gap/1"

READINGS = {
    "raw_gap": "√E‖x−t‖²; 0 = every pair coincides",
    "centroid_gap": "‖μx−μt‖; 0 = same centre",
    "distribution_gap": "√E‖(x−μx)−(t−μt)‖²; what centring leaves",
    "centroid_gap_scale_free": "centroid gap / √(mean variance); 0 = same centre",
    "distribution_gap_scale_free": "distribution gap² / (trSx+trSt); 0 = identical, 1 = uncorrelated pairs",
    "alignment": "E‖x−t‖²; lower is closer",
    "uniformity": "mean exp(−2‖a−b‖²), all pairs of the union; lower is more spread",
    "published_gap": "‖μx−μt‖²/d, the unit of CLIP-Refine's tables",
    "effective_rank_image": "directions that carry the images' variance",
    "effective_rank_text": "directions that carry the captions' variance",
    "separability": "held-out accuracy of a linear probe; 0.5 = cannot tell images from captions",
}


class FeatureError(DataError, ValueError):
    """Features that cannot be measured; a `ValueError` too, as an argument that is wrong."""


class Measure(float):
    """A number that carries its 95 % interval (None where no resamples were drawn)."""

    interval: tuple[float, float] | None

    def __new__(cls, value: float, interval: tuple[float, float] | None = None) -> Measure:
        """A float with an interval beside it."""
        measure = super().__new__(cls, value)
        measure.interval = interval
        return measure

    @property
    def value(self) -> float:
        """The plain number."""
        return float(self)

    def to_dict(self) -> dict[str, Any]:
        """{"value", "interval"}; what is not finite becomes null."""
        interval = None if self.interval is None else [_finite(end) for end in self.interval]
        return {"value": _finite(self), "interval": interval}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Measure:
        """Reads what `to_dict` wrote; null becomes NaN."""
        low_high = stored["interval"]
        return cls(_number(stored["value"]), None if low_high is None else (_number(low_high[0]), _number(low_high[1])))


@dataclass(frozen=True)
class GapReport:
    """The gap measures of one set of pairs (docs/gap.md tells how to read each).

    Attributes:
        pairs: N.
        dim: d.
        normalized: whether rows were scaled to unit length first.
        compared: pairs that entered uniformity and separability (all, or a seeded subsample).
        resamples: bootstrap resamples behind each interval; 0 = none.
        seed: of the probe's cut, the subsample and the resamples.
    """

    raw_gap: Measure
    centroid_gap: Measure
    distribution_gap: Measure
    centroid_gap_scale_free: Measure
    distribution_gap_scale_free: Measure
    alignment: Measure
    uniformity: Measure
    published_gap: Measure
    effective_rank_image: Measure
    effective_rank_text: Measure
    separability: Measure
    pairs: int
    dim: int
    normalized: bool
    compared: int
    resamples: int
    seed: int

    @property
    def measures(self) -> dict[str, Measure]:
        """Name → measure, in the order of the table."""
        return {name: getattr(self, name) for name in READINGS}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        facts = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in READINGS}
        return {"format": FORMAT, **facts, "measures": {name: m.to_dict() for name, m in self.measures.items()}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> GapReport:
        """Reads what `to_dict` wrote."""
        facts = {item.name: stored[item.name] for item in fields(cls) if item.name not in READINGS}
        measures: dict[str, Any] = {name: Measure.from_dict(stored["measures"][name]) for name in READINGS}
        return cls(**measures, **facts)

    def to_table(self) -> list[list[str]]:
        """Rows of text: measure, value, 95 % interval, reading; the first row is the header."""
        rows = [["measure", "value", "95 % interval", "reading"]]
        for name, m in self.measures.items():
            interval = "" if m.interval is None else f"{m.interval[0]:.4g} … {m.interval[1]:.4g}"
            rows.append([name.replace("_", " "), f"{m.value:.4g}", interval, READINGS[name]])
        return rows

    def table(self) -> str:
        """The table as aligned plain text, the protocol below it."""
        rows = self.to_table()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, self.protocol])

    @property
    def protocol(self) -> str:
        """One line: pairs, width, normalisation, subsample, resamples, seed."""
        length = "unit length" if self.normalized else "as given"
        part = "" if self.compared == self.pairs else f"; uniformity and separability on {self.compared:,} of them"
        return f"{self.pairs:,} pairs × {self.dim}, {length}{part}; {self.resamples:,} resamples, seed {self.seed}"


@dataclass(frozen=True)
class GapChange:
    """One measure before and after, with a paired interval of the difference (None without resamples)."""

    before: float
    after: float
    difference: float
    interval: tuple[float, float] | None


Features = Tensor | NDArray[Any]


def measure(
    image: Features, text: Features, *, normalize: bool = True, seed: int = 0, resamples: int = 1_000
) -> GapReport:
    """Measures the gap between paired image and text features, in float64.

    G_raw² = E‖x−t‖² = ‖μx−μt‖² + E‖(x−μx)−(t−μt)‖² = G_C² + G_D², with 1/N means and covariances; the other measures
    are given in `READINGS` and docs/gap.md. Intervals are percentiles of a bootstrap over pairs, shifted by
    the bootstrap's own bias; the order of the pairs does not matter.

    Args:
        image: N×d, raw or unit; row i belongs to row i of `text`.
        text: N×d, raw or unit.
        normalize: scale every row to unit length first.
        seed: of the probe's cut, the subsample beyond 5,000 pairs and the resamples.
        resamples: bootstrap resamples; 0 gives no intervals.

    Returns:
        A `GapReport`.

    Raises:
        FeatureError: (a `DataError` and a `ValueError`) shapes that differ, fewer than 3 pairs, NaN or infinite
            numbers, zero rows that cannot be normalised.

    Source: arXiv 2604.00279 (decomposition), 2203.02053 (centroid gap), 2504.12717 (published gap, alignment,
        uniformity), Roy and Vetterli 2007 (effective rank).
    """
    x, t = _checked(image, text, normalize)
    order = _order(x, t)
    pairs = PairMeasures(x[order], t[order], seed)
    drawn = _drawn([pairs], resamples, seed)[0]
    measures: dict[str, Any] = {}
    for name, value in pairs.values().items():
        interval = _interval(drawn[name], value) if resamples else None
        # No measure can be negative; the shift by the bias could make the lower end so.
        measures[name] = Measure(value, interval and (max(0.0, interval[0]), interval[1]))
    return GapReport(
        **measures,
        pairs=pairs.count,
        dim=pairs.dim,
        normalized=normalize,
        compared=min(pairs.count, PAIRS_COMPARED),
        resamples=resamples,
        seed=seed,
    )


def change(
    before: tuple[Features, Features],
    after: tuple[Features, Features],
    *,
    normalize: bool = True,
    seed: int = 0,
    resamples: int = 1_000,
) -> dict[str, GapChange]:
    """Each measure's change on the same pairs, after − before, with a paired bootstrap interval.

    Args:
        before: image and text features, N×d each.
        after: image and text features of the same pairs in the same order, N×d' each.
        normalize: as in `measure`.
        seed: as in `measure`.
        resamples: as in `measure`; each resample draws the same pairs on both sides.

    Returns:
        Name → `GapChange`.

    Raises:
        FeatureError: as `measure`, and when the numbers of pairs differ.
    """
    x, t = _checked(*before, normalize)
    y, u = _checked(*after, normalize)
    if len(x) != len(y):
        raise FeatureError(f"before has {len(x):,} pairs, after has {len(y):,}: measure both on the same pairs")
    order = _order(x, t)
    sides = [PairMeasures(x[order], t[order], seed), PairMeasures(y[order], u[order], seed)]
    drawn = _drawn(sides, resamples, seed)
    first, second = (side.values() for side in sides)
    changes = {}
    for name, start in first.items():
        difference = second[name] - start
        interval = _interval(drawn[1][name] - drawn[0][name], difference) if resamples else None
        changes[name] = GapChange(start, second[name], difference, interval)
    return changes


def _checked(image: Features, text: Features, normalize: bool) -> tuple[Tensor, Tensor]:
    x, t = (torch.as_tensor(features).detach().to("cpu", torch.float64) for features in (image, text))
    if x.ndim != 2 or x.shape != t.shape:
        raise FeatureError(
            f"image features {tuple(x.shape)} and text features {tuple(t.shape)} must both be N×d: pass one row a pair"
        )
    if len(x) < 3:
        raise FeatureError(f"{len(x)} pairs are too few to measure a gap: pass at least 3")
    for name, features in (("image", x), ("text", t)):
        bad = (~features.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            raise FeatureError(f"{name} features hold NaN or infinity in {_rows(bad)}: remove these pairs")
        bad = (features == 0).all(1).nonzero().flatten().tolist() if normalize else []
        if bad:
            raise FeatureError(f"{name} features are zero in {_rows(bad)}: remove these pairs, or pass normalize=False")
    if normalize:
        x, t = (torch.nn.functional.normalize(features, dim=1, eps=0.0) for features in (x, t))
    return x, t


def _order(image: Tensor, text: Tensor) -> Tensor:
    """The pairs sorted by their distance: what is drawn by seed then depends on no row order and on no rotation."""
    return (image - text).square().sum(1).argsort(stable=True)


def _drawn(sides: list[PairMeasures], resamples: int, seed: int) -> list[dict[str, NDArray[np.float64]]]:
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


def _rows(rows: list[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:5])
    return f"row {shown}" if len(rows) == 1 else f"{len(rows):,} rows ({shown}{', …' if len(rows) > 5 else ''})"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(stored: float | None) -> float:
    return math.nan if stored is None else float(stored)
