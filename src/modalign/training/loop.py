"""The training loop: batches in, gradient across the boundary, update, log, checkpoint.

It knows no method and no model library. Everything random is a function of (seed, step), everything that changes is
in the checkpoint, so a run that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modalign.console import Reporter
from modalign.data import order
from modalign.embeddings import Embeddings
from modalign.errors import InterruptedRunError, NonFiniteError, OutputError
from modalign.methods.base import Method
from modalign.models.dual_encoder import DualEncoder
from modalign.models.vision import VisionEncoder
from modalign.objectives import weight_anchor
from modalign.recipe import Recipe
from modalign.training import blocks, boundary, checkpoint, optimizer, state
from modalign.training.average import Average
from modalign.training.cost import Cost
from modalign.training.distributed import Processes
from modalign.training.inputs import Batch, TrainingSet, batches
from modalign.training.interruption import Interruption
from modalign.training.log import MetricsLog
from modalign.training.scope import Scope
from modalign.training.signals import Signals
from modalign.training.trackers import Trackers


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
        trackers: where the metrics go as well; the main process has them.
        target: the vision encoder, where the method reads its features.
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
    trackers: Trackers | None = None
    target: VisionEncoder | None = None

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
        own = dict(module.named_parameters()) if module is not None else {}
        for name in optimizer.frozen_by_group([f"method.{name}" for name in own], self.recipe.optimizer):
            own[name.removeprefix("method.")].requires_grad_(False)
        self.method_parameters = {name: parameter for name, parameter in own.items() if parameter.requires_grad}
        self.signals = Signals(self.model, self.method, self.scope, self.data, self.recipe, self.processes, self.target)
        self.scope.begin(self.recipe)  # after the signals have copied their teacher
        self.trained: dict[str, nn.Parameter] = self.scope.trained
        self.parts = self._watched_parts()
        self.optimizer = optimizer.build(self.trained, self.method_parameters, self.recipe.optimizer, self.parts)
        self.average = Average({**self.trained, **self.scope.modes.statistics}, self.recipe.ema)
        anchored = self.method.weight_anchor > 0
        self.initial = {name: p.detach().clone() for name, p in self.trained.items()} if anchored else {}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.step = 0
        self._began = (0, 0.0)

    # ---- the loop -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains from `self.step` to the end, and leaves the model as it is to be judged: averaged, adapters merged.

        Raises:
            NonFiniteError: a term or gradient is not finite; the state before that step is saved.
            InterruptedRunError: Ctrl-C or SIGTERM; the state after the last whole step is saved.
        """
        every = self.recipe.checkpoint.every
        self._began = (self.step, time.perf_counter())
        metrics = self.folder / "metrics.jsonl" if self.processes.is_main else None
        stream = batches(
            self.data,
            self.model,
            self.recipe,
            self.processes,
            self.step,
            self.steps,
            pixels=self.signals.reads_pixels,
            target=self.target if "target" in self.scope.live else None,
        )
        with (
            MetricsLog(metrics, self.step, self.trackers) as log,
            Interruption(self.reporter) as interruption,
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
                stopping = self.processes.any(interruption.asked)
                if stopping or 0 in (self.step % every, self.step % self.per_epoch) or self.step == self.steps:
                    saved = self._save()
                if stopping and self.step < self.steps:
                    raise InterruptedRunError(
                        f"stopped after step {self.step} of {self.steps}; go on with --out {self.folder} --resume",
                        interruption.signal,
                    )
        self.average.take_over()
        self.scope.end()

    def _one_step(self, batch: Batch) -> dict[str, Any]:
        progress = (batch.step + 1) / self.steps
        probe = self.recipe.probe_every > 0 and batch.step % self.recipe.probe_every == 0
        self.optimizer.zero_grad(set_to_none=True)
        begin = time.perf_counter()
        sides = self.signals.sides(batch)
        record = self.signals.embeddings(self.data, batch, {})
        prepared = time.perf_counter() - begin
        with self.scope.training():
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
        anchored = self._anchor_weights()
        everything = [*self.trained.values(), *self.method_parameters.values()]
        limit = self.recipe.optimizer.clip_norm
        norm = float(nn.utils.clip_grad_norm_(everything, math.inf if limit is None else limit))
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient of the towers is {norm}, though that at the embeddings is finite")
        factor = optimizer.factor(self.recipe.schedule, batch.step, self.steps)
        rate = optimizer.set_rate(self.optimizer, factor, self._held_back(outcome))
        self.optimizer.step()
        self.average.update()
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
        if outcome.curriculum:
            line["curriculum"] = outcome.curriculum | self._rates_told()
        if batch.step == 0:
            line |= self._diagnose(record)
        if anchored is not None:
            line["weight_anchor"] = anchored
        if probe:
            line["boundary"] = {"norms": outcome.norms, "cosines": outcome.cosines}
        return line

    def _watched_parts(self) -> dict[str, str] | None:
        """Parameter → the block whose rate a conflict of gradients lowers; None where conflicts lower no rate."""
        curriculum = self.method.curriculum
        if curriculum is None or curriculum.on_conflict != "learning_rate":
            return None
        parts: dict[str, str] = {}
        for tower, parameters in self.scope.parameters.items():
            parts |= blocks.part_of_each(self.model, tower, parameters)
        curriculum.watch(sorted(set(parts.values())))
        return parts

    def _held_back(self, outcome: boundary.Outcome) -> dict[str, float] | None:
        """What multiplies the rate of each watched block, after this step's gradients."""
        curriculum = self.method.curriculum
        if curriculum is None or not curriculum.groups:
            return None
        assert self.parts is not None
        sums: dict[str, list[float]] = {}
        for name, products in outcome.conflicts.items():
            total = sums.setdefault(self.parts[name], [0.0, 0.0, 0.0])
            total[:] = [a + b for a, b in zip(total, products, strict=True)]
        curriculum.observe_groups(
            {part: ab / math.sqrt(aa * bb) for part, (ab, aa, bb) in sums.items() if aa > 0 and bb > 0}
        )
        return curriculum.rates()

    def _rates_told(self) -> dict[str, Any]:
        curriculum = self.method.curriculum
        if curriculum is None or not curriculum.groups:
            return {}
        return {"learning_rates": {part: rate for part, rate in curriculum.rates().items() if rate < 1}}

    def _anchor_weights(self) -> float | None:
        """Adds the gradient of λ/2·‖θ − θ_0‖², which is no function of embeddings; its value, None without one."""
        if not self.initial:
            return None
        for name, start in self.initial.items():
            parameter = self.trained[name]
            pull = (parameter.detach() - start).mul_(self.method.weight_anchor)
            parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)
        return self.method.weight_anchor * float(weight_anchor(self.trained, self.initial).detach())

    # ---- validation -----------------------------------------------------------------------------------------

    def _validate(self) -> dict[str, Any]:
        """The terms on the held-out rows, averaged over batches of the training size.

        The weights are the present ones, or their moving average where the recipe asks for one.
        """
        assert self.validation is not None
        held = self.validation
        with self.cost.timed("evaluation"), self.average.in_place():
            present = self.signals.present(held)
            totals: dict[str, float] = {}
            size = min(self.recipe.data.batch_size, len(held.pairs))
            index = torch.arange(len(held.pairs))
            progress = max(1, self.step) / self.steps
            for number, rows in enumerate(index.split(size)):
                batch = Batch(self.steps + number, 0, rows, held.captions_of(rows), slice(0, len(rows)), None)
                features_now = {
                    tower: self.signals.stored(rows_now, tower, batch) for tower, rows_now in present.items()
                }
                record = self.signals.embeddings(held, batch, features_now)
                outcome = boundary.evaluate(record, self.method, progress)
                for name, value in outcome.terms.items():
                    totals[name] = totals.get(name, 0.0) + value * len(rows) / len(index)
        return {"terms": totals, "loss": sum(totals.values()), "rows": len(held.pairs)}

    # ---- state ----------------------------------------------------------------------------------------------

    @property
    def _beside(self) -> dict[str, Tensor]:
        """What changes beside parameters and optimizer: BatchNorm's statistics and the average."""
        statistics = {f"statistics.{name}": tensor for name, tensor in self.scope.modes.statistics.items()}
        return statistics | {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}

    def _save(self) -> Path | None:
        saved: Path | None = None
        if self.processes.is_main:
            with self.cost.timed("other"):
                tensors = state.pack(self.trained, self.method.module(), self.optimizer, self._beside)
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
        state.unpack(found.tensors(), self.trained, self.method.module(), self.optimizer, self._beside, found.path)
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

    def _diagnose(self, record: Embeddings) -> dict[str, float]:
        """What the method says of the first batch (how sharp, how spread), logged once, its warnings told."""
        found = self.method.diagnose(record)
        for warning in found.warnings:
            self.reporter.say(f"warning: {warning}")
        return found.values

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
        self.cost.forward["target"] += rows * ("target" in self.scope.live)
        self.cost.published["target"] += rows * ("target" in self.method.needs)
