"""`zero-shot:SPEC`: labelled pictures, classified by the prompts of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from modalign.data.records import Labelled
from modalign.errors import DataError
from modalign.evaluation import zero_shot
from modalign.evaluation.kinds.base import Context, Encoded, Judged
from modalign.evaluation.kinds.reading import Reading
from modalign.evaluation.prompts import OWN_NAMES, Prompts
from modalign.evaluation.results import TaskResult
from modalign.evaluation.scoring import labelled_result, readable_of


@dataclass(frozen=True)
class ZeroShot(Judged):
    """Labelled pictures and the prompts of their classes.

    Attributes:
        data: what is judged.
        pictures: N numbers.
        prompts: the templates.
        prompted: C×T numbers of strings.
    """

    name: ClassVar[str] = "zero_shot"

    data: Labelled
    prompts: Prompts
    prompted: Tensor

    @property
    def strings(self) -> Tensor:
        """C×T numbers among the suite's strings."""
        return self.prompted

    def facts(self) -> list[Any]:
        """The pictures, labels and prompts, and how the templates are called."""
        return [*super().facts(), self.prompts.name, self.prompts.templates, self.prompts.class_names]

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> ZeroShot:
        """Labelled pictures of a spec, whose class names a prompt can tell apart."""
        prompts, data = reading.prompts.of(reading.labelled(spec, "zero-shot classification"))
        if prompts.class_names == OWN_NAMES:  # the field's ImageNet names have two pairs of equal ones
            _check_names(data)
        numbers = reading.numbered(data)
        texts = [prompt.strip() for name in data.class_names for prompt in prompts(name)]
        return cls(data, numbers, prompts, reading.strings(texts).view(len(data.class_names), -1))

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> TaskResult:
        """Accuracy at 1 and 5, and the mean recall of the classes."""
        readable = readable_of(self, row)
        pictures, labels = self.pictures[readable], self.data.labels[readable]
        weights = zero_shot.class_weights(encoded.text[self.strings])
        outcomes = zero_shot.zero_shot_outcomes(encoded.image[row[pictures]], weights, labels)
        told = {
            "prompts": self.prompts.name,
            "templates": [template.replace("{}", "{class}") for template in self.prompts.templates],
            "ties": zero_shot.TIES,
        }
        if self.prompts.class_names != OWN_NAMES:
            told["class_names"] = self.prompts.class_names
        return labelled_result(self, readable, outcomes, told, context)


def _check_names(data: Labelled) -> None:
    first: dict[str, int] = {}
    for label, name in enumerate(data.class_names):
        if first.setdefault(name.strip(), label) != label:
            raise DataError(
                f"{data.spec}: classes {first[name.strip()]} and {label} are both called {name!r}, "
                "so no prompt can tell them apart; rename one"
            )
