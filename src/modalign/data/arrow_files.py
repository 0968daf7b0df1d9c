"""Arrow files as the `datasets` library writes them: captions read column by column, pictures left where they are.

A folder of `save_to_disk` is read without the library: its JSON names the arrow files, whose schema names the features.
Only what the library alone can do, finding a data set on the Hub and unpacking parquet into its cache, asks for it.
An arrow file is not compressed, so a picture in it is a stretch of bytes: where it begins is taken from the mapped
file's addresses, and it is read later as any other `Member`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.data.bad_rows import Complaint
from modalign.data.files import FileIndex
from modalign.data.found import IMAGE_COLUMNS, Columns, Found, Want, choose
from modalign.data.named_pictures import Table
from modalign.data.pictures import Container, Member, Picture
from modalign.errors import DataError, first_line

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class ArrowFiles:
    """The arrow files of one split, read as one table.

    Attributes:
        files: in order.
        label: the data's name in messages; rows are counted from 1 over all files.
        base: the folder that relative paths in the table start from.
        split: the split, where there are several.
    """

    files: tuple[Path, ...]
    label: str
    base: Path
    split: str = ""

    def rows(self, columns: Columns, want: Want, bad: list[Complaint]) -> Iterator[Found]:
        """Every row; no picture is decoded, and of a file with pictures only their places are read."""
        names, index, known = Table(self.base, self.label, (self.base, Path.cwd())), FileIndex(), _Known()
        number = 0
        for path in self.files:
            opened = _Opened.of(path)
            header, place = opened.table.schema.names, str(path)
            held = picture_column(opened.table.schema, columns.image, place)
            image = held or choose(header, columns.image, IMAGE_COLUMNS, "image", place)
            beside = [opened.table.column(n).to_pylist() for n in columns.beside_the_picture(want, header, place)]
            pictures = opened.members(image) if held else _texts(opened.table, image, place)
            for row, picture in enumerate(pictures):
                number += 1
                reason, found = "", None
                if isinstance(picture, Member):
                    found = known.first(_named(picture, number))
                else:
                    found, reason = names.locate(picture, index)
                yield Found(f"{self.label}: row {number}", found, reason, tuple(cells[row] for cells in beside))

    def class_names(self, columns: Columns) -> tuple[str, ...] | None:
        """The names of a column of `ClassLabel`s; a label is then a position in them, −1 where there is none."""
        schema = _Opened.of(self.files[0]).table.schema
        (column,) = columns.beside_the_picture("label", schema.names, str(self.files[0]))
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = told.get("info", {}).get("features", {}).get(column, {})
        return tuple(feature["names"]) if feature.get("_type") == "ClassLabel" else None


def picture_column(schema: Any, given: str | None, place: str) -> str | None:
    """The column that holds pictures as bytes, or None where pictures are only named.

    Raises:
        DataError: several columns may be meant.
    """
    held = [name for name in schema.names if _holds_pictures(schema.field(name).type, name in (given, *IMAGE_COLUMNS))]
    if given is not None:
        return given if given in held else None
    usual = [name for name in IMAGE_COLUMNS if name in held] or held
    if len(usual) > 1 and usual[0] not in IMAGE_COLUMNS:
        listed = ", ".join(map(repr, usual))
        raise DataError(
            f"{place}: columns {listed} hold pictures; pass --image-column (in Python image_column=) for one"
        )
    return usual[0] if usual else None


def is_saved(folder: Path) -> bool:
    """Whether a folder is one of `save_to_disk`, perhaps a damaged one."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")) or (
        (folder / "dataset_info.json").is_file() and next(folder.glob("*.arrow"), None) is not None
    )


def path_and_split(text: str) -> tuple[Path, str]:
    """What a path means: itself, or a folder of `save_to_disk` and the split behind its last "@"."""
    path = Path(text).expanduser().absolute()
    root, at, split = text.rpartition("@")
    folder = Path(root).expanduser().absolute()
    return (folder, split) if at and not path.exists() and is_saved(folder) else (path, "")


