"""The verdict and the task metrics behind it, from evaluation.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modalign.evaluation.results import task_names
from modalign.report.wording import in_words

WORSE, NOT_WORSE, CANNOT_TELL, NONE = "worse", "not worse", "cannot tell", "none"
Estimate = tuple[float, tuple[float, float] | None]
"""A value and its 95 % interval, where there is one."""


@dataclass(frozen=True)
class Strip:
    """Intervals drawn on one axis; every position is a share of its width, 0 to 100.

    Args:
        spans: (low, at, high) of each interval.
        zero: where no change lies; None where the axis has no such place.
        limit: where the tolerated change for the worse ends; None likewise.
    """

    spans: tuple[tuple[float, float, float], ...]
    zero: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class MetricRow:
    """One task metric before and after.

    Args:
        name: in words.
        before: value and its interval.
        after: value and its interval.
        difference: after − before.
        interval: its paired 95 % interval.
        tolerance: how much of a change for the worse is accepted.
        verdict: "worse", "not worse" or "cannot tell".
        n: examples.
        better: whether the interval lies wholly on the better side of no change.
        strip: the interval on the axis of all rows of one unit.
        unit: "share", or what else the metric counts.
    """

    name: str
    before: Estimate
    after: Estimate
    difference: float
    interval: tuple[float, float]
    tolerance: float
    verdict: str
    n: int
    better: bool
    strip: Strip
    unit: str = "share"


@dataclass(frozen=True)
class TaskTable:
    """The metrics of one task.

    Args:
        name: the kind of task, in words.
        spec: the data it ran on.
        protocol: (what, value) pairs.
        rows: its metrics.
    """

    name: str
    spec: str
    protocol: tuple[tuple[str, str], ...]
    rows: tuple[MetricRow, ...]


@dataclass(frozen=True)
class Headline:
    """The first thing the page says.

    Args:
        kind: "worse", "not worse", "cannot tell" or "none".
        line: the verdict, said loudly.
        details: sentences below it.
    """

    kind: str
    line: str
    details: tuple[str, ...]


def task_tables(evaluation: Mapping[str, Any]) -> list[TaskTable]:
    """The gate's rows, grouped by task, each task with its protocol.

    Args:
        evaluation: the contents of evaluation.json.
    """
    rows = gate_rows(evaluation)
    places = {
        unit: axis([end for row in rows if _unit(row) == unit for end in (*row["interval"], 0.0, _limit(row))])
        for unit in map(_unit, rows)
    }
    tasks = dict(_tasks(evaluation.get("after")))
    values = [_values(evaluation.get(side)) for side in ("before", "after")]
    grouped: dict[str, list[MetricRow]] = {}
    for row in rows:
        task, _, metric = row["metric"].rpartition(".")
        low, high = map(float, row["interval"])
        before, after = (
            (float(row[side]), known.get(row["metric"], (0.0, None))[1])
            for side, known in zip(("before", "after"), values, strict=True)
        )
        place = places[_unit(row)]
        strip = Strip(((place(low), place(row["difference"]), place(high)),), place(0.0), place(_limit(row)))
        grouped.setdefault(task, []).append(
            MetricRow(
                name=in_words(metric),
                before=before,
                after=after,
                difference=float(row["difference"]),
                interval=(low, high),
                tolerance=float(row["tolerance"]),
                verdict=row["verdict"],
                n=int(row["n"]),
                better=low > 0 if row.get("higher_is_better", True) else high < 0,
                strip=strip,
                unit=_unit(row),
            )
        )
    return [
        TaskTable(
            in_words(task.partition("[")[0]),
            str(tasks.get(task, {}).get("spec", "")),
            tuple(_protocol(tasks.get(task, {}).get("protocol", {}))),
            tuple(metrics),
        )
        for task, metrics in grouped.items()
    ]


def headline(tables: list[TaskTable], interpolation: Any = None) -> Headline:
    """The verdict over all metrics: worse goes before cannot tell, cannot tell before not worse.

    Args:
        tables: from `task_tables`.
        interpolation: evaluation.json's, or None.
    """
    rows = [row for table in tables for row in table.rows]
    if not rows:
        return Headline(NONE, "No verdict: nothing was judged", ())
    kind = next(v for v in (WORSE, CANNOT_TELL, NOT_WORSE) if any(row.verdict == v for row in rows))
    kept, better = sum(row.verdict == NOT_WORSE for row in rows), sum(row.better for row in rows)
    concerned = _of(tables, kind)
    many = sum(map(len, concerned.values())) > 3
    details = []
    if kind == WORSE:
        details.append(interpolation_sentence(interpolation))
        if many:
            details.append(f"Worse: {_named(concerned)}.")
    if unclear := _named(_of(tables, CANNOT_TELL)):
        details.append(
            f"The interval reaches both sides of the tolerated drop, so more examples would tell: {unclear}."
        )
    if kept:
        count = f"all {len(rows)} metrics" if kept == len(rows) else f"{kept} of {len(rows)} metrics"
        got_better = f"; in {better} of them it lies above zero: these got better" if better else ""
        details.append(f"In {count} the 95 % interval of the change lies above the tolerated drop{got_better}.")
    short = " and ".join(f"{len(names)} {task}" for task, names in concerned.items()) + " metrics"
    line = "Not worse" if kind == NOT_WORSE else f"{kind.capitalize()}: {short if many else _named(concerned)}"
    return Headline(kind, line, tuple(details))


def _of(tables: list[TaskTable], verdict: str) -> dict[str, list[str]]:
    """Task → its metrics with this verdict; tasks of one kind are told apart by their data."""
    kinds = [table.name for table in tables]
    found = {}
    for table in tables:
        task = table.name if kinds.count(table.name) == 1 else f"{table.name} ({table.spec})"
        if names := [row.name for row in table.rows if row.verdict == verdict]:
            found[task] = names
    return found


def _named(concerned: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{task} {', '.join(names)}" for task, names in concerned.items())


def interpolation_sentence(interpolation: Any) -> str:
    """Which weights between before and after are not worse, and how they did on the half that chose nothing."""
    if not isinstance(interpolation, Mapping):
        return "No weights between before and after were tried."
    weight, pictures = interpolation.get("weight"), interpolation.get("pictures") or {}
    chosen, held = (
        f" ({count:,} pictures)" if isinstance(count := pictures.get(half), int) else ""
        for half in ("selection", "reported")
    )
    if weight is None:
        return f"No weights between before and after are not worse on the selection half{chosen}."
    verdict = (interpolation.get("reported") or {}).get("worst", "not judged")
    return (
        f"Weights in between: {weight:g} × refined + {1 - weight:g} × original is the largest refined share that is "
        f"not worse on the selection half{chosen}; on the other half{held} it is: {verdict}."
    )


def gate_rows(judged: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of a gate, none where nothing was judged."""
    return list((judged.get("gate") or {}).get("rows") or ())


