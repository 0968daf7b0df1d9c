"""Ctrl-C and SIGTERM: the present step is finished and saved; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from modalign.console import Reporter


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing waits for the end of a step: stops whatever runs, as Ctrl-C does."""


def signal_of(error: KeyboardInterrupt) -> signal.Signals:
    """The signal behind an interruption."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT


@contextmanager
def terminable() -> Iterator[None]:
    """Turns SIGTERM into `Terminated` for the length of the block, so that everything opened is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interruption:
    """Catches both signals for the length of a `with` block (in the main thread, the only one they reach).

    Args:
        reporter: told when one arrives.

    Attributes:
        signal: the one that arrived first.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._asked = threading.Event()
        self.signal = signal.SIGINT
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
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.signal = signal.Signals(number)
        self._asked.set()
        self._reporter.say("stopping after this step …")
