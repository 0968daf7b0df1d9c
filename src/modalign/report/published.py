"""What the papers print about the data sets a run was judged on, beside the run's own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from modalign.evaluation.published import AVERAGES, beside, data_set_of, lines_of
from modalign.report.wording import in_words, number, percent

GAP = ("published_gap", "alignment", "uniformity")


@dataclass(frozen=True)
class Beside:
    """One metric of ours, and the published numbers of the same metric on the same data set.

    Args:
        task: the kind of task, in words, and its options.
        spec: our data.
        metric: in words.
        before: our value before.
        after: our value after.
        lines: one a published number, each with its protocol and what differs.
        share: whether the values are shares, told in per cent.
    """

    task: str
    spec: str
    metric: str
    before: float
    after: float
    lines: tuple[str, ...]
    share: bool = True

    @property
    def told(self) -> str:
        """Both values."""
        before, after = (f"{percent(v)} %" if self.share else number(v) for v in (self.before, self.after))
        return f"{before} before, {after} after"


def published_beside(evaluation: Mapping[str, Any], model: str) -> list[Beside]:
    """Every metric that somebody published for the data set of its task; then averages over data sets, then the gap.

    Args:
        evaluation: the contents of evaluation.json.
        model: the spec of the model that the run began with.
    """
    sides = [evaluation.get(side) or {} for side in ("before", "after")]
    before, after = (
        {
            (task["task"], task["spec"], tuple(sorted(task.get("options", {}).items()))): task
            for task in side.get("tasks") or []
        }
        for side in sides
    )
    both = {key: (before[key], task) for key, task in after.items() if key in before}
    found = [
        Beside(
            in_words(kind) + (f" ({', '.join(f'{name}={value}' for name, value in options)})" if options else ""),
            spec,
            in_words(name),
            float(first["metrics"][name]["value"]),
            float(stored["value"]),
            lines,
        )
        for (kind, spec, options), (first, second) in both.items()
        for name, stored in second["metrics"].items()
        if name in first["metrics"]
        and (lines := tuple(beside(spec, f"{kind}.{name}", model=model, protocol=second["protocol"])))
    ]
    zero_shot = {
        data_set: pair
        for (kind, spec, _), pair in both.items()
        if kind == "zero_shot" and (data_set := data_set_of(spec)) is not None
    }
    return found + _averages(zero_shot, model) + _gaps(sides, model)


def _averages(zero_shot: Mapping[str, tuple[Any, Any]], model: str) -> list[Beside]:
    """The means over the sets of a paper's average, where every one of them was judged."""
    found = []
    for name, sets in AVERAGES.items():
        if not sets <= zero_shot.keys():
            continue
        first, second = (fmean(zero_shot[one][i]["metrics"]["acc1"]["value"] for one in sets) for i in (0, 1))
        prompts = {str(zero_shot[one][1]["protocol"].get("prompts")) for one in sets}
        lines = lines_of(name, "zero_shot.acc1", model=model, protocol={"prompts": ", ".join(sorted(prompts))})
        found.append(Beside("zero shot", f"mean over {len(sets)} data sets", "acc1", first, second, tuple(lines)))
    return found


def _gaps(sides: list[Any], model: str) -> list[Beside]:
    """The gap, where it was measured on a data set that somebody published it of."""
    first, second = (side.get("gap") or {} for side in sides)
    if not first or first.get("spec") != second.get("spec"):
        return []
    found = []
    for name in GAP:
        told = [(gap.get("measures") or {}).get(name) or {} for gap in (first, second)]
        values = [float(value) for one in told if (value := one.get("value")) is not None]
        lines = tuple(beside(str(first.get("spec")), f"gap.{name}", model=model))
        if lines and len(values) == 2:
            found.append(Beside("gap", str(first["spec"]), in_words(name), values[0], values[1], lines, share=False))
    return found
