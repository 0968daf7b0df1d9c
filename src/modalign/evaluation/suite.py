"""A set of tasks, read once: what has to be embedded for all of them together, and the scores of what was."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modalign.data import sources
from modalign.data.records import Labelled, LabelledRow, PairRow, Pairs, real_paths
from modalign.errors import DataError, RecipeError
from modalign.evaluation import retrieval, zero_shot
from modalign.evaluation.prompts import Prompts, read_prompts
from modalign.evaluation.results import Features, Metric, Results, TaskResult
from modalign.gap import measure

Kind = Literal["zero-shot", "retrieval"]
GAP_RESAMPLES = 1_000


@dataclass(frozen=True)
class Task:
    """What to judge: a kind of task and a data spec."""

    kind: Kind
    spec: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.spec}"


def parse_task(text: str) -> Task:
    """Reads "zero-shot:SPEC" or "retrieval:SPEC"; everything after the first colon is the data spec.

    Raises:
        RecipeError: another kind, or no spec.
    """
    kind, _, spec = text.partition(":")
    if kind not in ("zero-shot", "retrieval") or not spec:
        raise RecipeError(
            f"task {text!r}: write zero-shot:SPEC or retrieval:SPEC, such as retrieval:flickr30k:data@test"
        )
    return Task("zero-shot" if kind == "zero-shot" else "retrieval", spec)


@dataclass(frozen=True)
class _ZeroShot:
    data: Labelled
    pictures: Tensor  # N numbers of the suite's pictures
    prompts: Prompts
    strings: Tensor  # C×T numbers of the suite's strings


@dataclass(frozen=True)
class _Retrieval:
    data: Pairs
    pictures: Tensor  # M numbers of the suite's pictures, one a caption
    strings: Tensor  # M numbers of the suite's strings


@dataclass(frozen=True)
class Encoded:
    """The features of a suite's pictures and strings.

    Attributes:
        image: K×d, raw, the pictures that could be read.
        kept: K positions in `Suite.paths`.
        text: S×d, raw, one row a string of `Suite.strings`.
    """

    image: Tensor
    kept: Tensor
    text: Tensor


@dataclass(frozen=True)
class Suite:
    """Tasks whose pictures and strings are numbered together, so that each is embedded once.

    Attributes:
        paths: the distinct picture files over all tasks.
        wheres: where each was first named, for messages.
        strings: the distinct captions and prompts over all tasks.
        tasks: the data of each task.
    """

    paths: list[Path]
    wheres: list[str]
    strings: list[str]
    tasks: tuple[_ZeroShot | _Retrieval, ...]

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
            The `Results`.

        Raises:
            DataError: none of a task's pictures could be read.
        """
        row = torch.full((len(self.paths),), -1)
        row[encoded.kept] = torch.arange(len(encoded.kept))
        results = Results(model, [], None, environment or {})
        for task in self.tasks:
            if isinstance(task, _ZeroShot):
                results.tasks.append(_score_zero_shot(task, encoded, row, resamples, seed))
                continue
            result, features = _score_retrieval(task, self, encoded, row, resamples, seed)
            results.tasks.append(result)
            if results.features is None:
                results.features = features
                results.gap = _gap(features, task.data.spec, min(resamples, GAP_RESAMPLES), seed) if gap else None
        return results


def prepare(tasks: Sequence[str | Task], *, templates: str = "single", max_bad: int = 0) -> Suite:
    """Reads the data of all tasks and numbers their pictures and strings together.

    Args:
        tasks: "zero-shot:SPEC" or "retrieval:SPEC", each once.
        templates: "single", "openai80" or a file (see `read_prompts`).
        max_bad: rows that may be bad in each data source.

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
    read = [
        sources.labelled(task.spec, max_bad=max_bad)
        if task.kind == "zero-shot"
        else sources.pairs(task.spec, max_bad=max_bad)
        for task in parsed
    ]
    for data in read:
        if not len(data):
            raise DataError(f"{data.spec} holds nothing to judge: name data with at least one row")
    pictures, strings = _Numbers(), _Numbers()
    wheres: dict[int, str] = {}
    paths: dict[int, Path] = {}
    built: list[_ZeroShot | _Retrieval] = []
    for data in read:
        numbers = pictures(real_paths(data.paths))
        rows: Sequence[PairRow | LabelledRow] = data.rows
        for number, source in zip(numbers.tolist(), rows, strict=True):
            wheres.setdefault(number, source.where)
            paths.setdefault(number, source.path)
        if isinstance(data, Labelled):
            _check_names(data)
            texts = [prompt.strip() for name in data.class_names for prompt in prompts(name)]
            built.append(_ZeroShot(data, numbers, prompts, strings(texts).view(len(data.class_names), -1)))
        else:
            texts = [caption.strip() for caption in data.captions]
            built.append(_Retrieval(data, numbers[data.caption_rows], strings(texts)))
    order = range(len(paths))
    return Suite([paths[i] for i in order], [wheres[i] for i in order], list(strings.known), tuple(built))


class _Numbers:
    """Numbers keys as first seen."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, keys: Sequence[str]) -> Tensor:
        return torch.tensor([self.known.setdefault(key, len(self.known)) for key in keys], dtype=torch.long)


