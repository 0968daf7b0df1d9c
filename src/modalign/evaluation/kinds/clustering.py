"""`clustering:SPEC` and `image-clustering:SPEC`: k-means against classes, with and without texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from modalign.data.records import Labelled
from modalign.evaluation import clustering
from modalign.evaluation.kinds.base import Context, Encoded, Judged, Option, whole
from modalign.evaluation.kinds.learning import TEXT, captions_of, class_prompts
from modalign.evaluation.kinds.reading import Reading
from modalign.evaluation.results import Metric, TaskResult
from modalign.evaluation.scoring import labelled_result, readable_of, texts_digest

SEEDS = Option(clustering.SEEDS, whole(1), "a whole number ≥ 1")


@dataclass(frozen=True)
class ImageClustering(Judged):
    """`image-clustering[seeds=…]:SPEC`."""

    name: ClassVar[str] = "image_clustering"
    options: ClassVar[Mapping[str, Option]] = {"seeds": SEEDS}

    data: Labelled
    seeds: int

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> ImageClustering:
        """Labelled pictures of a spec."""
        data = reading.labelled(spec, "clustering")
        return cls(data, reading.numbered(data), options["seeds"])

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """ARI, NMI and V-measure of the pictures' clusters."""
        readable = readable_of(self, row)
        pictures, labels = self.pictures[readable], self.data.labels[readable]
        return _scored(self, readable, encoded.image[row[pictures]], labels, pictures, self.seeds, {}, context)


@dataclass(frozen=True)
class JointClustering(Judged):
    """`clustering[text=captions,seeds=…]:SPEC`.

    Attributes:
        texts: N numbers of strings: the text of each row.
        said: where they are from.
        seeds: runs of k-means.
    """

    name: ClassVar[str] = "clustering"
    version: ClassVar[int] = 2
    options: ClassVar[Mapping[str, Option]] = {"text": TEXT, "seeds": SEEDS}

    data: Labelled
    texts: Tensor
    said: str
    seeds: int

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> JointClustering:
        """Labelled pictures, and one text for each: its first caption, or a prompt of its class."""
        data = reading.labelled(spec, "clustering")
        numbers = reading.numbered(data)
        if options["text"] == "captions":
            return cls(data, numbers, captions_of(reading, data), "each picture's first caption", options["seeds"])
        prompts, prompted = class_prompts(reading, data)
        texts = prompted[data.labels, torch.arange(len(data)) % prompted.shape[1]]
        told = f"the prompt of each picture's class ({prompts.name}, one template after the other)"
        return cls(data, numbers, texts, told, options["seeds"])

    @property
    def strings(self) -> Tensor:
        """N numbers among the suite's strings."""
        return self.texts

    def facts(self) -> list[Any]:
        """The pictures, labels and texts, and where the texts are from."""
        return [*super().facts(), self.said]

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """ARI, NMI and V-measure of the clusters of pictures and texts together."""
        readable = readable_of(self, row)
        pictures, labels = self.pictures[readable], self.data.labels[readable]
        # Each modality is scaled before they are stacked: k-means sees unit features of one size.
        both = torch.cat([encoded.image[row[pictures]], encoded.text[self.texts[readable]].to(encoded.image.dtype)])
        told = {
            "text": self.said,
            "texts": texts_digest(self.texts[readable], context),
            "stacked": "the unit features of every picture and of its text",
        }
        return _scored(self, readable, both, labels.repeat(2), pictures.repeat(2), self.seeds, told, context)


def _scored(
    task: Judged,
    readable: Tensor,
    features: Tensor,
    labels: Tensor,
    pictures: Tensor,
    seeds: int,
    told: Mapping[str, Any],
    context: Context,
) -> TaskResult:
    clusters = len(labels.unique())
    found = clustering.cluster(features, labels, clusters, seeds=seeds)
    rule = {"clusters": clusters, "k_means": f"scikit-learn's, {seeds} seeds of {clustering.STARTS} starts each"}
    result = labelled_result(task, readable, {}, {**told, **rule, "interval": clustering.INTERVAL}, context)
    metrics: list[Metric] = [
        context.metric(name, values, clusters=pictures.numpy(), unit="score") for name, values in found.outcomes.items()
    ]
    result.metrics.update({metric.name: metric for metric in metrics})
    result.notes.update(found.notes)
    for name, values in found.scores.items():
        result.notes[name] = {"over_seeds": values, "deviation_over_seeds": found.deviation(name)}
    return result
