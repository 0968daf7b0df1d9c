"""`metrics.jsonl`: one JSON object a line, appended as training goes, cut back to the restored step on a resume."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modalign.training.checkpoint import write_atomically
from modalign.training.trackers import Trackers


class MetricsLog:
    """Appends records to a file; processes other than the main one write nothing.

    Args:
        path: the file; None writes nothing.
        step: records past this step, written before a kill, are dropped, and so is a line that was cut off.
        trackers: get every record as well; None where there are none.
    """

    def __init__(self, path: Path | None, step: int, trackers: Trackers | None = None) -> None:
        self._file = None
        self._trackers = trackers
        if path is None:
            return
        written = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        kept = [line for line in written if _step(line) <= step] if step > 0 else []
        if written:
            write_atomically(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        if trackers is not None:
            last = max((number for line in written if (number := _step(line)) < math.inf), default=-1)
            trackers.start([json.loads(line) for line in kept], int(last))

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record; it is in the file when this returns."""
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            if self._trackers is not None:
                self._trackers.log(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
