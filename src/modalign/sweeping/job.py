"""The runs of a sweep: in order or several at once, resumed where they stand, a failure told and passed over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from modalign import run_folder
from modalign.console import Reporter
from modalign.errors import InterruptedRunError, OutputError, RecipeError
from modalign.evaluation.suite import parse_task, prepare
from modalign.sweeping import machine, picking, workers
from modalign.sweeping.interpolating import curve
from modalign.sweeping.picking import Rule
from modalign.sweeping.plan import Axis, Point
from modalign.sweeping.point import Shared, attempt, write_memos
from modalign.training.checkpoint import write_atomically
from modalign.training.precision import device

RECORD = "sweep.json"
FORMAT = "modalign.sweep/1"


@dataclass
class Job:
    """The runs of one sweep and their folder.

    Args:
        out: the sweep's folder.
        axes: what is swept.
        points: the runs.
        weights: between before and after, to judge of every run.
        rule: what will be picked by, looked at once the first run has told which metrics there are.
        jobs: runs at once; None = what fits.
        reporter: what the user sees.
    """

    out: Path
    axes: Sequence[Axis]
    points: Sequence[Point]
    weights: tuple[float, ...]
    rule: Rule | None
    jobs: int | None
    reporter: Reporter

    def __post_init__(self) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RecipeError("a sweep runs without torchrun: start it alone, with --jobs for several runs at once")
        if self.jobs is not None and self.jobs < 1:
            raise RecipeError(f"--jobs {self.jobs}: at least 1")
        for point in self.points:
            kinds = [parse_task(task).kind for task in point.recipe.evaluation.tasks]
            if "retrieval" not in kinds:
                raise RecipeError(
                    "a sweep sets the tasks against the gap, which is measured on pairs: add --eval retrieval:SPEC"
                )
        judged = {point.recipe.evaluation.model_dump_json(): point.recipe for point in self.points}
        for recipe in judged.values():  # what no run could be judged on is told once, before the first
            prepare(recipe.evaluation.tasks, max_bad=recipe.data.max_bad, **recipe.evaluation.reading)
        self.shared = Shared(self.out, self.weights)
        self.failed: dict[str, str] = {}
        self.done = 0

    # ---- the folder -----------------------------------------------------------------------------------------

    def claimed(self, resume: bool) -> IO[str]:
        """Refuses a folder that is not this sweep's, and keeps others out of it while the returned file is open.

        Raises:
            OutputError: the folder is occupied, by a process or by something else.
            RecipeError: a point began with another recipe.
        """
        present = {path.name for path in self.out.iterdir()} if self.out.is_dir() else set()
        if self.out.exists() and not self.out.is_dir():
            raise OutputError(f"{self.out} is a file; choose another --out")
        if present - {".lock"} and not resume:
            hint = "add --resume to go on with it, or choose another --out"
            known = RECORD in present
            raise OutputError(f"{self.out} is not empty; {hint if known else 'choose another --out'}")
        if present - {".lock"} and RECORD not in present:
            raise OutputError(f"{self.out} holds no {RECORD}, so there is no sweep to resume; choose another --out")
        self.finished = set()
        for point in self.points:
            folder = self.out / point.name
            # Before anything runs: a folder that began with another recipe is told at once.
            if (folder / "recipe.yaml").is_file() and run_folder.look(folder, point.recipe, resume=True):
                self.finished.add(point.name)
        return run_folder.lock(self.out)

    def _record(self) -> dict[str, Any]:
        try:
            told = json.loads((self.out / RECORD).read_text(encoding="utf-8"))
            return told if isinstance(told, dict) else {}
        except (OSError, ValueError):
            return {}

    def _note(self, **more: Any) -> None:
        told = {
            "format": FORMAT,
            "over": {axis.key: list(axis.values) for axis in self.axes},
            "seeds": list(dict.fromkeys(point.seed for point in self.points)),
            "interpolate": list(self.weights),
            **{key: value for key, value in self._record().items() if key in ("jobs", "threads")},
            **more,
        }
        write_atomically(self.out / RECORD, json.dumps(told, indent=1))

    # ---- the runs -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Runs every point, from where it stands; one that fails is told and the others go on.

        The first goes alone: it fills the caches and tells how much memory one takes. Then as many go as fit.

        Raises:
            InterruptedRunError: stopped; what is done is kept.
        """
        self._note()
        try:
            self._run_points()
        finally:
            shutil.rmtree(self.out / workers.MEMOS, ignore_errors=True)

    def _run_points(self) -> None:
        known = f", {len(self.finished)} of them finished already" if self.finished else ""
        self.reporter.say(f"{len(self.points)} runs{known}")
        first, *rest = self.points
        self._one(first)
        if self.rule is not None and self.is_finished(first):
            picking.check(self.rule, curve(self.out / first.name)[0].results)  # not after hours
        if not rest:
            return
        waiting = [point for point in rest if point.name not in self.finished]
        jobs, threads = self._at_once(first, waiting)
        if jobs == 1:
            for point in rest:
                self._one(point)
            return
        for point in rest:
            if point.name in self.finished:
                self._one(point)  # only what is missing of its curve
        write_memos(self.out / workers.MEMOS, self.shared.memos)
        pool = workers.Pool(self.out, self.weights, jobs, threads, self.reporter.silent)
        for outcome in pool.run(waiting):
            if outcome.get("stopped"):  # a worker alone was asked to stop
                raise InterruptedRunError("stopped")
            self._told(str(outcome["point"]), str(outcome["problem"]), str(outcome.get("trace", "")))

    def _one(self, point: Point) -> None:
        outcome = attempt(self.shared, point, self.reporter)
        if outcome.stopped:
            raise InterruptedRunError("stopped")
        self._told(point.name, outcome.problem, outcome.trace)

    def _told(self, name: str, problem: str, trace: str) -> None:
        if name in self.finished and not problem:
            return
        if name in self.finished:  # it was no run of now: a weight between could not be judged
            place = "what is missing of a finished run"
        else:
            self.done += 1
            place = f"run {len(self.finished) + self.done} of {len(self.points)}"
        if not problem:
            self.reporter.say(f"{place} finished: {name}")
            return
        self.failed[name] = problem
        self.reporter.say(f"{place} FAILED: {name}: {problem}")
        if trace:
            with (self.out / "failures.log").open("a", encoding="utf-8") as file:
                file.write(f"{name}\n{trace}\n")

    def _at_once(self, first: Point, waiting: Sequence[Point]) -> tuple[int, int]:
        """How many runs go at once, and the threads of each: as asked, as the sweep began, or as fits."""
        began, cores = self._record(), machine.cores()
        if self.jobs is None and "jobs" in began:
            jobs, threads = int(began["jobs"]), int(began["threads"])
        else:
            jobs = self.jobs or self._fitting(first, waiting, cores)
            threads = torch.get_num_threads() if jobs == 1 else max(1, cores // jobs)
        self._note(jobs=jobs, threads=threads)
        if jobs > 1:
            self.reporter.say(f"{jobs} runs at once, {threads} thread{'s' if threads > 1 else ''} each")
        return jobs, threads

    def _fitting(self, first: Point, waiting: Sequence[Point], cores: int) -> int:
        if device(first.recipe.device).type != "cpu":
            return 1  # runs would share the one device
        try:
            cost = json.loads((self.out / first.name / "cost.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 1
        needed, free = int(cost["peak_memory_bytes"]), machine.free_memory()
        jobs = machine.jobs_that_fit(len(waiting), needed, free=free, threads=cores)
        self.reporter.say(
            f"one run took {needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB and {cores} cores are free: "
            f"{jobs} at once (--jobs changes it)"
        )
        return jobs

    def is_finished(self, point: Point) -> bool:
        """Whether a point ran to its end."""
        return point.name not in self.failed and (self.out / point.name / "report.html").is_file()
