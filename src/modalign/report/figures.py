"""The page's charts: matplotlib figures turned into inline SVG whose colours are the page's CSS variables.

Inline SVG follows the reader's light or dark mode, stays sharp at any zoom and keeps its labels as text. Colours are
Okabe and Ito's, and no chart tells things apart by colour alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from modalign.report.similarity import Floats, Histogram, Ints, Plane
from modalign.report.wording import number

# Drawn in these colours by matplotlib, replaced by CSS variables afterwards: the page's style sheet has both modes.
INK, MUTED, FAINT = "#010203", "#010204", "#010205"
BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER = "#010206", "#010207", "#010208", "#010209", "#01020a", "#01020b"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    FAINT: "--rule",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    PURPLE: "--purple",
    SKY: "--sky",
    AMBER: "--amber",
}
SERIES = (
    (BLUE, "o", "●"),
    (ORANGE, "^", "▲"),
    (GREEN, "s", "■"),
    (PURPLE, "D", "◆"),
    (SKY, "v", "▼"),
    (AMBER, "p", "⬟"),
)


@dataclass(frozen=True)
class Chart:
    """One drawing of the page.

    Args:
        svg: safe markup.
        title: plain text above it.
        alt: what it shows, for readers who do not see it.
        legend: (CSS variable, sign, label) of each kind of mark, where there is more than one.
        note: plain text below it.
    """

    svg: str
    title: str
    alt: str
    legend: tuple[tuple[str, str, str], ...] = ()
    note: str = ""


def moving_average(values: ArrayLike, window: int) -> Floats:
    """The centred mean of up to `window` finite neighbours; the window shrinks at both ends.

    Args:
        values: n values; those that are not finite are left out of the means.
        window: how many neighbours, rounded up to an odd number.

    Returns:
        n means; NaN where no neighbour is finite.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    at, half = np.arange(len(values)), max(window, 1) // 2
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    with np.errstate(invalid="ignore"):
        return np.asarray((sums[high] - sums[low]) / (counts[high] - counts[low]), dtype=np.float64)


def thinned(length: int, most: int) -> Ints:
    """At most `most` positions spread evenly over `length`, the first and the last among them."""
    if length <= most:
        return np.arange(length)
    return np.unique(np.linspace(0, length - 1, most).round().astype(np.int64))


