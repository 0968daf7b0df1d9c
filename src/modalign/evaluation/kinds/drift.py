"""`drift:SPEC`: pictures whose features are compared with those of a model before; no number of the gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from modalign.data.records import Images
from modalign.errors import DataError
from modalign.evaluation.kinds.base import Context, Encoded, Judged
from modalign.evaluation.kinds.reading import Reading
from modalign.evaluation.kinds.zero_shot import ZeroShot


@dataclass(frozen=True)
class Drift(Judged):
    """Pictures, and the classes of the data where it has some that a prompt can name.

    Attributes:
        data: the pictures.
        pictures: N numbers.
        classes: the data's own, where it is labelled.
        unlabelled: why the data has no classes, "" where it has.
    """

    name: ClassVar[str] = "drift"

    data: Images
    classes: ZeroShot | None
    unlabelled: str = ""

    @classmethod
    def read(cls, reading: Reading, spec: str, options: Mapping[str, Any]) -> Drift:
        """Pictures of any spec; `images:SPEC` looks for no classes."""
        plain = spec.removeprefix("images:")
        images = reading.images(plain)
        numbers = reading.numbered(images)
        if plain != spec:
            return cls(images, numbers, None, "the spec says images")
        try:
            classes = ZeroShot.read(reading, spec, {})
        except DataError as problem:
            return cls(images, numbers, None, str(problem))
        return cls(images, numbers, classes)

    def score(self, encoded: Encoded, row: Tensor, context: Context) -> None:
        """Nothing of one model alone."""

    def facts(self) -> list[Any]:
        """The pictures, and those of the classes."""
        return [*super().facts(), None if self.classes is None else self.classes.facts()]
