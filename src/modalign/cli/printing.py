"""What commands print: tables that keep every name whole, and numbers as JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from modalign.errors import OutputError

GAP = 2
"""Spaces between two columns."""


def rows(table: list[list[str]]) -> None:
    """Prints a table, its first row being the header, as the terminal's width allows; a pipe has any width."""
    width = None
    if sys.stdout.isatty():
        import shutil

        width = shutil.get_terminal_size().columns
    for line in laid_out(table, width):
        typer.echo(line)


def laid_out(table: list[list[str]], width: int | None) -> list[str]:
    """The lines of a table; nothing is ever broken inside a cell.

    Args:
        table: rows of text; the first is the header, the first column holds names.
        width: columns of the terminal, None = as many as it takes. Where the columns do not fit side by side, each
            name gets a line of its own above its values; where those do not fit either, so does each value.
    """
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    if width is None or _total(widths) <= width:
        return _ruled([_beside(row, widths) for row in table])
    if _total([0, *widths[1:]]) <= width:
        return _ruled([line for row in table for line in (row[0], _beside(["", *row[1:]], [0, *widths[1:]]))], head=2)
    titles, *values = table
    longest = max(map(len, titles[1:]))
    lines = []
    for row in values:
        lines.append(row[0])
        lines += [f"  {title:<{longest}}  {value}" for title, value in zip(titles[1:], row[1:], strict=True)]
    return lines


def _total(widths: list[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _ruled(lines: list[str], head: int = 1) -> list[str]:
    return [*lines[:head], "─" * max(map(len, lines)), *lines[head:]]


def _beside(row: list[str], widths: list[int]) -> str:
    """One row, the name to the left, values to the right of their columns."""
    first, *others = zip(row, widths, strict=True)
    return (" " * GAP).join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()


def json_file(path: Path | None, value: Any) -> None:
    """Writes a JSON file, and its folder where that is missing; nothing where no path is given.

    Raises:
        OutputError: it cannot be written.
    """
    if path is None:
        return
    import json

    from modalign.training.checkpoint import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(value, indent=1))
    except OSError as problem:
        raise OutputError(f"{path}: {problem.strerror}; check the path, its permissions and the free space") from None
    typer.echo(f"written: {path}", err=True)
