"""A set of tasks, read once: what has to be embedded for all of them together, and the scores of what was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from modalign.data import sources
from modalign.data.pictures import Picture, files_identity, real_paths
from modalign.data.records import Images, Labelled, Pairs
from modalign.errors import DataError, RecipeError
from modalign.evaluation import scoring
from modalign.evaluation.prompts import Prompts, read_prompts
from modalign.evaluation.results import Features, Results
from modalign.evaluation.scoring import AnyTask, Drift, Encoded, Neighbours, Retrieval, ZeroShot
from modalign.gap import measure

__all__ = ["Encoded", "Suite", "Task", "parse_task", "prepare"]

Kind = Literal["zero-shot", "retrieval", "knn", "drift"]
GAP_RESAMPLES = 1_000


@dataclass(frozen=True)
class Task:
    """What to judge: a kind of task and a data spec."""

    kind: Kind
    spec: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.spec}"


def parse_task(text: str) -> Task:
    """Reads "zero-shot:SPEC", "retrieval:SPEC", "knn:SPEC" or "drift:SPEC"; everything after the first colon is SPEC.

    Raises:
        RecipeError: another kind, or no spec.
    """
    kind, _, spec = text.partition(":")
    if kind not in get_args(Kind) or not spec:
        raise RecipeError(
            f"task {text!r}: write zero-shot:SPEC, retrieval:SPEC, knn:SPEC or drift:SPEC, "
            "such as retrieval:flickr30k:data@test"
        )
    return Task(cast(Kind, kind), spec)


@dataclass(frozen=True)
class Suite:
    """Tasks whose pictures and strings are numbered together, so that each is embedded once.

    Attributes:
        paths: the distinct pictures over all tasks.
        wheres: where each was first named, for messages.
        strings: the distinct captions and prompts over all tasks.
        tasks: the data of each task.
    """

    paths: list[Picture]
    wheres: list[str]
    strings: list[str]
    tasks: tuple[AnyTask, ...]

    @property
    def identity(self) -> str:
        """A hash of what is judged: tasks, strings, labels, and every picture's path, size and modification time."""
        facts: list[Any] = [files_identity(self.paths), self.strings]
        for task in self.tasks:
            facts += [task.data.spec, task.pictures.tolist()]
            if isinstance(task, ZeroShot | Retrieval):
                facts.append(task.strings.tolist())
            elif isinstance(task, Drift) and task.classes is not None:
                facts += [task.classes.pictures.tolist(), task.classes.strings.tolist()]
            facts += [task.data.labels.tolist()] if isinstance(task.data, Labelled) else []
        return scoring.digest(facts)

    @property
    def drifts(self) -> list[Drift]:
        """The drift tasks."""
        return [task for task in self.tasks if isinstance(task, Drift)]

    def of(self, pictures: Tensor) -> Suite:
        """Only these pictures, by number, to be embedded without any task."""
        paths, wheres = ([values[number] for number in pictures.tolist()] for values in (self.paths, self.wheres))
        return replace(self, paths=paths, wheres=wheres, strings=[], tasks=())

    def score(
        self,
        encoded: Encoded,
        *,
        model: dict[str, Any],
        environment: dict[str, Any] | None = None,
        resamples: int = 10_000,
        seed: int = 0,
        gap: bool = True,
    ) -> Results:
        """Turns features into results.

        Args:
            encoded: of this suite's `paths` and `strings`.
            model: {"spec", "fingerprint"} of what made them.
            environment: versions and machine, kept with the results.
            resamples: of every interval.
            seed: of the resamples.
            gap: measure the gap on the first retrieval task (each picture with its first caption).

        Returns:
            The `Results`, without drift, which needs the features of a model before as well.

        Raises:
            DataError: none of a task's pictures could be read.
        """
        row = encoded.rows(len(self.paths))
        results = Results(model, [], None, environment or {})
        for task in self.tasks:
            if isinstance(task, ZeroShot):
                results.tasks.append(scoring.score_zero_shot(task, encoded, row, resamples, seed))
            elif isinstance(task, Neighbours):
                results.tasks.append(scoring.score_knn(task, encoded, row, resamples, seed))
            elif isinstance(task, Retrieval):
                result, features = scoring.score_retrieval(
                    task, self.paths, self.strings, encoded, row, resamples, seed
                )
                results.tasks.append(result)
                if results.features is None:
                    results.features = features
                    results.gap = _gap(features, task.data.spec, min(resamples, GAP_RESAMPLES), seed) if gap else None
        return results


