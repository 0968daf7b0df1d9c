"""`winoground:SPEC`, `sugarcrepe:SPEC` and `mmvp-vlm:SPEC`: pictures and captions that differ in one detail."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modalign.data.records import Pairs
from modalign.errors import DataError
from modalign.evaluation import contrast_files, contrast_pairs, mmvp
from modalign.evaluation.contrast_files import Contrasts
from modalign.evaluation.kinds.base import Context, Encoded, Judged, Option
from modalign.evaluation.kinds.reading import Reading
from modalign.evaluation.results import Metric, TaskResult
from modalign.evaluation.scoring import digest, split_of

IMAGES = Option("", str, "a folder of pictures")


def _column(name: str) -> Option:
    return Option(name, str, "a column's name")


@dataclass(frozen=True)
class Contrast(Judged):
    """Examples of one or two rows, each a picture with its own caption and the contrasting one.

    Attributes:
        data: N·per rows.
        pictures: N·per numbers.
        captions: (N·per)×2 numbers of strings.
        examples: how the rows belong together, and the group of each example.
    """

    data: Pairs
    captions: Tensor
    examples: Contrasts

    @property
    def strings(self) -> Tensor:
        """(N·per)×2 numbers among the suite's strings."""
        return self.captions

    @classmethod
    def of(cls, reading: Reading, examples: Contrasts) -> Contrast:
        """The task of examples that were read."""
        data = examples.data
        captions = reading.strings([caption for row in data.rows for caption in row.captions])
        return cls(data, reading.numbered(data), captions.view(-1, 2), examples)

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """The metrics over all examples, then those of each group."""
        per = self.examples.per
        kept = (row[self.pictures] >= 0).view(-1, per).all(dim=1)
        if not bool(kept.any()):
            raise DataError(f"{self.data.spec}: none of its {len(kept):,} examples can be read; check the files")
        rows = kept.repeat_interleave(per)
        pictures = self.pictures[rows].view(-1, per)
        outcomes = self.outcomes(
            encoded.image[row[pictures]], encoded.text[self.captions[rows]].unflatten(0, (-1, per))
        )
        chosen = kept.nonzero().flatten().tolist()
        groups = [self.examples.groups[i] for i in chosen]
        names = list(dict.fromkeys(group for group in self.examples.groups if group))
        metrics: list[Metric] = []
        strata = np.array([names.index(group) if group in names else len(names) for group in groups], np.int64)
        for name, values in outcomes.items():
            metrics.append(self.metric(context, name, values, pictures[:, 0].numpy(), strata))
            for number, group in enumerate(names):
                inside = strata == number
                if inside.any():
                    told = f"{name}.{_slug(group)}"
                    metrics.append(context.metric(told, values[inside], clusters=pictures[inside, 0].numpy()))
        judged = [
            [self.data.rows[i * per + j].path.name, *self.data.rows[i * per + j].captions]
            for i in chosen
            for j in range(per)
        ]
        protocol = {
            "split": split_of(self.data.spec),
            "samples": len(chosen),
            "left_out": int((~kept).sum()),
            "groups": len(names),
            "captions": self.said,
            "ties": contrast_pairs.TIES,
            "examples": digest(judged),
        }
        return TaskResult(self.name, self.data.spec, protocol, {metric.name: metric for metric in metrics})

    said: ClassVar[str] = "as written"

    @abstractmethod
    def outcomes(self, image: Tensor, text: Tensor) -> dict[str, NDArray[np.float64]]:
        """N×per×d and N×per×2×d features (own caption first) → name → N outcomes."""

    def metric(
        self, context: Context, name: str, values: NDArray[np.float64], clusters: Any, strata: NDArray[np.int64]
    ) -> Metric:
        """The metric over all examples."""
        return context.metric(name, values, clusters=clusters)

    def facts(self) -> list[Any]:
        """The rows, and the groups."""
        return [*super().facts(), list(self.examples.groups)]


@dataclass(frozen=True)
class Winoground(Contrast):
    """Two pictures and two captions: do they find each other?"""

    name: ClassVar[str] = "winoground"
    options: ClassVar[Mapping[str, Option]] = {
        **{name: _column(name) for name in ("image_0", "image_1", "caption_0", "caption_1")},
        "group": _column(""),
        "images": IMAGES,
    }

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> Contrast:
        """Winoground's folder or file, or a table of the same kind."""
        columns = [options[name] for name in ("image_0", "image_1", "caption_0", "caption_1")]
        where = {"group": options["group"], "images": options["images"]}
        return cls.of(reading, contrast_files.two_by_two(spec, columns, **where, max_bad=reading.max_bad))

    def outcomes(self, image: Tensor, text: Tensor) -> dict[str, NDArray[np.float64]]:
        """Text, image and group score."""
        found = contrast_pairs.pair_outcomes(image, text[:, :, 0])
        return {f"{name}_score": values for name, values in found.items()}


@dataclass(frozen=True)
class SugarCrepe(Contrast):
    """One picture, its caption and a wrong one: which does it prefer?"""

    name: ClassVar[str] = "sugarcrepe"
    options: ClassVar[Mapping[str, Option]] = {
        "image": _column(""),
        "caption": _column("caption"),
        "negative_caption": _column("negative_caption"),
        "group": _column(""),
        "images": IMAGES,
    }

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> Contrast:
        """SugarCrepe's json files, one or a folder of them, or a table of the same kind."""
        pictures = (options["image"],) if options["image"] else ("filename", "file_name", "image")
        columns = [pictures, (options["caption"],), (options["negative_caption"],)]
        where = {"group": options["group"], "images": options["images"]}
        return cls.of(reading, contrast_files.one_by_two(spec, columns, **where, max_bad=reading.max_bad))

    def outcomes(self, image: Tensor, text: Tensor) -> dict[str, NDArray[np.float64]]:
        """Accuracy."""
        return {"acc": contrast_pairs.caption_outcomes(image[:, 0], text[:, 0])}


@dataclass(frozen=True)
class MmvpVlm(Contrast):
    """Pairs of pictures and statements in nine patterns; the mean is that of the patterns."""

    name: ClassVar[str] = "mmvp_vlm"
    said: ClassVar[str] = mmvp.PROMPT.replace("{}", "{statement}")

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> Contrast:
        """MMVP-VLM's folder, or its csv."""
        return cls.of(reading, mmvp.mmvp_vlm(spec, max_bad=reading.max_bad))

    def outcomes(self, image: Tensor, text: Tensor) -> dict[str, NDArray[np.float64]]:
        """The published accuracy (each statement finds its picture), then its mirror image."""
        found = contrast_pairs.pair_outcomes(image, text[:, :, 0])
        return {"pair_accuracy": found["image"], "pair_accuracy_of_pictures": found["text"]}

    def metric(
        self, context: Context, name: str, values: NDArray[np.float64], clusters: Any, strata: NDArray[np.int64]
    ) -> Metric:
        """The mean of the patterns."""
        return context.metric(name, values, clusters=clusters, strata=strata, average="strata")


def _slug(group: str) -> str:
    return re.sub(r"\W+", "_", group.casefold()).strip("_")
