"""Files of contrasting pairs: two pictures with two captions, or one picture with a right and a wrong caption.

docs/pair-files.md shows each layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.data.bad_rows import Complaint, refuse_above
from modalign.data.captions import captions_in
from modalign.data.files import FileIndex
from modalign.data.named_pictures import Table
from modalign.data.records import PairRow, Pairs
from modalign.data.tables import TABLE_READERS, read_table
from modalign.errors import DataError

SUFFIXES = ("", ".png", ".jpg", ".jpeg")
"""Winoground names its pictures without an ending."""


@dataclass(frozen=True)
class Contrasts:
    """N examples of `per` rows each; a row's captions are its own and then the contrasting one.

    Attributes:
        data: the rows.
        per: 2 where an example has two pictures, 1 where it has one.
        groups: N names of what an example is of (a tag, a pattern, a file); all "" without groups.
    """

    data: Pairs
    per: int
    groups: tuple[str, ...]


def two_by_two(
    spec: str, columns: Sequence[str], *, group: str = "", images: str = "", max_bad: int | None = 0
) -> Contrasts:
    """Reads two pictures and two captions a row (Winoground's `examples.jsonl`, or any table with such columns).

    Args:
        spec: a csv, jsonl or parquet file, or a folder with `examples.jsonl`.
        columns: those of picture 0, picture 1, caption 0 and caption 1.
        group: the column that groups examples; "" = none.
        images: the pictures' folder; "" = beside the file, or `images/` there.
        max_bad: rows that may be bad; each is left out whole, with a warning.

    Raises:
        DataError: no such file or column, or more bad rows than allowed; names the first ten.
    """
    path = Path(spec).expanduser().absolute()
    if path.is_dir():
        path = path / "examples.jsonl"
    bad: list[Complaint] = []
    rows: list[PairRow] = []
    groups: list[str] = []
    find = _Finder(path, images)
    for where, cells in _table(path, spec, [(name,) for name in columns], group, bad):
        pictures = [find(name) for name in cells[:2]]
        captions, reasons = _captions(cells[2:4])
        reasons = [reason for _, reason in pictures if reason] + reasons
        if reasons:
            bad.append(Complaint(where, "; ".join(reasons)))
            continue
        for (picture, _), own, other in zip(pictures, captions, reversed(captions), strict=True):
            rows.append(PairRow(picture, (own, other), where))
        groups.append(str(cells[4]) if group else "")
    return contrasts(spec, rows, groups, 2, bad, max_bad)


def one_by_two(
    spec: str, columns: Sequence[Sequence[str]], *, group: str = "", images: str = "", max_bad: int | None = 0
) -> Contrasts:
    """Reads a picture, its caption and a wrong caption a row (SugarCrepe's json files, or any table with such columns).

    Args:
        spec: a json, csv, jsonl or parquet file, or a folder of json files, each of which is a group.
        columns: names that the picture's, the caption's and the wrong caption's column may have.
        group: the column that groups examples; "" = none.
        images: the pictures' folder; "" = beside the file, or `images/` there.
        max_bad: rows that may be bad; each is left out, with a warning.

    Raises:
        DataError: no such file or column, or more bad rows than allowed; names the first ten.
    """
    path = Path(spec).expanduser().absolute()
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{spec} holds no json file; name a folder of SugarCrepe's json files, or one file")
    bad: list[Complaint] = []
    rows: list[PairRow] = []
    groups: list[str] = []
    for file in files:
        find = _Finder(file, images)
        read = _json if file.suffix.lower() == ".json" else _table
        for where, cells in read(file, spec, columns, group, bad):
            picture, reason = find(cells[0])
            captions, reasons = _captions(cells[1:3])
            if reason or reasons:
                bad.append(Complaint(where, "; ".join(filter(None, [reason, *reasons]))))
                continue
            rows.append(PairRow(picture, captions, where))
            groups.append(str(cells[3]) if group else file.stem if path.is_dir() else "")
    return contrasts(spec, rows, groups, 1, bad, max_bad)


def contrasts(
    spec: str, rows: Iterable[PairRow], groups: Iterable[str], per: int, bad: list[Complaint], max_bad: int | None
) -> Contrasts:
    """The examples of a file, after its bad rows have been judged.

    Raises:
        DataError: more bad rows than allowed, or no row at all.
    """
    found = Contrasts(Pairs(spec, tuple(rows)), per, tuple(groups))
    refuse_above(max_bad, bad, len(found.groups) + len(bad), f"rows of {spec} cannot be used")
    if not found.groups:
        raise DataError(f"{spec} holds no example; check its content")
    return found


class _Finder:
    """The picture of a cell, and why there is none."""

    def __init__(self, file: Path, images: str) -> None:
        bases = [Path(images).expanduser().absolute()] if images else [file.parent, file.parent / "images"]
        if images and not bases[0].is_dir():
            raise DataError(f"images={images} is no folder; name the one that holds the pictures")
        self.table, self.index = Table(file, file.name, tuple(bases)), FileIndex()

    def __call__(self, name: Any) -> tuple[Any, str]:
        first = ""
        for suffix in SUFFIXES:
            found, reason = self.table.locate(name + suffix if isinstance(name, str) else name, self.index)
            if found is not None:
                return found, ""
            first = first or reason
        return None, first


def _captions(cells: Sequence[Any]) -> tuple[tuple[str, ...], list[str]]:
    """One caption a cell, and what is wrong with them."""
    texts: list[str] = []
    reasons: list[str] = []
    for cell in cells:
        found, wrong = captions_in(cell)
        if len(found) > 1:
            wrong = [*wrong, f"{len(found)} captions where one is wanted"]
        texts += [found[0].strip() if found else ""]
        reasons += wrong or ([] if found else ["no caption"])
    if not reasons and texts[0] == texts[1]:
        reasons.append("both captions are the same")
    return tuple(texts), reasons


def _table(
    path: Path, spec: str, columns: Sequence[Sequence[str]], group: str, bad: list[Complaint]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    if not path.is_file():
        raise DataError(f"{spec}: no such file {path}; pass a json file or a table ({', '.join(TABLE_READERS)})")

    def pick(header: Sequence[str]) -> list[str]:
        return [_column(names, header, path) for names in [*columns, *([(group,)] if group else [])]]

    yield from read_table(path, path.name, pick, bad)


def _json(
    path: Path, spec: str, columns: Sequence[Sequence[str]], group: str, bad: list[Complaint]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """A json object of objects, as SugarCrepe publishes it, or a list of them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check the file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(content, dict | list):
        raise DataError(f"{path} holds no object of examples; is it the right file?")
    entries = list(content.items() if isinstance(content, dict) else enumerate(content))
    header = list(dict.fromkeys(key for _, entry in entries if isinstance(entry, dict) for key in entry))
    names = [_column(wanted, header, path) for wanted in [*columns, *([(group,)] if group else [])]]
    for key, entry in entries:
        where = f"{path.name}: entry {key}"
        if isinstance(entry, dict):
            yield where, tuple(entry.get(name) for name in names)
        else:
            bad.append(Complaint(where, f"a JSON {type(entry).__name__}, not an object"))


def _column(names: Sequence[str], header: Sequence[str], path: Path) -> str:
    for name in names:
        if name in header:
            return name
    raise DataError(
        f"{path} has no column {' or '.join(map(repr, names))} (it has {', '.join(map(repr, header)) or 'none'}); "
        "name its columns in the task's brackets"
    )
