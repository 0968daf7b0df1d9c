"""Reads one task after the other and numbers the pictures and strings that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from modalign.data import sources
from modalign.data.pictures import Picture, real_paths, resized_as_tensor
from modalign.data.records import Images, Labelled, Pairs
from modalign.errors import DataError
from modalign.evaluation.class_names import recognised
from modalign.evaluation.prompts import BenchmarkPrompts, Prompts
from modalign.evaluation.protocols import PROTOCOLS, Protocol

__all__ = ["Numbers", "Reading", "name_of"]


class Numbers:
    """Numbers keys as first seen."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, keys: Sequence[str]) -> Tensor:
        """One number a key."""
        return torch.tensor([self.known.setdefault(key, len(self.known)) for key in keys], dtype=torch.long)


def name_of(spec: str) -> str:
    """The data set that a spec names, "" where it is none of the known."""
    known = recognised(spec)
    return known.name if known is not None else ""


@dataclass
class Reading:
    """What kinds read their data with.

    Attributes:
        prompts: the templates of classes, the same for all data or chosen by it.
        image_column: as for `modalign.pairs`.
        text_column: likewise.
        label_column: as for `modalign.labelled`.
        max_bad: rows that may be bad in each source.
        protocol: how many captions and pictures are looked at.
        strings: texts → their numbers over all tasks.
        paths: the distinct pictures so far.
        wheres: where each was first named.
    """

    prompts: Prompts | BenchmarkPrompts
    image_column: str | None = None
    text_column: str | Sequence[str] | None = None
    label_column: str | None = None
    max_bad: int = 0
    protocol: Protocol = PROTOCOLS["default"]
    strings: Numbers = field(default_factory=Numbers)
    paths: list[Picture] = field(default_factory=list)
    wheres: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pictures = Numbers()
        self._used: set[str] = set()

    def pairs(self, spec: str) -> Pairs:
        """Pictures with captions."""
        return sources.pairs(spec, max_bad=self.max_bad, **self._columns(spec, "image_column", "text_column"))

    def images(self, spec: str) -> Images:
        """Pictures alone."""
        return sources.images(spec, max_bad=self.max_bad, **self._columns(spec, "image_column"))

    def labelled(self, spec: str, what: str, *, learned: bool = False) -> Labelled:
        """Pictures with a class each, of two classes at least.

        Args:
            spec: of the data.
            what: is done with them, for messages.
            learned: they are learned from alone, so that the protocol's limit on what is judged leaves them whole.

        Raises:
            DataError: data that cannot be read, or fewer classes.
        """
        data = sources.labelled(spec, max_bad=self.max_bad, **self._columns(spec, "image_column", "label_column"))
        if len(data.class_names) < 2:
            raise DataError(f"{data.spec} has {len(data.class_names)} class: {what} needs at least 2")
        name = name_of(spec)
        if name in self.protocol.as_tensors:
            data = replace(data, rows=tuple(replace(row, path=resized_as_tensor(row.path)) for row in data.rows))
        most = None if learned else self.protocol.samples.get(name)
        return data if most is None or len(data) <= most else data.subset(limit=most)

    def _columns(self, spec: str, *names: str) -> dict[str, Any]:
        """The columns that were named, where the data has columns; notes that they were of use."""
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if not given or not sources.has_columns(spec):
            return {}
        self._used |= set(given)
        return given

    def refuse_unused(self) -> None:
        """To be called after the last task: a column that no data of any task has a use for was a mistake.

        Raises:
            DataError: names the column.
        """
        for name in ("image_column", "text_column", "label_column"):
            if getattr(self, name) is not None and name not in self._used:
                option = f"--{name.replace('_', '-')} (in Python {name}=, in a recipe evaluation.{name})"
                raise DataError(
                    f"{option} {getattr(self, name)!r} names nothing: no task reads such a column from data that has "
                    "columns; leave it out"
                )

    def numbered(self, data: Pairs | Images | Labelled) -> Tensor:
        """The number of each row's picture over all tasks.

        Raises:
            DataError: no rows.
        """
        if not len(data):
            raise DataError(f"{data.spec} holds nothing to judge: name data with at least one row")
        numbers = self._pictures(real_paths(data.paths))
        for number, path, where in zip(numbers.tolist(), data.paths, data.wheres, strict=True):
            if number == len(self.paths):
                self.paths.append(path)
                self.wheres.append(where)
        return numbers
