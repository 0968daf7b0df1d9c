"""The trade-off over seeds: mean and interval of each setting, the front, and what the swept number does to the gap."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modalign.evaluation.statistics import Difference, over_seeds
from modalign.gap import Measure
from modalign.sweeping.checkpoints import Checkpoint

PERMUTATIONS = 9_999
TRAINING_FREE = "training-free"
"""What stands in place of a swept key where nothing is trained."""


@dataclass(frozen=True)
class Setting:
    """The checkpoints of one setting and weight, one a seed.

    Attributes:
        name: in words.
        values: swept key → value.
        weight: 0 = before, 1 = after the run.
        seeds: of the runs.
        ratios: gap measure → mean over seeds of gap / gap before.
        changes: metric → mean over seeds of after − before.
        values_of: metric → mean over seeds of its value.
    """

    name: str
    values: Mapping[str, Any]
    weight: float
    seeds: tuple[int, ...]
    ratios: Mapping[str, Measure]
    changes: Mapping[str, Measure]
    values_of: Mapping[str, float]


def joined(per_seed: Sequence[Measure]) -> Measure:
    """The mean over seeds, its interval made of the seeds' own (paired bootstrap) and of their spread: `over_seeds`.

    Args:
        per_seed: one estimate a seed, each with its interval.
    """
    ends = [value.interval or (float(value), float(value)) for value in per_seed]
    if len(per_seed) == 1:  # the bootstrap's own interval need not be symmetric
        return Measure(float(per_seed[0]), ends[0])
    found = over_seeds([Difference(float(value), *end, 0.0) for value, end in zip(per_seed, ends, strict=True)])
    return Measure(found.estimate, (found.low, found.high))


def settings(checkpoints: Iterable[Checkpoint]) -> list[Setting]:
    """Groups checkpoints by swept values and weight; weight 0, the model before, is one group of its own.

    Args:
        checkpoints: of a sweep.

    Returns:
        The settings in the order of their first checkpoint.
    """
    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        key = json.dumps([dict(checkpoint.values) if checkpoint.weight else {}, checkpoint.weight], default=str)
        groups.setdefault(key, []).append(checkpoint)
    return [_setting(group) for group in groups.values()]


def _setting(group: Sequence[Checkpoint]) -> Setting:
    first = group[0]
    ratios = [name for name in first.ratios if all(name in checkpoint.ratios for checkpoint in group)]
    return Setting(
        told(first.values, first.weight),
        first.values if first.weight else {},
        first.weight,
        tuple(dict.fromkeys(checkpoint.seed for checkpoint in group)),
        {name: joined([checkpoint.ratios[name] for checkpoint in group]) for name in ratios},
        {name: joined([checkpoint.changes[name] for checkpoint in group]) for name in first.changes},
        {
            name: float(np.mean([checkpoint.results.metrics[name].value for checkpoint in group]))
            for name in first.changes
        },
    )


def told(values: Mapping[str, Any], weight: float) -> str:
    """A setting in words."""
    if weight == 0:
        return "before"
    parts = []
    for key, value in values.items():
        name = key.rpartition(".")[2]
        shown = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        parts.append(f"{shown}, no training" if key == TRAINING_FREE else f"{name} {shown}")
    return ", ".join([*parts, *([f"weight {weight:g}"] if weight != 1 else [])]) or "after"


def pareto(gaps: ArrayLike, gains: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other one beats: none has a smaller gap at no less gain, or more gain at no larger gap.

    Args:
        gaps: n numbers, less is better.
        gains: n numbers, more is better.

    Returns:
        n truth values; equal points are both on the front, and one with a number that is not finite is not.
    """
    x, y = np.asarray(gaps, np.float64), np.asarray(gains, np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    order = np.lexsort((-y, x))
    front = np.zeros(x.size, np.bool_)
    best, at = -np.inf, np.inf
    for i in order[finite[order]]:
        if y[i] > best or (y[i] == best and x[i] == at):
            front[i], best, at = True, y[i], x[i]
    return front


def wins(
    ran: Sequence[Setting], free: Sequence[Setting], measure: str, metric: str, *, higher_is_better: bool = True
) -> list[tuple[str, list[str]]]:
    """Where what trains nothing wins: each transform with the settings of the front that it beats, by the means.

    To beat is to have no larger a gap and no lower a metric, and one of the two better.

    Args:
        ran: the settings of the sweep, the model before among them.
        free: the training-free transforms.
        measure: of the gap.
        metric: full name.
        higher_is_better: False where less of the metric is better.
    """
    sign = 1 if higher_is_better else -1
    places = {
        setting.name: (float(setting.ratios[measure]), sign * float(setting.changes[metric]))
        for setting in (*ran, *free)
    }
    ends = [places[setting.name] for setting in ran]
    front = pareto([gap for gap, _ in ends], [gain for _, gain in ends])
    best = [setting.name for setting, on in zip(ran, front, strict=True) if on]
    found = []
    for setting in free:
        gap, gain = places[setting.name]
        beaten = [n for n in best if gap <= places[n][0] and gain >= places[n][1] and (gap, gain) != places[n]]
        if beaten:
            found.append((setting.name, beaten))
    return found


@dataclass(frozen=True)
class Trend:
    """Spearman's ρ between a swept number and a gap over the gap before, over all finished runs.

    Attributes:
        key: the swept key.
        measure: of the gap.
        rho: rank correlation.
        p: of a permutation test, two-sided.
        runs: how many.
    """

    key: str
    measure: str
    rho: float
    p: float
    runs: int

    @property
    def sentence(self) -> str:
        """The outcome in one line, either way."""
        size = f"Spearman ρ = {self.rho:+.2f}".replace("-", "−")
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.2g}"
        measure = self.measure.replace("_", " ")
        name = self.key.rpartition(".")[2]
        if self.p >= 0.05 or not math.isfinite(self.rho):
            verdict = f"whether {name} moves the normalised {measure} cannot be told"
        else:
            verdict = f"the larger {name}, the {'smaller' if self.rho < 0 else 'larger'} the normalised {measure}"
        return f"{verdict}: {size}, {p}, {self.runs} runs"


