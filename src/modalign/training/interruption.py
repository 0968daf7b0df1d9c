"""Ctrl-C and SIGTERM: the present step is finished and saved; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any, Self

from modalign.console import Reporter


class Interruption:
    """Catches both signals for the length of a `with` block (in the main thread, the only one they reach).

    Args:
        reporter: told when one arrives.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._asked = threading.Event()
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether the run is to stop after this step."""
        return self._asked.is_set()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self._asked.set()
        self._reporter.say("stopping after this step …")
