"""What the user sees while something runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol


class Update(Protocol):
    """Told how many units are done and, if there is something to say, a short note."""

    def __call__(self, done: int, note: str = "") -> None:
        """Moves the bar."""


PLAIN_SECONDS = 5.0


class Reporter:
    """Messages and progress on standard error; a silent one prints nothing.

    Args:
        silent: for processes other than the main one, and for library calls that asked for quiet.
    """

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent

    def say(self, text: str) -> None:
        """One line."""
        if not self.silent:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, title: str, total: int, unit: str = "steps", start: int = 0) -> Iterator[Update]:
        """A bar (terminal) or a line every few seconds (elsewhere) for a task of known length.

        Args:
            title: what is being done.
            total: how many units it has.
            unit: their name, in the plural.
            start: how many were done before, by an earlier run.
        """
        if self.silent or total <= 0:
            yield _nothing
        elif sys.stderr.isatty():
            with self._bar(title, total, unit, start) as update:
                yield update
        else:
            yield self._lines(title, total, unit, start)

    @contextmanager
    def counted(self, title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for a task whose length the first call tells.

        Args:
            title: what is being done.
            unit: the name of what is counted, in the plural.
        """
        with ExitStack() as stack:
            bars: list[Update] = []

            def update(done: int, total: int) -> None:
                if not bars:
                    bars.append(stack.enter_context(self.progress(title, total, unit)))
                bars[0](done)

            yield update

    @contextmanager
    def _bar(self, title: str, total: int, unit: str, start: int) -> Iterator[Update]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total, completed=start, note="")

            def update(done: int, note: str = "") -> None:
                bar.update(task, completed=done, note=note)

            yield update

    def _lines(self, title: str, total: int, unit: str, start: int) -> Update:
        begin = last = time.monotonic()

        def update(done: int, note: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            if done < total and now - last < PLAIN_SECONDS:
                return
            last = now
            rate = (done - start) / max(now - begin, 1e-9)
            rest = f", about {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
            self.say(f"{title}: {done}/{total} {unit}{rest}{'  ' + note if note else ''}")

        return update


def _nothing(done: int, note: str = "") -> None:
    """The update of a silent reporter."""