def estimate(stored: Mapping[str, Any]) -> Estimate:
    """{"value", "interval"} as a value and its interval, None where an end is missing."""
    ends = [float(end) for end in stored.get("interval") or () if end is not None]
    return float(stored["value"]), (ends[0], ends[1]) if len(ends) == 2 else None


def axis(ends: Iterable[float]) -> Callable[[float], float]:
    """Maps values to 0…100 such that all of these lie inside, with a margin."""
    finite = [end for end in ends if math.isfinite(end)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    margin = 0.08 * (high - low) or abs(high) or 1.0
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / (high - low), 2) if math.isfinite(value) else 0.0

    return place


def _limit(row: Mapping[str, Any]) -> float:
    return -float(row["tolerance"]) if row.get("higher_is_better", True) else float(row["tolerance"])


def _unit(row: Mapping[str, Any]) -> str:
    return str(row.get("unit", "share"))


def _tasks(results: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(the name the gate uses, task)."""
    tasks = (results or {}).get("tasks") or []
    return zip(task_names((t["task"], t["spec"], t.get("options", {})) for t in tasks), tasks, strict=True)


def _values(results: Any) -> dict[str, Estimate]:
    return {
        f"{name}.{metric}": estimate(stored)
        for name, task in _tasks(results)
        for metric, stored in task["metrics"].items()
    }


def _protocol(protocol: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in protocol.items():
        if key == "templates" and isinstance(value, list) and value:
            value = value[0] if len(value) == 1 else f"{len(value)}, such as “{value[0]}”"
        yield key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)
