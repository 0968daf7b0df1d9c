"""`finetune:SPEC`: the model as the start of fine-tuning on labelled pictures, and what that makes it forget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from modalign.errors import DataError
from modalign.evaluation import zero_shot
from modalign.evaluation.kinds.base import Context, Encoded, Option, whole
from modalign.evaluation.kinds.learning import SEED, TRAIN, Learning, class_prompts
from modalign.evaluation.kinds.reading import Reading
from modalign.evaluation.kinds.zero_shot import ZeroShot
from modalign.evaluation.results import TaskResult
from modalign.evaluation.scoring import pictures_digest, texts_digest
from modalign.features import image_features
from modalign.models.dual_encoder import DualEncoder


def _scope(text: str) -> str:
    if not re.fullmatch(r"full|head|lora|last:[1-9]\d*", text):
        raise ValueError(text)
    return text


def _rate(text: str) -> float:
    if not 0 < float(text) < 1:
        raise ValueError(text)
    return float(text)


@dataclass(frozen=True)
class FineTuning(Learning):
    """`finetune[train=SPEC,scope=…,epochs=…,batch=…,lr=…,seeds=…,other=SPEC,seed=…]:SPEC`.

    Attributes:
        prompted: C×T numbers of strings: the prompts of the classes to learn.
        other: a second set, judged zero-shot before and after, or None.
        prompts: the templates' name.
    """

    name: ClassVar[str] = "finetune"
    what: ClassVar[str] = "fine-tuning"
    needs_model: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {
        "train": TRAIN,
        "scope": Option("full", _scope, "full, last:N, lora or head"),
        "epochs": Option(3, whole(1), "a whole number ≥ 1"),
        "batch": Option(32, whole(1), "a whole number ≥ 1"),
        "lr": Option(None, _rate, "a learning rate between 0 and 1"),
        "seeds": Option(3, whole(1), "a whole number ≥ 1"),
        "other": Option("", str, "the spec of a second labelled set"),
        "seed": SEED,
    }

    prompted: Tensor
    other: ZeroShot | None
    prompts: str

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> FineTuning:
        """Pictures to learn from and to be judged on, and a second set where it is named."""
        parts = cls.read_parts(reading, spec, options)
        prompts, prompted = class_prompts(reading, parts["train"] or parts["data"])
        other = ZeroShot.read(reading, options["other"], {}) if options["other"] else None
        if other is not None and (both := set(other.pictures.tolist()) & set(parts["train_pictures"].tolist())):
            raise DataError(
                f"{len(both)} pictures of other={other.data.spec} are learned from as well, the first of them "
                f"{reading.wheres[min(both)]}; name a second set that shares none"
            )
        return cls(**parts, prompted=prompted, other=other, prompts=prompts.name)

    @property
    def strings(self) -> Tensor:
        """The prompts of both sets."""
        own = self.prompted.flatten()
        return own if self.other is None else torch.cat([own, self.other.strings.flatten()])

    @property
    def inputs(self) -> Tensor:
        """What is judged, what is learned from, and the second set."""
        return super().inputs if self.other is None else torch.cat([super().inputs, self.other.pictures])

    def facts(self) -> list[Any]:
        """What is judged and learned from, the second set, and how the templates are called."""
        return [*super().facts(), self.prompts, None if self.other is None else self.other.facts()]

    def score_model(self, model: DualEncoder, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """Accuracy after fine-tuning and what was gained; on the second set what is left and what was lost."""
        from modalign.evaluation.fine_tuning import Budget, fine_tune

        learn, judge, judged = self.parts(encoded, row)
        chosen = self.chosen
        budget = Budget(chosen["scope"], chosen["epochs"], chosen["batch"], chosen["lr"])
        classifier = zero_shot.class_weights(encoded.text[self.prompted])
        before = zero_shot.zero_shot_outcomes(judge.features, classifier, judge.labels, (1,))["acc1"]
        pictures = [context.paths[number] for number in learn.pictures.tolist()]
        runs, others, losses = [], [], []
        for seed in range(chosen["seed"], chosen["seed"] + chosen["seeds"]):
            tuned = fine_tune(
                model,
                pictures,
                [str(path) for path in pictures],
                learn.features,
                learn.labels,
                classifier,
                budget,
                seed=seed,
                workers=context.workers,
            )
            image = self._features(tuned.model, model, judge.pictures, judge.features, context)
            scores = torch.nn.functional.normalize(image, dim=1) @ tuned.weights.T + tuned.bias
            right = scores.gather(1, judge.labels[:, None])
            runs.append(((scores >= right).sum(1) == 1).double().numpy())
            losses.append([tuned.losses[0], tuned.losses[-1]])
            if self.other is not None:
                others.append(self._second(self.other, tuned.model, model, encoded, row, context))
        after = np.mean(runs, axis=0)
        outcomes = {"acc1": after, "gain": after - before}
        told = {
            "prompts": self.prompts,
            "texts": texts_digest(self.prompted, context),
            "fine_tuning": budget.told,
            "seeds": chosen["seeds"],
            "ties": zero_shot.TIES,
        }
        notes = {"acc1": {"over_seeds": [float(run.mean()) for run in runs]}, "first_and_last_loss": losses}
        result = self.result(learn, judged, outcomes, told, notes, context, row)
        if self.other is not None:
            self._add_second(result, self.other, np.stack([run[0] for run in others]), others[0][1], row, context)
        return result

    def _second(
        self, other: ZeroShot, tuned: DualEncoder, model: DualEncoder, encoded: Encoded, row: Tensor, context: Context
    ) -> tuple[Any, Any]:
        """Zero-shot outcomes of the second set after and before."""
        readable = row[other.pictures] >= 0
        numbers, labels = other.pictures[readable], other.data.labels[readable]
        known = encoded.image[row[numbers]]
        classifier = zero_shot.class_weights(encoded.text[other.prompted])
        found = [
            zero_shot.zero_shot_outcomes(features, classifier, labels, (1,))["acc1"]
            for features in (self._features(tuned, model, numbers, known, context), known)
        ]
        return found[0], found[1]

    def _add_second(
        self, result: TaskResult, other: ZeroShot, after: Any, before: Any, row: Tensor, context: Context
    ) -> None:
        readable = row[other.pictures] >= 0
        seen, data = other.pictures[readable], other.data
        numbers = seen.numpy()
        mean = after.mean(0)
        result.metrics["other_acc1"] = context.metric("other_acc1", mean, clusters=numbers)
        result.metrics["forgetting"] = context.metric(
            "forgetting", before - mean, clusters=numbers, higher_is_better=False
        )
        result.protocol["other"] = data.spec
        result.protocol["other_samples"] = len(numbers)
        result.protocol["other_examples"] = pictures_digest(seen, data.labels[readable], data.class_names, context)
        result.protocol["other_texts"] = texts_digest(other.prompted, context)
        result.notes["other_acc1"] = {"over_seeds": [float(run.mean()) for run in after]}

    def _features(
        self, tuned: DualEncoder, model: DualEncoder, numbers: Tensor, known: Tensor, context: Context
    ) -> Tensor:
        """Raw features of the suite's pictures after fine-tuning; those known where the tower did not change."""
        if tuned is model:
            return known
        pictures = [context.paths[number] for number in numbers.tolist()]
        seen = image_features(
            tuned, pictures, [str(p) for p in pictures], batch_size=context.batch_size, workers=context.workers
        )
        return seen.features
