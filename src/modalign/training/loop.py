"""The training loop: batches in, gradient across the boundary, update, log, checkpoint.

It knows no method and no model library. Everything random is a function of (seed, step), everything that changes is
in the checkpoint, so a run that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modalign.console import Reporter
from modalign.data import order
from modalign.embeddings import Embeddings
from modalign.errors import ModalignError, NonFiniteError, OutputError
from modalign.methods.base import Method
from modalign.models.dual_encoder import DualEncoder
from modalign.objectives.distillation import sharpness_warning
from modalign.recipe import Recipe
from modalign.training import boundary, checkpoint, optimizer, state
from modalign.training.cost import Cost
from modalign.training.distributed import Processes
from modalign.training.inputs import Batch, TrainingSet, batches
from modalign.training.log import MetricsLog
from modalign.training.scope import Scope
from modalign.training.signals import Signals


class InterruptedRunError(ModalignError):
    """The user stopped the run; its state was saved."""


@dataclass
class Loop:
    """One training run, from its first or any later step to its last.

    Args:
        model: on its device; the parameters in `scope` train in place.
        method: gives the terms.
        recipe: every setting.
        scope: what trains.
        data: the training rows and stored signals.
        validation: held-out rows and their signals, or None.
        folder: the run folder.
        processes: this process's place.
        reporter: what the user sees.
        cost: accumulates.
    """

    model: DualEncoder
    method: Method
    recipe: Recipe
    scope: Scope
    data: TrainingSet
    validation: TrainingSet | None
    folder: Path
    processes: Processes = field(default_factory=Processes)
    reporter: Reporter = field(default_factory=Reporter)
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self.per_epoch = order.steps_per_epoch(
            len(self.data.pairs), self.recipe.data.batch_size, self.recipe.data.drop_last
        )
        self.steps = self.per_epoch * self.recipe.epochs
        if self.recipe.steps is not None:
            self.steps = min(self.steps, self.recipe.steps)
        self.device = self.model.device
        module = self.method.module()
        if module is not None:
            module.to(self.device)
        self.method_parameters = dict(module.named_parameters()) if module is not None else {}
        self.trained: dict[str, nn.Parameter] = self.scope.trained
        self.optimizer = optimizer.build(self.trained, self.method_parameters, self.recipe.optimizer)
        self.signals = Signals(self.model, self.method, self.scope, self.data, self.recipe, self.processes)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.step = 0
        self._began = (0, 0.0)
        self._stop = threading.Event()

    # ---- the loop -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains from `self.step` to the end.

        Raises:
            NonFiniteError: a term or gradient is not finite; the state before that step is saved.
            InterruptedRunError: Ctrl-C or SIGTERM; the state after the last whole step is saved.
        """
        every = self.recipe.checkpoint.every
        self._began = (self.step, time.perf_counter())
        stream = batches(
            self.data, self.model, self.recipe, self.processes, self.step, self.steps, pixels=self.signals.reads_pixels
        )
        with (
            MetricsLog(self.folder / "metrics.jsonl" if self.processes.is_main else None, self.step) as log,
            self._interruptible(),
            self.reporter.progress(f"training ({self.method.name})", self.steps, start=self.step) as update,
        ):
            if self.step == 0 and self.validation is not None:
                log.write({"step": 0, "validation": self._validate()})
            while self.step < self.steps:
                waiting = time.perf_counter()
                batch = next(stream)
                self.cost.spend("data", time.perf_counter() - waiting)
                try:
                    record = self._one_step(batch)
                except NonFiniteError as error:
                    saved = self._save()
                    raise NonFiniteError(
                        f"step {self.step + 1}: {error}; the weights before it are kept in {saved}: "
                        "lower optimizer.lr or set optimizer.clip_norm, then start a new run"
                    ) from None
                self.step += 1
                update(self.step, self._note(record))
                if self.validation is not None and (self.step % self.per_epoch == 0 or self.step == self.steps):
                    record["validation"] = self._validate()
                log.write(record)
                stopping = self.processes.any(self._stop.is_set())
                if stopping or 0 in (self.step % every, self.step % self.per_epoch) or self.step == self.steps:
                    saved = self._save()
                if stopping and self.step < self.steps:
                    raise InterruptedRunError(
                        f"stopped after step {self.step} of {self.steps}; go on with --out {self.folder} --resume"
                    )

    def _one_step(self, batch: Batch) -> dict[str, Any]:
        progress = (batch.step + 1) / self.steps
        probe = self.recipe.probe_every > 0 and batch.step % self.recipe.probe_every == 0
        self.optimizer.zero_grad(set_to_none=True)
        begin = time.perf_counter()
        sides = self.signals.sides(batch)
        record = self.signals.embeddings(self.data, batch, {})
        prepared = time.perf_counter() - begin
        outcome = boundary.backward(
            sides,
            record,
            batch.own,
            self.method,
            progress,
            chunk=self.recipe.chunk,
            processes=self.processes,
            precision=self.signals.precision,
            probe=probe,
        )
        begin = time.perf_counter()
        everything = [*self.trained.values(), *self.method_parameters.values()]
        limit = self.recipe.optimizer.clip_norm
        norm = float(nn.utils.clip_grad_norm_(everything, math.inf if limit is None else limit))
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient of the towers is {norm}, though that at the embeddings is finite")
        rate = optimizer.set_rate(self.optimizer, optimizer.factor(self.recipe.schedule, batch.step, self.steps))
        self.optimizer.step()
        self.cost.spend("towers", prepared + outcome.tower_seconds + time.perf_counter() - begin)
        self.cost.spend("loss", outcome.loss_seconds)
        self._count(batch, outcome)
        line: dict[str, Any] = {
            "step": batch.step + 1,
            "epoch": batch.epoch,
            "progress": progress,
            "loss": outcome.loss,
            "terms": outcome.terms,
            "lr": rate,
            "gradient_norm": norm,
        }
        if batch.step == 0:
            line["effective_logit_scale"] = self._check_scale(record)
        if probe:
            line["boundary"] = {"norms": outcome.norms, "cosines": outcome.cosines}
        return line

    # ---- validation -----------------------------------------------------------------------------------------

    def _validate(self) -> dict[str, Any]:
        """The terms on the held-out rows with the present weights, averaged over batches of the training size."""
        assert self.validation is not None
        held = self.validation
        with self.cost.timed("evaluation"):
            present = self.signals.present(held)
            totals: dict[str, float] = {}
            size = min(self.recipe.data.batch_size, len(held.pairs))
            index = torch.arange(len(held.pairs))
            progress = max(1, self.step) / self.steps
            for number, rows in enumerate(index.split(size)):
                batch = Batch(self.steps + number, 0, rows, held.first[rows], slice(0, len(rows)), None)
                features_now = {
                    tower: self.signals.stored(rows_now, tower, batch) for tower, rows_now in present.items()
                }
                record = self.signals.embeddings(held, batch, features_now)
                outcome = boundary.evaluate(record, self.method, progress)
                for name, value in outcome.terms.items():
                    totals[name] = totals.get(name, 0.0) + value * len(rows) / len(index)
        return {"terms": totals, "loss": sum(totals.values()), "rows": len(held.pairs)}

    # ---- state ----------------------------------------------------------------------------------------------

    def _save(self) -> Path | None:
        saved: Path | None = None
        if self.processes.is_main:
            with self.cost.timed("other"):
                tensors = state.pack(self.trained, self.method.module(), self.optimizer)
                told = {"cost": self.cost.to_state(), "rows": len(self.data.pairs)}
                kept = self.recipe.checkpoint.keep
                saved = checkpoint.save(self.folder / "checkpoints", self.step, tensors, told, kept).path
        self.processes.barrier()
        return saved

    def restore(self) -> bool:
        """Goes back to the newest whole checkpoint; False when there is none.

        Raises:
            OutputError: the checkpoint belongs to another set of trained parameters or of readable rows.
        """
        found = checkpoint.newest(self.folder / "checkpoints")
        if found is None:
            return False
        if found.state["rows"] != len(self.data.pairs):
            raise OutputError(
                f"{found.path} was written when {found.state['rows']:,} rows could be read, now it is "
                f"{len(self.data.pairs):,}: restore the pictures, or start a new run with another --out"
            )
        state.unpack(found.tensors(), self.trained, self.method.module(), self.optimizer, found.path)
        self.step = found.step
        self.cost.add(Cost.from_state(found.state["cost"]))
        return True

    # ---- telling --------------------------------------------------------------------------------------------

    def _note(self, record: Mapping[str, Any]) -> str:
        rate = (
            (self.step - self._began[0]) * self.recipe.data.batch_size / max(1e-9, time.perf_counter() - self._began[1])
        )
        terms = "  ".join(f"{name} {value:.4g}" for name, value in record["terms"].items())
        return f"{rate:.0f} pairs/s  {terms}"

    def _check_scale(self, record: Embeddings) -> float | None:
        """The sharpness that raw similarities imply, logged once, with a warning where it is far from CLIP's."""
        scale = self.method.effective_logit_scale(record)
        warning = sharpness_warning(scale) if scale is not None else None
        if warning is not None:
            self.reporter.say(f"warning: {warning}")
        return scale

    def _count(self, batch: Batch, outcome: boundary.Outcome) -> None:
        rows = len(batch.rows)
        self.cost.samples += rows
        for tower in ("image", "text"):
            if not self.scope.projection and tower in outcome.embedded:
                passes = outcome.embedded[tower] / max(1, batch.own.stop - batch.own.start)  # 2 where chunks re-embed
                self.cost.forward[tower] += round(passes * rows)
            if tower in self.scope.live:
                self.cost.forward[tower] += rows
            networks = (tower in self.scope.reads) + (f"frozen_{tower}" in self.method.needs)
            self.cost.published[tower] += networks * rows

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM let the present step finish; a second Ctrl-C stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: object) -> None:
            if self._stop.is_set():
                raise KeyboardInterrupt
            self._stop.set()
            self.reporter.say("stopping after this step …")

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
