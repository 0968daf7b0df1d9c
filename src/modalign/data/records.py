"""The rows a data spec stands for: pictures with captions, pictures alone, pictures with a class."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from modalign.data.pictures import Member, Picture, real_paths, relative_names
from modalign.data.subset import subset_of
from modalign.errors import DataError

__all__ = ["ImageRow", "Images", "Labelled", "LabelledRow", "PairRow", "Pairs", "real_paths"]


@dataclass(frozen=True, slots=True)
class PairRow:
    """A picture and its captions.

    Attributes:
        path: the picture: a file, or a member of a container.
        captions: as written in the file; at least one, but for pictures alone (`images:SPEC` of a recipe).
        where: where the row was read from, for messages ("metadata.csv:17", "captions_val2017.json: image 42").
        source: which source of a mixture it is from, counted from 0.
    """

    path: Picture
    captions: tuple[str, ...]
    where: str
    source: int = 0


@dataclass(frozen=True, slots=True)
class ImageRow:
    """A picture; `where` says where it was read from."""

    path: Picture
    where: str


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A picture and its class, an index into `Labelled.class_names`; `where` says where it was read from."""

    path: Picture
    label: int
    where: str


@dataclass(frozen=True)
class Pairs:
    """Image–text pairs: N rows with M ≥ N captions in all.

    Attributes:
        spec: what was asked for.
        rows: N rows, in the order of the source.
        split: the split of the source, if it has splits.
        weights: of a mixture, each source's share of an epoch's draws, in proportion; () = every row once an epoch.
    """

    spec: str
    rows: tuple[PairRow, ...]
    split: str = ""
    weights: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PairRow:
        return self.rows[index]

    @property
    def paths(self) -> list[Picture]:
        """N pictures."""
        return [row.path for row in self.rows]

    @property
    def wheres(self) -> list[str]:
        """N texts that say where each row was read from."""
        return [row.where for row in self.rows]

    @cached_property
    def image_ids(self) -> Tensor:
        """N integers, numbered as first seen: equal where rows show the same picture (links followed)."""
        return _numbered(self._pictures)

    @cached_property
    def captions(self) -> list[str]:
        """M captions: those of row 0, then those of row 1, …"""
        return [caption for row in self.rows for caption in row.captions]

    @cached_property
    def sources(self) -> Tensor:
        """N integers: which source of a mixture each row is from; all 0 where there is one."""
        return torch.tensor([row.source for row in self.rows], dtype=torch.long)

    @cached_property
    def members(self) -> list[Tensor]:
        """Each source's row numbers, one tensor a source of a mixture."""
        return [(self.sources == source).nonzero().flatten() for source in range(max(1, len(self.weights)))]

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
        """64 hexadecimal digits: a hash of the rows' relative names and captions; moving the data keeps it."""
        digest = hashlib.sha256()
        paths = self.paths
        places = [f"{path}@{path.offset}" if isinstance(path, Member) else os.fspath(path) for path in paths]
        for name, row in zip(relative_names(paths, places), self.rows, strict=True):
            digest.update(json.dumps([name, *row.captions]).encode() + b"\n")
        if self.weights:
            digest.update(json.dumps([self.weights, self.sources.tolist()]).encode())
        return digest.hexdigest()

    def take(self, indices: Sequence[int] | Tensor) -> Pairs:
        """The rows at these positions, in this order."""
        return replace(self, rows=_take(self.rows, indices))

    def split_off(self, share: float, seed: int) -> tuple[Pairs, Pairs]:
        """Holds out a share of the *pictures*, with all their rows, so that no picture is on both sides.

        A picture is drawn by the hash of the seed and its name (of a file, its path below the data's common folder; of
        a container's member, its name inside), so that neither the order of the rows nor the place of the data, nor
        what it is packed into, changes the draw.

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
        pictures = self._names
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

    def subset(
        self,
        *,
        fraction: float | None = None,
        limit: int | None = None,
        seed: int = 0,
        classes: Sequence[int] | None = None,
    ) -> Pairs:
        """A part of the *pictures*, with all their rows: of two parts of one seed, the smaller is in the larger.

        Drawn by the hash of the seed and the picture's name, as `split_off` does it but independently of it; from each
        source of a mixture in proportion, and from each class where classes are given.

        Args:
            fraction: of the pictures, above 0 and up to 1; None = all.
            limit: at most so many pictures; None = no limit.
            seed: another seed draws other pictures.
            classes: N numbers, each row's class (see `data.classes.classes_of`); None = no classes.

        Returns:
            The rows in their present order; the same object where nothing is left out.

        Raises:
            DataError: a fraction or limit out of range.
        """
        strata = self.sources.tolist()
        if classes is not None:
            strata = _numbered(f"{source} {label}" for source, label in zip(strata, classes, strict=True)).tolist()
        kept = subset_of(self.spec, self._names, strata, fraction, limit, seed)
        if kept is None:
            return self
        return self.take([i for i, keep in enumerate(kept) if keep])

    @cached_property
    def _pictures(self) -> list[str]:
        return real_paths(self.paths)

    @cached_property
    def _names(self) -> list[str]:
        return relative_names(self.paths, self._pictures)


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
    def paths(self) -> list[Picture]:
        """N pictures."""
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
    def paths(self) -> list[Picture]:
        """N pictures."""
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

    def subset(self, *, fraction: float | None = None, limit: int | None = None, seed: int = 0) -> Labelled:
        """A part of the pictures, in proportion class by class: of two parts of one seed, the smaller is in the larger.

        Each class keeps a picture for as long as there are as many pictures as classes.

        Args:
            fraction: of the pictures, above 0 and up to 1; None = all.
            limit: at most so many pictures; None = no limit.
            seed: another seed draws other pictures.

        Returns:
            The rows in their present order, with the same classes.

        Raises:
            DataError: a fraction or limit out of range.
        """
        names = relative_names(self.paths, real_paths(self.paths))
        kept = subset_of(self.spec, names, [row.label for row in self.rows], fraction, limit, seed)
        return self if kept is None else self.take([i for i, keep in enumerate(kept) if keep])


def _numbered(keys: Iterable[str]) -> Tensor:
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.long)


Row = TypeVar("Row")


def _take(rows: tuple[Row, ...], indices: Sequence[int] | Tensor) -> tuple[Row, ...]:
    chosen: list[int] = indices.tolist() if isinstance(indices, Tensor) else list(indices)
    return tuple(rows[index] for index in chosen)
