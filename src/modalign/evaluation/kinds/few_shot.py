"""`few-shot:SPEC`: linear probes on a few pictures a class, over draws that are the same for every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from modalign.errors import DataError
from modalign.evaluation import few_shot, linear_probe
from modalign.evaluation.kinds.base import Context, Encoded, Option, whole
from modalign.evaluation.kinds.learning import FEATURES, SCALE, SEED, TRAIN, Learning
from modalign.evaluation.results import TaskResult


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split("/"))
    if min(counts) < 1 or len(set(counts)) < len(counts):
        raise ValueError(text)
    return counts


@dataclass(frozen=True)
class FewShot(Learning):
    """`few-shot[train=SPEC,shots=1/2/4,seeds=…,features=…,scale=…,seed=…]:SPEC`."""

    name: ClassVar[str] = "few_shot"
    what: ClassVar[str] = "a few-shot probe"
    options: ClassVar = {
        "train": TRAIN,
        "shots": Option(few_shot.SHOTS, _counts, "pictures a class, such as 4 or 1/2/4"),
        "seeds": Option(few_shot.SEEDS, whole(1), "a whole number ≥ 1"),
        "features": FEATURES,
        "scale": SCALE,
        "seed": SEED,
    }

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """`acc1_<k>shot`: the mean over draws; the deviation over draws is in the notes."""
        learn, judge, judged = self.parts(encoded, row)
        held = torch.stack([learn.labels, learn.pictures]).unique(dim=1)[0].bincount(minlength=len(self.class_names))
        most, asked = int(held.max()), self.chosen["shots"]
        shots = [count for count in asked if count <= most]
        if not shots:
            raise DataError(
                f"{(self.train or self.data).spec}: no class has {min(asked)} pictures to learn from ({most} at most); "
                "ask for fewer with shots=, or give more of each class"
            )
        found = few_shot.few_shot(
            learn.features,
            learn.labels,
            judge.features,
            judge.labels,
            len(self.class_names),
            shots=shots,
            seeds=self.chosen["seeds"],
            scale=self.chosen["scale"],
            groups=learn.pictures,
        )
        told = {
            "probe": few_shot.PROTOCOL,
            "draws": self.chosen["seeds"],
            "fewest_of_a_class": int(held.min()),
            "ties": linear_probe.TIES,
        }
        if missed := [str(count) for count in asked if count > most]:
            told["shots_left_out"] = f"{', '.join(missed)}: no class has so many pictures to learn from"
        notes = {
            f"acc1_{shot.shots}shot": {
                "over_draws": shot.accuracies,
                "deviation_over_draws": shot.deviation,
                "penalties": list(shot.penalties),
            }
            for shot in found
        }
        outcomes = {f"acc1_{shot.shots}shot": shot.outcomes.mean(0) for shot in found}
        return self.result(learn, judged, outcomes, told, notes, context, row)
