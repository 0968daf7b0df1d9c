"""What an evaluation says: metrics with their per-example outcomes, so that two of them can be compared later."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from modalign.data.pictures import Picture
from modalign.errors import DataError, OutputError
from modalign.evaluation.certificate import Certified
from modalign.evaluation.statistics import Average, Floats, bootstrap_interval, mean, share_interval
from modalign.evaluation.suites import Missing

FORMAT = "modalign.results/1"
SHARE = "share"
TOLERANCE = 0.01
Ids = NDArray[np.int64]


def in_unit(value: float, unit: str, sign: str = "") -> str:
    """A share as per cent without the sign, anything else with its unit; `sign="+"` shows both signs."""
    return f"{100 * value:{sign}.2f}" if unit == SHARE else f"{value:{sign}.4g} {unit}"


def task_names(tasks: Iterable[tuple[str, str, Mapping[str, str]]]) -> list[str]:
    """The name of each task among others.

    Args:
        tasks: kind, spec and given options of each.

    Returns:
        The kind; "kind[spec]" where it occurs more than once; "kind[spec, key=value]" where the spec does as well.
    """
    told = list(tasks)
    kinds = Counter(kind for kind, _, _ in told)
    specs = Counter((kind, spec) for kind, spec, _ in told)
    names = []
    for kind, spec, options in told:
        parts = [spec] if kinds[kind] > 1 else []
        parts += [f"{key}={value}" for key, value in options.items()] if specs[kind, spec] > 1 else []
        names.append(f"{kind}[{', '.join(parts)}]" if parts else kind)
    return names


@dataclass(eq=False)
class Metric:
    """One number over n examples, with what every single example contributed.

    Attributes:
        name: "acc1", "acc5", "mean_per_class_recall", "image_to_text_r1", "text_to_image_r10", …
        value: the mean of the outcomes (of the strata's means with average="strata"), 0…1 for the built-in metrics.
        interval: its 95 % interval: the bootstrap's, of a share as `share_interval` has it.
        outcomes: n numbers, one an example.
        clusters: n ids of what is drawn together by the bootstrap; None = every example on its own.
        strata: n ids of what is kept in its proportion (the class), or None.
        higher_is_better: False turns the gate's sign.
        average: "examples" or "strata".
        pictures: n ids of the picture each example belongs to, numbered over all tasks of one evaluation; None = the
            clusters are the pictures.
        unit: "share" (0…1, shown in per cent), or what else one counts: "rank", "score".
        tolerance: the change for the worse that a gate accepts unless told otherwise, in this unit.
    """

    name: str
    value: float
    interval: tuple[float, float]
    outcomes: Floats
    clusters: Ids | None = None
    strata: Ids | None = None
    higher_is_better: bool = True
    average: Average = "examples"
    pictures: Ids | None = None
    unit: str = SHARE
    tolerance: float = TOLERANCE

    @classmethod
    def of(
        cls,
        name: str,
        outcomes: ArrayLike,
        *,
        clusters: ArrayLike | None = None,
        strata: ArrayLike | None = None,
        higher_is_better: bool = True,
        average: Average = "examples",
        pictures: ArrayLike | None = None,
        unit: str = SHARE,
        tolerance: float = TOLERANCE,
        resamples: int = 10_000,
        seed: int = 0,
    ) -> Metric:
        """The metric of these outcomes: computes the value and its interval."""
        values = np.asarray(outcomes, np.float64)
        groups, layers, owners = (
            None if ids is None else np.asarray(ids, np.int64) for ids in (clusters, strata, pictures)
        )
        interval = share_interval if unit == SHARE else bootstrap_interval
        low_high = interval(values, clusters=groups, strata=layers, average=average, resamples=resamples, seed=seed)
        value = mean(values, layers, average)
        return cls(
            name, value, low_high, values, groups, layers, higher_is_better, average, owners, unit, float(tolerance)
        )

    @property
    def owners(self) -> Ids:
        """n ids: the picture each example belongs to, where none is known its cluster, else its own number."""
        ids = self.clusters if self.pictures is None else self.pictures
        return np.arange(len(self.outcomes)) if ids is None else ids

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary with every outcome."""
        return {
            "value": self.value,
            "interval": list(self.interval),
            "higher_is_better": self.higher_is_better,
            "average": self.average,
            "unit": self.unit,
            "tolerance": self.tolerance,
            "outcomes": [int(o) if o.is_integer() else o for o in map(float, self.outcomes)],
            **{key: None if ids is None else ids.tolist() for key, ids in self._ids.items()},
        }

    @property
    def _ids(self) -> dict[str, Ids | None]:
        return {"clusters": self.clusters, "strata": self.strata, "pictures": self.pictures}

    @classmethod
    def from_dict(cls, name: str, stored: Mapping[str, Any]) -> Metric:
        """Reads what `to_dict` wrote."""
        ids = {key: stored.get(key) for key in ("clusters", "strata", "pictures")}
        return cls(
            name=name,
            value=float(stored["value"]),
            interval=(float(stored["interval"][0]), float(stored["interval"][1])),
            outcomes=np.asarray(stored["outcomes"], np.float64),
            higher_is_better=bool(stored["higher_is_better"]),
            average=stored["average"],
            unit=stored.get("unit", SHARE),
            tolerance=float(stored.get("tolerance", TOLERANCE)),
            **{key: None if value is None else np.asarray(value, np.int64) for key, value in ids.items()},
        )


@dataclass(eq=False)
class TaskResult:
    """One task's metrics and how they were taken.

    Attributes:
        task: the kind's name: "zero_shot", "retrieval", "knn", …
        spec: the data spec.
        protocol: split, prompts, samples, classes or captions, rules for ties and identical captions, and "examples",
            a hash of what was judged; JSON values only. Two results are comparable when it is equal.
        metrics: name → metric.
        options: the kind's options as given.
        notes: what was found on the way and is no metric (a penalty that was chosen, a deviation over seeds); JSON
            values, never compared.
    """

    task: str
    spec: str
    protocol: dict[str, Any]
    metrics: dict[str, Metric]
    options: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The protocol in one line."""
        told = (f"{key.replace('_', ' ')}: {value}" for key, value in self.protocol.items() if key != "templates")
        return f"{self.task} on {self.spec}: " + "; ".join(told)

    def spread(self, metric: str) -> str:
        """How a metric varies over seeds or draws, where the task says so ("± 0.41 over 5 seeds"); else ""."""
        told = self.notes.get(metric)
        for what in ("seeds", "draws"):
            if isinstance(told, Mapping) and len(told.get(f"over_{what}", ())) > 1:
                deviation = in_unit(float(told[f"deviation_over_{what}"]), self.metrics[metric].unit)
                return f"± {deviation} over {len(told[f'over_{what}'])} {what}"
        return ""

    def renumbered(self, numbers: Ids) -> TaskResult:
        """The same, with `numbers[i]` in place of each metric's cluster i."""
        metrics = {
            name: metric if metric.clusters is None else replace(metric, clusters=numbers[metric.clusters])
            for name, metric in self.metrics.items()
        }
        return replace(self, metrics=metrics)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, outcomes included."""
        return {
            "task": self.task,
            "spec": self.spec,
            "options": self.options,
            "protocol": self.protocol,
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "notes": self.notes,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> TaskResult:
        """Reads what `to_dict` wrote."""
        metrics = {name: Metric.from_dict(name, metric) for name, metric in stored["metrics"].items()}
        return cls(
            stored["task"],
            stored["spec"],
            stored["protocol"],
            metrics,
            stored.get("options", {}),
            stored.get("notes", {}),
        )


@dataclass(eq=False)
class Features:
    """The raw features behind the first retrieval task, for pictures of them; not part of the JSON.

    Attributes:
        image: N×d, raw, one row a picture.
        text: M×d, raw, one row a caption.
        paths: N picture files.
        captions: M strings.
        image_of_text: M, the row of each caption's picture.
    """

    image: Tensor
    text: Tensor
    paths: list[Picture]
    captions: list[str]
    image_of_text: Tensor


@dataclass(eq=False)
class Results:
    """All tasks of one model.

    Attributes:
        model: {"spec", "fingerprint"}.
        tasks: one result a task, in the order asked for.
        gap: the `GapReport` of the first retrieval task as a dictionary, or None.
        environment: versions, seed and machine.
        features: for the report, where there is a retrieval task; never written to JSON.
        drift: one certificate a drift task, in the order asked for.
        left_out: the optional tasks that could not be read or scored, and why; never written to JSON.
    """

    model: dict[str, Any]
    tasks: list[TaskResult]
    gap: dict[str, Any] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    features: Features | None = None
    drift: list[Certified] = field(default_factory=list)
    left_out: list[Missing] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Each task's name, as `task_names` makes it."""
        return task_names((result.task, result.spec, result.options) for result in self.tasks)

    @property
    def metrics(self) -> dict[str, Metric]:
        """Every metric under its full name: "zero_shot.acc1", or "zero_shot[SPEC].acc1" where a kind occurs twice."""
        return {
            f"{name}.{metric.name}": metric
            for name, result in zip(self.names, self.tasks, strict=True)
            for metric in result.metrics.values()
        }

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, outcomes included."""
        return {
            "format": FORMAT,
            "model": self.model,
            "tasks": [result.to_dict() for result in self.tasks],
            "gap": self.gap,
            "environment": self.environment,
            "drift": [found.to_dict() for found in self.drift],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Results:
        """Reads what `to_dict` wrote."""
        tasks = [TaskResult.from_dict(result) for result in stored["tasks"]]
        drift = [Certified.from_dict(found) for found in stored.get("drift", ())]
        return cls(stored["model"], tasks, stored["gap"], stored["environment"], drift=drift)

    def save(self, path: Path | str) -> None:
        """Writes JSON under a temporary name, then renames it.

        Raises:
            OutputError: the file cannot be written.
        """
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.to_dict(), ensure_ascii=False), encoding="utf-8")
            temporary.replace(target)
        except OSError as problem:
            raise OutputError(
                f"{target}: {problem.strerror}; check the path, its permissions and the free space"
            ) from None

    @classmethod
    def load(cls, path: Path | str) -> Results:
        """Reads a file that `save` wrote.

        Raises:
            DataError: no such file, or not one of ours.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as problem:
            raise DataError(f"{path}: {problem.strerror}; name a JSON file of `modalign evaluate`") from None
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise DataError(
                f"{path} does not hold evaluation results; write it with `modalign evaluate --json`"
            ) from None

    def to_table(self) -> list[list[str]]:
        """Rows of text: metric, value, 95 % interval, n; shares in per cent, others with their unit; a header first."""
        rows = [["metric", "value %", "95 % interval", "n"]]
        spreads = [result.spread(name) for result in self.tasks for name in result.metrics]
        for (name, metric), spread in zip(self.metrics.items(), spreads, strict=True):
            low, high = (in_unit(end, metric.unit) for end in metric.interval)
            told = ", ".join(filter(None, [f"{low} … {high}", spread]))
            rows.append([name, in_unit(metric.value, metric.unit), told, f"{len(metric.outcomes):,}"])
        return rows
