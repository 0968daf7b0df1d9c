from __future__ import annotations

import re

import numpy as np
import pytest

from modalign.report import figures
from modalign.report.figures import curve, histogram_pair, lines, moving_average, plane_pair, thinned
from modalign.report.similarity import Histogram, Plane


def test_moving_average_is_the_plain_mean_inside_and_shrinks_at_the_ends() -> None:
    values = np.random.default_rng(0).normal(size=50)
    average = moving_average(values, 7)
    assert np.allclose(average[3:-3], np.convolve(values, np.ones(7) / 7, mode="valid"))
    assert average[0] == pytest.approx(values[:4].mean())
    assert average[-1] == pytest.approx(values[-4:].mean())


def test_moving_average_leaves_out_what_is_not_finite() -> None:
    assert moving_average([1.0, np.nan, 3.0, np.inf, 5.0], 3) == pytest.approx([1, 2, 3, 4, 5])
    assert np.isnan(moving_average([np.nan, np.nan], 3)).all()


def test_thinning_keeps_both_ends_and_the_order() -> None:
    kept = thinned(100_000, 400)
    assert kept[0] == 0 and kept[-1] == 99_999 and len(kept) == 400
    assert (np.diff(kept) > 0).all()
    assert thinned(3, 400).tolist() == [0, 1, 2]


def counted(edges: list[float], matched: list[int], unmatched: list[int]) -> Histogram:
    return Histogram(np.array(edges), np.array(matched), np.array(unmatched), 0.3, -0.1)


def some_charts() -> list[figures.Chart]:
    generator = np.random.default_rng(0)
    sets = [generator.normal(size=(30, 2)) for _ in range(4)]
    seen = Plane(*sets, explained=(0.4, 0.2), apart=(0.8, 0.5))
    histograms = histogram_pair(counted([0, 0.5, 1], [1, 3], [9, 1]), counted([0, 0.5, 1], [0, 4], [10, 0]))
    return [
        curve(range(1, 101), generator.normal(size=100), "rafa", (np.array([0, 100]), np.array([1.0, 0.5]))),
        curve(range(1, 101), generator.normal(size=100), "hycd"),
        lines({"a": ([1, 2], [0.1, 9.0]), "b": ([1, 2], [0.2, 0.3])}, "norms", None),
        *histograms,
        *plane_pair(seen, np.arange(30)),
    ]


def test_charts_follow_the_page_s_colours_and_share_no_identifier() -> None:
    charts = some_charts()
    for chart in charts:
        assert "var(--" in chart.svg
        assert not re.search(r"#0102", chart.svg)
        assert "<style" not in chart.svg and "http" not in chart.svg and "<?xml" not in chart.svg
    found = [name for chart in charts for name in set(re.findall(r'id="([^"]+)"', chart.svg))]
    assert len(found) == len(set(found))
    for chart in charts:
        assert set(re.findall(r"(?:href=\"|url\()#([^\")]+)", chart.svg)) <= set(re.findall(r'id="([^"]+)"', chart.svg))


def test_drawing_is_repeatable_and_leaves_matplotlib_s_settings_alone() -> None:
    import matplotlib as mpl

    settings = dict(mpl.rcParams)
    assert [chart.svg for chart in some_charts()] == [chart.svg for chart in some_charts()]
    assert dict(mpl.rcParams) == settings


def test_a_long_run_is_drawn_in_few_points() -> None:
    chart = curve(np.arange(100_000), np.random.default_rng(0).normal(size=100_000), "loss")
    assert chart.svg.count("<use") < 450
    assert len(chart.svg) < 80_000
    assert "average of 5,001 steps" in chart.note


def test_a_term_that_is_never_finite_still_has_a_chart() -> None:
    assert "no finite value" in curve([1, 2, 3], [np.nan] * 3, "hycd").note


def test_the_caption_tells_the_means_and_the_counts() -> None:
    before, after = histogram_pair(counted([0, 0.5, 1], [1, 3], [9, 1]), counted([0, 0.5, 1], [0, 4], [10, 0]))
    assert before.note == "means 0.300 and −0.100: 0.400 apart"
    assert [label for _, _, label in after.legend] == ["4 matched", "10 unmatched"]


def test_links_are_drawn_between_a_picture_and_its_own_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    original = figures._figure

    def spy(width: int, height: int) -> tuple[object, object]:
        figure, axes = original(width, height)
        plot = axes.plot

        def recorded(*arguments: object, **style: object) -> object:
            if style.get("linewidth") == 0.7:
                drawn.append(np.stack([np.asarray(arguments[0]), np.asarray(arguments[1])], 1))
            return plot(*arguments, **style)

        axes.plot = recorded
        return figure, axes

    monkeypatch.setattr(figures, "_figure", spy)
    generator = np.random.default_rng(0)
    image, text = generator.normal(size=(6, 2)), generator.normal(size=(12, 2))
    seen = Plane(image, text, image + 1, text + 1, (0.5, 0.2), (1.0, 1.0))
    first = np.array([0, 2, 4, -1, 8, 10])
    plane_pair(seen, first, links=3)
    assert len(drawn) == 6
    for link in drawn[:3]:
        row = int(np.abs(image - link[0]).sum(1).argmin())
        assert first[row] >= 0
        assert np.allclose(link[1], text[first[row]])