def prepare(
    tasks: Sequence[str | Task],
    *,
    templates: str = "single",
    max_bad: int = 0,
    image_column: str | None = None,
    text_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
) -> Suite:
    """Reads the data of all tasks and numbers their pictures and strings together.

    Args:
        tasks: "zero-shot:SPEC", "retrieval:SPEC", "knn:SPEC" or "drift:SPEC", each once.
        templates: "single", "openai80" or a file (see `read_prompts`).
        max_bad: rows that may be bad in each data source.
        image_column: as for `modalign.pairs`, for all tasks whose data has columns.
        text_column: likewise, of retrieval.
        label_column: likewise, of labelled data.

    Returns:
        The `Suite`.

    Raises:
        RecipeError: no task, an unknown kind, the same task twice.
        DataError: data that cannot be read, two classes of one name, templates that cannot be used.
    """
    parsed = [parse_task(task) if isinstance(task, str) else task for task in tasks]
    if not parsed:
        raise RecipeError("no task to evaluate: name at least one, such as retrieval:SPEC")
    if twice := [str(task) for position, task in enumerate(parsed) if task in parsed[:position]]:
        raise RecipeError(f"task {twice[0]} is named twice: name it once")
    prompts = read_prompts(templates)
    reading = _Reading(prompts, image_column, text_column, label_column, max_bad)
    built = tuple([reading.task(task) for task in parsed])
    return Suite(reading.paths, reading.wheres, list(reading.strings.known), built)


@dataclass
class _Reading:
    """Reads one task after the other and numbers what they share."""

    prompts: Prompts
    image_column: str | None
    text_column: str | Sequence[str] | None
    label_column: str | None
    max_bad: int

    def __post_init__(self) -> None:
        self.pictures, self.strings = _Numbers(), _Numbers()
        self.paths: list[Picture] = []
        self.wheres: list[str] = []

    def task(self, task: Task) -> AnyTask:
        """The data of one task."""
        if task.kind == "retrieval":
            pairs = sources.pairs(
                task.spec, image_column=self.image_column, text_column=self.text_column, max_bad=self.max_bad
            )
            numbers = self._numbered(pairs)
            return Retrieval(
                pairs, numbers[pairs.caption_rows], self.strings([caption.strip() for caption in pairs.captions])
            )
        if task.kind == "drift":
            return self._drift(task.spec)
        data = self._labelled(task.spec)
        if task.kind == "zero-shot":
            return self._zero_shot(data)
        _check_classes(data, "classification by neighbours")
        return Neighbours(data, self._numbered(data))

    def _labelled(self, spec: str) -> Labelled:
        return sources.labelled(
            spec, image_column=self.image_column, label_column=self.label_column, max_bad=self.max_bad
        )

    def _zero_shot(self, data: Labelled) -> ZeroShot:
        _check_classes(data, "zero-shot classification")
        _check_names(data)
        numbers = self._numbered(data)
        texts = [prompt.strip() for name in data.class_names for prompt in self.prompts(name)]
        return ZeroShot(data, numbers, self.prompts, self.strings(texts).view(len(data.class_names), -1))

    def _drift(self, spec: str) -> Drift:
        """Pictures of any spec, and its classes where it has some that a prompt can name."""
        plain = spec.removeprefix("images:")
        images = sources.images(plain, image_column=self.image_column, max_bad=self.max_bad)
        numbers = self._numbered(images)
        if plain != spec:
            return Drift(images, numbers, None, "the spec says images")
        try:
            classes = self._zero_shot(self._labelled(spec))
        except DataError as problem:
            return Drift(images, numbers, None, str(problem))
        return Drift(images, numbers, classes)

    def _numbered(self, data: Pairs | Images | Labelled) -> Tensor:
        if not len(data):
            raise DataError(f"{data.spec} holds nothing to judge: name data with at least one row")
        numbers = self.pictures(real_paths(data.paths))
        for number, path, where in zip(numbers.tolist(), data.paths, data.wheres, strict=True):
            if number == len(self.paths):
                self.paths.append(path)
                self.wheres.append(where)
        return numbers


class _Numbers:
    """Numbers keys as first seen."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, keys: Sequence[str]) -> Tensor:
        return torch.tensor([self.known.setdefault(key, len(self.known)) for key in keys], dtype=torch.long)


def _check_classes(data: Labelled, what: str) -> None:
    if len(data.class_names) < 2:
        raise DataError(f"{data.spec} has {len(data.class_names)} class: {what} needs at least 2")


def _check_names(data: Labelled) -> None:
    first: dict[str, int] = {}
    for label, name in enumerate(data.class_names):
        if first.setdefault(name.strip(), label) != label:
            raise DataError(
                f"{data.spec}: classes {first[name.strip()]} and {label} are both called {name!r}, "
                "so no prompt can tell them apart; rename one"
            )


def _gap(features: Features, spec: str, resamples: int, seed: int) -> dict[str, Any] | None:
    """The gap of each picture and its first caption; None for fewer than three pictures."""
    pictures = len(features.image)
    if pictures < 3:
        return None
    first = torch.full((pictures,), len(features.captions))
    first.scatter_reduce_(0, features.image_of_text, torch.arange(len(features.captions)), "amin")
    report = measure(features.image, features.text[first], seed=seed, resamples=resamples)
    return {**report.to_dict(), "spec": spec, "pairing": "each picture with its first caption"}