def saved(folder: Path, split: str) -> ArrowFiles:
    """A folder of `save_to_disk`.

    Args:
        folder: of a data set, or of a dictionary of splits.
        split: which of the splits; "" where there is one.

    Raises:
        DataError: a file is missing or damaged, or there is no such split.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits")
        split = _chosen(str(folder), split, splits if isinstance(splits, list) else [])
        below = folder / split
    elif split:
        raise DataError(f"{folder} holds one data set, no splits; leave @{split} out")
    else:
        below = folder
    state = _json(below / "state.json")
    listed = state.get("_data_files")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) and "filename" in entry for entry in listed):
        raise DataError(f"{below / 'state.json'} lists no data files; save the data set again with save_to_disk")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(f"{below} was saved by an old version of datasets; load it there and save it again")
    if not listed:
        raise DataError(f"{below} holds no rows; save a data set that has some")
    return ArrowFiles(tuple(below / entry["filename"] for entry in listed), split or folder.name, folder, split)


def from_hub(name: str, config: str | None, split: str) -> ArrowFiles:
    """A data set of the Hub, or any folder or name that `datasets.load_dataset` takes; it lands in the library's cache.

    Args:
        name: "owner/name".
        config: its configuration, or None.
        split: "" where there is one.

    Raises:
        DataError: `datasets` is missing, or it cannot load this.
    """
    if not name:
        raise DataError("hf: names no data set; write hf:<owner>/<name>[:<configuration>][@<split>]")
    datasets = _library(f"hf:{name}")
    if name in getattr(datasets.packaged_modules, "_PACKAGED_DATASETS_MODULES", ()):  # reads whatever lies around
        raise DataError(f"hf:{name} is a way of reading files, no data set; pass the path of the files themselves")
    try:
        loaded = datasets.load_dataset(name, config, split=split or None)
    except Exception as error:  # the library and what it builds on raise every kind
        raise DataError(
            f"hf:{name} cannot be loaded ({first_line(error)}); check name, configuration, split and connection"
        ) from None
    if isinstance(loaded, dict):
        split = _chosen(f"hf:{name}", "", list(loaded))
        loaded = loaded[split]
    return _cached(loaded, f"hf:{name}", split, Path.cwd())


def from_parquet(path: Path) -> ArrowFiles:
    """A parquet file that holds pictures: unpacked by `datasets` into its cache, once, to be read row by row.

    Raises:
        DataError: `datasets` is missing, or it cannot read the file.
    """
    datasets = _library(str(path))
    try:
        loaded = datasets.load_dataset("parquet", data_files=str(path), split="train")
    except Exception as error:
        raise DataError(f"{path} cannot be read as parquet ({first_line(error)}); check the file") from None
    return _cached(loaded, path.name, "", path.parent)


def _cached(loaded: Any, label: str, split: str, base: Path) -> ArrowFiles:
    files = tuple(Path(entry["filename"]) for entry in loaded.cache_files)
    if not files or sum(_Opened.of(file).table.num_rows for file in files) != len(loaded):
        raise DataError(f"{label}: {split!r} is a part of a split; name whole splits, and data.limit or data.fraction")
    return ArrowFiles(files, label, base, split)


def _library(needed_by: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{needed_by} is read by the datasets library: pip install 'modalign[datasets]'") from None
    return datasets


def _chosen(place: str, split: str, splits: Sequence[str]) -> str:
    if split in splits:
        return split
    if len(splits) == 1 and not split:
        return splits[0]
    wrong = f"has no split {split!r}" if split else "has several splits"
    raise DataError(f"{place} {wrong}; pass {place}@ and one of {', '.join(map(str, splits)) or 'none'}")


# ---- one file -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    container: Container
    buffer: Any
    table: Any

    @classmethod
    def of(cls, path: Path) -> _Opened:
        import pyarrow as pa

        try:
            container = Container.of(path)
            buffer = pa.memory_map(str(path)).read_buffer()
            # A stream cut between two batches reads without an error; only its mark is missing.
            if bytes(buffer[-len(END_OF_STREAM) :]) != END_OF_STREAM:
                raise DataError(f"{path} is truncated; save or download the data set again")
            return cls(container, buffer, pa.ipc.open_stream(buffer).read_all())
        except FileNotFoundError:
            raise DataError(f"{path} is missing; save or download the data set again") from None
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read as arrow ({first_line(error)}); save the data set again") from None

    def members(self, column: str) -> Iterator[Member | str | None]:
        """Of each row: the member, the path where only that is stored, or None where neither is."""
        import numpy as np
        import pyarrow as pa

        for chunk in self.table.column(column).chunks:
            parts = chunk.flatten() if pa.types.is_struct(chunk.type) else [chunk]
            fields = [field.name for field in chunk.type] if pa.types.is_struct(chunk.type) else ["bytes"]
            held = dict(zip(fields, parts, strict=True))
            blob = held["bytes"]
            paths = held["path"].to_pylist() if "path" in held else [None] * len(blob)
            there = blob.is_valid().to_pylist()
            if not any(there):
                yield from paths
                continue
            _, offsets, data = blob.buffers()
            kind = np.int64 if pa.types.is_large_binary(blob.type) else np.int32
            bounds = np.frombuffer(offsets, kind)[blob.offset : blob.offset + len(blob) + 1].tolist()
            begin = data.address - self.buffer.address
            if not 0 <= begin <= begin + bounds[-1] <= self.buffer.size:
                raise DataError(f"{self.container.path} is compressed; save the data set again with save_to_disk")
            for row, path in enumerate(paths):
                if not there[row]:
                    yield path
                    continue
                size = bounds[row + 1] - bounds[row]
                yield Member(self.container, _file_name(path), begin + bounds[row], size)


class _Known:
    """Rows that carry one picture twice, by name and content, share the first one's place."""

    def __init__(self) -> None:
        self.members: dict[tuple[str, int], list[Member]] = {}

    def first(self, member: Member) -> Picture:
        same_name = self.members.setdefault((member.inner, member.size), [])
        if same_name:
            content = member.read()
            for earlier in same_name:
                if earlier.read() == content:
                    return earlier
        same_name.append(member)
        return member


def _named(member: Member, number: int) -> Member:
    return member if member.inner else Member(member.container, f"{number:08d}", member.offset, member.size)


def _file_name(path: str | None) -> str:
    """A stored path without what packed it: "zip://a/b.png::data/x.zip" → "a/b.png"."""
    return (path or "").partition("::")[0].rpartition("://")[2].lstrip("/")


def _holds_pictures(kind: Any, named: bool) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return named and _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _texts(table: Any, column: str, place: str) -> list[Any]:
    import pyarrow as pa

    kind = table.schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{place}: column {column!r} holds {kind}, not pictures or their paths; pass --image-column")
    return table.column(column).to_pylist()  # type: ignore[no-any-return]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; save the data set again with save_to_disk") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); save the data set again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object; save the data set again with save_to_disk")
    return content
