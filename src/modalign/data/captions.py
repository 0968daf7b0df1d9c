"""What one cell of a caption column holds: a caption, or several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

# Where an object holds its caption ("sentences" of Flickr30k and COCO as `datasets` has them).
CAPTION_FIELDS = ("raw", "caption", "text")


def captions_in(cell: Any) -> tuple[tuple[str, ...], list[str]]:
    """The captions of one cell, as written, and what is wrong with the others.

    Args:
        cell: a text, a list of texts or of objects with one of `CAPTION_FIELDS`, an object of such lists, a text that
            is a JSON list of texts, or None or NaN where it is missing.

    Returns:
        The captions that can be used, and one reason for each that cannot; an empty cell is one reason.
    """
    captions = _as_list(cell)
    if captions is None:
        reason = _complaint(cell)
        return ((), [f"the caption {reason}"]) if reason else ((cell,), [])
    if not captions:
        return (), ["the list of captions is empty"]
    reasons = [(number, _complaint(caption)) for number, caption in enumerate(captions, start=1)]
    return (
        tuple(caption for caption, (_, reason) in zip(captions, reasons, strict=True) if not reason),
        [f"caption {number} of {len(captions)} {reason}" for number, reason in reasons if reason],
    )


def is_missing(cell: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, or nothing but white space."""
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: false where the file held other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_list(cell: Any) -> Sequence[Any] | None:
    if isinstance(cell, dict):  # a list of objects, as `datasets` before version 4 turned it over
        field = next((name for name in CAPTION_FIELDS if name in cell), None)
        inner = _as_list(cell[field]) if field is not None else None
        return [cell[field]] if field is not None and inner is None else inner
    if isinstance(cell, list):
        return [_text_of(item) for item in cell]
    # A column of JSON texts, as several published caption tables have it. Brackets alone do not make a list.
    if isinstance(cell, str) and cell.lstrip().startswith("[") and cell.rstrip().endswith("]"):
        try:
            values = json.loads(cell)
        except (ValueError, RecursionError):
            return None
        if all(isinstance(value, str) for value in values):
            return list(values)
    return None


def _text_of(item: Any) -> Any:
    if isinstance(item, dict):
        return next((item[name] for name in CAPTION_FIELDS if name in item), item)
    return item


def _complaint(caption: Any) -> str:
    if is_missing(caption):
        return "is empty"
    if not isinstance(caption, str):
        return f"is {caption!r:.40}, not a text"
    if "\0" in caption:
        return "holds a NUL character"
    return "" if is_text(caption) else "is not UTF-8"
