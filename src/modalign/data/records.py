"""The rows a data spec stands for: pictures with captions, pictures alone, pictures with a class."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from modalign.errors import DataError


@dataclass(frozen=True, slots=True)
class PairRow:
    """A picture and its captions.

    Attributes:
        path: the picture.
        captions: at least one, as written in the file.
        where: where the row was read from, for messages ("metadata.csv:17", "captions_val2017.json: image 42").
    """

    path: Path
    captions: tuple[str, ...]
    where: str


@dataclass(frozen=True, slots=True)
class ImageRow:
    """A picture; `where` says where it was read from."""

    path: Path
    where: str


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A picture and its class, an index into `Labelled.class_names`; `where` says where it was read from."""

    path: Path
    label: int
    where: str


@dataclass(frozen=True)
class Pairs:
    """Image–text pairs: N rows with M ≥ N captions in all.

    Attributes:
        spec: what was asked for.
        rows: N rows, in the order of the source.
        split: the split of the source, if it has splits.
    """

    spec: str
    rows: tuple[PairRow, ...]
    split: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PairRow:
        return self.rows[index]

    @property
    def paths(self) -> list[Path]:
        """N picture files."""
        return [row.path for row in self.rows]

    @property
    def wheres(self) -> list[str]:
        """N texts that say where each row was read from."""
        return [row.where for row in self.rows]

    @cached_property
    def image_ids(self) -> Tensor:
        """N integers, numbered as first seen: equal where rows show the same file (links followed)."""
        return _numbered(self._pictures)

    @cached_property
    def captions(self) -> list[str]:
        """M captions: those of row 0, then those of row 1, …"""
        return [caption for row in self.rows for caption in row.captions]

    @cached_property
    def caption_counts(self) -> Tensor:
        """N integers: how many captions each row has."""
        return torch.tensor([len(row.captions) for row in self.rows], dtype=torch.long)

    @cached_property
    def caption_rows(self) -> Tensor:
        """M integers: the row of each caption."""
        return torch.repeat_interleave(torch.arange(len(self.rows)), self.caption_counts)

    @cached_property
    def first_caption(self) -> Tensor:
        """N integers: the position of each row's first caption among all captions."""
        return self.caption_counts.cumsum(0) - self.caption_counts

    @cached_property
    def caption_ids(self) -> Tensor:
        """M integers, numbered as first seen: equal where captions are, apart from white space around them."""
        return _numbered(caption.strip() for caption in self.captions)

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits: a hash of the rows' relative paths and captions; moving the data keeps it."""
        digest = hashlib.sha256()
        for path, row in zip(_relative([os.fspath(path) for path in self.paths]), self.rows, strict=True):
            digest.update(json.dumps([path, *row.captions]).encode() + b"\n")
        return digest.hexdigest()

    def take(self, indices: Sequence[int] | Tensor) -> Pairs:
        """The rows at these positions, in this order."""
        return replace(self, rows=_take(self.rows, indices))

    def split_off(self, share: float, seed: int) -> tuple[Pairs, Pairs]:
        """Holds out a share of the *pictures*, with all their rows, so that no picture is on both sides.

        A picture is drawn by the hash of the seed and its path below the data's common folder, so that neither the
        order of the rows nor the place of the data changes the draw.

        Args:
            share: of the pictures, between 0 and 1 (both excluded); rounded, but at least one picture on each side.
            seed: another seed draws other pictures.

        Returns:
            The rows that stay and the rows held out, each in their present order.

        Raises:
            DataError: the share is not between 0 and 1, or there are fewer than two pictures.
        """
        if not 0 < share < 1:
            raise DataError(f"cannot hold out a share of {share:g}; pass one between 0 and 1, such as 0.01")
        pictures = _relative(self._pictures)
        distinct = set(pictures)
        if len(distinct) < 2:
            raise DataError(f"{self.spec} has {len(distinct)} picture(s): too few to hold some out; pass more data")
        count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
        drawn = sorted(
            distinct, key=lambda picture: hashlib.sha256(f"{seed}\0{picture}".encode(errors="surrogateescape")).digest()
        )
        held = set(drawn[:count])
        stay = tuple(row for row, picture in zip(self.rows, pictures, strict=True) if picture not in held)
        out = tuple(row for row, picture in zip(self.rows, pictures, strict=True) if picture in held)
        part = f"{share:g} of {self.split or 'the pictures'}, seed {seed}"
        return replace(self, rows=stay, split=f"all but {part}"), replace(self, rows=out, split=part)

    @cached_property
    def _pictures(self) -> list[str]:
        return real_paths(self.paths)


@dataclass(frozen=True)
class Images:
    """Pictures without text, each once.

    Attributes:
        spec: what was asked for.
        rows: N pictures, in the order of the source.
    """

    spec: str
    rows: tuple[ImageRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ImageRow:
        return self.rows[index]

    @property
    def paths(self) -> list[Path]:
        """N picture files."""
        return [row.path for row in self.rows]

    @property
    def wheres(self) -> list[str]:
        """N texts that say where each row was read from."""
        return [row.where for row in self.rows]


@dataclass(frozen=True)
class Labelled:
    """Pictures with one class each.

    Attributes:
        spec: what was asked for.
        rows: N pictures, in the order of the source.
        class_names: C names; a row's label is a position in them.
    """

    spec: str
    rows: tuple[LabelledRow, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LabelledRow:
        return self.rows[index]

    @property
    def paths(self) -> list[Path]:
        """N picture files."""
        return [row.path for row in self.rows]

    @property
    def wheres(self) -> list[str]:
        """N texts that say where each row was read from."""
        return [row.where for row in self.rows]

    @cached_property
    def labels(self) -> Tensor:
        """N integers, 0 … C−1."""
        return torch.tensor([row.label for row in self.rows], dtype=torch.long)

    def take(self, indices: Sequence[int] | Tensor) -> Labelled:
        """The rows at these positions, in this order; the classes stay the same."""
        return replace(self, rows=_take(self.rows, indices))


def real_paths(paths: Sequence[Path]) -> list[str]:
    """Absolute paths with every link followed, resolving each folder once instead of each file."""
    folders: dict[str, tuple[str, frozenset[str]]] = {}
    real: list[str] = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = (os.path.realpath(folder), _links_in(folder))
        real_folder, links = folders[folder]
        real.append(os.path.realpath(path) if name in links else os.path.join(real_folder, name))  # noqa: PTH118
    return real


def _links_in(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return frozenset()


def _relative(paths: list[str]) -> list[str]:
    """The paths below their common folder, with "/" on every system."""
    folders = {os.path.dirname(path) for path in paths}  # noqa: PTH120
    try:
        common = os.path.commonpath(folders)
    except ValueError:  # no folder at all, or several drives
        return paths
    return [path[len(common) :].replace(os.sep, "/").lstrip("/") for path in paths]


def _numbered(keys: Iterable[str]) -> Tensor:
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.long)


Row = TypeVar("Row")


def _take(rows: tuple[Row, ...], indices: Sequence[int] | Tensor) -> tuple[Row, ...]:
    chosen: list[int] = indices.tolist() if isinstance(indices, Tensor) else list(indices)
    return tuple(rows[index] for index in chosen)
