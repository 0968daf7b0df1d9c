"""One set of weights of a sweep: what it scores, and its gap over the gap before, on the same pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalign.errors import DataError
from modalign.evaluation.gate import difference
from modalign.evaluation.pairing import check_comparable
from modalign.evaluation.results import Results
from modalign.gap import FeatureError, Measure, measure
from modalign.gap.features import checked
from modalign.gap.resampling import MomentMeasures, bootstrap_weights
from modalign.sweeping.halves import cut
from modalign.training.checkpoint import write_atomically

FORMAT = "modalign.sweep-checkpoint/1"
RATIOS = (
    "raw_gap",
    "centroid_gap",
    "distribution_gap",
    "shape_gap",
    "centroid_gap_scale_free",
    "distribution_gap_scale_free",
    "shape_gap_scale_free",
)
"""The measures that are told as a share of their value before."""
RESAMPLES = 1_000
Pairs = tuple[Tensor, Tensor]
"""N×d image and text features, raw; row i of both is pair i."""


@dataclass(frozen=True)
class Found:
    """What is computed of one set of weights, as `Checkpoint` names it; `results` where they came from the file."""

    ratios: dict[str, Measure]
    changes: dict[str, Measure]
    half_gaps: dict[str, dict[str, tuple[float, float]]]
    results: Results | None = None


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights.

    Attributes:
        run: the folder of the run it comes from; for a training-free transform its name.
        values: swept key → value.
        seed: of the run.
        weight: 0 = before, 1 = after the run.
        before: the results of the model before.
        results: its own.
        ratios: gap measure → gap / gap before, with a paired bootstrap interval over the pairs.
        changes: metric → after − before, with a paired bootstrap interval over the judged examples.
        half_gaps: "validation" and "test" → gap measure → (before, here) on the pairs of that half.
    """

    run: Path
    values: Mapping[str, Any]
    seed: int
    weight: float
    before: Results
    results: Results
    ratios: Mapping[str, Measure]
    changes: Mapping[str, Measure]
    half_gaps: Mapping[str, Mapping[str, tuple[float, float]]]

    @property
    def name(self) -> str:
        """In words."""
        if self.weight == 0:
            return "before"
        return self.run.name if self.weight == 1 else f"{self.run.name} at weight {self.weight:g}"

    @property
    def gap(self) -> dict[str, float]:
        """Gap measure → value, those that are available."""
        known = (self.results.gap or {}).get("measures", {})
        return {name: told["value"] for name, told in known.items() if told["value"] is not None}


def judge(
    before: Results, results: Results, start: Pairs, pairs: Pairs, *, resamples: int = 10_000, seed: int = 0
) -> Found:
    """Sets one model's results beside those of the model before.

    Args:
        before: of the model before.
        results: of this one, on the same tasks.
        start: the pairs that the gap is measured on, of the model before.
        pairs: the same pairs of this one.
        resamples: behind the intervals of metrics.
        seed: of the resamples.
    """
    check_comparable(before, results)
    # A model compared with itself has changed on no example, nor on those unseen.
    same = before.model.get("fingerprint") == results.model.get("fingerprint")
    changes = {}
    for (name, first), second in zip(before.metrics.items(), results.metrics.values(), strict=True):
        moved = difference(first, second, resamples=resamples, seed=seed)
        changes[name] = Measure(0.0, (0.0, 0.0)) if same else Measure(moved.estimate, (moved.low, moved.high))
    return Found(normalised(start, pairs, seed=seed), changes, _half_gaps(results, start, pairs))


def normalised(before: Pairs, after: Pairs, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Measure]:
    """Each gap over the gap before, with a paired bootstrap interval: a resample draws the same pairs on both sides.

    Args:
        before: N×d features of the pairs.
        after: N×d' features of the same pairs.
        seed: of the resamples.
        resamples: how many.

    Returns:
        Measure → after / before; a measure that is 0 or not available before is left out.
    """
    sides = [MomentMeasures(*checked(image, text, True), None) for image, text in (before, after)]
    whole = torch.full((1, len(before[0])), 1 / len(before[0]), dtype=torch.float64)
    first, last = (side.at(whole) for side in sides)
    drawn = [
        [side.at(weights) for side in sides] for weights in bootstrap_weights(len(before[0]), resamples, seed=seed)
    ]
    ratios = {}
    for name in RATIOS:
        start, end = float(first[name]), float(last[name])
        if not (start > 1e-12 and np.isfinite(end)):
            continue
        many = np.concatenate([(there[name] / here[name]).numpy() for here, there in drawn])
        # As in `measure`: a resampled distance is longer on average than the one it was drawn around.
        low, high = np.quantile(many, [0.025, 0.975]) - (many.mean() - end / start)
        ratios[name] = Measure(end / start, (max(0.0, float(low)), float(high)))
    return ratios


def _half_gaps(results: Results, start: Pairs, pairs: Pairs) -> dict[str, dict[str, tuple[float, float]]]:
    """The gap before and here on the pairs of each half; none where there is no cut, or too few pairs."""
    try:
        halves = cut(results)
    except DataError:
        return {}
    # The pairs lie in the order of their pictures' numbers, as the first task with pairs scored them.
    metrics = (metric for task in results.tasks for metric in task.metrics.values())
    pictures = np.unique(next(metric for metric in metrics if metric.name.startswith("image_to_text")).owners)
    found = {}
    for half, held in (("validation", halves.validation), ("test", halves.test)):
        mask = torch.from_numpy(np.isin(pictures, held))
        try:
            sides = [measure(image[mask], text[mask], resamples=0).measures for image, text in (start, pairs)]
        except FeatureError:
            return {}
        values = {name: (sides[0][name].value, sides[1][name].value) for name in sides[0]}
        found[half] = {name: ends for name, ends in values.items() if np.isfinite(ends).all()}
    return found


def write(path: Path, identity: list[str], found: Found, results: Results | None) -> None:
    """Keeps what was computed.

    Args:
        path: the file.
        identity: the fingerprints of the models before and after.
        found: what was computed.
        results: the metrics, where no other file holds them.
    """
    record = {
        "format": FORMAT,
        "identity": identity,
        "results": results and results.to_dict(),
        "ratios": {name: value.to_dict() for name, value in found.ratios.items()},
        "changes": {name: value.to_dict() for name, value in found.changes.items()},
        "half_gaps": found.half_gaps,
    }
    write_atomically(path, json.dumps(record))


def read(path: Path, identity: list[str]) -> Found | None:
    """Reads what `write` kept; None where there is nothing, or of another model."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT or record["identity"] != identity:
            return None
        return Found(
            {name: Measure.from_dict(told) for name, told in record["ratios"].items()},
            {name: Measure.from_dict(told) for name, told in record["changes"].items()},
            {
                half: {n: (float(a), float(b)) for n, (a, b) in told.items()}
                for half, told in record["half_gaps"].items()
            },
            record["results"] and Results.from_dict(record["results"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
