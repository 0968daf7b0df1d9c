"""Medians over resampled clusters.

A resample draws K clusters with replacement, all examples of a cluster together. Of its median only the examples about
the middle can decide: with c_kv examples of cluster k at value v and t_k draws of it, the median is where Σ_v≤x t·c_v
passes half. So one matrix product of draws and counts, over the values near the median of all, serves a block of
resamples; where one leaves that window it is widened, and the answer is exact.

The interval is the percentile interval: the BCa corrections need an estimate that is smooth in the outcomes.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CELLS_AT_ONCE = 2_000_000
REACH = 64


def resampled_medians(
    sides: Sequence[Floats], clusters: NDArray[np.int64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """The medians of several outcomes of the same examples, under the same draws.

    Args:
        sides: S times n outcomes.
        clusters: n numbers 0…K−1; examples of equal number are drawn together.
        resamples: R.
        seed: of the draws.

    Returns:
        S×R medians; an even number of examples has the mean of the middle two.
    """
    rng, count = np.random.default_rng(seed), int(clusters.max()) + 1
    windows = [_Window.of(values, clusters, count, REACH) for values in sides]
    drawn = np.empty((len(sides), resamples))
    step = max(1, CELLS_AT_ONCE // count)
    for start in range(0, resamples, step):
        rows = slice(start, min(start + step, resamples))
        picks = rng.integers(0, count, size=(rows.stop - start, count))
        picks += np.arange(len(picks))[:, None] * count
        times = np.bincount(picks.ravel(), minlength=picks.size).reshape(picks.shape).astype(np.float64)
        for side, values in enumerate(sides):
            while np.isnan(medians := windows[side].medians(times)).any():
                windows[side] = _Window.of(values, clusters, count, 4 * windows[side].reach)
            drawn[side, rows] = medians
    return drawn


@dataclass(frozen=True)
class _Window:
    """The values about the median, and how many examples each cluster has at each; the outermost hold what is beyond.

    Attributes:
        reach: how many values on either side.
        values: V, ascending.
        counts: K×V.
        whole: whether nothing lies below, and nothing above.
    """

    reach: int
    values: Floats
    counts: Floats
    whole: tuple[bool, bool]

    @classmethod
    def of(cls, outcomes: Floats, clusters: NDArray[np.int64], count: int, reach: int) -> _Window:
        distinct, place = np.unique(outcomes, return_inverse=True)
        middle = int(np.searchsorted(distinct, np.median(outcomes)))
        first, last = max(0, middle - reach), min(distinct.size - 1, middle + reach)
        width = last - first + 1
        place = clusters * width + np.clip(place, first, last) - first
        counts = np.bincount(place, minlength=count * width).reshape(count, width).astype(np.float64)
        return cls(reach, distinct[first : last + 1], counts, (first == 0, last == distinct.size - 1))

    def medians(self, times: Floats) -> Floats:
        """R×K draws of clusters → R medians; NaN where one lies beyond the window."""
        reached = (times @ self.counts).cumsum(1)
        total = reached[:, -1:]
        low, high = ((reached > place).argmax(1) for place in ((total - 1) // 2, total // 2))
        medians: Floats = (self.values[low] + self.values[high]) / 2
        beyond = ((low == 0) & (not self.whole[0])) | ((high == self.values.size - 1) & (not self.whole[1]))
        medians[beyond] = np.nan
        return medians
