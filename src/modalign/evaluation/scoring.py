"""The tasks of a suite, and the score of each from features."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from modalign.data.pictures import Picture
from modalign.data.records import Images, Labelled, Pairs
from modalign.errors import DataError
from modalign.evaluation import knn, retrieval, zero_shot
from modalign.evaluation.prompts import Prompts
from modalign.evaluation.results import Features, Metric, TaskName, TaskResult
from modalign.evaluation.statistics import Floats


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

    def rows(self, pictures: int) -> Tensor:
        """The row of each of a suite's pictures, -1 for one that could not be read."""
        row = torch.full((pictures,), -1)
        row[self.kept] = torch.arange(len(self.kept))
        return row


@dataclass(frozen=True)
class ZeroShot:
    """Labelled pictures and the prompts of their classes; numbers are positions among a suite's pictures and strings.

    Attributes:
        data: what is judged.
        pictures: N numbers.
        prompts: the templates.
        strings: C×T numbers.
    """

    data: Labelled
    pictures: Tensor
    prompts: Prompts
    strings: Tensor


@dataclass(frozen=True)
class Retrieval:
    """Pairs: `pictures` and `strings` are M numbers each, one a caption."""

    data: Pairs
    pictures: Tensor
    strings: Tensor


@dataclass(frozen=True)
class Neighbours:
    """Labelled pictures, each of which is classified by the others: `pictures` are N numbers."""

    data: Labelled
    pictures: Tensor


@dataclass(frozen=True)
class Drift:
    """Pictures whose features are compared with those of a model before.

    Attributes:
        data: the pictures.
        pictures: N numbers.
        classes: the data's own, where it is labelled.
        unlabelled: why the data has no classes, "" where it has.
    """

    data: Images
    pictures: Tensor
    classes: ZeroShot | None
    unlabelled: str = ""


AnyTask = ZeroShot | Retrieval | Neighbours | Drift


def score_zero_shot(task: ZeroShot, encoded: Encoded, row: Tensor, resamples: int, seed: int) -> TaskResult:
    """Accuracy at 1 and 5, and the mean recall of the classes."""
    readable = _readable(task, row)
    pictures, labels = task.pictures[readable], task.data.labels[readable]
    weights = zero_shot.class_weights(encoded.text[task.strings])
    outcomes = zero_shot.zero_shot_outcomes(encoded.image[row[pictures]], weights, labels)
    told = {
        "prompts": task.prompts.name,
        "templates": [template.replace("{}", "{class}") for template in task.prompts.templates],
        "ties": zero_shot.TIES,
    }
    return _labelled_result("zero_shot", task, readable, outcomes, told, resamples, seed)


def score_knn(task: Neighbours, encoded: Encoded, row: Tensor, resamples: int, seed: int) -> TaskResult:
    """Accuracy of the nearest neighbours' vote, and the mean recall of the classes."""
    readable = _readable(task, row)
    pictures, labels = task.pictures[readable], task.data.labels[readable]
    outcomes = {"acc1": knn.knn_outcomes(encoded.image[row[pictures]], labels, pictures)}
    sizes = torch.bincount(labels)
    told = {
        "k": knn.NEIGHBOURS,
        "classes_of_one_picture": int((sizes == 1).sum()),
        "ties": knn.TIES,
        "copies": knn.COPIES,
    }
    return _labelled_result("knn", task, readable, outcomes, told, resamples, seed)


def _readable(task: ZeroShot | Neighbours, row: Tensor) -> Tensor:
    readable = row[task.pictures] >= 0
    if not bool(readable.any()):
        raise DataError(f"{task.data.spec}: none of its {len(task.pictures):,} pictures can be read; check the files")
    return readable


def _labelled_result(
    name: TaskName,
    task: ZeroShot | Neighbours,
    readable: Tensor,
    outcomes: Mapping[str, Floats],
    told: Mapping[str, Any],
    resamples: int,
    seed: int,
) -> TaskResult:
    pictures, labels = task.pictures[readable], task.data.labels[readable]
    metric = partial(Metric.of, clusters=pictures.numpy(), resamples=resamples, seed=seed)
    metrics = [metric(name, values) for name, values in outcomes.items()]
    metrics.append(metric("mean_per_class_recall", outcomes["acc1"], strata=labels.numpy(), average="strata"))
    names, rows = task.data.class_names, task.data.rows
    judged = [[rows[i].path.name, names[rows[i].label]] for i in readable.nonzero().flatten().tolist()]
    protocol = {
        "split": split_of(task.data.spec),
        "samples": len(pictures),
        "left_out": int((~readable).sum()),
        "classes": len(names),
        "classes_with_pictures": len(labels.unique()),
        **told,
        "examples": digest([list(names), judged]),
    }
    return TaskResult(name, task.data.spec, protocol, {m.name: m for m in metrics})


def score_retrieval(
    task: Retrieval,
    paths: Sequence[Picture],
    said: Sequence[str],
    encoded: Encoded,
    row: Tensor,
    resamples: int,
    seed: int,
) -> tuple[TaskResult, Features]:
    """Recall at 1, 5 and 10 both ways, and the features behind it; `paths` and `said` are the suite's."""
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
    captions = [said[i] for i in strings.tolist()]
    shown = [paths[i] for i in numbers.tolist()]
    sizes = torch.bincount(image_of_text)
    alike = torch.unique(strings, return_counts=True)[1]
    fewest, most = int(sizes.min()), int(sizes.max())
    owners = image_of_text.tolist()
    protocol = {
        "split": task.data.split or split_of(task.data.spec),
        "samples": len(numbers),
        "left_out": len(task.pictures.unique()) - len(numbers),
        "captions": len(captions),
        "captions_per_image": f"{fewest}" if fewest == most else f"{fewest} to {most}",
        "captions_not_unique": int(alike[alike > 1].sum()),
        "identical_captions": retrieval.IDENTICAL_CAPTIONS,
        "ties": retrieval.TIES,
        "examples": digest([[shown[i].name, c] for i, c in zip(owners, captions, strict=True)]),
    }
    result = TaskResult("retrieval", task.data.spec, protocol, metrics)
    return result, Features(image, text, shown, captions, image_of_text)


def split_of(spec: str) -> str:
    """What a spec calls its split: its last part ("coco:data@val2017" → "val2017", a folder → its name)."""
    return re.split(r"[@:/\\]", spec.rstrip("/\\"))[-1]


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")).hexdigest()[:16]
