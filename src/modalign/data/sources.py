"""Data specs: what `pairs`, `images` and `labelled` read, and from where.

A spec is a folder with `metadata.csv`, `.jsonl` or `.parquet` (the convention of the `datasets` library), a csv, jsonl
or parquet file, WebDataset tars (`wds:<pattern>`, or a path that ends in .tar), a folder of `datasets`'
`save_to_disk`, `hf:<owner/name>`, `coco:<root>@<split>`, `flickr30k:<root>@<split>`, a folder of pictures or of class
folders, or `demo[:<split>]`. docs/data.md shows each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from modalign.data import arrow_files, tar_shards
from modalign.data.bad_rows import Complaint, refuse_above
from modalign.data.captions import captions_in, is_missing, is_text
from modalign.data.files import class_folders, image_files
from modalign.data.found import Columns, Found, Want
from modalign.data.named_pictures import metadata_files, tables
from modalign.data.pictures import Picture, real_paths
from modalign.data.published import coco, flickr30k
from modalign.data.records import ImageRow, Images, Labelled, LabelledRow, PairRow, Pairs
from modalign.data.tables import TABLE_READERS
from modalign.errors import DataError

__all__ = ["ImageRow", "Images", "Labelled", "LabelledRow", "PairRow", "Pairs", "images", "labelled", "pairs"]

PUBLISHED: dict[str, Callable[[Path, str, list[Complaint]], list[PairRow]]] = {"coco": coco, "flickr30k": flickr30k}
KINDS = (*PUBLISHED, "demo", "wds", "datasets", "hf")

Spec = str | os.PathLike[str]
logger = logging.getLogger("modalign")


class Source(Protocol):
    """Rows with pictures, and with whatever their columns hold."""

    def rows(self, columns: Columns, want: Want, bad: list[Complaint]) -> Iterator[Found]:
        """Every row, in order."""

    def class_names(self, columns: Columns) -> tuple[str, ...] | None:
        """The classes that the source itself numbers, if it does; a label is then a number."""


def pairs(
    spec: Spec,
    *,
    image_column: str | None = None,
    text_column: str | Sequence[str] | None = None,
    max_bad: int | None = 0,
) -> Pairs:
    """Reads image–text pairs.

    Args:
        spec: see docs/data.md.
        image_column: the column that holds or names pictures, where it is none of `IMAGE_COLUMNS`; of tar shards, the
            ending of the pictures.
        text_column: the column of captions, where it is none of `TEXT_COLUMNS`, or several columns whose captions
            belong to one row; of tar shards, an ending or a field of the samples' json.
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
    if kind in PUBLISHED:
        root, split = _root_and_split(kind, rest)
        rows = PUBLISHED[kind](root, split, bad)
    else:
        source, split = _source(spec, kind, rest, image_column)
        rows = _pair_rows(source.rows(Columns.of(image_column, text_column), "text", bad), bad)
    _judge(spec, "pair", rows, bad, max_bad)
    return Pairs(spec, tuple(rows), split)


