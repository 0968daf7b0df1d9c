"""What the kinds of task share when they score."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from modalign.data.records import Labelled
from modalign.errors import DataError
from modalign.evaluation.results import TaskResult
from modalign.evaluation.statistics import Floats

if TYPE_CHECKING:
    from modalign.evaluation.kinds.base import Context, Judged


def readable_of(task: Judged, row: Tensor) -> Tensor:
    """Which of a task's entries have a picture that could be read.

    Raises:
        DataError: none.
    """
    readable = row[task.pictures] >= 0
    if not bool(readable.any()):
        raise DataError(f"{task.data.spec}: none of its {len(task.pictures):,} pictures can be read; check the files")
    return readable


def labelled_result(
    task: Judged, readable: Tensor, outcomes: Mapping[str, Floats], told: Mapping[str, Any], context: Context
) -> TaskResult:
    """The result of labelled pictures with one outcome each; from "acc1" follows the mean recall of the classes.

    Args:
        task: with `Labelled` data.
        readable: N, which rows of the data have outcomes.
        outcomes: name → one number for each of those.
        told: what the protocol says beside split, samples and classes.
        context: of the evaluation.
    """
    data = task.data
    assert isinstance(data, Labelled)
    pictures, labels = task.pictures[readable], data.labels[readable]
    metric = partial(context.metric, clusters=pictures.numpy())
    metrics = [metric(name, values) for name, values in outcomes.items()]
    if "acc1" in outcomes:
        metrics.append(metric("mean_per_class_recall", outcomes["acc1"], strata=labels.numpy(), average="strata"))
    names, rows = data.class_names, data.rows
    judged = [[rows[i].path.name, names[rows[i].label]] for i in readable.nonzero().flatten().tolist()]
    protocol = {
        "split": split_of(data.spec),
        "samples": len(pictures),
        "left_out": int((~readable).sum()),
        "classes": len(names),
        "classes_with_pictures": len(labels.unique()),
        **told,
        "examples": digest([list(names), judged]),
    }
    return TaskResult(task.name, data.spec, protocol, {m.name: m for m in metrics})


def texts_digest(numbers: Tensor, context: Context) -> str:
    """A digest of strings, in order.

    Args:
        numbers: among the suite's strings, of any shape.
        context: of the evaluation.
    """
    return digest([context.strings[number] for number in numbers.flatten().tolist()])


def pictures_digest(pictures: Tensor, labels: Tensor, names: Sequence[str], context: Context) -> str:
    """A digest of labelled pictures, in order: what files and classes are called.

    Args:
        pictures: N numbers among the suite's pictures.
        labels: N class numbers.
        names: C, of the classes.
        context: of the evaluation.
    """
    rows = zip(pictures.tolist(), labels.tolist(), strict=True)
    return digest([list(names), [[context.paths[number].name, names[label]] for number, label in rows]])


def split_of(spec: str) -> str:
    """What a spec calls its split: its last part ("coco:data@val2017" → "val2017", a folder → its name)."""
    return re.split(r"[@:/\\]", spec.rstrip("/\\"))[-1]


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")).hexdigest()[:16]
