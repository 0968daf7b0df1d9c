"""The gap measures before and after, and the controls beside the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modalign.report.verdict import Estimate, Strip, axis, estimate, gate_rows
from modalign.report.wording import in_words, number, percent, points

CONTROLLED = (
    "raw_gap",
    "centroid_gap",
    "distribution_gap",
    "shape_gap",
    "centroid_gap_scale_free",
    "distribution_gap_scale_free",
    "relative_modality_gap",
    "separability",
    "knn_mixing",
    "alignment",
    "uniformity",
)
"""The gap measures that are set beside the controls' own."""


@dataclass(frozen=True)
class MeasureRow:
    """One gap measure before and after.

    Args:
        name: in words.
        group: what it asks, of `modalign.gap.report.GROUPS`; "" where it is not known there.
        reading: what it means.
        before: value and interval; None where the run has none.
        after: value and interval.
        change: after − before with its paired interval.
        scale: the larger of the two values: all of the row's numbers are written in its digits.
        strip: both on the row's own axis.
    """

    name: str
    group: str
    reading: str
    before: Estimate | None
    after: Estimate | None
    change: Estimate | None
    scale: float
    strip: Strip | None


@dataclass(frozen=True)
class Cell:
    """A number of the controls' table: what it is, how it changed, and its verdict ("" where none was passed)."""

    value: str
    change: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class ControlRow:
    """One metric or gap measure across models.

    Args:
        name: in words.
        before: value before.
        cells: one for each of `Controls.names`.
    """

    name: str
    before: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Controls:
    """This run beside what else was tried.

    Args:
        names: the columns after "before".
        groups: the tasks and the gap, each with its rows.
    """

    names: tuple[str, ...]
    groups: dict[str, list[ControlRow]]


def measure_rows(evaluation: Mapping[str, Any]) -> list[MeasureRow]:
    """Every gap measure before and after.

    Args:
        evaluation: the contents of evaluation.json.
    """
    from modalign.gap.report import GROUPS, READINGS

    groups = {name: title for title, group in GROUPS.items() for name in group}
    sides = [_measures(gap_of(evaluation, side)) for side in ("before", "after")]
    changes = (evaluation.get("gap") or {}).get("change") or {}
    rows = []
    for name in {**sides[0], **sides[1]}:
        before, after = (side.get(name) for side in sides)
        spans = [(interval or (value, value), value) for value, interval in (e for e in (before, after) if e)]
        # From 0, so that lengths compare as the values do.
        place = axis([0.0, *(end for (low, high), _ in spans for end in (low, high))])
        strip = Strip(tuple((place(low), place(value), place(high)) for (low, high), value in spans), place(0.0))
        told = changes.get(name)
        change = estimate({"value": told["difference"], "interval": told["interval"]}) if told else None
        scale = max(abs(value) for _, value in spans)
        whole = strip if before and after else None
        reading = READINGS.get(name, "")
        rows.append(MeasureRow(in_words(name), groups.get(name, ""), reading, before, after, change, scale, whole))
    order = [*GROUPS, ""]
    return sorted(rows, key=lambda row: order.index(row.group))


def gap_of(evaluation: Mapping[str, Any], side: str) -> Mapping[str, Any]:
    """The gap report of one side, kept beside the results or in them."""
    found = (evaluation.get("gap") or {}).get(side) or (evaluation.get(side) or {}).get("gap")
    return found if isinstance(found, Mapping) else {}


def gap_collapse(evaluation: Mapping[str, Any]) -> str:
    """The warning that the gap fell by collapse alone; empty where there is none."""
    return str((evaluation.get("gap") or {}).get("collapse") or "")


def gap_protocol(evaluation: Mapping[str, Any]) -> str:
    """How the gap was measured, in one line; empty where it was not."""
    from modalign.gap.report import GapReport

    stored = gap_of(evaluation, "after")
    try:
        protocol = GapReport.from_dict(stored).protocol
    except (KeyError, TypeError):
        return ""
    return f"{protocol}; {stored.get('pairing', 'each picture with its first caption')}"


def centroid_gap(evaluation: Mapping[str, Any], side: str) -> float | None:
    """The measure that the headline tells, None where it was not taken."""
    stored = (gap_of(evaluation, side).get("measures") or {}).get("centroid_gap") or {}
    return stored.get("value")


def controls(evaluation: Mapping[str, Any]) -> Controls | None:
    """This run and the controls, metric by metric; None where the run has no controls.

    Args:
        evaluation: the contents of evaluation.json.
    """
    others = evaluation.get("controls")
    if not isinstance(others, list) or not others:
        return None
    models = [("this run", gate_rows(evaluation), gap_of(evaluation, "after"))]
    for other in others:
        gap = other.get("gap") or (other.get("results") or {}).get("gap") or {}
        models.append((str(other.get("name", "unnamed")), gate_rows(other), gap))
    gates = [{row["metric"]: row for row in rows} for _, rows, _ in models]
    groups: dict[str, list[ControlRow]] = {}
    for metric in dict.fromkeys(name for gate in gates for name in gate):
        task, _, name = metric.rpartition(".")
        found = [gate.get(metric) for gate in gates]
        first = next(row for row in found if row)
        unit = first.get("unit", "share")
        before = percent(first["before"], unit)
        cells = (
            Cell(percent(row["after"], unit), points(row["difference"], unit), row["verdict"]) if row else Cell("–")
            for row in found
        )
        groups.setdefault(in_words(task), []).append(ControlRow(in_words(name), before, tuple(cells)))
    start = _measures(gap_of(evaluation, "before"))
    ends = [_measures(gap) for _, _, gap in models]
    for name in (name for name in CONTROLLED if any(name in measures for measures in (start, *ends))):
        before = number(start[name][0]) if name in start else "–"
        cells = (Cell(number(end[name][0])) if name in end else Cell("–") for end in ends)
        groups.setdefault("modality gap", []).append(ControlRow(in_words(name), before, tuple(cells)))
    return Controls(tuple(name for name, _, _ in models), groups)


def _measures(report: Mapping[str, Any]) -> dict[str, Estimate]:
    stored = report.get("measures") or {}
    return {name: estimate(measure) for name, measure in stored.items() if measure.get("value") is not None}
