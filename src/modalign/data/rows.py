"""What is made of the rows of a source: pairs, pictures, pictures with a class; and complaints about the others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from modalign.data.bad_rows import Complaint
from modalign.data.captions import captions_in, is_missing, is_text
from modalign.data.found import Found
from modalign.data.pictures import Picture
from modalign.data.records import ImageRow, LabelledRow, PairRow

logger = logging.getLogger("modalign")


def pair_rows(found: Iterable[Found], bad: list[Complaint]) -> list[PairRow]:
    """The rows with a picture and a caption; what is wrong with the others, or with a caption of several, is told."""
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


def image_rows(found: Iterable[Found], bad: list[Complaint]) -> list[ImageRow]:
    """The rows with a picture; the others are told."""
    rows: list[ImageRow] = []
    for where, picture, reason, _ in found:
        if picture is None:
            bad.append(Complaint(where, reason))
        else:
            rows.append(ImageRow(picture, where))
    return rows


def labelled_rows(
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
