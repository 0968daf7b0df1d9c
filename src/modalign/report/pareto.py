"""The page of a sweep: what a smaller gap costs, with the front, the transforms that train nothing, and the pick."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.errors import OutputError
from modalign.evaluation.results import SHARE
from modalign.gap import Measure
from modalign.report import gap_quality, template, wording
from modalign.report.figures import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, SKY, VARIABLES, Chart, _figure, _svg
from modalign.sweeping import writing
from modalign.sweeping.front import Setting, pareto, wins

if TYPE_CHECKING:
    from modalign.sweeping.running import Sweep

AXES = {
    "raw_gap": "raw gap",
    "centroid_gap": "centroid gap",
    "distribution_gap": "distribution gap",
    "centroid_gap_scale_free": "centroid gap, scale-free",
    "distribution_gap_scale_free": "distribution gap, scale-free",
}
TABLE_MEASURES = ("raw_gap", "centroid_gap", "distribution_gap", "distribution_gap_scale_free")


@dataclass(frozen=True)
class Metric:
    """A task metric: full name, in words, whether it is a share, and whether more of it is better."""

    name: str
    words: str
    share: bool
    higher_is_better: bool


@dataclass(frozen=True)
class Group:
    """The charts of one measure."""

    title: str
    charts: tuple[Chart, ...]
    wins: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """One setting of the table: its mark, name, gaps and changes, each a value and its interval."""

    mark: str
    name: str
    cells: tuple[tuple[str, str], ...]


def write(sweep: Sweep) -> None:
    """Writes results.json, results.csv and the page into the sweep's folder.

    Args:
        sweep: what was found.

    Raises:
        OutputError: the folder cannot be written.
    """
    page = sweep.report
    temporary = page.with_name(f".{page.name}.{os.getpid()}.tmp")
    try:
        writing.write(sweep, page.with_name("results.json"), page.with_name("results.csv"))
        temporary.write_text(render(sweep), encoding="utf-8", errors="replace")
        temporary.replace(page)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{page} cannot be written ({error.strerror}); free it and give --resume again") from error


def render(sweep: Sweep) -> str:
    """The page as text."""
    known = metrics(sweep)
    marks = _marks(sweep)
    main = [metric for metric in known if is_main(metric.name)] or known
    measures = [name for name in AXES if all(name in setting.ratios for setting in sweep.settings)]
    groups = [
        _group(sweep, measure, known if number == 0 else main, marks)
        for number, measure in enumerate(measures if sweep.settings else [])
    ]
    rows = [_row(setting, marks, known) for setting in _shown(sweep)]
    between = [_row(setting, marks, known) for setting in sweep.settings if 0 < setting.weight < 1]
    return template.render(
        "pareto.html",
        sweep=sweep,
        headline=_headline(sweep),
        facts=_facts(sweep),
        groups=groups,
        columns=[*(AXES[name] for name in TABLE_MEASURES), *(metric.words for metric in known)],
        rows=rows,
        between=between,
        marks=[(mark, name) for name, mark in marks.items()],
        quality=gap_quality.section(sweep.quality, sweep.checkpoints, main) if sweep.quality else None,
        picked=sweep.picked,
        gate=sweep.picked.gate.to_table() if sweep.picked and sweep.picked.gate else [],
    )


def metrics(sweep: Sweep) -> list[Metric]:
    """The metrics that all checkpoints have."""
    if not sweep.checkpoints:
        return []
    return [
        Metric(name, metric_words(name), metric.unit == SHARE, metric.higher_is_better)
        for name, metric in sweep.checkpoints[0].results.metrics.items()
    ]


def metric_words(name: str) -> str:
    """A metric's full name in words."""
    task, _, metric = name.rpartition(".")
    return f"{wording.in_words(task)}: {wording.in_words(metric)}"


def is_main(name: str) -> bool:
    """Whether a metric stands for its task where not all are shown."""
    return name.endswith((".acc1", "_r1"))


def _headline(sweep: Sweep) -> str:
    runs = len({checkpoint.run for checkpoint in sweep.checkpoints})
    if sweep.picked is not None:
        chosen = sweep.picked.checkpoint
        return f"Picked: {chosen.name}" if chosen is not None else "No checkpoint meets the conditions"
    return f"{runs} runs, {len(sweep.settings)} settings" if runs else "No run finished"


def _facts(sweep: Sweep) -> list[tuple[str, str]]:
    told = [(axis.key, ", ".join(map(str, axis.values))) for axis in sweep.axes]
    weights = sorted({checkpoint.weight for checkpoint in sweep.checkpoints})
    if sweep.checkpoints:
        told.append(("model", str(sweep.checkpoints[0].before.model["spec"])))
        told.append(("seeds", ", ".join(map(str, dict.fromkeys(c.seed for c in sweep.checkpoints)))))
    if len(weights) > 2:
        told.append(("weights between", ", ".join(f"{w:g}" for w in weights if 0 < w < 1)))
    if sweep.failed:
        told.append(("failed", f"{len(sweep.failed)} runs"))
    return told


def _shown(sweep: Sweep) -> list[Setting]:
    """Before, the runs' ends, the transforms."""
    return [
        *(setting for setting in sweep.settings if setting.weight == 0),
        *(setting for setting in sweep.settings if setting.weight == 1),
        *sweep.baselines,
    ]


def _marks(sweep: Sweep) -> dict[str, str]:
    """A number for each run's setting, a letter for each transform: what stands beside a mark on the charts."""
    ends = [setting.name for setting in sweep.settings if setting.weight == 1]
    numbers = {name: str(i + 1) for i, name in enumerate(ends)}
    return numbers | {setting.name: chr(ord("a") + i) for i, setting in enumerate(sweep.baselines)}


