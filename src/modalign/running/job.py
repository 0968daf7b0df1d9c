"""The stages of a run, each leaving its part of the run folder."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from modalign import environment, run_folder
from modalign.console import Reporter
from modalign.data.bad_rows import refuse_above
from modalign.data.sources import Pairs
from modalign.errors import DataError
from modalign.evaluation import suite
from modalign.evaluation.gate import Gate
from modalign.evaluation.results import Results
from modalign.evaluation.suite import Suite
from modalign.features import TrunkMemo
from modalign.models.vectors import VectorModel
from modalign.recipe import Recipe
from modalign.report import page
from modalign.running.ingredients import Ingredients
from modalign.running.judging import Judging, gap_moved
from modalign.training import bare, distributed
from modalign.training.checkpoint import write_atomically
from modalign.training.cost import Cost
from modalign.training.inputs import Plan, TrainingSet, prepare
from modalign.training.loop import Loop
from modalign.training.trackers import Trackers

SMALLEST_VALIDATION = 20
CERTIFIED = 1_000
"""Training pictures whose drift is told where nothing else is judged."""


class Job:
    """One run, stage by stage in the order below; trackers and the folder's lock are closed on leaving.

    Args:
        recipe: every setting.
        out: the run folder.
        made: the run's ingredients.
        processes: this process's place; the main one judges and writes.
        reporter: what the user sees.
        memo: image-trunk outputs shared with other runs on the same frozen trunk.
        cache: where frozen features are kept.
        began: when the run did, by `time.perf_counter`.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        made: Ingredients,
        processes: distributed.Processes,
        reporter: Reporter,
        memo: TrunkMemo,
        cache: Path,
        began: float,
    ) -> None:
        self.recipe, self.out, self.made = recipe, out, made
        self.processes, self.reporter = processes, reporter
        self.memo, self.cache = memo, cache
        self.began = began
        self.cost = Cost()
        self.held: TrainingSet | None = None
        self.judging: Judging | None = None
        self.before: Results | None = None
        self.loop: Loop | None = None
        self.lock: IO[str] | None = None
        self.trackers: Trackers | None = None
        if processes.is_main:
            self.trackers = Trackers(recipe.trackers, out, recipe.model_dump(mode="json"), reporter.say)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.trackers is not None:
            self.trackers.close()
        if self.lock is not None:  # else an error that a notebook keeps would keep the folder locked
            self.lock.close()

    def claim(self, resume: bool) -> None:
        """Writes what decides the run; on a resume checks that model and data are still those it began with."""
        told = environment.describe(self.recipe.seed, str(self.made.place), self.processes.world)
        told["identity"] = self.made.identity
        told["folder"] = str(Path.cwd())  # where relative specs of model and data begin
        self.processes.barrier()  # every process has looked before the main one writes
        if self.processes.is_main:
            self.lock = run_folder.lock(self.out)
        if resume and (self.out / "environment.json").is_file():
            warning = run_folder.begun_elsewhere(self.out, told)
            if warning is not None:
                self.reporter.say(f"warning: {warning}")
            if self.processes.is_main:
                run_folder.tidy(self.out, self.recipe)
        elif self.processes.is_main:
            run_folder.claim(self.out, self.recipe, told)
        self.processes.barrier()

    def prepare(self) -> None:
        """Stores what frozen networks say of the training pairs."""
        plan, cost, held = self.made.scope.plan, self.cost, self.made.held
        begin = time.perf_counter()
        self.data = self._prepare(self.made.pairs, plan)
        if held is not None and len(held) > 1:
            self.held = self._prepare(held, Plan(plan.trunk, plan.features | set(self.made.scope.live)))
        prepared = [data for data in (self.data, self.held) if data is not None]
        waited = sum(data.waited for data in prepared)
        cost.spend("data", waited)
        cost.spend("towers", time.perf_counter() - begin - waited)
        bad = [row for data in prepared for row in data.bad]
        refuse_above(self.recipe.data.max_bad, [str(row) for row in bad], len(self.made.pairs), "images cannot be read")
        for row in bad:
            self.reporter.say(f"left out: {row}")
        for data in prepared:
            for tower, count in data.passes.items():
                cost.forward[tower] += count

    def judge_before(self) -> None:
        """Judges the initial model."""
        tasks = self.made.suite
        if tasks is None and self.made.vectors is None:
            tasks = self._validation_tasks()
        with self.cost.timed("evaluation"):
            if self.processes.is_main and tasks is not None:
                self.judging = Judging(
                    self.recipe,
                    self.made,
                    tasks,
                    self.out,
                    self.processes.world,
                    self.reporter,
                    self._shared_memo,
                    self.cache,
                )
                self.before = self.judging.before()
            self.processes.barrier()

    def fit(self) -> None:
        """Gives a method what it computes once, before the first step, of the stored signals."""
        if self.made.method.needs_fit:
            named = {"image": "frozen_image", "text": "frozen_text", "target": "target"}
            try:
                self.made.method.fit({named[name]: rows[:] for name, rows in self.data.features.items()})
            except ValueError as error:
                name = self.made.method.name
                raise DataError(f"method {name!r} cannot be fitted to {self.made.pairs.spec}: {error}") from None

    def train(self) -> None:
        """Trains, from the last checkpoint where there is one."""
        if not self.made.method.towers:  # fitted, not trained
            return
        self.loop = Loop(
            self.made.model,
            self.made.method,
            self.recipe,
            self.made.scope,
            self.data,
            self.held,
            self.out,
            self.processes,
            self.reporter,
            self.cost,
            self.trackers,
            self.made.target,
        )
        spent = sum(self.cost.seconds.values())
        if self.loop.restore():
            self.reporter.say(f"resuming after step {self.loop.step} of {self.loop.steps}")
        self.began -= sum(self.cost.seconds.values()) - spent  # what an earlier part of the run took
        self.loop.run()

    def conclude(self) -> None:
        """Saves the model, judges it, compares, writes the report."""
        if self.processes.is_main:
            with self.cost.timed("other"):
                self._save()
            with self.cost.timed("evaluation"):
                record = self._judge_after()
            write_atomically(self.out / "evaluation.json", json.dumps(record))
            self._write_cost()
            page.write(self.out)
        self.processes.barrier()

    # ---- parts of the stages --------------------------------------------------------------------------------

    def _prepare(self, pairs: Pairs, plan: Plan) -> TrainingSet:
        model = self.made.model
        if self.made.vectors is not None and isinstance(model, VectorModel):
            return bare.prepare(model, self.made.vectors, pairs)
        return prepare(
            model,
            pairs,
            self.recipe,
            plan,
            self.cache,
            self.processes,
            self.reporter,
            self.made.precision,
            self._shared_memo,
            self.made.target,
        )

    @property
    def _shared_memo(self) -> TrunkMemo | None:
        """Models are judged in float32, so only trunk outputs in float32 serve there."""
        return self.memo if self.made.scope.projection and self.recipe.precision == "fp32" else None

    def _validation_tasks(self) -> Suite | None:
        """Without a task in the recipe: retrieval on the held-out rows, or their drift where they have no captions."""
        held = self.held
        if held is None or not held.captions or len(held.pairs) < SMALLEST_VALIDATION:
            rows = f"{len(held.pairs)} validation rows (20 are needed)" if held is not None else "no validation split"
            if held is not None and not held.captions:
                rows = "validation rows without captions"
            self.reporter.say(
                f"warning: no --eval task and {rows}, so nothing will be judged before and after; "
                "add --eval retrieval:SPEC or set a larger data.validation, such as --set data.validation=0.1"
            )
        if not self.processes.is_main:
            return None
        if held is None or len(held.pairs) < SMALLEST_VALIDATION:
            if "text" in self.made.method.towers:
                return None
            # What cannot have changed is told of training pictures too: the certificate asks nothing of them.
            sample = self.made.pairs.subset(limit=min(CERTIFIED, len(self.made.pairs)), seed=self.recipe.seed)
            return suite.prepare([f"drift:images:{run_folder.write_pairs(self.out / 'drift-sample.jsonl', sample)}"])
        listed = run_folder.write_pairs(self.out / "validation.jsonl", held.pairs)
        return suite.prepare([f"retrieval:{listed}" if held.captions else f"drift:images:{listed}"])

    def _save(self) -> None:
        if self.made.method.towers:
            self.made.model.save(self.out / "model")
        else:
            run_folder.write_stand_in(self.out, self.made.method.module())
        if self.made.scope.adapters is not None:
            self.made.scope.adapters.write(self.out / "adapter")

    def _judge_after(self) -> dict[str, Any]:
        """What evaluation.json holds."""
        before, judging = self.before, self.judging
        after: Results | None = None
        gate: Gate | None = None
        interpolation: dict[str, Any] | None = None
        moved: dict[str, Any] = {}
        if judging is not None and before is not None:
            after = judging.after()
            moved = judging.picture_side()
            gate = judging.gate(before, after)
        if gate is not None and judging is not None and before is not None:
            if gate.worst == "worse" and self.loop is not None:
                interpolation = judging.interpolate(before)
            if self.trackers is not None:
                self.trackers.conclude(gate.to_numbers(), self.loop.steps if self.loop is not None else 0)
        return {
            "gap": gap_moved(self.out / "features", self.recipe.seed, self.reporter),
            "before": before.to_dict() if before is not None else None,
            "after": after.to_dict() if after is not None else None,
            "gate": gate.to_dict() if gate is not None else None,
            "interpolation": interpolation,
            **moved,
        }

    def _write_cost(self) -> None:
        loop = self.loop
        frozen = sum(p.numel() for p in self.made.model.module.parameters() if not p.requires_grad)
        trained = [*loop.trained.values(), *loop.method_parameters.values()] if loop is not None else []
        elapsed = time.perf_counter() - self.began
        self.cost.spend("other", max(0.0, elapsed - sum(self.cost.seconds.values())))
        cost = self.cost.report(sum(p.numel() for p in trained), frozen)
        write_atomically(self.out / "cost.json", json.dumps(cost, indent=1))