def images(spec: Spec, *, image_column: str | None = None, max_bad: int | None = 0) -> Images:
    """Reads pictures alone: all below a folder, or those of any spec of pairs or of labelled pictures.

    Args:
        spec: see docs/data.md.
        image_column: as in `pairs`.
        max_bad: how many rows may be bad; what is bad is left out, each with a warning. None lets all pass.

    Returns:
        Each picture once, in the order of first appearance.

    Raises:
        DataError: the spec names nothing readable, or more rows are bad than allowed.
    """
    spec = os.fspath(spec)
    kind, rest = _kind_of(spec)
    bad: list[Complaint] = []
    if kind in PUBLISHED or kind == "demo":
        rows = [ImageRow(row.path, row.where) for row in pairs(spec, max_bad=max_bad).rows]
    elif _is_plain_folder(spec, kind):
        rows = [ImageRow(path, where) for path, where in image_files(_absolute(spec))]
    else:
        source, _ = _source(spec, kind, rest, image_column)
        rows = _image_rows(source.rows(Columns.of(image_column), "picture", bad), bad)
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
        image_column: as in `pairs`.
        label_column: the column of class names; "label" unless given ("cls", or "label" in the json, of tar shards).
        max_bad: how many rows may be bad; what is bad is left out, each with a warning. None lets all pass.

    Returns:
        The rows that carry a label. Of class folders, classes are the sorted folder names, as torchvision's
        `ImageFolder` numbers them, with "_" shown as a space; of a `ClassLabel` column or of tars beside a
        `classnames.txt`, the names listed there; of anything else, the sorted distinct names.

    Raises:
        DataError: the spec names nothing readable, a column is missing, or more rows are bad than allowed.
    """
    spec = os.fspath(spec)
    kind, rest = _kind_of(spec)
    if kind == "demo":
        from modalign.demo import data as demo_data

        return demo_data.labelled(rest or "test")
    if kind in PUBLISHED:
        raise DataError(f"{spec}: {kind} has captions, no class labels; pass class folders or a table with labels")
    bad: list[Complaint] = []
    names: Sequence[str]
    if _is_plain_folder(spec, kind):
        found = class_folders(_absolute(spec))
        names = [name.replace("_", " ") for name in found]
        rows = [LabelledRow(path, label, where) for label, files in enumerate(found.values()) for path, where in files]
    else:
        source, _ = _source(spec, kind, rest, image_column)
        columns = Columns.of(image_column, label=label_column)
        listed = source.class_names(columns)
        rows, names = _labelled_rows(spec, source.rows(columns, "label", bad), listed, bad)
    _judge(spec, "labelled picture", rows, bad, max_bad)
    return Labelled(spec, tuple(rows), tuple(names))


# ---- specs --------------------------------------------------------------------------------------------------


def _kind_of(spec: str) -> tuple[str, str]:
    """ "coco:/data@val2017" → ("coco", "/data@val2017"); ("", spec) for a path."""
    kind, colon, rest = spec.partition(":")
    if (kind in KINDS and colon) or kind == "demo":
        return kind, rest
    if spec.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")) or ".tar::" in spec:
        return "wds", spec
    return "", spec


def _source(spec: str, kind: str, rest: str, image_column: str | None) -> tuple[Source, str]:
    """What gives the rows of a spec, and the split it reads."""
    if kind == "wds":
        found = tar_shards.shards(spec, rest)
        return found, found.split
    if kind == "hf":
        name, _, split = rest.partition("@")
        name, _, config = name.partition(":")
        arrow = arrow_files.from_hub(name, config or None, split)
        return arrow, arrow.split
    path = _absolute(rest)
    root, at, split = rest.rpartition("@")
    if not path.exists() and at and arrow_files.is_saved(_absolute(root)):
        path = _absolute(root)
    else:
        split = ""
    if kind == "datasets" or arrow_files.is_saved(path):
        if not path.is_dir():
            raise DataError(f"{spec}: no such folder {path}; pass one that save_to_disk wrote")
        arrow = arrow_files.saved(path, split)
        return arrow, arrow.split
    if path.suffix.lower() == ".parquet" and path.is_file() and _holds_pictures(path, image_column):
        return arrow_files.from_parquet(path), ""
    if not path.exists():
        raise DataError(
            f"{spec}: no such file or folder; pass a folder, a table ({', '.join(TABLE_READERS)}), tar files, "
            "hf:<owner/name>, coco:<root>@<split>, flickr30k:<root>@<split> or demo"
        )
    return tables(spec, path), ""


def _holds_pictures(path: Path, image_column: str | None) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return arrow_files.picture_column(pq.read_schema(path), image_column, str(path)) is not None
    except (pa.ArrowException, OSError):
        return False  # the table reader says what is wrong


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


def _is_plain_folder(spec: str, kind: str) -> bool:
    path = _absolute(spec)
    return not kind and path.is_dir() and not arrow_files.is_saved(path) and not metadata_files(path)


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


# ---- rows ---------------------------------------------------------------------------------------------------


def _pair_rows(found: Iterable[Found], bad: list[Complaint]) -> list[PairRow]:
    rows: list[PairRow] = []
    for where, picture, reason, cells in found:
        read = [captions_in(cell) for cell in cells]
        captions = tuple(caption for captions, _ in read for caption in captions)
        reasons = [reason] * bool(reason) + [reason for _, reasons in read for reason in reasons]
        if reasons:
            bad.append(Complaint(where, "; ".join(reasons)))
        if picture is not None and captions:
            rows.append(PairRow(picture, captions, where))
    return rows


def _image_rows(found: Iterable[Found], bad: list[Complaint]) -> list[ImageRow]:
    rows: list[ImageRow] = []
    for where, picture, reason, _ in found:
        if picture is None:
            bad.append(Complaint(where, reason))
        else:
            rows.append(ImageRow(picture, where))
    return rows


def _labelled_rows(
    spec: str, found: Iterable[Found], listed: tuple[str, ...] | None, bad: list[Complaint]
) -> tuple[list[LabelledRow], Sequence[str]]:
    """The rows with a label, and the classes: those listed, by number, or else the sorted distinct names."""
    labels: list[tuple[Picture, str, str]] = []
    unlabelled = 0
    for where, picture, reason, cells in found:
        label = _label(cells[0]) if cells else None
        if label == "" or (listed is not None and label == "-1"):
            unlabelled += 1
        elif picture is None or label is None:
            bad.append(Complaint(where, reason or f"the label {cells[0]!r:.40} is not a class name"))
        elif listed is not None and not (label.isdecimal() and int(label) < len(listed)):
            bad.append(Complaint(where, f"the label {label:.40} is no number of one of the {len(listed)} classes"))
        else:
            labels.append((picture, label, where))
    if unlabelled:
        logger.info("%s: %d rows carry no label and are left out", spec, unlabelled)
    if listed is not None:
        return [LabelledRow(picture, int(label), where) for picture, label, where in labels], listed
    names = sorted({label for _, label, _ in labels})
    numbers = {name: number for number, name in enumerate(names)}
    return [LabelledRow(picture, numbers[label], where) for picture, label, where in labels], names


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
