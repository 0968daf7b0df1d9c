"""Data specs: what `pairs`, `images` and `labelled` read, and from where.

A spec is a folder with `metadata.csv`, `.jsonl` or `.parquet` (the convention of the `datasets` library), a csv, jsonl
or parquet file, WebDataset tars (`wds:<pattern>`, or a path that ends in .tar), a folder of `datasets`'
`save_to_disk`, `hf:<owner/name>`, `coco:<root>@<split>`, `flickr30k:<root>@<split>`,
`torchvision:<name>:<root>@<split>`, a folder of pictures or of class folders, or `demo[:<split>]`. docs/data.md shows
each, docs/datasets.md those of torchvision.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from modalign.data import arrow_files, benchmark_folders, tar_shards, torchvision_sets
from modalign.data.bad_rows import Complaint, refuse_above
from modalign.data.files import class_folders, image_files
from modalign.data.found import Columns, Found, Want
from modalign.data.named_pictures import metadata_files, tables
from modalign.data.pictures import real_paths
from modalign.data.published import coco, flickr30k
from modalign.data.records import ImageRow, Images, Labelled, LabelledRow, PairRow, Pairs
from modalign.data.rows import image_rows, labelled_rows, pair_rows
from modalign.data.tables import TABLE_READERS
from modalign.errors import DataError

__all__ = ["ImageRow", "Images", "Labelled", "LabelledRow", "PairRow", "Pairs", "images", "labelled", "pairs"]

PUBLISHED: dict[str, Callable[[Path, str, list[Complaint]], list[PairRow]]] = {"coco": coco, "flickr30k": flickr30k}
KINDS = (*PUBLISHED, "demo", "wds", "datasets", "hf", "torchvision")

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

        _refuse_columns(spec, image_column=image_column, text_column=text_column)
        return demo_data.pairs(rest or "refine")
    bad: list[Complaint] = []
    if kind in PUBLISHED:
        _refuse_columns(spec, image_column=image_column, text_column=text_column)
        root, split = _root_and_split(kind, rest)
        rows = PUBLISHED[kind](root, split, bad)
    else:
        source, split = _source(spec, kind, rest, image_column)
        rows = pair_rows(source.rows(Columns.of(image_column, text_column), "text", bad), bad)
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
    if image_column is not None and not has_columns(spec):
        _refuse_columns(spec, image_column=image_column)
    if kind in PUBLISHED or kind == "demo":
        rows = [ImageRow(row.path, row.where) for row in pairs(spec, max_bad=max_bad).rows]
    elif _is_plain_folder(spec, kind):
        rows = [ImageRow(path, where) for path, where in image_files(_absolute(spec))]
    else:
        source, _ = _source(spec, kind, rest, image_column)
        rows = image_rows(source.rows(Columns.of(image_column), "picture", bad), bad)
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
    if (image_column is not None or label_column is not None) and not has_columns(spec):
        _refuse_columns(spec, image_column=image_column, label_column=label_column)
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
        if isinstance(source, tar_shards.TarShards):
            benchmark_folders.refuse_multilabel(spec, source.shards)
        columns = Columns.of(image_column, label=label_column)
        listed = source.class_names(columns)
        rows, names = labelled_rows(spec, source.rows(columns, "label", bad), listed, bad)
    _judge(spec, "labelled picture", rows, bad, max_bad)
    return Labelled(spec, tuple(rows), tuple(names))


def has_columns(spec: Spec) -> bool:
    """Whether the rows of a spec have columns (of tar files: endings) that can be named."""
    spec = os.fspath(spec)
    kind, _ = _kind_of(spec)
    return kind not in (*PUBLISHED, "demo", "torchvision") and not _is_plain_folder(spec, kind)


# ---- specs --------------------------------------------------------------------------------------------------


def _kind_of(spec: str) -> tuple[str, str]:
    """ "coco:/data@val2017" → ("coco", "/data@val2017"); ("", spec) for a path."""
    kind, colon, rest = spec.partition(":")
    if not spec.strip():
        raise DataError(
            "the data spec is empty; name a folder, a table, tar files or hf:<owner/name> (see docs/data.md)"
        )
    if (kind in KINDS and colon) or kind == "demo":
        return kind, rest
    if spec.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")) or ".tar::" in spec:
        return "wds", spec
    return "", spec


def _source(spec: str, kind: str, rest: str, image_column: str | None) -> tuple[Source, str]:
    """What gives the rows of a spec, and the split it reads."""
    if kind == "wds":
        found = tar_shards.shards(spec, rest)
        benchmark_folders.refuse_incomplete(spec, found.shards)
        return found, found.split
    if kind == "torchvision":
        held = torchvision_sets.read(spec, rest)
        return held, held.split
    if kind == "hf":
        name, _, split = rest.partition("@")
        name, _, config = name.partition(":")
        arrow = arrow_files.from_hub(name, config or None, split)
        return arrow, arrow.split
    path, split = arrow_files.path_and_split(rest)
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
            "hf:<owner/name>, coco:<root>@<split>, flickr30k:<root>@<split>, torchvision:<name>:<root>@<split> or demo"
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


def _refuse_columns(spec: str, **columns: object) -> None:
    for name, value in columns.items():
        if value is not None:
            option = f"--{name.replace('_', '-')} (in Python {name}=)"
            raise DataError(f"{spec} has no columns, so {option} {value!r} names nothing there; leave it out")


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
