"""Results that are kept task by task, so that what was judged once is read and what was killed goes on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.errors import OutputError
from modalign.evaluation.results import TaskResult

FORMAT = "modalign.kept/2"


@dataclass(frozen=True)
class Kept:
    """One task's result, and the gap where it was measured on this task's pairs."""

    result: TaskResult
    gap: dict[str, Any] | None = None


@dataclass(frozen=True)
class KeptResults:
    """A folder of results, one file a task, named by a hash of everything that decides it.

    Attributes:
        folder: where they lie.
        facts: what holds for all tasks of an evaluation: model, versions, seed, resamples; JSON values.
    """

    folder: Path
    facts: Mapping[str, Any]

    def read(self, key: str) -> Kept | None:
        """What is kept under a key; None where nothing is, or nothing whole."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            stored = json.loads(self._path(key).read_text(encoding="utf-8"))
            if stored["format"] == FORMAT:
                return Kept(TaskResult.from_dict(stored["task"]), stored["gap"])
        return None

    def write(self, key: str, kept: Kept) -> None:
        """Keeps a result: the file is complete or absent.

        Raises:
            OutputError: the folder cannot be written.
        """
        path = self._path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            told = {"format": FORMAT, "facts": dict(self.facts), "task": kept.result.to_dict(), "gap": kept.gap}
            temporary.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
            temporary.replace(path)
        except OSError as problem:
            raise OutputError(f"{path}: {problem.strerror}; name another --store") from None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
