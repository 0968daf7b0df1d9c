"""`linear-probe:SPEC`: a linear classifier learned on image features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from modalign.evaluation import linear_probe
from modalign.evaluation.kinds.base import Context, Encoded, Option, choice
from modalign.evaluation.kinds.learning import FEATURES, SCALE, SEED, TRAIN, Learning
from modalign.evaluation.results import TaskResult


@dataclass(frozen=True)
class LinearProbe(Learning):
    """`linear-probe[train=SPEC,features=…,scale=…,rule=…,seed=…]:SPEC`."""

    name: ClassVar[str] = "linear_probe"
    what: ClassVar[str] = "a linear probe"
    options: ClassVar = {
        "train": TRAIN,
        "features": FEATURES,
        "scale": SCALE,
        "rule": Option("logistic", choice(*linear_probe.RULES), "logistic or adamw"),
        "seed": SEED,
    }

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """Accuracy at 1 and 5, and the mean recall of the classes."""
        learn, judge, judged = self.parts(encoded, row)
        classes, scale, seed = len(self.class_names), self.chosen["scale"], self.chosen["seed"]
        if self.chosen["rule"] == "adamw":
            probe = linear_probe.fit_adamw(learn.features, learn.labels, classes, scale=scale, seed=seed)
        else:
            probe = linear_probe.fit_probe(
                learn.features, learn.labels, classes, scale=scale, seed=seed, groups=learn.pictures
            )
        outcomes = probe.outcomes(judge.features, judge.labels)
        told = {"probe": linear_probe.RULES[self.chosen["rule"]], "seed": seed, "ties": linear_probe.TIES}
        return self.result(learn, judged, outcomes, told, probe.notes, context, row)
