"""From the features of two models on one suite to certificates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modalign.encoders import Tower
from modalign.errors import DataError, RecipeError
from modalign.evaluation.certificate import Certified, Labels
from modalign.evaluation.drift import certify
from modalign.evaluation.kinds import Drift, Encoded, ZeroShot
from modalign.evaluation.scoring import split_of
from modalign.evaluation.suite import Suite
from modalign.evaluation.zero_shot import class_weights
from modalign.models.dual_encoder import DualEncoder

EVERYTHING = "all pictures of the tasks"


def same_text(before: DualEncoder, after: DualEncoder, strings: Sequence[str]) -> bool:
    """Whether two models say bit for bit the same of these strings: equal text towers, equal tokens."""
    if Tower(before, "text").fingerprint != Tower(after, "text").fingerprint:
        return False
    return not strings or torch.equal(before.tokenize(list(strings)), after.tokenize(list(strings)))


def drift_results(suite: Suite, before: Encoded, after: Encoded, model: str, text: Tensor | None) -> list[Certified]:
    """A certificate for each drift task.

    Args:
        suite: what was embedded.
        before: the image features of the model before; `text` is not read.
        after: those of the model after.
        model: the model before, as it is told.
        text: S×d, raw, of the suite's strings by the one text tower that both have; None where the two differ: the
            bounds hold all the same, but nothing is certain of labels.

    Returns:
        One a task, its labels by its own classes where it has some, else by those of each zero-shot task.

    Raises:
        DataError: none of a task's pictures could be read.
    """
    beside = [task for task in suite.tasks if isinstance(task, ZeroShot)]
    found = []
    for task in suite.drifts:
        own = task.classes
        asked = [(own, own.pictures)] if own is not None else [(other, task.pictures) for other in beside]
        why = "" if asked else f"none: {task.unlabelled}; name a zero-shot task beside it"
        found.append(_certified(suite, task.data.spec, task.pictures, asked, before, after, model, text, why))
    return found


def certificate(suite: Suite, before: Encoded, after: Encoded, model: str, text: Tensor) -> Certified:
    """The certificate over all pictures of all tasks, labels by the classes of each task that has prompts.

    Args:
        suite: what was embedded.
        before: the image features of the model before.
        after: those of the model after.
        model: the model before, as it is told.
        text: S×d, raw, of the suite's strings by the text tower that both have.

    Raises:
        DataError: no picture could be read.
    """
    asked: dict[str, tuple[ZeroShot, Tensor]] = {}
    for task in suite.tasks:
        classes = task.classes if isinstance(task, Drift) else task
        if isinstance(classes, ZeroShot):
            asked.setdefault(classes.data.spec, (classes, classes.pictures))
    every = torch.arange(len(suite.paths))
    none = "none: no task names classes"
    return _certified(suite, EVERYTHING, every, list(asked.values()), before, after, model, text, none)


def need_base(suite: Suite) -> None:
    """Refuses drift tasks where no model before is known.

    Raises:
        RecipeError: naming the first of them.
    """
    if suite.drifts:
        raise RecipeError(
            f"task drift:{suite.drifts[0].data.spec} compares with a model before: name it with --against SPEC "
            "(against=MODEL in Python)"
        )


def _certified(
    suite: Suite,
    spec: str,
    pictures: Tensor,
    asked: Sequence[tuple[ZeroShot, Tensor]],
    before: Encoded,
    after: Encoded,
    model: str,
    text: Tensor | None,
    no_classes: str,
) -> Certified:
    """The certificate of some pictures; `asked`: classifiers, each with the pictures it is asked about."""
    rows = torch.stack([encoded.rows(len(suite.paths)) for encoded in (after, before)])

    def both(numbers: Tensor) -> tuple[Tensor, Tensor]:
        readable = numbers[(rows[:, numbers] >= 0).all(dim=0)].unique()
        return after.image[rows[0, readable]], before.image[rows[1, readable]]

    distinct = len(pictures.unique())
    seen = both(pictures)
    if not len(seen[0]):
        raise DataError(f"{spec}: none of its {distinct:,} pictures can be read; check the files")
    labels = []
    for task, numbers in asked:
        pair = both(numbers)
        if text is not None and len(pair[0]):
            found = certify(*pair, class_weights(text[task.strings]))
            labels.append(Labels.of(task.data.spec, task.prompts.name, found))
    splits = dict.fromkeys(split_of(task.spec) for task in suite.asked)
    protocol: dict[str, Any] = {
        "split": ", ".join(splits) if spec == EVERYTHING else split_of(spec),
        "pictures": len(seen[0]),
        "left_out": distinct - len(seen[0]),
        "before": model,
    }
    if text is None:
        protocol["labels"] = "none: the text towers differ, and with them the labels"
    else:
        protocol["labels"] = ", ".join(found.summary for found in labels) or no_classes
    return Certified.of(spec, protocol, certify(*seen), tuple(labels))
