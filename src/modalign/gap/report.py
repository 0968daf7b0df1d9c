"""What `measure` gives: every gap measure of one set of pairs, each with its interval, as a record that JSON holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

FORMAT = "modalign.gap/2"

GROUPS: dict[str, dict[str, str]] = {
    "the gap": {
        "raw_gap": "√E‖x−t‖²; 0 = every pair coincides",
        "centroid_gap": "‖μx−μt‖; 0 = same centre",
        "distribution_gap": "√E‖(x−μx)−(t−μt)‖²; what centring leaves",
        "shape_gap": "√tr(Sx+St−2(Sx^½StSx^½)^½), Bures; 0 = same covariance",
        "centroid_gap_scale_free": "centroid gap / √(mean variance); 0 = same centre",
        "distribution_gap_scale_free": "distribution gap² / (trSx+trSt); 0 = identical, 1 = uncorrelated pairs",
        "shape_gap_scale_free": "shape gap² / (trSx+trSt); 0 = same covariance",
        "relative_modality_gap": "G_raw² / (G_raw² + variance); ½ = pairs as far apart as strangers",
    },
    "telling and mixing": {
        "separability": "held-out accuracy of a linear probe; 0.5 = cannot tell images from captions",
        "knn_mixing": "other modality among 10 neighbours, over its expectation; 0 = never, 1 = as by chance",
        "mutual_knn": "share of 10 neighbours that both modalities agree on",
        "cka": "centred kernel alignment, linear; 1 = same geometry up to rotation and scale",
        "hubness_image_to_text": "skew of how often a caption is among a picture's 10 nearest; above 1 = hubs",
        "hubness_text_to_image": "skew of how often a picture is among a caption's 10 nearest; above 1 = hubs",
    },
    "spread": {
        "alignment": "E‖x−t‖²; lower is closer",
        "uniformity": "mean exp(−2‖a−b‖²), all pairs of the union; lower is more spread",
        "uniformity_image": "the same among images",
        "uniformity_text": "the same among captions",
        "uniformity_cross": "the same between images and captions",
        "effective_rank_image": "directions that carry the images' variance",
        "effective_rank_text": "directions that carry the captions' variance",
        "participation_ratio_image": "(Σλ)²/Σλ² of the images: directions with large variance",
        "participation_ratio_text": "(Σλ)²/Σλ² of the captions: directions with large variance",
    },
    "distances of distributions": {
        "frechet_distance": "centroid gap² + shape gap²",
        "symmetric_kl": "KL(x‖t) + KL(t‖x) of Gaussians, nats",
        "mmd_squared": "RBF, median distance, unbiased; 0 = one distribution, at most 2",
        "sliced_wasserstein": "√ mean 1-D W₂² along random directions; 0 = one distribution",
        "published_gap": "‖μx−μt‖²/d, the unit of CLIP-Refine's tables",
    },
}
"""Measures by what they ask, the main ones first; each with its reading."""

READINGS = {name: reading for group in GROUPS.values() for name, reading in group.items()}

SIGNED = frozenset({"mmd_squared", "hubness_image_to_text", "hubness_text_to_image"})
"""The measures that may fall below 0."""


class Measure(float):
    """A number that carries its 95 % interval (None where none was drawn); NaN where it is not available."""

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
        compared: pairs that entered what compares all with all (all, or a seeded subsample).
        resamples: bootstrap resamples behind each interval; 0 = none.
        seed: of all that is drawn.
        shrinkage: how far either covariance was shrunk for the Gaussian measures; None = not at all.
        streamed: whether the moments were taken in one pass, without intervals.
        knn_mixing_null: 2.5 and 97.5 % of the mixing rate with permuted labels.
        unavailable: measure → why it is NaN.
    """

    raw_gap: Measure
    centroid_gap: Measure
    distribution_gap: Measure
    shape_gap: Measure
    centroid_gap_scale_free: Measure
    distribution_gap_scale_free: Measure
    shape_gap_scale_free: Measure
    relative_modality_gap: Measure
    separability: Measure
    knn_mixing: Measure
    mutual_knn: Measure
    cka: Measure
    hubness_image_to_text: Measure
    hubness_text_to_image: Measure
    alignment: Measure
    uniformity: Measure
    uniformity_image: Measure
    uniformity_text: Measure
    uniformity_cross: Measure
    effective_rank_image: Measure
    effective_rank_text: Measure
    participation_ratio_image: Measure
    participation_ratio_text: Measure
    frechet_distance: Measure
    symmetric_kl: Measure
    mmd_squared: Measure
    sliced_wasserstein: Measure
    published_gap: Measure
    pairs: int
    dim: int
    normalized: bool
    compared: int
    resamples: int
    seed: int
    shrinkage: tuple[float, float] | None = None
    streamed: bool = False
    knn_mixing_null: tuple[float, float] | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def measures(self) -> dict[str, Measure]:
        """Name → measure, in the order of the table."""
        return {name: getattr(self, name) for name in READINGS}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        facts = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in READINGS}
        for name in ("shrinkage", "knn_mixing_null"):
            facts[name] = facts[name] and list(facts[name])
        facts["unavailable"] = dict(self.unavailable)
        return {"format": FORMAT, **facts, "measures": {name: m.to_dict() for name, m in self.measures.items()}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> GapReport:
        """Reads what `to_dict` wrote, of format 1 too: what that did not measure is NaN."""
        facts = {item.name: stored[item.name] for item in fields(cls) if item.name in stored}
        for name in ("shrinkage", "knn_mixing_null"):
            facts[name] = tuple(facts[name]) if facts.get(name) else None
        known = stored["measures"]
        measures: dict[str, Any] = {
            name: Measure.from_dict(known[name]) if name in known else Measure(math.nan) for name in READINGS
        }
        missing = {name: "not measured when this was written" for name in READINGS if name not in known}
        facts["unavailable"] = {**facts.get("unavailable", {}), **missing}
        return cls(**measures, **facts)

    def changes_to(self, after: GapReport) -> dict[str, GapChange]:
        """Each measure's change to a report on the same pairs, without intervals: those need the features."""
        ends = {name: (value.value, after.measures[name].value) for name, value in self.measures.items()}
        return {name: GapChange(start, end, end - start, None) for name, (start, end) in ends.items()}

    def to_table(self) -> list[list[str]]:
        """Rows of text: measure, value, 95 % interval, reading; the first row is the header."""
        rows = [["measure", "value", "95 % interval", "reading"]]
        for name, m in self.measures.items():
            interval = "" if m.interval is None else f"{m.interval[0]:.4g} … {m.interval[1]:.4g}"
            value = "–" if name in self.unavailable else f"{m.value:.4g}"
            rows.append([name.replace("_", " "), value, interval, self.reading(name)])
        return rows

    def reading(self, name: str) -> str:
        """What a measure means here: why there is none, or how to read it."""
        if name in self.unavailable:
            return f"not available: {self.unavailable[name]}"
        if name == "knn_mixing" and self.knn_mixing_null is not None:
            low, high = self.knn_mixing_null
            return f"{READINGS[name]} ({low:.3f} … {high:.3f} with permuted labels)"
        return READINGS[name]

    def table(self) -> str:
        """The table as aligned plain text, one block a group, the protocol below it."""
        header, *rows = self.to_table()
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

        def line(row: list[str]) -> str:
            return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

        lines, left = [line(header)], iter(rows)
        for title, group in GROUPS.items():
            lines += ["", title.upper(), *(line(next(left)) for _ in group)]
        return "\n".join([*lines, "", self.protocol])

    @property
    def protocol(self) -> str:
        """One line: pairs, width, normalisation, subsample, shrinkage, resamples, seed."""
        told = [f"{self.pairs:,} pairs × {self.dim}, {'unit length' if self.normalized else 'as given'}"]
        if self.streamed:
            told.append("moments of all pairs in one pass, without intervals")
        if 0 < self.compared < self.pairs:
            mmd = "" if self.streamed else ", MMD² on all by random features"
            told.append(f"what compares all with all on {self.compared:,} of them{mmd}")
        if self.shrinkage is not None:
            told.append(f"covariances shrunk by {self.shrinkage[0]:.3g} and {self.shrinkage[1]:.3g}")
        return "; ".join([*told, f"{self.resamples:,} resamples, seed {self.seed}"])


@dataclass(frozen=True)
class GapChange:
    """One measure before and after, with a paired interval of the difference (None where none was drawn)."""

    before: float
    after: float
    difference: float
    interval: tuple[float, float] | None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(stored: float | None) -> float:
    return math.nan if stored is None else float(stored)
