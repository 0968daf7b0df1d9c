"""`metrics.jsonl`: one JSON object a line, appended as training goes, cut back to the restored step on a resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modalign.training.checkpoint import write_atomically


class MetricsLog:
    """Appends records to a file; processes other than the main one write nothing.

    Args:
        path: the file; None writes nothing.
        step: records past this step, written before a kill, are dropped, and so is a line that was cut off.
    """

    def __init__(self, path: Path | None, step: int) -> None:
        self._file = None
        if path is None:
            return
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if step > 0 else []
            write_atomically(path, "".join(line + "\n" for line in lines if _step(line) <= step))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record; it is in the file when this returns."""
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
