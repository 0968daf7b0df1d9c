"""Data specs: what `pairs`, `images` and `labelled` read, and from where.

A spec is a folder with `metadata.csv`, `.jsonl` or `.parquet` (the convention of the `datasets` library), a csv,
jsonl or parquet file that names pictures, `coco:<root>@<split>`, `flickr30k:<root>@<split>`, a folder of pictures or
of class folders, or `demo[:<split>]`. docs/data.md shows each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.data.bad_rows import Complaint, refuse_above
from modalign.data.captions import captions_in, is_missing, is_text
from modalign.data.files import FileIndex, class_folders, files_below, image_files
from modalign.data.published import coco, flickr30k
from modalign.data.records import ImageRow, Images, Labelled, LabelledRow, PairRow, Pairs, real_paths
from modalign.data.tables import CSV_MISSING, TABLE_READERS, read_table
from modalign.errors import DataError

__all__ = ["ImageRow", "Images", "Labelled", "LabelledRow", "PairRow", "Pairs", "images", "labelled", "pairs"]

IMAGE_COLUMNS = ("file_name", "image", "image_path", "path", "filepath", "filename", "image_file_name")
TEXT_COLUMNS = ("text", "caption", "captions", "title")
METADATA_NAMES = tuple(f"metadata{suffix}" for suffix in TABLE_READERS)
PUBLISHED: dict[str, Callable[[Path, str, list[Complaint]], list[PairRow]]] = {"coco": coco, "flickr30k": flickr30k}

Spec = str | os.PathLike[str]
logger = logging.getLogger("modalign")


def pairs(
    spec: Spec, *, image_column: str | None = None, text_column: str | None = None, max_bad: int | None = 0
) -> Pairs:
    """Reads image–text pairs.

    Args:
        spec: see docs/data.md.
        image_column: the column that names pictures, where it is none of `IMAGE_COLUMNS`.
        text_column: the column of captions, where it is none of `TEXT_COLUMNS`.
        max_bad: how many rows may be bad (no such picture, an empty caption, an unreadable line); what is bad is left
            out, each with a warning. None lets all pass.

    Returns:
        The rows, in the source's order. Two lines about one picture stay two rows.

    Raises:
        DataError: the spec names nothing readable, a column is missing, or more rows are bad than allowed.
    """
    spec = os.fspath(spec)
    kind, rest = _kind_of(spec)
    if kind == "demo":
        from modalign.demo import data as demo_data

        return demo_data.pairs(rest or "refine")
    bad: list[Complaint] = []
    split = ""
    if kind:
        root, split = _root_and_split(kind, rest)
        rows = PUBLISHED[kind](root, split, bad)
    else:
        rows = _table_pairs(_tables(spec), image_column, text_column, bad)
    _judge(spec, "pair", rows, bad, max_bad)
    return Pairs(spec, tuple(rows), split)


def images(spec: Spec, *, image_column: str | None = None, max_bad: int | None = 0) -> Images:
    """Reads pictures alone: all below a folder, or those of any spec of pairs or of labelled pictures.

    Args:
        spec: see docs/data.md.
        image_column: the column that names pictures, where it is none of `IMAGE_COLUMNS`.
        max_bad: how many rows may be bad; what is bad is left out, each with a warning. None lets all pass.

    Returns:
        Each picture once, in the order of first appearance.

    Raises:
        DataError: the spec names nothing readable, or more rows are bad than allowed.
    """
    spec = os.fspath(spec)
    kind, _ = _kind_of(spec)
    bad: list[Complaint] = []
    if kind:
        rows = [ImageRow(row.path, row.where) for row in pairs(spec, max_bad=max_bad).rows]
    elif _is_plain_folder(spec):
        rows = [ImageRow(path, where) for path, where in image_files(_absolute(spec))]
    else:
        rows = _table_images(_tables(spec), image_column, bad)
    _judge(spec, "picture", rows, bad, max_bad)
    distinct: dict[str, ImageRow] = {}
    for picture, row in zip(real_paths([row.path for row in rows]), rows, strict=True):
        distinct.setdefault(picture, row)
    return Images(spec, tuple(distinct.values()))


def labelled(
    spec: Spec, *, image_column: str | None = None, label_column: str | None = None, max_bad: int | None = 0
) -> Labelled:
    """Reads pictures with a class each.

    Args:
        spec: see docs/data.md.
        image_column: the column that names pictures, where it is none of `IMAGE_COLUMNS`.
        label_column: the column of class names in a table; "label" unless given.
        max_bad: how many rows may be bad; what is bad is left out, each with a warning. None lets all pass.

    Returns:
        The rows that carry a label. Of class folders, classes are the sorted folder names, as torchvision's
        `ImageFolder` numbers them, with "_" shown as a space; of a table, the sorted distinct names.

    Raises:
        DataError: the spec names nothing readable, a column is missing, or more rows are bad than allowed.
    """
    spec = os.fspath(spec)
    kind, rest = _kind_of(spec)
    if kind == "demo":
        from modalign.demo import data as demo_data

        return demo_data.labelled(rest or "test")
    if kind:
        raise DataError(f"{spec}: {kind} has captions, no class labels; pass class folders or a table with labels")
    bad: list[Complaint] = []
    if _is_plain_folder(spec):
        found = class_folders(_absolute(spec))
        names = [name.replace("_", " ") for name in found]
        rows = [LabelledRow(path, label, where) for label, files in enumerate(found.values()) for path, where in files]
    else:
        rows, names = _table_labels(_tables(spec), image_column, label_column, bad)
    _judge(spec, "labelled picture", rows, bad, max_bad)
    return Labelled(spec, tuple(rows), tuple(names))


# ---- specs --------------------------------------------------------------------------------------------------


def _kind_of(spec: str) -> tuple[str, str]:
    """ "coco:/data@val2017" → ("coco", "/data@val2017"); ("", spec) for a path."""
    kind, colon, rest = spec.partition(":")
    if (kind in PUBLISHED and colon) or kind == "demo":
        return kind, rest
    return "", spec


def _root_and_split(kind: str, rest: str) -> tuple[Path, str]:
    root, at, split = rest.rpartition("@")
    if not at:
        raise DataError(
            f"{kind}:{rest} names no split; pass {kind}:<root>@<split>, such as {kind}:{rest}@{_EXAMPLE[kind]}"
        )
    if not _absolute(root).is_dir():
        raise DataError(f"{kind}:{rest}: no such folder {root}; pass the folder that holds the annotations")
    return _absolute(root), split


_EXAMPLE = {"coco": "val2017", "flickr30k": "test"}


def _absolute(spec: str) -> Path:
    return Path(spec).expanduser().absolute()


def _is_plain_folder(spec: str) -> bool:
    path = _absolute(spec)
    return path.is_dir() and not _metadata_files(path)


def _judge(
    spec: str,
    what: str,
    rows: Sequence[PairRow | ImageRow | LabelledRow],
    bad: list[Complaint],
    max_bad: int | None,
) -> None:
    total = len({*(row.where for row in rows), *(complaint.where for complaint in bad)})
    refuse_above(max_bad, bad, total, f"rows of {spec} cannot be used")
    for complaint in bad:
        logger.warning("left out: %s", complaint)
    if not rows:
        raise DataError(f"{spec} holds no {what}; check its content")


# ---- tables -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """One csv, jsonl or parquet file, and the folders that its relative paths may start from."""

    path: Path
    label: str
    bases: tuple[Path, ...]

    def column(self, columns: Sequence[str], given: str | None, known: Sequence[str], option: str) -> str:
        wanted = (given,) if given is not None else known
        for name in wanted:
            if name in columns:
                return name
        has = ", ".join(map(repr, columns)) or "no columns"
        raise DataError(f"{self.path} has no column {' or '.join(wanted)}; it has {has}; pass {option} to name another")

    def locate(self, name: Any, index: FileIndex) -> tuple[Path | None, str]:
        """The picture a cell names, or None and why not."""
        if is_missing(name):
            return None, "names no file"
        if not isinstance(name, str):
            return None, f"{name!r:.40} is not a path"
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            for base in self.bases:
                path = os.path.join(base, os.path.normpath(spelled))  # noqa: PTH118
                if path in index:
                    return Path(path), ""
        return None, f"no such file {name}"


def _tables(spec: str) -> list[_Table]:
    path = _absolute(spec)
    if path.is_dir():
        files = _metadata_files(path)
        if not files:
            raise DataError(
                f"{spec}: looked for {', '.join(METADATA_NAMES)} there and below; write one, or pass a table"
            )
        if len({file.suffix for file in files}) > 1:
            names = ", ".join(str(file.relative_to(path)) for file in files[:4])
            raise DataError(f"{spec} holds metadata files of several kinds ({names}); keep one kind")
        if len(files) > 1:
            logger.warning(
                "%s: reading %d metadata files as one (pass a folder below it for one alone)", spec, len(files)
            )
        return [_Table(file, file.relative_to(path).as_posix(), (file.parent,)) for file in files]
    if path.is_file():
        return [_Table(path, path.name, (path.parent, Path.cwd()))]
    raise DataError(
        f"{spec}: no such file or folder; pass a folder, a table ({', '.join(TABLE_READERS)}), coco:<root>@<split>, "
        "flickr30k:<root>@<split> or demo"
    )


def _metadata_files(root: Path) -> list[Path]:
    return [folder / name for folder, names in files_below(root) for name in names if name in METADATA_NAMES]


def _rows(
    table: _Table, wanted: Sequence[tuple[str | None, Sequence[str], str]], bad: list[Complaint]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    yield from read_table(
        table.path, table.label, lambda columns: [table.column(columns, *column) for column in wanted], bad
    )


def _table_pairs(
    tables: list[_Table], image_column: str | None, text_column: str | None, bad: list[Complaint]
) -> list[PairRow]:
    index = FileIndex()
    rows: list[PairRow] = []
    wanted = [(image_column, IMAGE_COLUMNS, "image_column"), (text_column, TEXT_COLUMNS, "text_column")]
    for table in tables:
        missing = CSV_MISSING if table.path.suffix.lower() == ".csv" else frozenset[str]()
        for where, (name, cell) in _rows(table, wanted, bad):
            path, reason = table.locate(name, index)
            captions, reasons = captions_in(None if isinstance(cell, str) and cell in missing else cell)
            if path is None or reasons:
                bad.append(Complaint(where, "; ".join([reason, *reasons] if reason else reasons)))
            if path is not None and captions:
                rows.append(PairRow(path, captions, where))
    return rows


def _table_images(tables: list[_Table], image_column: str | None, bad: list[Complaint]) -> list[ImageRow]:
    index = FileIndex()
    rows: list[ImageRow] = []
    for table in tables:
        for where, (name,) in _rows(table, [(image_column, IMAGE_COLUMNS, "image_column")], bad):
            path, reason = table.locate(name, index)
            if path is None:
                bad.append(Complaint(where, reason))
            else:
                rows.append(ImageRow(path, where))
    return rows


def _table_labels(
    tables: list[_Table], image_column: str | None, label_column: str | None, bad: list[Complaint]
) -> tuple[list[LabelledRow], list[str]]:
    index = FileIndex()
    found: list[tuple[Path, str, str]] = []
    unlabelled = 0
    wanted = [(image_column, IMAGE_COLUMNS, "image_column"), (label_column, ("label",), "label_column")]
    for table in tables:
        for where, (name, cell) in _rows(table, wanted, bad):
            label = _label(cell)
            if label == "":
                unlabelled += 1
                continue
            path, reason = table.locate(name, index)
            if path is None or label is None:
                bad.append(Complaint(where, reason or f"the label {cell!r:.40} is not a class name"))
            else:
                found.append((path, label, where))
    if unlabelled:
        logger.info("%s: %d rows carry no label and are left out", tables[0].path, unlabelled)
    names = sorted({label for _, label, _ in found})
    numbers = {name: number for number, name in enumerate(names)}
    return [LabelledRow(path, numbers[label], where) for path, label, where in found], names


def _label(cell: Any) -> str | None:
    """A class name; "" for a cell that holds none, None for one that is no name."""
    if is_missing(cell) or cell in ("nan", "NaN"):
        return ""
    if isinstance(cell, float) and cell.is_integer():  # integers in a column that also has empty cells
        return str(int(cell))
    if isinstance(cell, str | int):
        text = str(cell).strip()
        return text if is_text(text) else None
    return None
