"""Where a picture lies: in a file of its own, or as a stretch of bytes inside a container that is never unpacked.

A tar and an arrow file of the `datasets` library both store a picture's bytes in one piece, so that one record serves
for either: which container, from where, how many. A plain file stays a `Path` and costs nothing extra.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from modalign.errors import DataError

OPEN_CONTAINERS = 64


@dataclass(frozen=True, slots=True)
class Container:
    """A file that holds pictures, as it was when it was looked into; its members share one record of it.

    Attributes:
        path: the file, absolute.
        size: its bytes.
        mtime_ns: its modification time.
    """

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Container:
        """The file as it is now."""
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Member:
    """A picture inside a container: hashable, and small enough to be sent to decoding processes by the million.

    Attributes:
        container: the file it lies in.
        inner: its name there ("more/0002.png"), as its file would be called.
        offset: where its bytes begin.
        size: how many there are.
        form: "" for the bytes of a picture file; else whose array it is a row of, the row being `offset`.
        resized: "" as the model's own transform does; "tensor": as `enlarging.as_tensor` does.
    """

    container: Container
    inner: str
    offset: int
    size: int
    form: str = ""
    resized: str = ""

    @property
    def name(self) -> str:
        """The last part of its name, as `Path.name` is."""
        return PurePosixPath(self.inner).name

    @property
    def identity(self) -> tuple[str, int, int, str]:
        """The container's path, size and modification time, and the name inside: changes when the container does."""
        return os.fspath(self.container.path), self.container.size, self.container.mtime_ns, self.inner + self.mark

    @property
    def mark(self) -> str:
        """What sets it apart from the same picture resized otherwise."""
        return f"|resized as a {self.resized}" if self.resized else ""

    def __str__(self) -> str:
        return f"{self.container.path}/{self.inner}"

    def read(self) -> bytes:
        """Its bytes; a row of an array as a bitmap.

        Raises:
            DataError: the container was changed since it was looked into.
            OSError: the container cannot be read.
        """
        if self.form:
            from modalign.data import torchvision_sets

            return torchvision_sets.bitmap(self.form, self.container, self.offset)
        # pread leaves no position behind, so that forked processes and threads may share what is open.
        return os.pread(_opened(self.container).descriptor, self.size, self.offset)

    def open(self) -> BinaryIO:
        """A file-like object of its bytes; raises as `read` does."""
        return io.BytesIO(self.read())


Picture = Path | Member


def resized_as_tensor(picture: Picture) -> Picture:
    """The same picture, to be resized as a tensor; a file that is not there stays what it is."""
    if isinstance(picture, Member):
        return replace(picture, resized="tensor")
    try:
        container = Container.of(picture.absolute())
    except OSError:
        return picture
    return Member(container, picture.name, 0, container.size, resized="tensor")


class _Open:
    def __init__(self, container: Container) -> None:
        self.descriptor = os.open(container.path, os.O_RDONLY | os.O_CLOEXEC)
        stat = os.fstat(self.descriptor)
        if (stat.st_size, stat.st_mtime_ns) != (container.size, container.mtime_ns):
            raise DataError(f"{container.path} was changed since its content was listed")

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


# One for each process: what falls out is closed, what is inherited by a fork is the child's own to close.
@lru_cache(maxsize=OPEN_CONTAINERS)
def _opened(container: Container) -> _Open:
    return _Open(container)


def size_of(picture: Picture) -> int:
    """How many bytes a picture's file has."""
    return picture.size if isinstance(picture, Member) else picture.stat().st_size


# ---- what tells pictures apart ------------------------------------------------------------------------------


