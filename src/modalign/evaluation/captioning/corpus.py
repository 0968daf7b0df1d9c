"""Captions without pictures: the text that a decoder learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modalign.data import sources
from modalign.data.bad_rows import Complaint, refuse_above
from modalign.data.captions import captions_in
from modalign.data.found import TEXT_COLUMNS, choose
from modalign.data.tables import TABLE_READERS, table_rows
from modalign.errors import DataError

TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def read_captions(spec: str, *, text_column: str | Sequence[str] | None = None, max_bad: int = 0) -> list[str]:
    """Reads the distinct captions of a corpus, white space around them stripped.

    Args:
        spec: a csv, jsonl or parquet file with a column of captions, and no need of pictures; any other file: text, one
            caption a line; or a spec of image–text pairs, whose pictures are not opened.
        text_column: the column or columns of a table, where it has them; else the first of `TEXT_COLUMNS` there.
        max_bad: how many rows of a table or of pairs may be bad.

    Returns:
        The captions in the order of first appearance.

    Raises:
        DataError: nothing readable there, no caption, more bad rows than allowed.
    """
    path = Path(spec).expanduser()
    if not path.is_file() or spec.endswith(TAR):
        found = sources.pairs(spec, text_column=text_column, max_bad=max_bad).captions
    elif path.suffix.lower() in TABLE_READERS:
        found = _column(path, text_column, max_bad)
    else:
        found = _lines(path)
    captions = list(dict.fromkeys(caption.strip() for caption in found if caption.strip()))
    if not captions:
        raise DataError(f"{spec} holds no caption: name a text file with one caption a line, a table or pairs")
    return captions


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines: a caption may hold one of the rarer line separators of Unicode.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: name a text file with one caption a line, or a table") from None
    except OSError as problem:
        raise DataError(f"{path} cannot be read ({problem.strerror}); check the file") from None


def _column(path: Path, text_column: str | Sequence[str] | None, max_bad: int) -> list[str]:
    named = [text_column] if isinstance(text_column, str) else list(text_column or ())

    def pick(header: Sequence[str]) -> Sequence[str]:
        if named and set(named) <= set(header):
            return named
        return [choose(header, None, TEXT_COLUMNS, "text", str(path))]

    bad: list[Complaint] = []
    captions: list[str] = []
    count = 0
    for where, cells in table_rows(path, path.name, pick, bad):
        count += 1
        for cell in cells:
            found, reasons = captions_in(cell)
            captions.extend(found)
            bad.extend(Complaint(where, reason) for reason in reasons)
    refuse_above(max_bad, bad, max(count, len(bad)), f"rows of {path} cannot be used")
    return captions