def curve(steps: ArrayLike, values: ArrayLike, title: str, held_out: tuple[ArrayLike, ArrayLike] = ((), ())) -> Chart:
    """One loss term over training: every step faint, its moving average on top, held-out values as diamonds.

    Args:
        steps: n step numbers.
        values: n values.
        title: the term's name.
        held_out: step numbers and values of the term on the held-out rows.
    """
    steps, values = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    window = max(1, len(values) // 20) | 1
    average = moving_average(values, window)
    figure, axes = _figure(360, 190)
    raw, smooth = thinned(len(values), 400), thinned(len(values), 240)
    axes.plot(steps[raw], values[raw], ".", color=BLUE, alpha=0.3, markersize=5.5, markeredgewidth=0)
    if len(values) > 2:
        axes.plot(steps[smooth], average[smooth], color=BLUE, linewidth=2)
    if len(np.asarray(held_out[0])):
        axes.plot(*held_out, "D", color=ORANGE, markersize=5.5, markeredgecolor=INK, markeredgewidth=0.6)
    axes.set_xlabel("step")
    finite = average[np.isfinite(average)]
    trend = f"{number(finite[0])} → {number(finite[-1])}" if len(finite) else "no finite value"
    note = f"{trend}; average of {window:,} steps" if window > 1 else trend
    alt = f"{title} over {len(values):,} steps: {trend}"
    return Chart(_svg(figure, f"curve-{title}"), title, alt, note=note)


def lines(series: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str, limits: tuple[float, float] | None) -> Chart:
    """Several quantities over training in one chart.

    Args:
        series: name → (n steps, n values).
        title: what they measure.
        limits: of the vertical axis; None fits it to the values (logarithmically where they span a factor of 30).
    """
    figure, axes = _figure(360, 190)
    values = [np.asarray(points[1], dtype=np.float64) for points in series.values()]
    everything = np.concatenate(values) if values else np.zeros(0)
    positive = everything[np.isfinite(everything) & (everything > 0)]
    if limits is not None:
        axes.set_ylim(*limits)
        axes.axhline(0, color=MUTED, linewidth=0.8)
    elif len(positive) and len(positive) == len(everything) and positive.max() > 30 * positive.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the default writes TeX, which is not set here
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    legend = []
    for index, (name, (steps, _)) in enumerate(series.items()):
        colour, marker, sign = SERIES[index % len(SERIES)]
        keep = thinned(len(values[index]), 240)
        at = np.asarray(steps, dtype=np.float64)[keep]
        every = max(1, len(keep) // 12)
        axes.plot(at, values[index][keep], color=colour, linewidth=1.8, marker=marker, markersize=5.5, markevery=every)
        legend.append((VARIABLES[colour], sign, name))
    axes.set_xlabel("step")
    return Chart(_svg(figure, f"lines-{title}"), title, f"{title}: {', '.join(series)}", tuple(legend))


def histogram_pair(before: Histogram, after: Histogram) -> tuple[Chart, Chart]:
    """Similarities of matched and unmatched pairs before and after, on the same axes."""
    shares = [
        [counts / max(int(counts.sum()), 1) for counts in (part.matched, part.unmatched)] for part in (before, after)
    ]
    height = max(float(share.max(initial=0)) for pair in shares for share in pair) * 1.08 or 1.0
    charts = []
    for part, (matched, unmatched), title in zip((before, after), shares, ("Before", "After"), strict=True):
        figure, axes = _figure(480, 260)
        axes.stairs(unmatched * 100, part.edges, fill=True, color=MUTED, alpha=0.35)
        axes.stairs(unmatched * 100, part.edges, color=MUTED, linewidth=1.2, linestyle="--")
        axes.stairs(matched * 100, part.edges, fill=True, color=GREEN, alpha=0.35)
        axes.stairs(matched * 100, part.edges, color=GREEN, linewidth=1.8)
        axes.set_xlim(part.edges[0], part.edges[-1])
        axes.set_ylim(0, height * 100)
        axes.set_xlabel("cosine similarity")
        axes.yaxis.set_major_formatter("{x:g} %")
        means = part.matched_mean, part.unmatched_mean, part.matched_mean - part.unmatched_mean
        note = "means {:.3f} and {:.3f}: {:.3f} apart".format(*means).replace("-", "−")
        legend = (
            (VARIABLES[GREEN], "■", f"{int(part.matched.sum()):,} matched"),
            (VARIABLES[MUTED], "■", f"{int(part.unmatched.sum()):,} unmatched"),
        )
        alt = f"Similarity histogram, {title.lower()}: {note}"
        charts.append(Chart(_svg(figure, f"histogram-{title}"), title, alt, legend, note))
    return charts[0], charts[1]


def plane_pair(
    plane: Plane, first_captions: Ints, *, points: int = 350, links: int = 14, seed: int = 0
) -> tuple[Chart, Chart]:
    """Image and text features in their shared plane before and after, on the same axes.

    Args:
        plane: the projected features.
        first_captions: N: one caption of each image row; −1 where a row has none.
        points: at most so many pairs are drawn.
        links: so many of them are linked by a line.
        seed: of the choice, the same before and after.
    """
    rows = np.flatnonzero(first_captions >= 0)
    rows = np.random.default_rng(seed).permutation(rows)[:points]
    captions = first_captions[rows]
    every = np.concatenate([plane.image_before, plane.text_before, plane.image_after, plane.text_after])
    low, high = np.quantile(every, (0.002, 0.998), axis=0)
    # Both axes in one unit, and the axes' own shape of 4 to 3.
    half = 0.56 * max(float(high[0] - low[0]), float(high[1] - low[1]) * 4 / 3) + 1e-6
    reach = np.array([half, half * 3 / 4])
    low, high = (high + low) / 2 - reach, (high + low) / 2 + reach
    charts = []
    for image, text, apart, title in (
        (plane.image_before, plane.text_before, plane.apart[0], "Before"),
        (plane.image_after, plane.text_after, plane.apart[1], "After"),
    ):
        figure, axes = _figure(480, 360)
        for row, caption in zip(rows[:links], captions[:links], strict=True):
            ends = np.stack([image[row], text[caption]])
            axes.plot(ends[:, 0], ends[:, 1], color=INK, linewidth=0.7, alpha=0.6)
        axes.plot(*image[rows].T, "o", color=BLUE, alpha=0.5, markersize=4, markeredgewidth=0)
        axes.plot(*text[captions].T, "^", color=ORANGE, alpha=0.5, markersize=4.6, markeredgewidth=0)
        centres = image.mean(axis=0), text.mean(axis=0)
        for centre, marker, colour in zip(centres, ("o", "^"), (BLUE, ORANGE), strict=True):
            axes.plot(*centre, marker, color=colour, markersize=12, markeredgecolor=INK, markeredgewidth=1.4)
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
        axes.set_aspect("equal")
        axes.set_xlabel(f"component 1, {plane.explained[0]:.0%} of the variance")
        axes.set_ylabel(f"component 2, {plane.explained[1]:.0%}")
        here = float(np.linalg.norm(centres[0] - centres[1]))
        legend = ((VARIABLES[BLUE], "●", "images"), (VARIABLES[ORANGE], "▲", "captions"))
        note = f"centroids (large marks) {here:.3f} apart in this plane, {apart:.3f} in all dimensions"
        alt = f"Image and text features {title.lower()} in their shared plane: {note}"
        charts.append(Chart(_svg(figure, f"plane-{title}"), title, alt, legend, note))
    return charts[0], charts[1]


def _figure(width: int, height: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    # One SVG unit is one CSS pixel at the width the page gives the chart; matplotlib counts 72 to its inch.
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    axes = figure.subplots()
    size = 11.5 if width < 400 else 13  # wide charts shrink most on a narrow screen
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=MUTED, labelsize=size, length=3)
    axes.xaxis.label.set(color=MUTED, fontsize=size)
    axes.yaxis.label.set(color=MUTED, fontsize=size)
    axes.locator_params(nbins=6)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, salt: str) -> str:
    import matplotlib as mpl

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": salt, "text.parse_math": False, "path.simplify": True}
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)  # its `*` rule would reach the page
    svg = re.sub(r' (?:width|height)="[\d.]+pt"| version="[\d.]+"| xmlns(?::xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg).replace("xlink:href", "href")
    svg = re.sub(r"\s+", " ", svg).replace("> <", "><")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
