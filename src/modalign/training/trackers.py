"""TensorBoard, Weights & Biases, Trackio: what `metrics.jsonl` says, shown elsewhere as the run goes.

`metrics.jsonl` is the record; a tracker is a copy of it that never decides anything. One that is not installed,
fails or hangs costs one warning and is off from then on. None of them reaches the random streams that training reads,
nor the terminal.

On a resume a tracker goes on with the run it began (its id is in `trackers.json`). Steps it has seen are not sent
again, though a run that was killed computes some of them twice; steps it has missed are sent from `metrics.jsonl`.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from modalign.training.checkpoint import write_atomically

PROJECT = "modalign"
SECONDS = {"start": 60.0, "log": 30.0, "finish": 60.0}
"""How long a tracker may take before it counts as hanging."""


class Tracker(Protocol):
    """One service."""

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Shows the numbers of one step."""

    def finish(self) -> None:
        """Sends what is left and ends."""


class TensorBoard:
    """Event files in `<run>/tensorboard`."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str, resumed: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
        if not resumed:
            self._writer.add_text("recipe", f"```json\n{json.dumps(config, indent=1, ensure_ascii=False)}\n```", 0)

    def log(self, numbers: dict[str, float], step: int) -> None:
        """A scalar each."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Writes what is buffered."""
        self._writer.close()


class Wandb:
    """A Weights & Biases run, its files in `<run>/wandb`; WANDB_MODE, WANDB_PROJECT and the like mean what they do."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str, resumed: bool) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE")  # wandb itself reads it only once in a process
        quiet: dict[str, Any] = {"silent": True, "console": "off", "init_timeout": SECONDS["start"]}
        if "finish_timeout" in wandb.Settings.model_fields:  # bounds the upload at the interpreter's exit as well
            quiet["finish_timeout"] = SECONDS["finish"]
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=identity,
            resume="allow",
            config=dict(config),
            dir=folder,
            mode=mode,
            settings=wandb.Settings(**quiet),
        )

    def log(self, numbers: dict[str, float], step: int) -> None:
        """One row of the run's history."""
        self._run.log(numbers, step=step)

    def finish(self) -> None:
        """Waits for the upload."""
        self._run.finish()


class Trackio:
    """A Trackio run, in Trackio's own folder (TRACKIO_DIR); it knows runs by name, so the name ends in the id."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str, resumed: bool) -> None:
        import trackio

        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{folder.name}-{identity}",
            resume="allow" if resumed else "never",
            config=dict(config),
            embed=False,
        )

    def log(self, numbers: dict[str, float], step: int) -> None:
        """One row of the run's history."""
        self._run.log(numbers, step=step)

    def finish(self) -> None:
        """Waits for the last rows."""
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], str, bool], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


class Trackers:
    """All trackers of one run, on its main process.

    Args:
        names: of `TRACKERS`.
        folder: the run folder.
        config: the resolved recipe.
        say: takes a warning, one line.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self.names, self.folder, self.config, self.say = tuple(names), folder.resolve(), config, say
        self._live: dict[str, Tracker] = {}
        self._known: dict[str, dict[str, Any]] = {}

    def start(self, records: Sequence[Mapping[str, Any]], last: int) -> None:
        """Opens every tracker and sends it what it has missed.

        Args:
            records: the lines of metrics.jsonl that a resumed run keeps.
            last: the newest step an earlier part of the run had written there, kept or not; −1 for none.
        """
        self._known = self._read()
        for entry in self._known.values():
            if entry["running"]:  # it was cut off, so how far it came is told by metrics.jsonl alone
                entry.update(logged=max(entry["logged"], last), running=False)
        for name in self.names:
            resumed = name in self._known
            entry = self._known.get(name) or {"id": uuid.uuid4().hex[:8], "logged": -1}
            opened: list[Tracker] = []
            if self._guarded(name, "start", lambda: opened.append(self._open(name, entry["id"], resumed))):  # noqa: B023
                self._live[name] = opened[0]
                self._known[name] = entry | {"running": True}
        if self.names or self._known:
            self._write()
        for record in records:
            self.log(record)

    def log(self, record: Mapping[str, Any]) -> None:
        """Sends one line of metrics.jsonl, flattened ("terms/rafa"), to every tracker that has not seen its step."""
        step = int(record["step"])
        numbers = flat({name: value for name, value in record.items() if name != "step"})
        for name, tracker in list(self._live.items()):
            entry = self._known[name]
            if step > entry["logged"] and self._guarded(name, "log", lambda: tracker.log(numbers, step)):  # noqa: B023
                entry["logged"] = step

    def conclude(self, numbers: Mapping[str, Any], step: int) -> None:
        """Sends numbers that belong to the whole run, at its last step."""
        told = flat(numbers)
        for name, tracker in list(self._live.items()) if told else ():
            self._guarded(name, "log", lambda: tracker.log(told, step))  # noqa: B023

    def close(self) -> None:
        """Lets every tracker finish; more calls do nothing."""
        for name, tracker in list(self._live.items()):
            if self._guarded(name, "finish", tracker.finish):
                self._off(name)

    def _open(self, name: str, identity: str, resumed: bool) -> Tracker:
        return TRACKERS[name](self.folder, self.config, identity, resumed)

    def _guarded(self, name: str, what: str, call: Callable[[], object]) -> bool:
        """Makes one call; where it fails or hangs, warns and switches the tracker off."""
        try:
            with _undisturbed():
                _bounded(call, SECONDS[what])
        except ModuleNotFoundError as error:
            package = (error.name or name).partition(".")[0]
            self.say(f"warning: {name} is off: it needs the package {package}: pip install {package}")
        except Exception as error:  # whatever a tracker raises, the run goes on
            reason = (str(error).strip().splitlines() or [""])[0]
            told = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
            hint = "; WANDB_MODE=offline keeps its log here" if name == "wandb" and what == "start" else ""
            self.say(f"warning: {name} is off from here on: {what} failed ({told}){hint}")
        else:
            return True
        self._off(name)
        return False

    def _off(self, name: str) -> None:
        if self._live.pop(name, None) is not None:
            self._known[name]["running"] = False
            self._write()

    @property
    def _file(self) -> Path:
        return self.folder / "trackers.json"

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._file.is_file():
            return {}
        try:
            return {
                name: {"id": str(entry["id"]), "logged": int(entry["logged"]), "running": bool(entry["running"])}
                for name, entry in json.loads(self._file.read_text(encoding="utf-8")).items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            self.say(f"warning: {self._file} is damaged, so trackers begin new runs")
            return {}

    def _write(self) -> None:
        write_atomically(self._file, json.dumps(self._known, indent=1))


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers by path: {"terms": {"rafa": 1.0}} → {"terms/rafa": 1.0}; what is no finite number is left out.

    Args:
        record: a line of metrics.jsonl, or any mapping of its kind.
        prefix: of every name.
    """
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            numbers[prefix + name] = value
    return numbers


def _bounded(call: Callable[[], object], seconds: float) -> None:
    """Makes a call in a thread of its own and waits for it, but not for ever."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # some libraries leave by SystemExit
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:g} s")
    if failed:
        raise failed[0] if isinstance(failed[0], Exception) else RuntimeError(repr(failed[0]))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps the random streams of Python, NumPy and PyTorch as they are, and the terminal clean."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
