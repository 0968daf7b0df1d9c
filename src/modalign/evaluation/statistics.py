"""Intervals for means over examples: the bootstrap, paired, by clusters and by strata.

    estimate      θ = Σ_h v_h · (Σ_k s_hk / Σ_k m_hk)          s_hk, m_hk: sum and number of the outcomes of cluster k
    weights       v_h = n_h / n ("examples")  or  1 / H ("strata")                                      of stratum h
    resample      in every stratum its K_h clusters are drawn K_h times with replacement

A cluster holds what stands or falls together (the captions of one picture); without clusters every example is its
own. With several strata the deviations within each are stretched by √(K_h/(K_h − 1)), without which small strata look
too sure; strata of a single cluster, which show no spread of their own, are pooled into one. The paired bootstrap is
this one on the differences after − before of the same examples.

A median (average="median") is resampled likewise: see `medians`.

The interval of a mean is BCa (bias-corrected and accelerated). For symmetric outcomes it is the percentile interval;
where few examples change, and all in one direction, the percentile interval is too short on the side a gate must not
err on.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 14.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modalign.errors import DataError
from modalign.evaluation.medians import resampled_medians

Average = Literal["examples", "strata", "median"]
Floats = NDArray[np.float64]

CELLS_AT_ONCE = 2_000_000
FEW_VALUES = 64


@dataclass(frozen=True)
class Difference:
    """after − before on the same examples.

    Attributes:
        estimate: the difference.
        low: the lower end of its confidence interval.
        high: the upper end.
        standard_error: of the resampled differences.
        p_value: two-sided: the smallest 1 − confidence at which the interval leaves out 0.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    p_value: float = 1.0


