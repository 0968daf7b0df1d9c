"""What the papers print about the data sets a run was judged on, beside the run's own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modalign.evaluation.published import beside
from modalign.report.wording import in_words


@dataclass(frozen=True)
class Beside:
    """One metric of ours, and the published numbers of the same metric on the same data set.

    Args:
        task: the kind of task, in words.
        spec: our data.
        metric: in words.
        before: our value before.
        after: our value after.
        lines: one a published number, each with its protocol and what differs.
    """

    task: str
    spec: str
    metric: str
    before: float
    after: float
    lines: tuple[str, ...]


def published_beside(evaluation: Mapping[str, Any], model: str) -> list[Beside]:
    """Every metric that somebody published for the data set of its task.

    Args:
        evaluation: the contents of evaluation.json.
        model: the spec of the model that the run began with.
    """
    before = {
        (task["task"], task["spec"], name): stored["value"]
        for task in (evaluation.get("before") or {}).get("tasks") or []
        for name, stored in task["metrics"].items()
    }
    return [
        Beside(in_words(task["task"]), task["spec"], in_words(name), float(before[key]), float(stored["value"]), lines)
        for task in (evaluation.get("after") or {}).get("tasks") or []
        for name, stored in task["metrics"].items()
        if (key := (task["task"], task["spec"], name)) in before
        and (lines := tuple(beside(task["spec"], f"{key[0]}.{name}", model=model, protocol=task["protocol"])))
    ]
