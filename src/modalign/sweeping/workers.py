"""Several points at once, each process taking one after the other.

A worker reads a point as one line of JSON and answers with its outcome as another. It leads a session of its own, so
that Ctrl-C reaches the sweep alone, which asks its workers to stop once; and it ends when its input does, so that no
worker outlives a killed sweep.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from modalign.console import Reporter
from modalign.sweeping.plan import Point

MEMOS = ".trunks"
POLL_SECONDS = 0.2
START = "from modalign.sweeping.workers import main; main()"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Pool:
    """Runs points in processes of their own.

    Args:
        out: the sweep's folder.
        weights: between before and after, to be judged of each run.
        jobs: how many processes.
        threads: of each.
        silent: whether workers say nothing of their runs.
    """

    def __init__(self, out: Path, weights: Sequence[float], jobs: int, threads: int, silent: bool) -> None:
        self.settings = {"out": str(out), "weights": list(weights), "silent": silent}
        self.environment = os.environ | dict.fromkeys(THREADS, str(threads))
        self.jobs = jobs
        self._todo: queue.SimpleQueue[Point] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopping = threading.Event()

    def run(self, points: Sequence[Point]) -> Iterator[dict[str, object]]:
        """Yields each outcome, as `Outcome`'s fields, when it is there.

        Raises:
            KeyboardInterrupt: asked to stop; every worker has finished its step and saved it.
        """
        for point in points:
            self._todo.put(point)
        hands = [threading.Thread(target=self._work, daemon=True) for _ in range(min(self.jobs, len(points)))]
        before = signal.getsignal(signal.SIGTERM)
        mine = threading.current_thread() is threading.main_thread()
        try:
            if mine:
                signal.signal(signal.SIGTERM, signal.default_int_handler)
            for hand in hands:
                hand.start()
            for _ in points:
                yield self._next()
        except BaseException:
            self._stop(hands)
            raise
        finally:
            if mine:
                signal.signal(signal.SIGTERM, before)

    def _next(self) -> dict[str, object]:
        while True:
            with suppress(queue.Empty):  # short waits: a lock would keep Ctrl-C out
                return self._done.get(timeout=POLL_SECONDS)

    def _stop(self, hands: Sequence[threading.Thread]) -> None:
        """Asks every worker to finish its step; a second Ctrl-C ends them at once."""
        self._stopping.set()
        for process in list(self._running):
            process.terminate()
        try:
            for hand in hands:
                while hand.is_alive():
                    hand.join(POLL_SECONDS)
        except KeyboardInterrupt:
            for process in list(self._running):
                process.kill()

    def _work(self) -> None:
        """One worker's hand: gives it points, takes outcomes, and replaces it where it died."""
        process: subprocess.Popen[str] | None = None
        while not self._stopping.is_set():
            try:
                point = self._todo.get_nowait()
            except queue.Empty:
                break
            process = process or self._start()
            line = self._asked(process, point)
            if not line:
                status = process.wait()
                self._running.discard(process)
                process = None
                how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
                hint = "; where memory ran out, give fewer --jobs" if status == -signal.SIGKILL else ""
                self._done.put({"point": point.name, "problem": f"its process was {how}{hint}"})
                continue
            self._done.put(json.loads(line))
        if process is not None:
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
            process.wait()
            self._running.discard(process)

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
        self._running.add(process)
        with suppress(OSError):
            _say(process, json.dumps(self.settings))
        return process

    def _asked(self, process: subprocess.Popen[str], point: Point) -> str:
        told = {
            "name": point.name,
            "values": point.values,
            "seed": point.seed,
            "recipe": point.recipe.model_dump(mode="json"),
        }
        with suppress(OSError):
            _say(process, json.dumps(told))
            return process.stdout.readline()  # type: ignore[union-attr]
        return ""


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


class _Prefixed(Reporter):
    """Warnings behind the point's name; no bars, which several processes cannot share."""

    def __init__(self, name: str, silent: bool) -> None:
        super().__init__(silent=True)
        self.name, self.quiet = name, silent

    def say(self, text: str) -> None:
        if not self.quiet:
            print(f"[{self.name}] {text}", file=sys.stderr, flush=True)


def main() -> None:
    """A worker: reads its settings, then points, until its input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    settings = json.loads(lines.get())
    from modalign import recipe as recipes
    from modalign.sweeping.point import Shared, attempt, read_memos

    out = Path(settings["out"])
    shared = Shared(out, tuple(settings["weights"]), memos=read_memos(out / MEMOS))
    while True:
        told = json.loads(lines.get())
        point = Point(told["name"], told["values"], told["seed"], recipes.validate(told["recipe"]))
        outcome = attempt(shared, point, _Prefixed(point.name, settings["silent"]))
        answers.write(json.dumps(asdict(outcome)) + "\n")
        answers.flush()


def _listen(lines: queue.SimpleQueue[str]) -> None:
    """Passes lines on; at the end of the input, which is the sweep's end, the process ends: runs may be killed."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)
