"""Intervals for means over examples: the bootstrap, paired, by clusters and by strata.

    estimate      θ = Σ_h v_h · (Σ_k s_hk / Σ_k m_hk)          s_hk, m_hk: sum and number of the outcomes of cluster k
    weights       v_h = n_h / n ("examples")  or  1 / H ("strata")                                      of stratum h
    resample      in every stratum its K_h clusters are drawn K_h times with replacement

A cluster holds what stands or falls together (the captions of one picture); without clusters every example is its
own. With several strata the deviations within each are stretched by √(K_h/(K_h − 1)), without which small strata look
too sure; strata of a single cluster, which show no spread of their own, are pooled into one. The paired bootstrap is
this one on the differences after − before of the same examples.

The interval is BCa (bias-corrected and accelerated). For symmetric outcomes it is the percentile interval; where few
examples change, and all in one direction, the percentile interval is too short on the side a gate must not err on.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 14.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modalign.errors import DataError

Average = Literal["examples", "strata"]
Floats = NDArray[np.float64]

CELLS_AT_ONCE = 2_000_000
FEW_VALUES = 64


@dataclass(frozen=True)
class Difference:
    """after − before on the same examples, its confidence interval and its standard error."""

    estimate: float
    low: float
    high: float
    standard_error: float


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
        average: "examples" = the plain mean; "strata" = the mean of the strata's means.
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
        average: likewise.
        confidence: of the interval.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits", Biometrika 1934.
    """
    from scipy.special import betaincinv

    values = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    if np.abs(values).max(initial=0.0) > 1:
        return change
    parts = []
    blocks = _strata(values, clusters, strata)
    for sums, sizes, _ in blocks:
        share = sizes / sizes.sum() / len(blocks) if average == "strata" else sizes / values.size
        parts.append(np.stack([share, sums / sizes]))
    share, moved = np.concatenate(parts, axis=1)
    count = 1 / float((share**2).sum())
    worse, better = (float((share * np.maximum(0, sign * moved)).sum()) for sign in (-1, 1))

    def upper(rate: float) -> float:
        return float(betaincinv(rate * count + 1, max(count * (1 - rate), 1e-9), (1 + confidence) / 2))

    low, high = better - upper(worse), upper(better) - worse
    return Difference(change.estimate, min(change.low, low), max(change.high, high), change.standard_error)


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
        average: "examples" or "strata".
        resamples: how many times the clusters are drawn.
        seed: of the draws.
        confidence: of the interval.

    Returns:
        (low, high).

    Raises:
        DataError: no examples, outcomes that are not finite.
    """
    difference = _bootstrap(np.asarray(outcomes, np.float64), clusters, strata, average, resamples, seed, confidence)
    return difference.low, difference.high


def mean(outcomes: ArrayLike, strata: ArrayLike | None = None, average: Average = "examples") -> float:
    """The mean of the outcomes, or, with average="strata", the mean of the strata's means."""
    values = np.asarray(outcomes, np.float64)
    if average == "examples":
        return float(values.mean())
    _, ids = np.unique(_ids(strata, values.size, "strata"), return_inverse=True)
    return float((np.bincount(ids, values) / np.bincount(ids)).mean())


def _bootstrap(
    values: Floats,
    clusters: ArrayLike | None,
    strata: ArrayLike | None,
    average: Average,
    resamples: int,
    seed: int,
    confidence: float,
) -> Difference:
    if values.ndim != 1 or not values.size:
        raise DataError(f"outcomes of shape {values.shape}: pass one number an example, and at least one")
    if not np.isfinite(values).all():
        raise DataError(f"outcome {int(np.argmin(np.isfinite(values)))} is not finite: leave the example out")
    if resamples < 1:
        raise DataError(f"{resamples} resamples: ask for at least 1")
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
    low, high = _bca(estimate, drawn, np.concatenate(influence), confidence)
    return Difference(float(estimate), low, high, float(drawn.std(ddof=1)) if resamples > 1 else 0.0)


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


def _bca(estimate: float, drawn: Floats, influence: Floats, confidence: float) -> tuple[float, float]:
    """The bias-corrected and accelerated quantiles of the resampled estimates."""
    rounding = 1e-12 * max(1.0, abs(estimate))
    if np.ptp(drawn) <= rounding:
        return float(estimate), float(estimate)
    normal = NormalDist()
    ties = np.abs(drawn - estimate) <= rounding
    below = float(((drawn < estimate) & ~ties).mean() + ties.mean() / 2)
    edge = 1 / (drawn.size + 1)
    bias = normal.inv_cdf(min(max(below, edge), 1 - edge))
    spread = float((influence**2).sum())
    acceleration = float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    levels = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + normal.inv_cdf(tail)
        stretch = 1 - acceleration * z
        levels.append(normal.cdf(bias + z / stretch) if stretch > 0 else float(z > 0))
    low, high = np.quantile(drawn, levels)
    return float(low), float(high)