def real_paths(pictures: Sequence[Picture]) -> list[str]:
    """One text a picture, equal where they are the same one: the absolute path, every link followed.

    Each folder is resolved once instead of each file, and each container once instead of each member.
    """
    folders: dict[str, tuple[str, frozenset[str]]] = {}
    containers: dict[Path, str] = {}
    real: list[str] = []
    for picture in pictures:
        if isinstance(picture, Member):
            path = picture.container.path
            if path not in containers:
                containers[path] = os.path.realpath(path)
            real.append(f"{containers[path]}/{picture.inner}@{picture.offset}{picture.mark}")
            continue
        folder, name = os.path.split(picture)
        if folder not in folders:
            folders[folder] = (os.path.realpath(folder), _links_in(folder))
        real_folder, links = folders[folder]
        real.append(os.path.realpath(picture) if name in links else os.path.join(real_folder, name))  # noqa: PTH118
    return real


def relative_names(pictures: Sequence[Picture], places: Sequence[str]) -> list[str]:
    """One name a picture that stays when the data is moved, put into shards, or sharded anew.

    A file's name is its path below the files' common folder, a member's its name inside, below the members' common
    folder, whatever its container is called. Only where that leaves two pictures with one name, the container counts
    as well.

    Args:
        pictures: N of them.
        places: N absolute texts, equal for equal pictures (see `real_paths`).
    """
    members = {i: picture for i, picture in enumerate(pictures) if isinstance(picture, Member)}
    if not members:
        return _below_common_folder(places)
    names = [""] * len(pictures)
    files = [i for i in range(len(pictures)) if i not in members]
    for i, name in zip(files, _below_common_folder([places[i] for i in files]), strict=True):
        names[i] = name
    for i, name in zip(members, _below_common_folder([f"/{m.inner}" for m in members.values()]), strict=True):
        names[i] = name
    owner: dict[str, str] = {}
    shared = {name for name, place in zip(names, places, strict=True) if owner.setdefault(name, place) != place}
    if not shared:
        return names
    longer = _below_common_folder(places)
    return [longer[i] if name in shared else name for i, name in enumerate(names)]


def files_identity(pictures: Iterable[Picture]) -> str:
    """A hash of the pictures' paths, sizes and modification times: changes when a file does, without reading any.

    A member counts with its place in its container, and with the container's size and time.
    """
    digest = hashlib.sha256()
    for picture in dict.fromkeys(pictures):
        if isinstance(picture, Member):
            digest.update(repr((picture.identity, picture.offset, picture.size)).encode(errors="surrogateescape"))
            continue
        try:
            stat = picture.stat()
        except OSError:
            digest.update(b"missing\n")
            continue
        told = f"{picture}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
        digest.update(told.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _links_in(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return frozenset()


def _below_common_folder(places: Sequence[str]) -> list[str]:
    """The paths below their common folder, with "/" on every system."""
    folders = {os.path.dirname(place) for place in places}  # noqa: PTH120
    try:
        common = os.path.commonpath(folders)
    except ValueError:  # no folder at all, or several drives
        return list(places)
    return [place[len(common) :].replace(os.sep, "/").lstrip("/") for place in places]


# ---- as JSON ------------------------------------------------------------------------------------------------


def to_json(picture: Picture) -> str | dict[str, Any]:
    """What names a picture in a JSON file: an absolute path, or an object for a member."""
    if isinstance(picture, Member):
        held = picture.container
        return {
            "container": os.fspath(held.path.resolve()),
            "container_size": held.size,
            "container_mtime_ns": held.mtime_ns,
            "name": picture.inner,
            "offset": picture.offset,
            "size": picture.size,
            **{key: value for key in ("form", "resized") if (value := getattr(picture, key))},
        }
    return os.fspath(picture.resolve())


def from_json(value: str | Mapping[str, Any]) -> Picture:
    """Reads what `to_json` wrote.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, str):
        return Path(value)
    try:
        held = Container(Path(value["container"]), int(value["container_size"]), int(value["container_mtime_ns"]))
        place = int(value["offset"]), int(value["size"])
        return Member(held, str(value["name"]), *place, str(value.get("form", "")), str(value.get("resized", "")))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{value!r:.60} names no picture") from None