def _row(setting: Setting, marks: dict[str, str], known: Sequence[Metric]) -> Row:
    gaps = [_percent(setting.ratios[name]) if name in setting.ratios else ("–", "") for name in TABLE_MEASURES]
    changes = [_change(setting.changes[metric.name], metric) for metric in known]
    return Row(marks.get(setting.name, ""), setting.name, (*gaps, *changes))


def _percent(value: Measure) -> tuple[str, str]:
    low, high = value.interval or (float(value), float(value))
    return f"{100 * value:.0f} %", f"{100 * low:.0f} to {100 * high:.0f}"


def _change(value: Measure, metric: Metric) -> tuple[str, str]:
    low, high = value.interval or (float(value), float(value))
    if metric.share:
        return wording.points(value), f"{wording.points(low)} to {wording.points(high)}"
    return wording.signed(value), f"{wording.signed(low)} to {wording.signed(high)}"


def _group(sweep: Sweep, measure: str, known: Sequence[Metric], marks: dict[str, str]) -> Group:
    drawn = [setting for setting in sweep.settings if measure in setting.ratios]
    free = [setting for setting in sweep.baselines if measure in setting.ratios]
    charts, told = [], []
    for metric in known:
        charts.append(trade_off(drawn, free, measure, metric, marks))
        won = wins(drawn, free, measure, metric.name, higher_is_better=metric.higher_is_better)
        told.append((metric.words, "; ".join(f"{name}, beats {_listed(beaten)}" for name, beaten in won)))
    return Group(AXES[measure], tuple(charts), tuple(told))


def _listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(f'“{name}”' for name in names[:most])}{more}"


def _gain(setting: Setting, metric: Metric) -> float:
    return float(setting.changes[metric.name]) * (1 if metric.higher_is_better else -1)


def trade_off(
    drawn: Sequence[Setting], free: Sequence[Setting], measure: str, metric: Metric, marks: dict[str, str]
) -> Chart:
    """One metric's change over one gap's share of the gap before, with intervals and the front of the runs.

    Args:
        drawn: the settings of the sweep.
        free: the training-free transforms.
        measure: of the gap.
        metric: of a task.
        marks: what stands beside each mark.
    """
    figure, axes = _figure(480, 330)
    scale = 100.0 if metric.share else 1.0
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.axvline(100, color=MUTED, linewidth=0.8)
    front = pareto([s.ratios[measure] for s in drawn], [_gain(s, metric) for s in drawn])
    corner = sorted(
        (100 * float(s.ratios[measure]), scale * float(s.changes[metric.name]))
        for s, on in zip(drawn, front, strict=True)
        if on
    )
    if corner:
        axes.step(*np.asarray(corner).T, where="post", color=GREEN, linewidth=2.2, alpha=0.85)
        axes.plot(*np.asarray(corner).T, "o", color=GREEN, markersize=13, markerfacecolor="none", markeredgewidth=1.6)
    lines: dict[str, list[tuple[float, float]]] = {}
    for setting in drawn:
        if setting.weight > 0:
            at = 100 * float(setting.ratios[measure]), scale * float(setting.changes[metric.name])
            lines.setdefault(repr(dict(setting.values)), []).append(at)
    for line in lines.values():
        axes.plot(*np.asarray(line).T, color=FAINT, linewidth=1.0)
    for settings, colour, sign, size, strength in (
        ([s for s in drawn if 0 < s.weight < 1], SKY, "o", 4.0, 0.35),
        ([s for s in drawn if s.weight == 0], INK, "D", 7.0, 1.0),
        ([s for s in drawn if s.weight == 1], BLUE, "o", 7.0, 0.9),
        (list(free), ORANGE, "^", 7.0, 0.9),
    ):
        for setting in settings:
            _mark(axes, setting.ratios[measure], setting.changes[metric.name], scale, colour, sign, size, strength)
            if setting.name in marks:
                place = 100 * float(setting.ratios[measure]), scale * float(setting.changes[metric.name])
                axes.annotate(
                    marks[setting.name], place, xytext=(5, 4), textcoords="offset points", color=INK, fontsize=11
                )
    axes.set_xlabel(f"{AXES[measure]}, % of before")
    axes.set_ylabel("points" if metric.share else "change")
    legend = [(VARIABLES[BLUE], "●", "after a run"), (VARIABLES[GREEN], "━", "front"), (VARIABLES[INK], "◆", "before")]
    if any(0 < setting.weight < 1 for setting in drawn):
        legend.insert(1, (VARIABLES[SKY], "•", "between"))
    if free:
        legend.append((VARIABLES[ORANGE], "▲", "no training"))
    alt = f"Change of {metric.words} over the {AXES[measure]} as a share of the gap before, {len(drawn)} settings"
    return Chart(_svg(figure, f"pareto-{measure}-{metric.name}"), metric.words, alt, tuple(legend))


def _mark(
    axes: Any, gap: Measure, change: Measure, scale: float, colour: str, sign: str, size: float, strength: float
) -> None:
    arms = []
    for value, unit in ((gap, 100.0), (change, scale)):
        low, high = value.interval or (float(value), float(value))
        arms.append([[max(0.0, unit * (value - low))], [max(0.0, unit * (high - value))]])
    axes.errorbar(
        [100 * float(gap)],
        [scale * float(change)],
        xerr=arms[0],
        yerr=arms[1],
        fmt=sign,
        color=colour,
        markersize=size,
        elinewidth=1.0,
        alpha=strength,
        markeredgewidth=0,
    )
