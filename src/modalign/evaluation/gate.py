"""The gate: a verdict per metric from the paired interval of after − before, and weights between that pass it.

worse         the 95 % interval lies wholly below −tolerance
not worse     wholly above −tolerance
cannot tell   else, and wherever fewer than two pictures were judged
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

from modalign.errors import DataError, RecipeError
from modalign.evaluation.pairing import check_comparable, halves
from modalign.evaluation.results import SHARE, TOLERANCE, Metric, Results, in_unit
from modalign.evaluation.statistics import Difference, holm, paired_bootstrap, widened_for_few_changes

Verdict = Literal["worse", "not worse", "cannot tell"]
Tolerances = float | Mapping[str, float]

FORMAT = "modalign.gate/1"
EXIT_WORSE = 3
WEIGHTS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def verdict(low: float, high: float, tolerance: float = TOLERANCE) -> Verdict:
    """The verdict on a change whose confidence interval is [low, high], higher being better.

    Args:
        low: lower end of the interval of after − before.
        high: upper end.
        tolerance: the drop that is accepted, ≥ 0, in the metric's own unit (0.01 = one point of accuracy).

    Returns:
        "worse" if high < −tolerance, "not worse" if low > −tolerance, else "cannot tell" (touching −tolerance, NaN).
    """
    if high < -tolerance:
        return "worse"
    if low > -tolerance:
        return "not worse"
    return "cannot tell"


@dataclass(frozen=True)
class GateRow:
    """One metric's verdict.

    Attributes:
        metric: full name.
        before: value before.
        after: value after.
        difference: after − before.
        interval: 95 % interval of the difference.
        tolerance: the change for the worse that is accepted.
        verdict: "worse", "not worse" or "cannot tell".
        n: examples.
        higher_is_better: False where a rise is the change for the worse.
        unit: of the values and the tolerance: "share", or what else the metric counts.
        p_value: two-sided, of no difference, Holm-adjusted over the rows of the gate.
    """

    metric: str
    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    tolerance: float
    verdict: Verdict
    n: int
    higher_is_better: bool = True
    unit: str = SHARE
    p_value: float = 1.0


@dataclass(frozen=True)
class Gate:
    """The verdicts on all metrics.

    Attributes:
        rows: one a metric.
        method: how the intervals were made, in one line.
    """

    rows: tuple[GateRow, ...]
    method: str = ""

    @property
    def worst(self) -> Verdict:
        """The most severe verdict: worse, then cannot tell, then not worse."""
        found = {row.verdict for row in self.rows}
        order: tuple[Verdict, ...] = ("worse", "cannot tell", "not worse")
        return next((v for v in order if v in found), "cannot tell")

    def exit_code(self, strict: bool = False) -> int:
        """3 when any metric is worse, with `strict` also when one cannot be told; else 0."""
        return EXIT_WORSE if self.worst == "worse" or (strict and self.worst == "cannot tell") else 0

    @property
    def sentence(self) -> str:
        """The outcome in one line: which metrics are worse, which cannot be told."""
        parts = [
            f"{word}: {', '.join(names)}"
            for word in ("worse", "cannot tell")
            if (names := [row.metric for row in self.rows if row.verdict == word])
        ]
        kept = sum(row.verdict == "not worse" for row in self.rows)
        return "; ".join([*parts, f"not worse: {kept} of {len(self.rows)} metrics"])

    def to_table(self) -> list[list[str]]:
        """Rows of text: shares in per cent and points, others with their unit; the first row is the header."""
        rows = [["metric", "before %", "after %", "difference, 95 % interval", "p", "tolerance", "verdict", "n"]]
        for row in self.rows:
            before, after = (in_unit(value, row.unit) for value in (row.before, row.after))
            change, low, high = (in_unit(value, row.unit, "+") for value in (row.difference, *row.interval))
            accepted = f"{100 * row.tolerance:g}" if row.unit == SHARE else f"{row.tolerance:g} {row.unit}"
            told = [f"{change} [{low}, {high}]", _p(row.p_value), accepted, row.verdict, f"{row.n:,}"]
            rows.append([row.metric, before, after, *told])
        return rows

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        rows = [asdict(row) | {"interval": list(row.interval)} for row in self.rows]
        return {
            "format": FORMAT,
            "worst": self.worst,
            "exit_code": self.exit_code(),
            "method": self.method,
            "rows": rows,
        }

    def to_numbers(self) -> dict[str, Any]:
        """{"gate": {metric: before, after, difference and its interval's ends}}, for a chart."""
        return {
            "gate": {
                row.metric: {
                    "before": row.before,
                    "after": row.after,
                    "difference": row.difference,
                    "low": row.interval[0],
                    "high": row.interval[1],
                }
                for row in self.rows
            }
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Gate:
        """Reads what `to_dict` wrote."""
        rows = tuple(GateRow(**{**row, "interval": tuple(row["interval"])}) for row in stored["rows"])
        return cls(rows, stored["method"])


def judge(
    before: Results, after: Results, tolerances: Tolerances = TOLERANCE, *, resamples: int = 10_000, seed: int = 0
) -> Gate:
    """Judges every metric of `after` against `before` on the same examples.

    Args:
        before: the model as it was.
        after: the model as it is, evaluated on the same tasks in the same way.
        tolerances: one for all shares, or name → tolerance in the metric's unit; names may be patterns
            ("retrieval.*_r1"). An exact name goes before patterns, patterns go in their order, and what nothing names
            gets the metric's own tolerance: 0.01 of a share.
        resamples: of the paired bootstrap.
        seed: of the resamples.

    Returns:
        The `Gate`, metrics in the order of `before`.

    Raises:
        DataError: nothing to judge, or results that are not of the same examples.
        RecipeError: a tolerance that is negative or not finite, or a name that fits no metric.
    """
    check_comparable(before, after)
    first, second = before.metrics, after.metrics
    if not first:
        raise DataError("no metric to judge: evaluate at least one task, such as retrieval:SPEC")
    accepted = _tolerances(first, tolerances)
    fingerprint = before.model.get("fingerprint")
    identical = fingerprint is not None and fingerprint == after.model.get("fingerprint")
    rows = []
    for (name, old), new in zip(first.items(), second.values(), strict=True):
        change = difference(old, new, resamples=resamples, seed=seed)
        if identical and np.array_equal(old.outcomes, new.outcomes):  # nor has it changed on examples unseen
            change = Difference(0.0, 0.0, 0.0, 0.0)
        better_low, better_high = (change.low, change.high) if old.higher_is_better else (-change.high, -change.low)
        told = verdict(better_low, better_high, accepted[name])
        rows.append(
            GateRow(
                metric=name,
                before=old.value,
                after=new.value,
                difference=change.estimate,
                interval=(change.low, change.high),
                tolerance=accepted[name],
                verdict=told if _judged(old) > 1 else "cannot tell",
                n=len(old.outcomes),
                higher_is_better=old.higher_is_better,
                unit=old.unit,
                p_value=change.p_value,
            )
        )
    adjusted = holm([row.p_value for row in rows])
    return Gate(
        tuple(replace(row, p_value=float(p_value)) for row, p_value in zip(rows, adjusted, strict=True)),
        f"paired bootstrap over pictures (BCa, 95 %, exact where few changed), {resamples:,} resamples, seed {seed}; "
        "p adjusted over the table (Holm)",
    )


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def difference(before: Metric, after: Metric, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """after − before of one metric, by the paired bootstrap, widened where too few examples changed for one."""
    units: dict[str, Any] = {"clusters": before.clusters, "strata": before.strata, "average": before.average}
    change = paired_bootstrap(before.outcomes, after.outcomes, resamples=resamples, seed=seed, **units)
    return widened_for_few_changes(change, before.outcomes, after.outcomes, **units)


def check_tolerances(results: Results, tolerances: Tolerances) -> None:
    """Refuses tolerances that `judge` would refuse, before anything is trained.

    Raises:
        RecipeError: a tolerance that is negative or not finite, or a name that fits no metric.
    """
    _tolerances(results.metrics, tolerances)


def _judged(metric: Metric) -> int:
    """How many units were resampled: a single one has no spread to tell an interval from."""
    return len(metric.outcomes) if metric.clusters is None else len(np.unique(metric.clusters))


def _tolerances(metrics: Mapping[str, Metric], asked: Tolerances) -> dict[str, float]:
    plain = isinstance(asked, int | float)
    given = {"*": asked} if isinstance(asked, int | float) else dict(asked)
    for pattern, value in given.items():
        if not (math.isfinite(value) and value >= 0):
            raise RecipeError(f"tolerance of {pattern}: {value} is not a number ≥ 0; write 0.01 for one point")
        if not any(pattern == name or fnmatchcase(name, pattern) for name in metrics):
            told = ", ".join(metrics)
            raise RecipeError(f"tolerance of {pattern!r} fits no metric; write one of {told}, or a pattern")
    return {
        name: metric.tolerance if plain and metric.unit != SHARE else _tolerance(name, metric, given)
        for name, metric in metrics.items()
    }


def _tolerance(name: str, metric: Metric, given: Mapping[str, float]) -> float:
    if name in given:
        return float(given[name])
    return next((float(value) for pattern, value in given.items() if fnmatchcase(name, pattern)), metric.tolerance)


@dataclass(frozen=True)
class Interpolation:
    """Weights between before and after: (1 − weight)·before + weight·after.

    Attributes:
        weight: the largest that is not worse on the selection half, or None.
        tried: (weight, worst verdict on the selection half), in the order tried.
        selection: the chosen weight's gate on the selection half, or None.
        reported: its gate on the other half, looked at once, or None.
        pictures: how many pictures the selection and the reported half hold.
        seed: of the cut.
    """

    weight: float | None
    tried: tuple[tuple[float, Verdict], ...]
    selection: Gate | None
    reported: Gate | None
    pictures: tuple[int, int]
    seed: int

    @property
    def sentence(self) -> str:
        """The outcome in one line."""
        chosen, held = self.pictures
        if self.weight is None or self.reported is None:
            return f"no weight between before and after is not worse on the selection half ({chosen:,} pictures)"
        return (
            f"weight {self.weight:g} is the largest that is not worse on the selection half ({chosen:,} pictures); "
            f"on the other half ({held:,} pictures) it is: {self.reported.sentence}"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {
            "weight": self.weight,
            "tried": [{"weight": weight, "worst": worst} for weight, worst in self.tried],
            "selection": self.selection and self.selection.to_dict(),
            "reported": self.reported and self.reported.to_dict(),
            "pictures": {"selection": self.pictures[0], "reported": self.pictures[1]},
            "seed": self.seed,
            "sentence": self.sentence,
        }


def pick_interpolation(
    evaluate_at: Callable[[float], Results],
    tolerances: Tolerances = TOLERANCE,
    *,
    before: Results | None = None,
    weights: Sequence[float] = WEIGHTS,
    seed: int = 0,
    resamples: int = 10_000,
) -> Interpolation:
    """Names the largest interpolation weight that is not worse, chosen on one half and reported on the other.

    1. The judged pictures are cut into a selection and a reported half (`halves`: by picture, class by class, a pure
       function of the seed), for the model before and for every weight alike.
    2. Weights are tried from the largest down; each is judged on the selection half alone. The first whose metrics are
       all "not worse" is chosen and nothing smaller is evaluated.
    3. The chosen weight is judged once on the reported half, which took no part in the choice, and that is told,
       whatever it says.

    Args:
        evaluate_at: weight → the results of the model (1 − weight)·before + weight·after on all tasks.
        tolerances: as in `judge`.
        before: the results at weight 0; None = `evaluate_at(0.0)`.
        weights: to try, each between 0 and 1 (both excluded).
        seed: of the cut and of the resamples.
        resamples: of the paired bootstrap.

    Returns:
        An `Interpolation`; its weight is None where none is not worse.

    Raises:
        RecipeError: a weight outside (0, 1).
        DataError: too few pictures to cut.
    """
    if any(not 0 < weight < 1 for weight in weights):
        raise RecipeError(f"interpolation weights {list(weights)} must lie between 0 and 1; write 0.9, 0.8, …")
    start = halves(evaluate_at(0.0) if before is None else before, seed=seed, resamples=resamples)
    pictures = (_pictures(start[0]), _pictures(start[1]))
    tried: list[tuple[float, Verdict]] = []
    for weight in sorted(weights, reverse=True):
        there = halves(evaluate_at(weight), seed=seed, resamples=resamples)
        selection = judge(start[0], there[0], tolerances, resamples=resamples, seed=seed)
        tried.append((weight, selection.worst))
        if selection.worst == "not worse":
            reported = judge(start[1], there[1], tolerances, resamples=resamples, seed=seed)
            return Interpolation(weight, tuple(tried), selection, reported, pictures, seed)
    return Interpolation(None, tuple(tried), None, None, pictures, seed)


def _pictures(results: Results) -> int:
    return len(np.unique(np.concatenate([metric.owners for metric in results.metrics.values()])))