def trends(checkpoints: Sequence[Checkpoint], keys: Iterable[str], measures: Iterable[str]) -> list[Trend]:
    """The trend of each measure along each swept number, over the runs' own ends (weight 1).

    Args:
        checkpoints: of a sweep.
        keys: swept keys whose values are numbers.
        measures: of the gap.
    """
    ends = [checkpoint for checkpoint in checkpoints if checkpoint.weight == 1]
    found = []
    for key in keys:
        for measure in measures:
            known = [c for c in ends if measure in c.ratios]
            x, y = [c.values[key] for c in known], [float(c.ratios[measure]) for c in known]
            if len(set(x)) > 1 and len(known) > 2:
                found.append(Trend(key, measure, *spearman(x, y), len(known)))
    return found


def spearman(x: ArrayLike, y: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """Spearman's ρ and its two-sided p by permutation, exact where there are few enough orders.

    Args:
        x: n numbers.
        y: n numbers.
        seed: of the permutations.

    Returns:
        (ρ, p); NaN and 1 where one of them does not vary.

    Source: scipy.stats.permutation_test, of pairings.
    """
    from scipy.stats import permutation_test, rankdata

    first, second = (np.asarray(rankdata(values), np.float64) for values in (x, y))
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    if scale == 0:
        return math.nan, 1.0

    def statistic(ranks: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        rho: NDArray[np.float64] = (ranks * second).sum(axis=axis) / scale
        return rho

    tested = permutation_test(
        (first,),
        statistic,
        permutation_type="pairings",
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(seed),
    )
    return float(statistic(first)), float(tested.pvalue)