def _check_names(data: Labelled) -> None:
    if len(data.class_names) < 2:
        raise DataError(f"{data.spec} has {len(data.class_names)} class: zero-shot classification needs at least 2")
    first: dict[str, int] = {}
    for label, name in enumerate(data.class_names):
        if first.setdefault(name.strip(), label) != label:
            raise DataError(
                f"{data.spec}: classes {first[name.strip()]} and {label} are both called {name!r}, "
                "so no prompt can tell them apart; rename one"
            )


def _score_zero_shot(task: _ZeroShot, encoded: Encoded, row: Tensor, resamples: int, seed: int) -> TaskResult:
    readable = row[task.pictures] >= 0
    pictures, labels = task.pictures[readable], task.data.labels[readable]
    if not len(pictures):
        raise DataError(f"{task.data.spec}: none of its {len(task.pictures):,} pictures can be read; check the files")
    weights = zero_shot.class_weights(encoded.text[task.strings])
    outcomes = zero_shot.zero_shot_outcomes(encoded.image[row[pictures]], weights, labels)
    metric = partial(Metric.of, clusters=pictures.numpy(), resamples=resamples, seed=seed)
    metrics = [metric(name, values) for name, values in outcomes.items()]
    metrics.append(metric("mean_per_class_recall", outcomes["acc1"], strata=labels.numpy(), average="strata"))
    names, rows = task.data.class_names, task.data.rows
    judged = [[rows[i].path.name, names[rows[i].label]] for i in readable.nonzero().flatten().tolist()]
    protocol = {
        "split": _split_of(task.data.spec),
        "samples": len(pictures),
        "left_out": int((~readable).sum()),
        "classes": len(names),
        "classes_with_pictures": len(labels.unique()),
        "prompts": task.prompts.name,
        "templates": [template.replace("{}", "{class}") for template in task.prompts.templates],
        "ties": zero_shot.TIES,
        "examples": _digest([list(names), judged]),
    }
    return TaskResult("zero_shot", task.data.spec, protocol, {m.name: m for m in metrics})


def _score_retrieval(
    task: _Retrieval, suite: Suite, encoded: Encoded, row: Tensor, resamples: int, seed: int
) -> tuple[TaskResult, Features]:
    readable = row[task.pictures] >= 0
    strings = task.strings[readable]
    if not len(strings):
        raise DataError(f"{task.data.spec}: none of its {len(task.data):,} pictures can be read; check the files")
    numbers, image_of_text = torch.unique(task.pictures[readable], return_inverse=True)
    image, text = encoded.image[row[numbers]], encoded.text[strings]
    outcomes = retrieval.retrieval_outcomes(image, text, image_of_text, strings)
    # Queries with the same string have the same outcome: they are drawn together, with their pictures' other captions.
    ids = {
        "image_to_text": {"clusters": numbers.numpy()},
        "text_to_image": {
            "clusters": retrieval.linked_captions(image_of_text, strings).numpy(),
            "pictures": numbers[image_of_text].numpy(),
        },
    }
    metrics = {
        name: Metric.of(name, values, resamples=resamples, seed=seed, **ids[name.rpartition("_")[0]])
        for name, values in outcomes.items()
    }
    captions = [suite.strings[i] for i in strings.tolist()]
    paths = [suite.paths[i] for i in numbers.tolist()]
    sizes = torch.bincount(image_of_text)
    alike = torch.unique(strings, return_counts=True)[1]
    fewest, most = int(sizes.min()), int(sizes.max())
    owners = image_of_text.tolist()
    protocol = {
        "split": task.data.split or _split_of(task.data.spec),
        "samples": len(numbers),
        "left_out": len(task.pictures.unique()) - len(numbers),
        "captions": len(captions),
        "captions_per_image": f"{fewest}" if fewest == most else f"{fewest} to {most}",
        "captions_not_unique": int(alike[alike > 1].sum()),
        "identical_captions": retrieval.IDENTICAL_CAPTIONS,
        "ties": retrieval.TIES,
        "examples": _digest([[paths[i].name, c] for i, c in zip(owners, captions, strict=True)]),
    }
    result = TaskResult("retrieval", task.data.spec, protocol, metrics)
    return result, Features(image, text, paths, captions, image_of_text)


def _gap(features: Features, spec: str, resamples: int, seed: int) -> dict[str, Any] | None:
    """The gap of each picture and its first caption; None for fewer than three pictures."""
    pictures = len(features.image)
    if pictures < 3:
        return None
    first = torch.full((pictures,), len(features.captions))
    first.scatter_reduce_(0, features.image_of_text, torch.arange(len(features.captions)), "amin")
    report = measure(features.image, features.text[first], seed=seed, resamples=resamples)
    return {**report.to_dict(), "spec": spec, "pairing": "each picture with its first caption"}


def _split_of(spec: str) -> str:
    """What a spec calls its split: its last part ("coco:data@val2017" → "val2017", a folder → its name)."""
    return re.split(r"[@:/\\]", spec.rstrip("/\\"))[-1]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")).hexdigest()[:16]
