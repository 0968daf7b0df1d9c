"""Tables that name picture files: metadata files in a folder, or one csv, jsonl or parquet file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.data.bad_rows import Complaint
from modalign.data.captions import is_missing
from modalign.data.files import FileIndex, files_below
from modalign.data.found import IMAGE_COLUMNS, Columns, Found, Want, choose
from modalign.data.pictures import Container, Picture, from_json
from modalign.data.tables import CSV_MISSING, TABLE_READERS, table_rows
from modalign.errors import DataError

METADATA_NAMES = tuple(f"metadata{suffix}" for suffix in TABLE_READERS)
logger = logging.getLogger("modalign")


@dataclass(frozen=True)
class Table:
    """One csv, jsonl or parquet file.

    Attributes:
        path: the file.
        label: its name in messages.
        bases: the folders that its relative paths may start from.
    """

    path: Path
    label: str
    bases: tuple[Path, ...]

    def locate(self, name: Any, index: FileIndex) -> tuple[Picture | None, str]:
        """The picture a cell names, or None and why not."""
        if is_missing(name):
            return None, "names no file"
        if isinstance(name, dict) and "container" in name:
            return _member(name)
        if not isinstance(name, str):
            return None, f"{name!r:.40} is not a path"
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            for base in self.bases:
                path = os.path.join(base, os.path.normpath(spelled))  # noqa: PTH118
                if path in index:
                    return Path(path), ""
        return None, f"no such file {name}"


@dataclass(frozen=True)
class Tables:
    """Several tables read as one."""

    tables: tuple[Table, ...]

    def rows(self, columns: Columns, want: Want, bad: list[Complaint]) -> Iterator[Found]:
        """Every row; what cannot be read at all becomes a complaint."""
        index = FileIndex()
        for table in self.tables:
            missing = CSV_MISSING if want == "text" and table.path.suffix.lower() == ".csv" else frozenset[str]()

            def picked(names: Any, path: Path = table.path) -> list[str]:
                image = choose(names, columns.image, IMAGE_COLUMNS, "image", str(path))
                return [image, *columns.beside_the_picture(want, names, str(path))]

            for where, (name, *cells) in table_rows(table.path, table.label, picked, bad):
                picture, reason = table.locate(name, index)
                told = tuple(None if isinstance(cell, str) and cell in missing else cell for cell in cells)
                yield Found(where, picture, reason, told)

    def class_names(self, columns: Columns) -> tuple[str, ...] | None:
        """Nothing fixes the classes of a table but its rows."""
        return None


def tables(spec: str, path: Path) -> Tables:
    """The tables a path stands for.

    Args:
        spec: as written, for messages.
        path: a folder with metadata files, or a table.

    Raises:
        DataError: it holds none, or metadata files of several kinds.
    """
    if not path.is_dir():
        return Tables((Table(path, path.name, (path.parent, Path.cwd())),))
    files = metadata_files(path)
    if not files:
        raise DataError(
            f"{spec}: looked for {', '.join(METADATA_NAMES)} there and below; write one, or pass a table"
            + (", or pass its tar files as wds:" + spec if next(path.glob("*.tar"), None) else "")
        )
    if len({file.suffix for file in files}) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in files[:4])
        raise DataError(f"{spec} holds metadata files of several kinds ({names}); keep one kind")
    if len(files) > 1:
        logger.warning("%s: reading %d metadata files as one (pass a folder below it for one alone)", spec, len(files))
    return Tables(tuple(Table(file, file.relative_to(path).as_posix(), (file.parent,)) for file in files))


def metadata_files(root: Path) -> list[Path]:
    """The metadata files in and below a folder, sorted."""
    return [folder / name for folder, names in files_below(root) for name in names if name in METADATA_NAMES]


def _member(cell: dict[str, Any]) -> tuple[Picture | None, str]:
    """A member as `pictures.to_json` names it, in a container that is still the same."""
    try:
        member = from_json(cell)
        assert not isinstance(member, Path)
        if Container.of(member.container.path) != member.container:
            return None, f"{member.container.path} was changed since this row was written"
    except ValueError as error:
        return None, str(error)
    except OSError:
        return None, f"no such file {cell['container']}"
    return member, ""
