"""The page's part on gap against quality: every regression as a table, a few as scatter plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modalign.report import wording
from modalign.report.figures import BLUE, ORANGE, SERIES, SKY, VARIABLES, Chart, _figure, _svg

if TYPE_CHECKING:
    from modalign.report.pareto import Metric
    from modalign.sweeping.checkpoints import Checkpoint
    from modalign.sweeping.quality import Fit, Interval, Quality

ALWAYS = ("raw_gap", "distribution_gap")


@dataclass(frozen=True)
class Section:
    """The part of the page.

    Args:
        sentence: the outcome.
        columns: the metrics, in words.
        rows: measure, its mean R² with interval, and R², interval and ρ for each metric.
        charts: scatter plots.
        protocol: how it was done, in one line.
    """

    sentence: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, str], tuple[tuple[str, str], ...]], ...]
    charts: tuple[Chart, ...]
    protocol: str


def section(quality: Quality, checkpoints: Sequence[Checkpoint], shown: Sequence[Metric]) -> Section:
    """The regressions as the page shows them.

    Args:
        quality: from `regress`.
        checkpoints: what it was given.
        shown: the metrics to plot.
    """
    from modalign.report.pareto import metric_words

    rows = []
    for measure in quality.ranked:
        mean, interval = quality.mean_r2[measure]
        cells = tuple(_cell(quality.fits[measure, metric]) for metric in quality.metrics)
        rows.append((wording.in_words(measure), (f"{mean:.3f}", _range(interval)), cells))
    measures = dict.fromkeys([*(name for name in ALWAYS if name in quality.measures), quality.ranked[0]])
    charts = [
        scatter(checkpoints, measure, metric, quality.fits[measure, metric.name])
        for metric in shown
        for measure in measures
        if metric.name in quality.metrics
    ]
    protocol = (
        f"{quality.checkpoints} checkpoints of {quality.runs} runs, the model before once; 95 % intervals: "
        "bootstrap over runs, each drawn with all of its weights. R² is that of a straight line over these checkpoints "
        "and says nothing of causes."
    )
    columns = tuple(metric_words(metric) for metric in quality.metrics)
    return Section(quality.sentence, columns, tuple(rows), tuple(charts), protocol)


def scatter(checkpoints: Sequence[Checkpoint], measure: str, metric: Metric, fit: Fit) -> Chart:
    """One metric over one measure, a mark a checkpoint, with the least-squares line.

    Args:
        checkpoints: of the sweep.
        measure: of the gap.
        metric: of a task.
        fit: of this pair.
    """
    scale = 100.0 if metric.share else 1.0
    figure, axes = _figure(360, 260)
    every = [(c, c.gap[measure], scale * c.results.metrics[metric.name].value) for c in checkpoints if measure in c.gap]
    kinds: tuple[tuple[str, Any, Any, float], ...] = (
        ("between", SKY, lambda c: 0 < c.weight < 1, 5.5),
        ("after a run", BLUE, lambda c: c.weight == 1, 7.0),
        ("before", ORANGE, lambda c: c.weight == 0, 7.5),
    )
    signs = {colour: (marker, sign) for colour, marker, sign in SERIES}
    legend = []
    for name, colour, wanted, size in kinds:
        points = [(x, y) for c, x, y in every if wanted(c)]
        if points:
            marker, sign = signs[colour]
            axes.plot(*np.asarray(points).T, marker, color=colour, markersize=size, markeredgewidth=0, alpha=0.75)
            legend.append((VARIABLES[colour], sign, name))
    x, y = np.asarray([row[1] for row in every]), np.asarray([row[2] for row in every])
    slope, offset = np.polyfit(x, y, 1)
    ends = np.asarray([x.min(), x.max()])
    axes.plot(ends, slope * ends + offset, color=BLUE, linewidth=1.2, linestyle="--")
    axes.set_xlabel(wording.in_words(measure))
    axes.set_ylabel("%" if metric.share else "value")
    r2, rho = _cell(fit)
    title = f"{metric.words} over {wording.in_words(measure)}"
    note = f"R² {r2}; {rho}"
    return Chart(_svg(figure, f"quality-{measure}-{metric.name}"), title, f"{title}: {note}", tuple(legend), note)


def _cell(fit: Fit) -> tuple[str, str]:
    interval = _range(fit.r2_interval)
    rho = f"ρ {fit.rho:+.2f}".replace("-", "−")
    return f"{fit.r2:.3f}", f"{interval}, {rho}" if interval else rho


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
