"""Two results side by side: whether they may be compared, and one result's examples cut in two."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from modalign.errors import DataError
from modalign.evaluation.results import Ids, Metric, Results, TaskResult


def halves(results: Results, *, seed: int = 0, resamples: int = 10_000) -> tuple[Results, Results]:
    """Cuts the judged examples into a selection half and a reported half.

    A picture's examples stay together, over all tasks; pictures are dealt out class by class, so that both halves hold
    every class in proportion. Only *which queries count* is cut: candidates (the gallery, the classes) stay as they
    are, so recall@k keeps its meaning. A pure function of the seed, the picture ids and the strata.

    Args:
        results: with outcomes.
        seed: of the cut.
        resamples: behind the halves' own intervals.

    Returns:
        (selection, reported), each with its own values, intervals and n.

    Raises:
        DataError: a task with fewer than two pictures.
    """
    metrics = list(results.metrics.values())
    known = np.unique(np.concatenate([metric.owners for metric in metrics]))
    layer = np.zeros(known.size, np.int64)  # the picture's class, of the first task that knows it
    for metric in metrics:
        if metric.strata is not None:
            places = np.searchsorted(known, metric.owners)
            fresh = layer[places] == 0
            layer[places[fresh]] = 1 + layer.max() + metric.strata[fresh]
    shuffled = np.random.default_rng(seed).permutation(known.size)
    dealt = shuffled[np.argsort(layer[shuffled], kind="stable")]
    sides = {"selection": known[np.sort(dealt[::2])], "reported": known[np.sort(dealt[1::2])]}
    selection, reported = (
        judged_on(results, pictures, f"{name}, seed {seed}", resamples=resamples, seed=seed)
        for name, pictures in sides.items()
    )
    return selection, reported


def judged_on(results: Results, pictures: Ids, part: str, *, resamples: int = 10_000, seed: int = 0) -> Results:
    """What the results are on the examples of some pictures alone; candidates stay as they are.

    Args:
        results: with outcomes.
        pictures: their numbers, ascending.
        part: what to call them in the protocol.
        resamples: behind the intervals.
        seed: of the resamples.

    Raises:
        DataError: a task has none of the pictures.
    """
    kept = [_kept(result, pictures, part, resamples, seed) for result in results.tasks]
    return Results(results.model, kept, environment=results.environment)


def _kept(result: TaskResult, pictures: Ids, half: str, resamples: int, seed: int) -> TaskResult:
    metrics = {}
    for name, metric in result.metrics.items():
        mask = np.isin(metric.owners, pictures)
        if not mask.any():
            raise DataError(f"{result.task} on {result.spec}: too few pictures to cut into halves; judge more of them")
        metrics[name] = Metric.of(
            metric.name,
            metric.outcomes[mask],
            clusters=None if metric.clusters is None else metric.clusters[mask],
            pictures=metric.owners[mask],
            strata=None if metric.strata is None else metric.strata[mask],
            higher_is_better=metric.higher_is_better,
            average=metric.average,
            unit=metric.unit,
            tolerance=metric.tolerance,
            resamples=resamples,
            seed=seed,
        )
    return TaskResult(result.task, result.spec, {**result.protocol, "half": half}, metrics, result.options)


def check_comparable(before: Results, after: Results) -> None:
    """Refuses two results that were not taken on the same examples in the same way.

    Raises:
        DataError: names the task or metric, and what differs.
    """
    if [(r.task, r.options) for r in before.tasks] != [(r.task, r.options) for r in after.tasks]:
        raise DataError(
            f"before has the tasks {_listed(before.names)}, after has {_listed(after.names)}: evaluate both on the same"
        )
    for name, first, second in zip(before.names, before.tasks, after.tasks, strict=True):
        keys = first.protocol.keys() | second.protocol.keys()
        for key in sorted(keys, key=lambda key: (key != "protocol", key)):  # its name says more than what follows of it
            if first.protocol.get(key) != second.protocol.get(key):
                raise DataError(
                    f"{name}: {key.replace('_', ' ')} differs, {_short(first.protocol.get(key))} before and "
                    f"{_short(second.protocol.get(key))} after: evaluate both on the same examples in the same way"
                )
        if first.metrics.keys() != second.metrics.keys():
            raise DataError(
                f"{name}: metrics {_listed(first.metrics)} before and {_listed(second.metrics)} after: "
                "evaluate both with the same version"
            )
        for key, metric in first.metrics.items():
            other = second.metrics[key]
            if len(metric.outcomes) != len(other.outcomes):
                raise DataError(
                    f"{name}.{key}: {len(metric.outcomes):,} examples before, {len(other.outcomes):,} after: "
                    "evaluate both on the same examples"
                )
            same = (metric.higher_is_better, metric.average, metric.unit) == (
                other.higher_is_better,
                other.average,
                other.unit,
            )
            if not same or not _equal(metric.clusters, other.clusters) or not _equal(metric.strata, other.strata):
                raise DataError(
                    f"{name}.{key}: the examples' pictures, classes or averaging differ: "
                    "evaluate both on the same examples"
                )


def _equal(first: Ids | None, second: Ids | None) -> bool:
    return first is second or (first is not None and second is not None and np.array_equal(first, second))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"
