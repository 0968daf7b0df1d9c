"""`knn:SPEC`: labelled pictures, each classified by the vote of its nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from modalign.evaluation import knn
from modalign.evaluation.kinds.base import Context, Encoded, Option, whole
from modalign.evaluation.kinds.learning import FEATURES, FEATURES_TOLD, TRAIN, Learning
from modalign.evaluation.results import TaskResult
from modalign.evaluation.scoring import labelled_result, readable_of


@dataclass(frozen=True)
class Neighbours(Learning):
    """`knn[train=SPEC,k=…,features=…]:SPEC`; without `train=` each picture is classified by the others."""

    name: ClassVar[str] = "knn"
    what: ClassVar[str] = "classification by neighbours"
    options: ClassVar[Mapping[str, Option]] = {
        "train": TRAIN,
        "k": Option(knn.NEIGHBOURS, whole(1), "a whole number ≥ 1"),
        "features": FEATURES,
    }

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """Accuracy of the nearest neighbours' vote, and the mean recall of the classes."""
        k = self.chosen["k"]
        told = {"k": k, "ties": knn.TIES, "copies": knn.COPIES}
        if self.train is not None:
            learn, judge, judged = self.parts(encoded, row)
            acc1 = knn.knn_probe_outcomes(learn.features, learn.labels, judge.features, judge.labels, k)
            return self.result(learn, judged, {"acc1": acc1}, told, {}, context, row)
        readable = readable_of(self, row)
        pictures, labels = self.pictures[readable], self.data.labels[readable]
        source = encoded.trunk if self.trunk else encoded.image
        assert source is not None
        acc1 = knn.knn_outcomes(source[row[pictures]], labels, pictures, k)
        told = {
            "k": k,
            "classes_of_one_picture": int((torch.bincount(labels) == 1).sum()),
            **({"features": FEATURES_TOLD["penultimate"]} if self.trunk else {}),
            "ties": knn.TIES,
            "copies": knn.COPIES,
        }
        return labelled_result(self, readable, {"acc1": acc1}, told, context)
