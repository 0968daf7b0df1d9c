"""Choosing one checkpoint of a sweep on a validation half, and reporting it once on the other.

    max|min QUANTITY [where QUANTITY >=|<= NUMBER|before|before+NUMBER|before-NUMBER [and …]]

A quantity is a metric (`zero_shot.acc1`) or a gap measure (`gap.centroid_gap`). Shares are written in points of per
cent, everything else in its own unit. `retrieval.r1` is the mean of both directions' recall at 1.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modalign.errors import DataError, RecipeError
from modalign.evaluation.gate import Gate, judge
from modalign.evaluation.pairing import check_comparable
from modalign.evaluation.results import SHARE, Results
from modalign.sweeping.checkpoints import Checkpoint
from modalign.sweeping.halves import cut, half

EXAMPLE = "max retrieval.r1 where zero_shot.acc1 >= before - 0.5"
GAP = "gap."
DIRECTIONS = ("image_to_text_", "text_to_image_")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CONDITION = re.compile(
    rf"(?P<name>\S+)\s*(?P<sign>>=|<=)\s*(?:(?P<before>before)(?:\s*(?P<by>[-+])\s*(?P<offset>\d\S*|\.\d\S*))?"
    rf"|(?P<number>{_NUMBER}))"
)


@dataclass(frozen=True)
class Condition:
    """`name >= bound` or `name <= bound`; the bound is a number, or what was before plus a number."""

    name: str
    at_least: bool
    number: float
    before: bool

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        if not self.before:
            return f"{self.name} {sign} {self.number:g}"
        offset = f" {'-' if self.number < 0 else '+'} {abs(self.number):g}" if self.number else ""
        return f"{self.name} {sign} before{offset}"


@dataclass(frozen=True)
class Rule:
    """What is wanted of a checkpoint: the largest or smallest of one quantity, among those that meet all conditions."""

    largest: bool
    name: str
    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        told = f"{'max' if self.largest else 'min'} {self.name}"
        return told + (f" where {' and '.join(map(str, self.conditions))}" if self.conditions else "")


@dataclass(frozen=True)
class Picked:
    """The outcome.

    Attributes:
        rule: what was asked.
        checkpoint: what was chosen, or None where nothing meets the conditions.
        candidates: how many were looked at.
        met: how many of them meet the conditions on the validation half.
        validation: quantity → (before, chosen) on the validation half, shares in per cent.
        gate: the chosen one against the model before on the test half, or None.
        test_gap: gap measure → (before, chosen) on the pairs of the test half.
        halves: what each half holds, in words.
    """

    rule: Rule
    checkpoint: Checkpoint | None
    candidates: int
    met: int
    validation: Mapping[str, tuple[float, float]]
    gate: Gate | None
    test_gap: Mapping[str, tuple[float, float]]
    halves: tuple[str, str]

    @property
    def sentence(self) -> str:
        """The choice in one line."""
        held = f"the validation half ({self.halves[0]})"
        if self.checkpoint is None:
            return f"none of {self.candidates} checkpoints meets “{self.rule}” on {held}"
        told = ", ".join(f"{name} {end:.4g} (before {start:.4g})" for name, (start, end) in self.validation.items())
        among = f"among {self.met} of {self.candidates} checkpoints that meet the conditions"
        if not self.rule.conditions:
            among = f"among {self.candidates} checkpoints"
        return f"{self.checkpoint.name}, by “{self.rule}” {among} on {held}: {told}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        chosen = self.checkpoint
        return {
            "rule": str(self.rule),
            "run": chosen and str(chosen.run),
            "values": chosen and dict(chosen.values),
            "seed": chosen and chosen.seed,
            "weight": chosen and chosen.weight,
            "candidates": self.candidates,
            "met": self.met,
            "validation": {name: list(ends) for name, ends in self.validation.items()},
            "test": self.gate and self.gate.to_dict(),
            "test_gap": {name: list(ends) for name, ends in self.test_gap.items()},
            "halves": {"validation": self.halves[0], "test": self.halves[1]},
            "sentence": self.sentence,
        }


def parse(text: str) -> Rule:
    """Reads a rule.

    Raises:
        RecipeError: it does not follow the grammar; names the part that does not.
    """
    head, where, tail = re.sub(r"\s+", " ", text.strip()).partition(" where ")
    words = head.split(" ")
    if len(words) != 2 or words[0] not in ("max", "min"):
        raise RecipeError(f"--pick {head!r}: write max or min and one quantity, for example {EXAMPLE!r}")
    conditions = []
    for part in tail.split(" and ") if where else []:
        found = _CONDITION.fullmatch(part.strip())
        if found is None or (found["offset"] and not re.fullmatch(_NUMBER, found["offset"])):
            raise RecipeError(
                f"--pick {part.strip()!r}: write QUANTITY >= NUMBER, or <=, or before - NUMBER in place of the number, "
                f"for example {EXAMPLE!r}"
            )
        number = float(found["number"] or found["offset"] or 0)
        conditions.append(
            Condition(
                found["name"], found["sign"] == ">=", -number if found["by"] == "-" else number, bool(found["before"])
            )
        )
    return Rule(words[0] == "max", words[1], tuple(conditions))


def resolve(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """The metrics or gap measures that a name means: itself, what alone ends like it, or both retrieval directions.

    Args:
        name: as written.
        known: every metric by its full name, every gap measure behind `gap.`.

    Raises:
        RecipeError: nothing, or several; with the nearest name.
    """
    names = list(known)
    if name in names:
        return (name,)
    task, _, short = name.rpartition(".")
    fits = []
    for full in names:
        kind, _, metric = full.rpartition(".")
        if task in ("", kind, kind.partition("[")[0]) and (metric == short or metric.endswith(f"_{short}")):
            fits.append(full)
    if len(fits) == 1 or _both_directions(fits):
        return tuple(fits)
    if fits:
        raise RecipeError(f"--pick {name!r} could be {' or '.join(fits)}; write one of them")
    near = difflib.get_close_matches(name, [*names, *(full.rpartition(".")[2] for full in names)], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"write one of {', '.join(names)}"
    raise RecipeError(f"--pick: there is no {name!r} here; {hint}")


def quantities(results: Results) -> list[str]:
    """Every name that a rule may use."""
    measures = (results.gap or {}).get("measures", {})
    return [*results.metrics, *(f"{GAP}{name}" for name, told in measures.items() if told["value"] is not None)]


def check(rule: Rule, results: Results) -> None:
    """Refuses a rule that names what these results do not hold.

    Raises:
        RecipeError: as `resolve`.
    """
    known = quantities(results)
    for name in (rule.name, *(condition.name for condition in rule.conditions)):
        resolve(name, known)


def pick(checkpoints: Sequence[Checkpoint], rule: str | Rule, *, resamples: int = 10_000, seed: int = 0) -> Picked:
    """Chooses on the validation half and looks at the chosen one, alone, on the test half.

    Args:
        checkpoints: all judged on the same examples.
        rule: as text, or parsed.
        resamples: behind the reported intervals.
        seed: of the resamples.

    Returns:
        The outcome; of several that are best, the first.

    Raises:
        RecipeError: the rule cannot be read, or names what is not there.
        DataError: no checkpoint, or examples that cannot be cut in two.
    """
    rule = parse(rule) if isinstance(rule, str) else rule
    if not checkpoints:
        raise DataError("there is no checkpoint to pick from: let at least one run finish")
    known = quantities(checkpoints[0].before)
    wanted = {name: resolve(name, known) for name in (rule.name, *(c.name for c in rule.conditions))}
    halves = cut(checkpoints[0].before)
    starts: dict[int, Results] = {}
    best: tuple[float, Checkpoint, dict[str, tuple[float, float]]] | None = None
    met = 0
    for checkpoint in checkpoints:
        check_comparable(checkpoints[0].before, checkpoint.results)
        if id(checkpoint.before) not in starts:
            starts[id(checkpoint.before)] = half(checkpoint.before, halves, "validation", resamples=1)
        here = half(checkpoint.results, halves, "validation", resamples=1)
        gaps = checkpoint.half_gaps.get("validation", {})
        seen = {name: _ends(names, starts[id(checkpoint.before)], here, gaps) for name, names in wanted.items()}
        if not all(_meets(condition, *seen[condition.name]) for condition in rule.conditions):
            continue
        met += 1
        value = seen[rule.name][1] if rule.largest else -seen[rule.name][1]
        if best is None or value > best[0]:
            best = value, checkpoint, seen
    if best is None:
        return Picked(rule, None, len(checkpoints), 0, {}, None, {}, halves.told)
    _, chosen, seen = best
    before, after = (
        half(results, halves, "test", resamples=resamples, seed=seed) for results in (chosen.before, chosen.results)
    )
    gate = judge(before, after, resamples=resamples, seed=seed)
    return Picked(rule, chosen, len(checkpoints), met, seen, gate, chosen.half_gaps.get("test", {}), halves.told)


def _ends(
    names: Sequence[str], before: Results, here: Results, gaps: Mapping[str, tuple[float, float]]
) -> tuple[float, float]:
    """A quantity before and here, shares in per cent; the mean where a name means several metrics."""
    if names[0].startswith(GAP):
        measure = names[0].removeprefix(GAP)
        if measure not in gaps:
            raise DataError(f"--pick {names[0]}: the half to choose on holds too few pairs to measure it; judge more")
        return gaps[measure]
    first, last = (
        [metrics[name].value * (100 if metrics[name].unit == SHARE else 1) for name in names]
        for metrics in (before.metrics, here.metrics)
    )
    return sum(first) / len(names), sum(last) / len(names)


def _meets(condition: Condition, before: float, here: float) -> bool:
    bound = condition.number + (before if condition.before else 0.0)
    slack = 1e-9 * max(1.0, abs(bound))  # 100 times a share is no round number
    return here >= bound - slack if condition.at_least else here <= bound + slack


def _both_directions(names: Sequence[str]) -> bool:
    """Whether these are one task's image → text and text → image forms of one metric."""
    if len(names) != 2:
        return False
    (task, _, first), (other, _, second) = (name.rpartition(".") for name in sorted(names))
    starts = first.startswith(DIRECTIONS[0]) and second.startswith(DIRECTIONS[1])
    return task == other and starts and first.removeprefix(DIRECTIONS[0]) == second.removeprefix(DIRECTIONS[1])
