from __future__ import annotations

import math
import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.errors import DataError
from modalign.evaluation.statistics import (
    Difference,
    bootstrap_interval,
    holm,
    mean,
    over_seeds,
    paired_bootstrap,
    share_interval,
    widened_for_few_changes,
)


def coins(n: int, p: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < p).astype(float)


def test_estimate_and_standard_error_against_the_formula() -> None:
    before, after = coins(2000, 0.6, 0), coins(2000, 0.65, 1)
    told = paired_bootstrap(before, after)
    difference = after - before
    assert told.estimate == pytest.approx(difference.mean(), abs=1e-15)
    assert told.standard_error == pytest.approx(difference.std() / math.sqrt(2000), rel=0.03)
    assert told.low == pytest.approx(difference.mean() - 1.96 * told.standard_error, abs=2e-3)
    assert told.high == pytest.approx(difference.mean() + 1.96 * told.standard_error, abs=2e-3)


@pytest.mark.parametrize("kind", ["few values", "many values"])
def test_interval_against_scipys_bca(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(size=80) if kind == "many values" else (rng.random(80) < 0.06).astype(float)
    expected = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", random_state=rng)
    low, high = bootstrap_interval(values, resamples=20_000)
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.02 * (high - low) + 1 / 80 * (kind[0] == "f"))
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.03 * (high - low) + 1 / 80 * (kind[0] == "f"))


def test_pairing_is_what_makes_a_small_change_visible() -> None:
    before = coins(1000, 0.5, 0)
    after = before.copy()
    after[np.flatnonzero(before)[:20]] = 0
    told = paired_bootstrap(before, after)
    assert told.high < 0
    shuffled = np.random.default_rng(1).permutation(after)
    assert paired_bootstrap(before, shuffled).high > 0


def test_degenerate_outcomes() -> None:
    same = paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert (same.estimate, same.low, same.high, same.standard_error) == (0, 0, 0, 0)
    shifted = paired_bootstrap([0, 0, 0], [0.1, 0.1, 0.1])
    assert (shifted.low, shifted.high) == (pytest.approx(0.1), pytest.approx(0.1))
    alone = paired_bootstrap([1], [0])
    assert (alone.low, alone.high) == (-1, -1)
    assert bootstrap_interval([1, 1, 1, 1]) == (1, 1)


def test_a_share_of_none_or_all_is_not_certain() -> None:
    exact = scipy.stats.binomtest(0, 8).proportion_ci(method="exact")
    assert share_interval(np.zeros(8)) == (0, pytest.approx(exact.high, abs=1e-9))
    assert share_interval(np.ones(8)) == (pytest.approx(1 - exact.high, abs=1e-9), 1)
    captions = share_interval(np.zeros(40), clusters=np.repeat(np.arange(8), 5))
    assert captions == pytest.approx((0, exact.high), abs=1e-9)  # eight pictures are drawn, not forty captions
    classes = share_interval(np.repeat([0.0, 1.0], 50), strata=np.repeat([0, 1], 50))
    assert classes == pytest.approx(tuple(scipy.stats.binomtest(50, 100).proportion_ci()), abs=1e-9)


