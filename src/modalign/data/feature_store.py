"""Stored features as the rest of the program sees them: rows on disk, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modalign.data.bad_rows import BadRow
from modalign.data.pictures import Picture
from modalign.data.store_folder import StoreFolder
from modalign.data.store_shards import Array
from modalign.errors import OutputError


class Rows:
    """N×w features, memory-mapped: an index reads the rows it names, whichever shards they lie in.

    Half precision is upcast to float32 as it is read.

    Args:
        folder: kept open, so that nobody removes it meanwhile.
        files: the shards.
        places: N×2 integers: which shard, which row in it.
        width: w, where there is no row to tell.
    """

    def __init__(self, folder: StoreFolder, files: Sequence[str], places: Array, width: int = 0) -> None:
        self.folder = folder
        self._maps = folder.maps(files)
        self._places = places.astype(np.int32)
        stored = self._maps[places[0, 0]] if len(places) else np.empty((0, width), np.float32)
        self._type = np.dtype(np.float64) if stored.dtype == np.float64 else np.dtype(np.float32)
        self.shape = torch.Size((len(places), stored.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dim(self) -> int:
        """The width w."""
        return self.shape[1]

    @property
    def nbytes(self) -> int:
        """What all rows would take in memory."""
        return self.shape[0] * self.shape[1] * self._type.itemsize

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        """Reads rows, in the order of the index: one as a vector, several as n×w."""
        wanted = index.numpy() if isinstance(index, Tensor) else index
        places = self._places[wanted]
        if places.ndim == 1:
            return self[[int(wanted)]][0]  # type: ignore[arg-type]
        found = np.empty((len(places), self.dim), self._type)
        order = np.argsort(places[:, 0], kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(places[order, 0])) + 1):
            if len(group):
                found[group] = self._maps[places[group[0], 0]][places[group, 1]]
        return torch.from_numpy(found)

    def split(self, size: int) -> Iterator[Tensor]:
        """Reads all rows, so many at a time."""
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]

    def numpy(self) -> Array:
        """All rows in memory, N×w."""
        return self[:].numpy()

    def save_npy(self, path: Path) -> None:
        """Writes all rows as one .npy file, a part at a time.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            target = np.lib.format.open_memmap(path, mode="w+", dtype=self._type, shape=tuple(self.shape))
            for number, rows in enumerate(self.split(4096)):
                target[number * 4096 :][: len(rows)] = rows.numpy()
            target.flush()
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}); choose another place") from None


@dataclass(frozen=True)
class Passes:
    """Inputs that went through a frozen network, and inputs that did not have to.

    Attributes:
        computed: forward passes done.
        read: forward passes saved: features that were stored already.
    """

    computed: int = 0
    read: int = 0

    def __str__(self) -> str:
        if not self.read:
            return f"{self.computed:,} computed"
        return f"{self.read:,} read from the store, {self.computed:,} computed"


@dataclass
class FeatureStore:
    """What a frozen network says about a data set.

    Attributes:
        image: K×w, a row for each picture that could be read; None where only captions were embedded.
        text: M×w, a row for every caption of these pictures, in the order of the data; None without captions.
        pictures: the K pictures.
        captions: the M captions.
        kept: K positions in the data, ascending.
        bad: the rows left out, each with file, row and reason.
        passes: "image" and "text" → how many forward passes were done and saved.
    """

    image: Rows | None = None
    text: Rows | None = None
    pictures: list[Picture] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    kept: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    bad: list[BadRow] = field(default_factory=list)
    passes: dict[str, Passes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._main)

    @property
    def dim(self) -> int:
        """The width w of a row."""
        return self._main.dim

    @property
    def spec(self) -> str:
        """`vectors:<folder>`, as `modalign.refine` reads it: the rows of the pictures, else of the captions."""
        return f"vectors:{self._main.folder.path}"

    @property
    def _main(self) -> Rows:
        rows = self.image if self.image is not None else self.text
        assert rows is not None
        return rows

    def rows(self, wanted: Tensor | Sequence[int] | Sequence[Picture] | Sequence[str]) -> Tensor:
        """Reads rows by position, by picture or by caption.

        Args:
            wanted: n positions in `image` (in `text` where there are no pictures), n pictures, or n captions.

        Returns:
            n×w, raw.

        Raises:
            KeyError: a picture or caption is not stored.
        """
        if isinstance(wanted, Tensor) or not len(wanted) or isinstance(wanted[0], int):
            return self._main[wanted]  # type: ignore[index]
        texts = isinstance(wanted[0], str)
        held, rows = (self.captions, self.text) if texts else (self.pictures, self.image)
        if rows is None:
            raise KeyError(wanted[0])
        place = {item: position for position, item in enumerate(held)}
        return rows[[place[item] for item in wanted]]  # type: ignore[index]

    def __str__(self) -> str:
        return "; ".join(f"{_COUNTED[tower]}: {passes}" for tower, passes in self.passes.items())


_COUNTED = {"image": "pictures", "text": "captions"}
