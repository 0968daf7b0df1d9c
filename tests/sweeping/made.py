"""Checkpoints without a network: outcomes and gaps as a test wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modalign.evaluation.results import Metric, Results, TaskResult
from modalign.gap import Measure
from modalign.sweeping.checkpoints import Checkpoint, Found

PAIRS, CLASSES, EACH = 60, 10, 6


def results(
    name: str,
    right: Sequence[int] | None = None,
    classified: Sequence[int] | None = None,
    gap: Mapping[str, float] | None = None,
) -> Results:
    """Retrieval of 60 pairs (pictures 0…59; pairs 2k and 2k + 1 share their caption where k < 5) and zero-shot of 10
    classes of 6 pictures (60…119).

    Args:
        name: of the model.
        right: the pairs whose queries hit, in both directions.
        classified: the pictures, by position, that are classified rightly.
        gap: measure → value.
    """
    hits, found = np.zeros(PAIRS), np.zeros(CLASSES * EACH)
    hits[list(right or ())] = 1
    found[list(classified or ())] = 1
    pictures, labels = np.arange(PAIRS), np.repeat(np.arange(CLASSES), EACH)
    captions = np.where(pictures < 10, pictures // 2, pictures)
    shown = PAIRS + np.arange(CLASSES * EACH)
    quick: dict[str, Any] = {"resamples": 50}
    retrieval = [
        Metric.of("image_to_text_r1", hits, clusters=pictures, **quick),
        Metric.of("text_to_image_r1", hits, clusters=captions, pictures=pictures, **quick),
    ]
    zero_shot = [
        Metric.of("acc1", found, clusters=shown, **quick),
        Metric.of("mean_per_class_recall", found, clusters=shown, strata=labels, average="strata", **quick),
    ]
    tasks = [
        TaskResult("retrieval", "pairs", {"examples": "a"}, {m.name: m for m in retrieval}),
        TaskResult("zero_shot", "classes", {"examples": "b"}, {m.name: m for m in zero_shot}),
    ]
    measures = {measure: {"value": value, "interval": None} for measure, value in (gap or {"raw_gap": 1.0}).items()}
    return Results({"spec": name, "fingerprint": name}, tasks, {"measures": measures})


def checkpoint(
    run: str,
    here: Results,
    before: Results,
    *,
    values: Mapping[str, Any] | None = None,
    seed: int = 0,
    weight: float = 1.0,
    ratio: float = 1.0,
    found: Found | None = None,
    half_gaps: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Checkpoint:
    """One set of weights; its changes have an interval of ±0.1 unless `found` tells more."""
    changes = {
        name: Measure(metric.value - before.metrics[name].value, None)
        for name, metric in here.metrics.items()
    }  # fmt: skip
    changes = {name: Measure(float(value), (value - 0.1, value + 0.1)) for name, value in changes.items()}
    return Checkpoint(
        run=Path(run),
        values=values or {},
        seed=seed,
        weight=weight,
        before=before,
        results=here,
        ratios=found.ratios if found else {"raw_gap": Measure(ratio, (ratio - 0.05, ratio + 0.05))},
        changes=found.changes if found else changes,
        half_gaps=half_gaps or {},
    )
