"""Rows of csv, jsonl and parquet files, each with the place it was read from.

A line that cannot be read becomes a complaint in `bad`; only a file that cannot be read at all raises.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from modalign.data.bad_rows import Complaint
from modalign.data.captions import is_text
from modalign.errors import DataError, first_line

# From the header's names, the columns that are wanted; raises DataError when the header lacks them.
Pick = Callable[[Sequence[str]], Sequence[str]]
# Where the row was read from, and the picked cells. A cell that the row lacks is None.
Row = tuple[str, tuple[Any, ...]]

# What pandas, and with it `datasets`, reads as a missing value in a csv file.
CSV_MISSING = frozenset(
    [
        *("#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "n/a", "NA", "NULL", "null", "None"),
        *("NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    ]
)


def read_table(path: Path, label: str, pick: Pick, bad: list[Complaint]) -> list[Row]:
    """`table_rows`, all of them; arguments as there."""
    return list(table_rows(path, label, pick, bad))


def table_rows(path: Path, label: str, pick: Pick, bad: list[Complaint]) -> Iterator[Row]:
    """The picked columns of every row of a file.

    Args:
        path: a .csv, .jsonl or .parquet file.
        label: the file's name in messages.
        pick: chooses columns from the header.
        bad: takes a complaint for each line that cannot be read.

    Yields:
        Rows in the file's order; a complaint about a line comes before the rows after it are given.

    Raises:
        DataError: the file cannot be read, or `pick` misses a column.
    """
    reader = TABLE_READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: a table is one of {', '.join(TABLE_READERS)}; convert it to one of these")
    try:
        yield from reader(path, label, pick, bad)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check the file") from None


def _read_csv(path: Path, label: str, pick: Pick, bad: list[Complaint]) -> Iterator[Row]:
    # One caption may be longer than the csv module's 131,072 characters, a limit it keeps for the whole process.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with _open(path) as file:
            reader = csv.reader(_with_sentinel(file))
            header = next((cells for cells in reader if cells and cells != [_SENTINEL]), None)
            if header is None:
                raise DataError(f"{path} is empty; its first line names the columns")
            if header[-1].endswith(_SENTINEL):
                raise DataError(f"{path}: a quote opened in the first line is never closed; close it")
            if not is_text("".join(header)):
                raise DataError(f"{path} is not UTF-8; save it as UTF-8")
            columns = [header.index(name) for name in pick(header)]
            line, where = reader.line_num, f"{label}:1"
            for cells in reader:
                where, line = f"{label}:{line + 1}", reader.line_num
                if cells == [_SENTINEL]:
                    break
                if len(cells) < 2 and not "".join(cells).strip():
                    continue  # an empty line: pandas skips it too
                if any(cell.strip() for cell in cells[len(header) :]):
                    reason = f"{len(cells)} cells under {len(header)} columns (quote a cell that holds a comma)"
                    bad.append(Complaint(where, reason))
                else:
                    yield where, tuple(cells[column] if column < len(cells) else None for column in columns)
            else:
                raise DataError(f"{path}: a quote opened in the row at {where} is never closed; close it")
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as csv ({error}); check the file") from None
    finally:
        csv.field_size_limit(limit)


def _read_jsonl(path: Path, label: str, pick: Pick, bad: list[Complaint]) -> Iterator[Row]:
    lines: list[tuple[str, dict[str, Any] | None, str]] = []
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{label}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                lines.append((where, None, f"not JSON ({error})"))
                continue
            if isinstance(record, dict):
                lines.append((where, record, ""))
            else:
                lines.append((where, None, f"a JSON {type(record).__name__}, not an object with columns"))
    names = pick(list(dict.fromkeys(name for _, record, _ in lines for name in record or ())))
    for where, record, reason in lines:
        if record is None:
            bad.append(Complaint(where, reason))
        else:
            yield where, tuple(record.get(name) for name in names)


def _read_parquet(path: Path, label: str, pick: Pick, bad: list[Complaint]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        names = pick(schema.names)
        for name in names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                raise DataError(f"{path}: column {name!r} holds {kind}, not paths or texts; name another column")
        table = pq.read_table(path, columns=list(names))
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as parquet ({first_line(error)}); check the file") from None
    columns = [table.column(name).to_pylist() for name in names]
    for number, cells in enumerate(zip(*columns, strict=True), start=1):
        yield f"{label}: row {number}", cells


TABLE_READERS: dict[str, Callable[[Path, str, Pick, list[Complaint]], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}

# The csv module takes an unclosed quote for a cell that reaches to the end of the file, without an error. A last
# record that cannot occur tells: if it comes back as a record of its own, every quote was closed.
_SENTINEL = "\x00end"


def _with_sentinel(lines: Iterable[str]) -> Iterator[str]:
    yield from lines
    yield _SENTINEL


def _open(path: Path) -> Any:
    # Bytes that are not UTF-8 become lone surrogates, so that they spoil their own cell and no other.
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
