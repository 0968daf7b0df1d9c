from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from modalign.gap import Measure
from modalign.sweeping.front import joined, pareto, settings, spearman, trends, wins
from tests.sweeping.made import checkpoint, results

COORDINATES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=25)


@given(COORDINATES)
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    found = pareto([x for x, _ in points], [y for _, y in points])
    for (x, y), on in zip(points, found, strict=True):
        beaten = any(a <= x and b >= y and (a < x or b > y) for a, b in points)
        assert on == (not beaten)


def test_what_is_not_a_number_is_on_no_front() -> None:
    assert pareto([math.nan, 0.5, 0.1], [9.0, 1.0, math.inf]).tolist() == [False, True, False]


def test_seeds_and_bootstrap_are_joined() -> None:
    one = joined([Measure(0.1, (0.0, 0.3))])
    assert (float(one), one.interval) == (0.1, (0.0, 0.3))
    width = 2 * 1.959963984540054
    per_seed = [Measure(m, (m - width / 2, m + width / 2)) for m in (1.0, 2.0, 3.0)]  # standard error 1 each
    both = joined(per_seed)
    half = 1.959963984540054 * math.sqrt(1 + 1 / 3)  # spread of the seeds: variance 1 over 3
    assert float(both) == 2.0 and both.interval == pytest.approx((2 - half, 2 + half))
    # The same examples in every seed: their share does not shrink with more seeds.
    many = joined([Measure(2.0, (1.0, 3.0))] * 50)
    assert many.interval == pytest.approx((1.0, 3.0))


def test_spearman_agrees_with_scipy_and_its_p_is_that_of_all_orders() -> None:
    x, y = [0.0, 0.0, 0.1, 0.1, 0.5, 0.5], [1.0, 0.9, 0.8, 0.95, 0.5, 0.4]
    rho, p = spearman(x, y)
    assert rho == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    import itertools

    orders = [scipy.stats.spearmanr(order, y).statistic for order in itertools.permutations(x)]
    assert p == pytest.approx(2 * np.mean(np.asarray(orders) <= rho + 1e-12), abs=1e-9)
    assert spearman([1, 1, 1], [1, 2, 3])[1] == 1.0 and math.isnan(spearman([1, 1, 1], [1, 2, 3])[0])


def test_a_trend_is_told_either_way() -> None:
    before = results("before")
    key = "method.alpha_target"

    def found(ratios: list[float]) -> str:
        runs = [
            checkpoint(f"{i}", results(f"{i}"), before, values={key: i // 2}, seed=i % 2, ratio=ratio)
            for i, ratio in enumerate(ratios)
        ]
        return trends(runs, [key], ["raw_gap"])[0].sentence

    assert found([1, 0.99, 0.8, 0.82, 0.5, 0.4]).startswith("the larger alpha_target, the smaller")
    assert found([0.4, 0.5, 0.8, 0.82, 0.99, 1]).startswith("the larger alpha_target, the larger")
    assert "cannot be told" in found([1, 0.5, 0.6, 0.9, 0.55, 0.95])


def test_settings_gather_seeds_and_the_model_before_is_one() -> None:
    before = results("before", right=range(10))
    runs = [
        checkpoint(f"{a}-{s}", results(f"{a}{s}{w}", right=range(10 + s)), before, values={"a": a}, seed=s, weight=w)
        for a in (0.1, 0.5)
        for s in (0, 1)
        for w in (0.0, 0.5, 1.0)
    ]
    found = settings(runs)
    assert [setting.name for setting in found] == ["before", "a 0.1, weight 0.5", "a 0.1", "a 0.5, weight 0.5", "a 0.5"]
    assert found[2].seeds == (0, 1) and float(found[2].changes["retrieval.image_to_text_r1"]) == pytest.approx(0.5 / 60)


def test_a_transform_wins_where_it_beats_a_setting_of_the_front() -> None:
    before = results("before", right=range(20))

    def at(name: str, ratio: float, right: int) -> object:
        return checkpoint(name, results(name, right=range(right)), before, values={"a": name}, ratio=ratio)

    ran = settings([at("near", 0.9, 30), at("far", 0.5, 22), at("poor", 0.95, 10)])  # type: ignore[list-item]
    free = settings([at("good", 0.5, 25), at("bad", 0.1, 5), at("same", 0.9, 30)])  # type: ignore[list-item]
    metric = "retrieval.image_to_text_r1"
    assert wins(ran, free, "raw_gap", metric) == [("a good", ["a far"])]
    assert wins(ran, free, "raw_gap", metric, higher_is_better=False) == [("a bad", ["a far", "a poor"])]
