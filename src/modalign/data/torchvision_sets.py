"""Labelled pictures of the data sets that torchvision reads, from folders that are on disk already.

`torchvision:<name>:<root>@<split>`: the root is the one that torchvision's class takes; nothing is downloaded or
unpacked. Where the pictures are files, they are listed; where they are held in arrays, a picture is a row of the array,
given out as an uncompressed bitmap, so that it is decoded, named and hashed like any other.

Labels and class names follow CLIP_benchmark: its list where it has one, or else the data set's own names.
"""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from modalign.data.bad_rows import Complaint
from modalign.data.files import FileIndex
from modalign.data.found import Columns, Found, Want
from modalign.data.pictures import Container, Member, Picture
from modalign.data.torchvision_layouts import SETS
from modalign.errors import DataError, first_line
from modalign.evaluation.class_names import class_names

__all__ = ["SETS", "TorchvisionSet", "bitmap", "located", "read"]


@dataclass(frozen=True)
class TorchvisionSet:
    """One split, read as a table.

    Attributes:
        spec: as written.
        pictures: N pictures.
        labels: N class numbers.
        names: C class names.
        split: "" where there is one alone.
    """

    spec: str
    pictures: tuple[Picture, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    split: str

    def rows(self, columns: Columns, want: Want, bad: list[Complaint]) -> Iterator[Found]:
        """Every picture, in torchvision's order.

        Raises:
            DataError: captions are asked for.
        """
        if want == "text":
            raise DataError(f"{self.spec} has class labels, no captions; name pairs, such as coco:<root>@<split>")
        index = FileIndex()
        for number, (picture, label) in enumerate(zip(self.pictures, self.labels, strict=True)):
            where = f"{self.spec}: row {number}"
            if isinstance(picture, Path) and os.fspath(picture) not in index:
                yield Found(where, None, f"no such file {picture}", (label,))
            else:
                yield Found(where, picture, "", (label,))

    def class_names(self, columns: Columns) -> tuple[str, ...]:
        """The names that the labels number."""
        return self.names


def read(spec: str, rest: str) -> TorchvisionSet:
    """One split of a data set.

    Args:
        spec: as written, for messages.
        rest: "<name>:<root>@<split>"; without "@<split>" where there are no splits.

    Raises:
        DataError: no such data set or split, or a folder that is missing, incomplete or not the published one.
    """
    name, root, split = located(spec, rest)
    kind = SETS[name]
    found = _opened(name, root, split)
    pictures: list[Picture]
    if kind.files is not None:
        listed = list(kind.files(found))
        pictures, labels = [Path(path) for path, _ in listed], [int(label) for _, label in listed]
    else:
        assert kind.labels is not None
        assert kind.array is not None
        labels = [int(label) for label in kind.labels(found)]
        container = Container.of(kind.array(root, split))
        # The row stands in the place's offset; how many bytes it has is known when it is encoded.
        form = f"{name}:{root}@{split}"
        pictures = [Member(container, f"{split}/{row:06d}.ppm", row, 1, form) for row in range(len(labels))]
    names = class_names(name) if kind.names is None else tuple(kind.names(found))
    if labels and not 0 <= max(labels) < len(names):
        raise DataError(f"{spec}: a label is {max(labels)}, and {name} has {len(names)} classes; fetch the data again")
    return TorchvisionSet(spec, tuple(pictures), tuple(labels), names, split)


def located(spec: str, rest: str) -> tuple[str, Path, str]:
    """The data set, root and split that a spec names, all of which there are.

    Raises:
        DataError: one of them is missing; the folder or the splits expected are told.
    """
    name, colon, place = rest.partition(":")
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, n=1, cutoff=0.5)
        instead = f"did you mean {near[0]}? " if near else ""
        raise DataError(f"{spec}: no data set {name!r} of torchvision: {instead}there are {', '.join(SETS)}")
    kind = SETS[name]
    root, at, split = place.rpartition("@")
    if not kind.splits:
        root, at, split = place, "@", ""
    usage = f"torchvision:{name}:<root>" + (f"@{'|'.join(kind.splits)}" if kind.splits else " (it has no splits)")
    if not colon or not root or not at or (kind.splits and split not in kind.splits):
        raise DataError(f"{spec}: write {usage}")
    path = Path(root).expanduser().absolute()
    expected = path / kind.holds.format(split=split)
    if not expected.exists():
        raise DataError(
            f"{spec}: no {expected}, where torchvision's {kind.torchvision} keeps it; fetch it, or write {usage}"
        )
    return name, path, split


def bitmap(form: str, container: Container, row: int) -> bytes:
    """A row of an array, encoded without loss or compression.

    Args:
        form: "<name>:<root>@<split>", as `read` wrote it.
        container: the file that holds the array, as it was then.
        row: which one.

    Raises:
        DataError: the file was changed since it was read.
    """
    name, root, split = located(f"torchvision:{form}", form)
    picture, _ = _opened(name, root, split, container)[row]
    buffer = io.BytesIO()
    picture.save(buffer, "PPM")
    return buffer.getvalue()


# Two: a task and its training split. A process that decodes opens its own, or inherits its parent's.
@lru_cache(maxsize=2)
def _opened(name: str, root: Path, split: str, container: Container | None = None) -> Any:
    if container is not None:
        if Container.of(container.path) != container:
            raise DataError(f"{container.path} was changed since its content was listed")
        return _opened(name, root, split)
    kind = SETS[name]
    try:
        return kind.read(root, split)
    except (RuntimeError, OSError, ImportError, LookupError, ValueError, TypeError, AssertionError) as error:
        reason = first_line(error).removesuffix(" You can use download=True to download it").rstrip(".")
        place = root / kind.holds.format(split=split)
        raise DataError(
            f"{place} cannot be read by torchvision's {kind.torchvision} ({reason}); fetch the published files again"
        ) from None
