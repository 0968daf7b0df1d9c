"""Which pictures a store knows: by name where it can be, by their bytes where it must be."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modalign.console import Reporter
from modalign.data import store_shards
from modalign.data.pictures import Member, Picture, real_paths
from modalign.data.store_folder import StoreFolder
from modalign.data.store_shards import Array
from modalign.errors import DataError

NOTHING = bytes(store_shards.DIGEST)
"""The name or content of what cannot be read."""


@dataclass(frozen=True)
class Look:
    """n pictures beside a store.

    Attributes:
        contents: n×16 bytes: the recorded ones, or those just read.
        moved: known by their bytes alone, under another name.
        new: to be computed.
        tried: recorded without a row: they could not be read, and perhaps cannot still.
    """

    contents: Array
    moved: Array
    new: Array
    tried: Array

    @property
    def complete(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.moved.any() or self.new.any() or self.tried.any())


def look_up(
    folder: StoreFolder,
    pictures: Sequence[Picture],
    names: Array,
    request: str,
    verify: bool,
    reread: dict[int, bytes],
    reporter: Reporter,
) -> Look:
    """Holds pictures against a store.

    Args:
        folder: the store.
        pictures: n distinct ones.
        names: n×16 bytes, zero where there is no such file.
        request: the hash of all names.
        verify: read every picture, whatever its name says.
        reread: contents by position that an earlier look read; completed by this one.
        reporter: shows progress.
    """
    contents, known = folder.contents(names)
    readable = names.any(axis=1)
    known &= readable
    # Without `verify`, bytes are asked where the name tells nothing, and only if they could match something.
    doubtful = readable if verify else readable & ~known & folder.others(request)
    asked = np.flatnonzero(doubtful).tolist()
    _read_again(pictures, [position for position in asked if position not in reread], reread, reporter)
    other = np.zeros_like(known)
    for position in asked:
        if not known[position] or reread[position] != contents[position].tobytes():
            contents[position] = np.frombuffer(reread[position], np.uint8)
            known[position], other[position] = False, True
    there = np.zeros_like(known)
    there[known] = folder.places(contents[known])[:, 0] >= 0
    # Rows of this request's own unfinished attempt answer to their names alone, so that what is left to compute,
    # and how it falls into batches, is what it would have been without the interruption.
    there[other] = folder.places(contents[other], apart_from=request)[:, 0] >= 0
    return Look(contents, moved=other & there, new=readable & ~known & ~there, tried=known & ~there)


def _read_again(pictures: Sequence[Picture], positions: list[int], found: dict[int, bytes], reporter: Reporter) -> None:
    title = "comparing pictures with the store"
    with ThreadPoolExecutor(4) as pool, reporter.progress(title, len(positions), "pictures") as update:
        for begin in range(0, len(positions), 1024):
            part = positions[begin : begin + 1024]
            found.update(zip(part, pool.map(picture_content, [pictures[p] for p in part]), strict=True))
            update(begin + len(part))


def picture_names(pictures: Sequence[Picture]) -> list[bytes]:
    """Hashes of (path, size, modification time), 16 bytes each; empty where there is no such file."""
    names = []
    for picture, place in zip(pictures, real_paths(pictures), strict=True):
        try:
            told = picture.identity if isinstance(picture, Member) else _stat(picture)
        except OSError:
            names.append(b"")
            continue
        names.append(store_shards.digest(f"{place}\0{told}".encode("utf-8", "surrogateescape")))
    return names


def _stat(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def picture_content(picture: Picture) -> bytes:
    """A hash of a picture's bytes, 16 of them; `NOTHING` where it cannot be read."""
    try:
        if isinstance(picture, Member):
            return store_shards.digest(picture.read() + picture.mark.encode())
        return store_shards.digest(picture.read_bytes())
    except (OSError, DataError):
        return NOTHING