def test_the_interval_of_a_share_ends_at_0_and_1_and_is_else_the_bootstraps() -> None:
    outcomes, classes = np.zeros(35), np.repeat(np.arange(35) // 2, 1)
    outcomes[3] = 1
    plain = bootstrap_interval(outcomes, strata=classes, average="strata")
    assert plain[0] < 0
    assert share_interval(outcomes, strata=classes, average="strata") == (0, plain[1])
    inside = coins(300, 0.4, 0)
    assert share_interval(inside) == bootstrap_interval(inside)
    ranks = np.full(9, 3.0)
    assert share_interval(ranks) == (3, 3) and share_interval(ranks, average="median") == (3, 3)


@pytest.mark.parametrize(("share", "n"), [(0.02, 40), (0.99, 60)])
def test_the_interval_of_a_share_near_the_end_covers_it(share: float, n: int) -> None:
    missed = 0
    for seed in range(400):
        low, high = share_interval(coins(n, share, seed), resamples=500, seed=seed)
        missed += not low <= share <= high
    assert missed <= 0.08 * 400


def test_pure_function_of_the_seed() -> None:
    before, after = coins(300, 0.5, 0), coins(300, 0.5, 1)
    assert paired_bootstrap(before, after, seed=3) == paired_bootstrap(before, after, seed=3)
    assert paired_bootstrap(before, after, seed=3) != paired_bootstrap(before, after, seed=4)


def test_clusters_that_move_together_widen_the_interval_as_if_each_were_one_example() -> None:
    pictures = coins(200, 0.4, 0)
    captions, ids = np.repeat(pictures, 5), np.repeat(np.arange(200), 5)
    clustered = paired_bootstrap(np.zeros(1000), captions, clusters=ids)
    single = paired_bootstrap(np.zeros(200), pictures)
    assert clustered.standard_error == pytest.approx(single.standard_error, rel=0.03)
    naive = paired_bootstrap(np.zeros(1000), captions)
    assert clustered.standard_error == pytest.approx(math.sqrt(5) * naive.standard_error, rel=0.05)


def test_clusters_of_unequal_size_count_examples_not_clusters() -> None:
    outcomes, ids = [1, 1, 1, 0], [7, 7, 7, 2]
    told = paired_bootstrap(np.zeros(4), outcomes, clusters=ids)
    assert told.estimate == 0.75
    assert (told.low, told.high) == (0, 1)


def test_clusters_need_not_be_contiguous_or_numbered() -> None:
    outcomes = coins(60, 0.5, 0)
    ids = np.arange(60) % 20
    order = np.random.default_rng(0).permutation(60)
    told = bootstrap_interval(outcomes, clusters=ids)
    assert bootstrap_interval(outcomes[order], clusters=ids[order]) == pytest.approx(told, abs=1e-12)
    assert bootstrap_interval(outcomes, clusters=[f"picture {i:03d}" for i in ids]) == pytest.approx(told, abs=1e-12)


def test_strata_remove_the_spread_between_them() -> None:
    outcomes = np.repeat([0.0, 1.0], 50)
    assert bootstrap_interval(outcomes, strata=np.repeat([0, 1], 50)) == (0.5, 0.5)
    low, high = bootstrap_interval(outcomes)
    assert high - low > 0.15


def test_mean_of_strata_counts_every_class_once() -> None:
    outcomes, classes = [1, 1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 1, 1]
    assert mean(outcomes, classes, "strata") == pytest.approx((1 + 1 / 3) / 2)
    assert mean(outcomes) == pytest.approx(5 / 7)
    told = paired_bootstrap(np.zeros(7), outcomes, strata=classes, average="strata")
    assert told.estimate == pytest.approx(2 / 3)


def test_standard_error_of_the_mean_of_strata_against_the_formula_even_for_tiny_classes() -> None:
    rng = np.random.default_rng(0)
    sizes = [2, 3, 5, 30]
    classes = np.repeat(np.arange(4), sizes)
    outcomes = rng.normal(size=40)
    variances = [outcomes[classes == c].var(ddof=1) / size for c, size in enumerate(sizes)]
    expected = math.sqrt(sum(variances)) / 4
    told = paired_bootstrap(np.zeros(40), outcomes, strata=classes, average="strata")
    assert told.standard_error == pytest.approx(expected, rel=0.03)


def test_classes_of_one_picture_each_are_not_certain() -> None:
    outcomes = coins(100, 0.5, 0)
    told = paired_bootstrap(np.zeros(100), outcomes, strata=np.arange(100), average="strata")
    plain = paired_bootstrap(np.zeros(100), outcomes)
    assert told.standard_error == pytest.approx(plain.standard_error, rel=0.05)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_swapping_before_and_after_mirrors_the_interval(outcomes: list[tuple[bool, bool]], seed: int) -> None:
    before, after = np.array(outcomes, float).T
    there = paired_bootstrap(before, after, resamples=4000, seed=seed)
    back = paired_bootstrap(after, before, resamples=4000, seed=seed)
    assert there.estimate == pytest.approx(-back.estimate, abs=1e-12)
    assert there.low <= there.estimate <= there.high
    step = 2 / len(outcomes)
    assert there.low == pytest.approx(-back.high, abs=step) and there.high == pytest.approx(-back.low, abs=step)


def test_coverage_of_a_rare_one_way_change() -> None:
    # Nobody improves, 1 % of 400 get worse: a percentile interval excludes the true change in about 8 % of trials.
    n, drop, trials = 400, 0.01, 1000
    missed = percentile_missed = 0
    for seed in range(trials):
        worse = coins(n, drop, seed)
        told = paired_bootstrap(worse, np.zeros(n), resamples=2000, seed=seed)
        missed += told.low > -drop + 1e-9
        drawn = -np.random.default_rng(seed).binomial(n, worse.mean(), 2000) / n
        percentile_missed += np.quantile(drawn, 0.025) > -drop + 1e-9
    assert missed <= 0.035 * trials < 0.065 * trials <= percentile_missed


def test_coverage_of_clustered_differences() -> None:
    hits = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        ids = np.repeat(np.arange(120), 5)
        picture = rng.normal(size=120)[ids]
        before = (picture + rng.normal(size=600) > 0).astype(float)
        after = (picture + rng.normal(size=600) > 0).astype(float)
        told = paired_bootstrap(before, after, clusters=ids, resamples=1000, seed=seed)
        hits += told.low <= 0 <= told.high
    assert 0.91 <= hits / 300 <= 0.985


def test_ten_thousand_resamples_of_five_thousand_examples_take_seconds() -> None:
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    paired_bootstrap(rng.random(5000), rng.random(5000))
    assert time.perf_counter() - start < 3


def drawn_medians(sides: list[np.ndarray], ids: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Median by median, from the examples of the same draws of clusters."""
    rng, count = np.random.default_rng(seed), int(ids.max()) + 1
    members = [np.flatnonzero(ids == cluster) for cluster in range(count)]
    chosen = [
        np.concatenate([members[cluster] for cluster in picks]) for picks in rng.integers(0, count, (resamples, count))
    ]
    return np.array([[np.median(values[rows]) for rows in chosen] for values in sides])


@pytest.mark.parametrize("spread", [3, 100_000])
def test_resampled_medians_are_those_of_the_drawn_examples(spread: int) -> None:
    from modalign.evaluation.medians import resampled_medians

    rng = np.random.default_rng(2)
    ids = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    sides = [rng.integers(1, spread, ids.size).astype(float) for _ in range(2)]
    np.testing.assert_array_equal(resampled_medians(sides, ids, 200, 5), drawn_medians(sides, ids, 200, 5))


def test_the_window_of_values_is_widened_until_no_median_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from modalign.evaluation import medians

    monkeypatch.setattr(medians, "REACH", 1)
    values, ids = np.random.default_rng(0).random(300), np.arange(300)
    np.testing.assert_array_equal(
        medians.resampled_medians([values], ids, 100, 1), drawn_medians([values], ids, 100, 1)
    )


def test_a_median_and_its_difference_cover_the_truth() -> None:
    hits = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        before = rng.geometric(0.1, 400).astype(float)
        told = paired_bootstrap(before, before + rng.integers(0, 7, 400), average="median", resamples=500, seed=seed)
        hits.append(told.low <= 3 <= told.high)  # exactly: the medians of all are 7 and 10
    assert np.mean(hits) >= 0.9
    assert mean([1, 2, 10], average="median") == 2
    assert paired_bootstrap([1, 1, 2], [1, 1, 2], average="median").p_value == 1


def test_the_p_value_is_where_the_interval_meets_zero() -> None:
    for seed, shift in ((0, 0.02), (1, 0.03), (2, -0.03)):
        before, after = coins(1500, 0.5, seed), coins(1500, 0.5 + shift, seed + 10)
        p_value = paired_bootstrap(before, after).p_value
        wider, narrower = (paired_bootstrap(before, after, confidence=1 - p_value * by) for by in (0.8, 1.2))
        assert wider.low <= 0 <= wider.high
        assert not narrower.low <= 0 <= narrower.high
    assert paired_bootstrap(before, after).p_value == pytest.approx(
        scipy.stats.ttest_1samp(after - before, 0).pvalue, abs=0.03
    )


def test_five_changes_are_not_worth_more_than_the_coins_that_five_changes_are() -> None:
    before, after = np.zeros(1000), np.zeros(1000)
    after[:5] = 1
    change = widened_for_few_changes(paired_bootstrap(before, after), before, after)
    assert change.p_value == pytest.approx(2 * 0.5**5)


def test_holm_worked_by_hand() -> None:
    # sorted .01 .02 .03 .5 → 4·.01, 3·.02, max(2·.03, .06), .5
    assert holm([0.02, 0.5, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([]).tolist() == [] and holm([0.9, 0.8]).tolist() == [1, 1]
    with pytest.raises(DataError, match="between 0 and 1"):
        holm([1.2])


def test_holm_seldom_finds_anything_where_there_is_nothing() -> None:
    draws = np.random.default_rng(0).random((2000, 10))
    assert np.mean([(holm(row) <= 0.05).any() for row in draws]) <= 0.06
    assert np.mean([(row <= 0.05).any() for row in draws]) > 0.35  # which is what uncorrected stars would claim


def test_seeds_join_what_varies_over_examples_and_over_seeds() -> None:
    alone = Difference(0.02, 0.01, 0.03, 0.005, 0.001)
    told = over_seeds([alone])
    assert (told.low, told.high) == (pytest.approx(0.01), pytest.approx(0.03))
    told = over_seeds([Difference(d, d - 0.01, d + 0.01, 0.005) for d in (0.00, 0.02, 0.04)])
    half = 1.959964 * math.sqrt((0.01 / 1.959964) ** 2 + 0.02**2 / 3)
    assert told.estimate == pytest.approx(0.02) and told.high - told.estimate == pytest.approx(half, rel=1e-5)
    with pytest.raises(DataError, match="no seeds"):
        over_seeds([])


@pytest.mark.parametrize(
    ("before", "after", "more", "message"),
    [
        ([1, 0], [1, 0], {"strata": [0, 1], "average": "median"}, "not taken by strata"),
        ([1, 0], [1], {}, "before has 2 outcomes, after has 1"),
        ([], [], {}, "at least one"),
        ([1, math.nan], [1, 0], {}, "outcome 1 is not finite"),
        ([1, 0], [1, 0], {"clusters": [1]}, "clusters of shape"),
        ([1, 0], [1, 0], {"strata": [1, 2, 3]}, "strata of shape"),
    ],
)
def test_bad_outcomes_are_named(
    before: list[float], after: list[float], more: dict[str, list[int]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        paired_bootstrap(before, after, **more)  # type: ignore[arg-type]