def paired_bootstrap(
    before: ArrayLike,
    after: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    average: Average = "examples",
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """The difference of two means over the same examples, with its BCa bootstrap interval.

    Outcomes that are the same on every example give [0, 0], a single cluster gives [d, d]: resampling cannot tell more
    (the gate calls the latter "cannot tell").

    Args:
        before: n outcomes, one an example.
        after: n outcomes of the same examples in the same order.
        clusters: n ids; examples of equal id are drawn together.
        strata: n ids; every stratum keeps its number of clusters.
        average: "examples" = the plain mean; "strata" = the mean of the strata's means; "median" = the median, of
            which the difference is that of the medians.
        resamples: how many times the clusters are drawn.
        seed: the answer is a pure function of the arguments and this.
        confidence: of the interval.

    Returns:
        A `Difference`.

    Raises:
        DataError: lengths that differ, no examples, outcomes that are not finite.

    Source: Efron and Tibshirani 1993, section 14.3.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != second.shape:
        raise DataError(
            f"before has {first.size:,} outcomes, after has {second.size:,}: evaluate both on the same examples"
        )
    if average == "median":
        return _of_medians([first, second], clusters, strata, resamples, seed, confidence)
    return _bootstrap(second - first, clusters, strata, average, resamples, seed, confidence)


def widened_for_few_changes(
    change: Difference,
    before: ArrayLike,
    after: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    average: Average = "examples",
    confidence: float = 0.95,
) -> Difference:
    """Widens a paired interval to what can be known where hardly any example changed.

        low  = min(low,  C/K − u(B, K)),   high = max(high, u(C, K) − B/K)

    with B and C how many clusters got worse and better, K how many there are, and u the exact upper bound of a
    proportion. A bootstrap cannot draw a change that it never saw: after one hundred examples without one it is
    certain of none, though a drop of three points would go unseen one time in twenty. With a dozen changes in either
    direction the bootstrap's interval is the wider one and stays.

    Args:
        change: what `paired_bootstrap` said of the same arguments.
        before: n outcomes between 0 and 1; others are left to the bootstrap.
        after: n outcomes.
        clusters: as in `paired_bootstrap`; clusters of unequal size count as 1/Σ(share²) equal ones.
        strata: likewise.
        average: likewise; a median is left to the bootstrap.
        confidence: of the interval.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 1934.
    """
    values = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    if average == "median" or np.abs(values).max(initial=0.0) > 1:
        return change
    share, moved = _weighted(values, clusters, strata, average)
    count = 1 / float((share**2).sum())
    worse, better = (float((share * np.maximum(0, sign * moved)).sum()) for sign in (-1, 1))

    low = better - _at_most(worse, count, confidence)
    high = _at_most(better, count, confidence) - worse
    # Were there no effect, each cluster that changed would have changed either way with equal chance.
    least = min(1.0, 2.0 ** (1 - int((moved != 0).sum())))
    return replace(change, low=min(change.low, low), high=max(change.high, high), p_value=max(change.p_value, least))


def bootstrap_interval(
    outcomes: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    average: Average = "examples",
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """The BCa bootstrap interval of one mean; arguments as in `paired_bootstrap`.

    Args:
        outcomes: n outcomes, one an example.
        clusters: n ids; examples of equal id are drawn together.
        strata: n ids; every stratum keeps its number of clusters.
        average: "examples", "strata" or "median".
        resamples: how many times the clusters are drawn.
        seed: of the draws.
        confidence: of the interval.

    Returns:
        (low, high).

    Raises:
        DataError: no examples, outcomes that are not finite.
    """
    values = np.asarray(outcomes, np.float64)
    if average == "median":
        found = _of_medians([values], clusters, strata, resamples, seed, confidence)
    else:
        found = _bootstrap(values, clusters, strata, average, resamples, seed, confidence)
    return found.low, found.high


def share_interval(
    outcomes: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    average: Average = "examples",
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """`bootstrap_interval` of a share, which ends at 0 and 1 and is never certain.

        low  = min(low,  1 − u(1 − θ, K)),   high = max(high, u(θ, K))          where every resample gives θ

    with u the exact (Clopper–Pearson) upper bound of a proportion and K how many clusters were drawn. Where all
    outcomes are equal a bootstrap can draw nothing else: eight wrong of eight would be 0 … 0, and are 0 … 0.37. Where
    classes are told apart, their tiny strata are stretched beyond 0 and 1; the interval is cut there.

    Args:
        outcomes: n outcomes between 0 and 1; others are left to the bootstrap.
        clusters: as in `bootstrap_interval`; clusters of unequal size count as 1/Σ(share²) equal ones.
        strata: likewise.
        average: likewise; a median is left to the bootstrap.
        resamples: likewise.
        seed: likewise.
        confidence: likewise.

    Returns:
        (low, high).

    Raises:
        DataError: no examples, outcomes that are not finite.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 1934.
    """
    values = np.asarray(outcomes, np.float64)
    low, high = bootstrap_interval(
        values,
        clusters=clusters,
        strata=strata,
        average=average,
        resamples=resamples,
        seed=seed,
        confidence=confidence,
    )
    if average == "median" or values.min() < 0 or values.max() > 1:
        return low, high
    if low == high:
        share, _ = _weighted(values, clusters, strata, average)
        count = 1 / float((share**2).sum())
        low = min(low, 1 - _at_most(1 - low, count, confidence))
        high = max(high, _at_most(high, count, confidence))
    return max(low, 0.0), min(high, 1.0)


def mean(outcomes: ArrayLike, strata: ArrayLike | None = None, average: Average = "examples") -> float:
    """The mean of the outcomes, with average="strata" the mean of the strata's means, with "median" the median."""
    values = np.asarray(outcomes, np.float64)
    if average == "median":
        return float(np.median(values))
    if average == "examples":
        return float(values.mean())
    _, ids = np.unique(_ids(strata, values.size, "strata"), return_inverse=True)
    return float((np.bincount(ids, values) / np.bincount(ids)).mean())


def holm(p_values: ArrayLike) -> Floats:
    """Adjusts the p-values of a table so that the chance of any false finding in it stays below the level.

        adjusted_(i) = max over j ≤ i of  min(1, (m − j + 1) · p_(j)),      p_(1) ≤ … ≤ p_(m)

    Args:
        p_values: m numbers between 0 and 1, of any dependence.

    Returns:
        m adjusted p-values, in the order given: what is ≤ 0.05 holds for the whole table.

    Raises:
        DataError: numbers outside 0…1.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    given = np.asarray(p_values, np.float64)
    if given.ndim != 1 or not ((given >= 0) & (given <= 1)).all():
        raise DataError("p-values must be a list of numbers between 0 and 1; pass those of one table")
    order = np.argsort(given, kind="stable")
    adjusted = np.empty(given.size)
    steps = np.minimum(1.0, (given.size - np.arange(given.size)) * given[order])
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def over_seeds(per_seed: Sequence[Difference], *, confidence: float = 0.95) -> Difference:
    """Joins the same comparison of several seeds: what varies over examples, and what varies over seeds.

        variance = mean_s(w_s²) + sd_s(d_s)² / S          d_s: the estimate of seed s, w_s: its interval's width / 2z

    The seeds are judged on the same examples, so that the first part does not shrink with their number. With few seeds
    the second is known poorly: take five.

    Args:
        per_seed: S differences, one a seed.
        confidence: of their intervals, and of the joint one.

    Returns:
        The mean over seeds, with a symmetric interval.

    Raises:
        DataError: no seeds.
    """
    if not per_seed:
        raise DataError("no seeds to combine: pass one difference a seed")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    estimates = np.array([found.estimate for found in per_seed])
    within = float(np.mean([((found.high - found.low) / (2 * z)) ** 2 for found in per_seed]))
    between = float(estimates.var(ddof=1)) / estimates.size if estimates.size > 1 else 0.0
    error, centre = math.sqrt(within + between), float(estimates.mean())
    p_value = 2 * NormalDist().cdf(-abs(centre) / error) if error else float(centre == 0)
    return Difference(centre, centre - z * error, centre + z * error, error, p_value)


def _bootstrap(
    values: Floats,
    clusters: ArrayLike | None,
    strata: ArrayLike | None,
    average: Average,
    resamples: int,
    seed: int,
    confidence: float,
) -> Difference:
    _check(values, resamples)
    rng = np.random.default_rng(seed)
    estimate = 0.0
    drawn = np.zeros(resamples)
    influence: list[Floats] = []
    blocks = _strata(values, clusters, strata)
    count = len(blocks)
    if count > 1:
        blocks = _pooled(blocks, average)
    for sums, sizes, strata_held in blocks:
        weight = strata_held / count if average == "strata" else sizes.sum() / values.size
        ratio = sums.sum() / sizes.sum()
        stretch = np.sqrt(sums.size / (sums.size - 1)) if count > 1 and sums.size > 1 else 1.0
        estimate += weight * ratio
        drawn += weight * (ratio + stretch * (_resampled_ratios(sums, sizes, resamples, rng) - ratio))
        influence.append(weight * stretch * (sums - ratio * sizes) / sizes.sum())
    low, high, p_value = _bca(estimate, drawn, np.concatenate(influence), confidence)
    return Difference(float(estimate), low, high, _spread(drawn), p_value)


def _of_medians(
    sides: Sequence[Floats],
    clusters: ArrayLike | None,
    strata: ArrayLike | None,
    resamples: int,
    seed: int,
    confidence: float,
) -> Difference:
    """The median of one side, or the second's minus the first's, with its percentile interval."""
    if strata is not None:
        raise DataError("a median is not taken by strata: leave them out, or average over strata")
    for values in sides:
        _check(values, resamples)
    ids = np.arange(sides[0].size) if clusters is None else _ids(clusters, sides[0].size, "clusters")
    drawn = resampled_medians(sides, np.unique(ids, return_inverse=True)[1], resamples, seed)
    whole = [float(np.median(values)) for values in sides]
    change, estimate = (drawn[-1] - drawn[0], whole[-1] - whole[0]) if len(sides) > 1 else (drawn[0], whole[0])
    low, high = np.quantile(change, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    beyond = min(float((change <= 0).mean()), float((change >= 0).mean()))
    p_value = min(1.0, 2 * max(beyond, 1 / (resamples + 1)))
    return Difference(estimate, float(low), float(high), _spread(change), p_value)


def _check(values: Floats, resamples: int) -> None:
    if values.ndim != 1 or not values.size:
        raise DataError(f"outcomes of shape {values.shape}: pass one number an example, and at least one")
    if not np.isfinite(values).all():
        raise DataError(f"outcome {int(np.argmin(np.isfinite(values)))} is not finite: leave the example out")
    if resamples < 1:
        raise DataError(f"{resamples} resamples: ask for at least 1")


def _spread(drawn: Floats) -> float:
    return float(drawn.std(ddof=1)) if drawn.size > 1 else 0.0


Stratum = tuple[Floats, Floats, int]
"""The sum and the number of the outcomes of each cluster, and how many strata were pooled here."""


def _strata(values: Floats, clusters: ArrayLike | None, strata: ArrayLike | None) -> list[Stratum]:
    _, stratum = np.unique(_ids(strata, values.size, "strata"), return_inverse=True)
    cluster = np.arange(values.size) if clusters is None else _ids(clusters, values.size, "clusters")
    _, cluster = np.unique(cluster, return_inverse=True)
    # A cluster that reaches over several strata is cut at their borders.
    joint, member = np.unique(stratum * (int(cluster.max()) + 1) + cluster, return_inverse=True)
    sums: Floats = np.bincount(member, values).astype(np.float64)
    sizes: Floats = np.bincount(member).astype(np.float64)
    borders = np.searchsorted(joint // (int(cluster.max()) + 1), np.arange(1, int(stratum.max()) + 1))
    return [(s, m, 1) for s, m in zip(np.split(sums, borders), np.split(sizes, borders), strict=True)]


def _weighted(
    values: Floats, clusters: ArrayLike | None, strata: ArrayLike | None, average: Average
) -> tuple[Floats, Floats]:
    """Each cluster's share in the estimate, and the mean of its outcomes."""
    parts = []
    blocks = _strata(values, clusters, strata)
    for sums, sizes, _ in blocks:
        share = sizes / sizes.sum() / len(blocks) if average == "strata" else sizes / values.size
        parts.append(np.stack([share, sums / sizes]))
    share, means = np.concatenate(parts, axis=1)
    return share, means


def _at_most(rate: float, count: float, confidence: float) -> float:
    """The exact upper bound of a proportion that was seen to be `rate` of `count`, the lower one left as much."""
    from scipy.special import betaincinv

    return float(betaincinv(rate * count + 1, max(count * (1 - rate), 1e-9), (1 + confidence) / 2))


def _pooled(blocks: list[Stratum], average: Average) -> list[Stratum]:
    """The strata with at least two clusters, and one more that holds all others."""
    single = [(sums, sizes) for sums, sizes, _ in blocks if sums.size == 1]
    if not single:
        return blocks
    sums, sizes = (np.concatenate(column) for column in zip(*single, strict=True))
    if average == "strata":  # one stratum, one vote, whatever its size
        sums, sizes = sums / sizes, np.ones_like(sizes)
    return [*(block for block in blocks if block[0].size > 1), (sums, sizes, len(single))]


def _ids(ids: ArrayLike | None, count: int, name: str) -> NDArray[np.int64]:
    if ids is None:
        return np.zeros(count, np.int64)
    array = np.asarray(ids)
    if array.shape != (count,):
        raise DataError(f"{name} of shape {array.shape} for {count:,} outcomes: pass one id an example")
    return array


def _resampled_ratios(sums: Floats, sizes: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Σ sums / Σ sizes over the clusters of one stratum, drawn with replacement, `resamples` times."""
    cells, counts = np.unique(np.stack([sums, sizes]), axis=1, return_counts=True)
    # Equal clusters need not be told apart: how often each *kind* is drawn is multinomial, at a cost free of n.
    few = counts.size <= FEW_VALUES
    step = max(1, CELLS_AT_ONCE // (counts.size if few else sums.size))
    ratios = np.empty(resamples)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        if few:
            times = rng.multinomial(sums.size, counts / sums.size, size=stop - start)
            total, size = times @ cells[0], times @ cells[1]
        else:
            picks = rng.integers(0, sums.size, size=(stop - start, sums.size), dtype=np.int32)
            total, size = sums[picks].sum(1), sizes[picks].sum(1)
        ratios[start:stop] = total / size
    return ratios


def _bca(estimate: float, drawn: Floats, influence: Floats, confidence: float) -> tuple[float, float, float]:
    """The bias-corrected and accelerated quantiles of the resampled estimates, and the p-value of no effect."""
    rounding = 1e-12 * max(1.0, abs(estimate))
    if np.ptp(drawn) <= rounding:
        return float(estimate), float(estimate), float(abs(estimate) <= rounding)
    normal = NormalDist()

    def share_below(value: float) -> float:
        ties = np.abs(drawn - value) <= rounding
        share, edge = float(((drawn < value) & ~ties).mean() + ties.mean() / 2), 1 / (drawn.size + 1)
        return min(max(share, edge), 1 - edge)

    bias = normal.inv_cdf(share_below(estimate))
    spread = float((influence**2).sum())
    acceleration = float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    levels = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        stretch = 1 - acceleration * z
        levels.append(normal.cdf(bias + z / stretch) if stretch > 0 else float(z > 0))
    low, high = np.quantile(drawn, levels)
    # The level at which an end of the interval meets 0: the correction above, turned around.
    shifted = normal.inv_cdf(share_below(0.0)) - bias
    stretch = 1 + acceleration * shifted
    z = shifted / stretch - bias if stretch > 0 else math.copysign(math.inf, shifted)
    return float(low), float(high), 2 * normal.cdf(-abs(z))
