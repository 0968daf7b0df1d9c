"""What the kinds share that learn from some labelled pictures and are judged on others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from modalign.data.records import Labelled, real_paths
from modalign.errors import DataError
from modalign.evaluation.kinds.base import Context, Encoded, Judged, Option, choice, whole
from modalign.evaluation.kinds.reading import Reading
from modalign.evaluation.linear_probe import SCALES, Scale
from modalign.evaluation.prompts import Prompts
from modalign.evaluation.results import TaskResult
from modalign.evaluation.scoring import labelled_result, pictures_digest, readable_of
from modalign.evaluation.splits import stratified_split
from modalign.evaluation.statistics import Floats

JUDGED_SHARE = 0.5

TRAIN = Option("", str, "the spec of labelled pictures to learn from")
SEED = Option(0, whole(0), "a whole number ≥ 0")
FEATURES = Option("projected", choice("projected", "penultimate"), "projected or penultimate")
SCALE = Option("unit", choice(*SCALES), "unit or raw")

FEATURES_TOLD: dict[str, str] = {
    "projected": "projected: the image features in the space of the texts",
    "penultimate": "penultimate: the input of the image projection",
}


@dataclass(frozen=True)
class Part:
    """Pictures that could be read.

    Attributes:
        features: N×d, raw.
        labels: N, among the classes to learn.
        pictures: N numbers.
    """

    features: Tensor
    labels: Tensor
    pictures: Tensor


@dataclass(frozen=True)
class Learning(Judged):
    """Labelled pictures to learn from and labelled pictures to be judged on.

    Attributes:
        data: those that are judged; without `train=`, both.
        train: those to learn from, or None: a half of each class of `data`.
        train_pictures: their numbers.
        class_names: C, those of the training pictures.
        labels: N, of the rows of `data`, among `class_names`.
        chosen: every option.
    """

    version: ClassVar[int] = 2
    what: ClassVar[str]

    data: Labelled
    train: Labelled | None
    train_pictures: Tensor
    class_names: tuple[str, ...]
    labels: Tensor
    chosen: Mapping[str, Any]

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> Self:
        """Labelled pictures of a spec, and those of `train=` where it is given."""
        return cls(**cls.read_parts(reading, spec, options))

    @classmethod
    def read_parts(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of this class; kinds that add some of their own write `read` around it.

        Raises:
            DataError: a class that is judged and never learned, or a picture that is both learned from and judged.
        """
        data = reading.labelled(spec, cls.what)
        numbers = reading.numbered(data)
        shared = {"data": data, "pictures": numbers, "chosen": options}
        if not options.get("train"):
            own = {"train": None, "train_pictures": numbers, "class_names": data.class_names, "labels": data.labels}
            return {**shared, **own}
        train = reading.labelled(options["train"], cls.what, learned=True)
        learned = reading.numbered(train)
        places = {name.strip(): place for place, name in enumerate(train.class_names)}
        present = data.labels.unique().tolist()
        if unknown := [data.class_names[label] for label in present if data.class_names[label].strip() not in places]:
            raise DataError(
                f"{data.spec}: class {unknown[0]!r} is not among the {len(places)} of train={train.spec} "
                f"({len(unknown)} such); name the classes alike in both"
            )
        if both := set(numbers.tolist()) & set(learned.tolist()):
            raise DataError(
                f"{len(both)} pictures of {data.spec} are in train={train.spec} as well, the first of them "
                f"{reading.wheres[min(both)]}; keep what is learned from and what is judged apart"
            )
        place = torch.tensor([places.get(name.strip(), -1) for name in data.class_names])
        apart = {"train": train, "train_pictures": learned, "class_names": train.class_names}
        return {**shared, **apart, "labels": place[data.labels]}

    @property
    def trunk(self) -> bool:
        """Whether it reads the image projection's input."""
        return self.chosen.get("features") == "penultimate"

    @property
    def inputs(self) -> Tensor:
        """What is judged and what is learned from."""
        return torch.cat([self.pictures, self.train_pictures])

    def facts(self) -> list[Any]:
        """What is judged, and what is learned from."""
        if self.train is None:
            return super().facts()
        classes = [self.train.labels.tolist(), list(self.train.class_names)]
        return [*super().facts(), self.train.spec, self.train_pictures.tolist(), classes]

    def parts(self, encoded: Encoded, row: Tensor) -> tuple[Part, Part, Tensor]:
        """What is learned from, what is judged, and which rows of `data` the latter are.

        Raises:
            DataError: none of the pictures of either could be read.
        """
        readable = readable_of(self, row)
        if self.train is None:
            held = stratified_split(self.labels, JUDGED_SHARE, self.chosen["seed"], self.pictures)
            learn, judged = readable & ~held, readable & held
            labels = self.labels
        else:
            learn, judged, labels = row[self.train_pictures] >= 0, readable, self.train.labels
        if not bool(learn.any()) or not bool(judged.any()):
            raise DataError(
                f"{(self.train or self.data).spec}: no picture is left to learn from or to judge; give more of each "
                "class, or name others with train="
            )
        source = encoded.trunk if self.trunk else encoded.image
        assert source is not None
        first, second = self.train_pictures[learn], self.pictures[judged]
        return (
            Part(source[row[first]], labels[learn], first),
            Part(source[row[second]], self.labels[judged], second),
            judged,
        )

    def result(
        self,
        learned: Part,
        judged: Tensor,
        outcomes: Mapping[str, Floats],
        told: Mapping[str, Any],
        notes: Mapping[str, Any],
        context: Context,
        row: Tensor,
    ) -> TaskResult:
        """The result of outcomes of the judged rows; `told` joins what all of these kinds tell."""
        if self.train is None:
            split = f"half of each class, drawn with seed {self.chosen['seed']}; the other half is judged"
        else:
            split = self.train.spec
        more = {
            "left_out": int((row[self.pictures] < 0).sum()),
            "train": split,
            "train_samples": len(learned.labels),
            "train_left_out": int((row[self.train_pictures] < 0).sum()) if self.train is not None else 0,
            "training_examples": pictures_digest(learned.pictures, learned.labels, self.class_names, context),
        }
        if "features" in self.chosen:
            more["features"] = FEATURES_TOLD[self.chosen["features"]]
        if "scale" in self.chosen:
            scale: Scale = self.chosen["scale"]
            more["scale"] = SCALES[scale]
        result = labelled_result(self, judged, outcomes, {**more, **told}, context)
        result.notes.update(notes)
        return result


TextFrom = Literal["prompts", "captions"]
TEXT = Option("prompts", choice("prompts", "captions"), "prompts or captions")


def class_prompts(reading: Reading, data: Labelled) -> tuple[Prompts, Tensor]:
    """The templates of the data's classes, and C×T numbers of strings, by class."""
    prompts, named = reading.prompts.of(data)
    said = [prompt.strip() for name in named.class_names for prompt in prompts(name)]
    return prompts, reading.strings(said).view(len(named.class_names), -1)


def captions_of(reading: Reading, data: Labelled) -> Tensor:
    """The number of the first caption of each labelled picture.

    Raises:
        DataError: the data has no captions, or none for a labelled picture.
    """
    pairs = reading.pairs(data.spec)
    first: dict[str, str] = {}
    for path, pair in zip(real_paths(pairs.paths), pairs.rows, strict=True):
        first.setdefault(path, pair.captions[0].strip())
    paths = real_paths(data.paths)
    if missing := [where for path, where in zip(paths, data.wheres, strict=True) if path not in first]:
        raise DataError(
            f"{missing[0]}: a labelled picture without a caption ({len(missing)} such in {data.spec}); "
            "give it one, or use text=prompts"
        )
    return reading.strings([first[path] for path in paths])
