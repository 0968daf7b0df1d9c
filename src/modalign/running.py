"""The whole job of one run: judge before, train, judge after, compare, report, and a model that loads elsewhere.

A run folder fills as the job goes, and every stage that is complete on disk is read instead of done again, so
`--resume` continues wherever a kill fell:

    recipe.yaml, environment.json   at once
    evaluation/before.json          the initial model, judged
    cache/                          what the frozen networks said
    metrics.jsonl, checkpoints/     training
    model/                          the refined model (safetensors + JSON)
    evaluation.json, features/      before, after, gate, gap, interpolation
    cost.json, report.html
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from modalign import environment, gap, methods, models, run_folder
from modalign import recipe as recipes
from modalign.console import Reporter
from modalign.data import order, sources
from modalign.data.bad_rows import refuse_above
from modalign.data.sources import Pairs
from modalign.errors import DataError, RecipeError
from modalign.evaluation import suite
from modalign.evaluation.gate import Gate, check_tolerances, judge, pick_interpolation
from modalign.evaluation.results import Results
from modalign.evaluation.tasks import encode
from modalign.features import TrunkMemo
from modalign.methods import Method
from modalign.models import DualEncoder
from modalign.recipe import Recipe
from modalign.report import page
from modalign.training import distributed
from modalign.training.checkpoint import write_atomically
from modalign.training.cost import Cost
from modalign.training.inputs import Plan, TrainingSet, files_identity, prepare
from modalign.training.loop import Loop
from modalign.training.precision import autocast, device, tf32
from modalign.training.scope import choose

SMALLEST_VALIDATION = 20


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where everything lies.
        gate: the verdict per metric, or None when no task was judged.
        strict: whether "cannot tell" fails.
        interpolation: where something got worse: which weights between before and after did not, in one line.
    """

    folder: Path
    gate: Gate | None
    strict: bool = False
    interpolation: str = ""

    @classmethod
    def read(cls, folder: Path) -> Run:
        """A finished run, from what its folder holds."""
        record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        strict = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["evaluation"]["strict"]
        gate = Gate.from_dict(record["gate"]) if record["gate"] is not None else None
        return cls(folder, gate, bool(strict), (record["interpolation"] or {}).get("sentence", ""))

    @property
    def exit_code(self) -> int:
        """0, or 3 when a metric is worse (or, strictly, cannot be told)."""
        return 0 if self.gate is None else self.gate.exit_code(self.strict)

    @property
    def model(self) -> DualEncoder:
        """The refined model, loaded from the folder."""
        return models.load(str(self.folder))

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"


def refine(
    model: str | DualEncoder,
    data: str | Pairs,
    method: str | Method | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    recipe: str | Path | None = None,
    silent: bool = False,
    **training: Any,
) -> Run:
    """Refines a model on image-text pairs and says, with intervals, what changed.

    Args:
        model: a spec for `modalign.load`, or a loaded model (a copy of it is trained).
        data: a spec for `modalign.pairs`, or pairs.
        method: a name, a method object, or None for the recipe's (CLIP-Refine where it names none).
        out: the run folder; must be new or empty unless `resume`.
        resume: go on with the run in `out`.
        recipe: a recipe file or the name of a shipped one, under everything given here.
        silent: no progress on standard error.
        training: recipe keys: top-level ones by name (epochs=5), deeper ones with two underscores
            (optimizer__lr=3e-4, data__batch_size=256, evaluation__tasks=["retrieval:flickr30k:data@test"]).

    Returns:
        The run; `run.exit_code` is 3 when a metric got worse.

    Raises:
        ModalignError: any of its kinds, in one line that says what to do.
    """
    spec = model if isinstance(model, str) else model.spec
    source = data if isinstance(data, str) else data.spec
    settings: dict[str, Any] = {"model": spec, "data__train": source, **training}
    if isinstance(method, str):
        settings["method__name"] = method
    elif method is not None:
        settings["method"] = methods.to_config(method)
    resolved = recipes.load(recipe, **settings)
    return run_recipe(
        resolved,
        Path(out),
        resume=resume,
        model=None if isinstance(model, str) else model,
        pairs=None if isinstance(data, str) else data,
        reporter=Reporter(silent),
    )


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    model: DualEncoder | None = None,
    pairs: Pairs | None = None,
    reporter: Reporter | None = None,
    memo: TrunkMemo | None = None,
    cache: Path | None = None,
) -> Run:
    """Runs a resolved recipe into a folder.

    Args:
        recipe: every setting.
        out: the run folder.
        resume: go on where the folder stands.
        model: the initial model where it is loaded already; a copy of it is trained.
        pairs: the training pairs where they are read already.
        reporter: what the user sees.
        memo: image-trunk outputs shared with other runs on the same frozen trunk.
        cache: where frozen features are kept, for runs that share them; None = in the run folder.
    """
    for key, value, example in (
        ("model", recipe.model, "--model hf:./my-clip"),
        ("data.train", recipe.data.train, "--data ./pairs"),
    ):
        if not value:
            raise RecipeError(f"the recipe names no {key}; add it, for example {example}")
    place = device(recipe.device)
    processes = distributed.start(place)
    reporter = reporter if processes.is_main and reporter is not None else Reporter(silent=not processes.is_main)
    if recipe.data.batch_size < processes.world:
        raise RecipeError(f"data.batch_size = {recipe.data.batch_size} is smaller than the {processes.world} processes")
    job = _Job(recipe, out, place, processes, reporter, memo or TrunkMemo(), cache or out / "cache")
    if run_folder.look(out, recipe, resume):
        reporter.say(f"{out} is finished already; nothing to do")
        return Run.read(out)
    with tf32(recipe.precision == "tf32"):
        job.load(model, pairs)
        job.claim(resume)
        job.train()
        return job.conclude()


class _Job:
    """The stages of `run_recipe`, each leaving its part of the run folder."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        place: torch.device,
        processes: distributed.Processes,
        reporter: Reporter,
        memo: TrunkMemo,
        cache: Path,
    ) -> None:
        self.recipe, self.out, self.place = recipe, out, place
        self.processes, self.reporter = processes, reporter
        self.memo, self.cache = memo, cache
        self.began = time.perf_counter()

    def claim(self, resume: bool) -> None:
        """Writes what decides the run; on a resume checks that model and data are still those it began with."""
        told = environment.describe(self.recipe.seed, str(self.place), self.processes.world)
        told["identity"] = {
            "model": self.model.fingerprint,
            "data": self.pairs.fingerprint,
            "pictures": files_identity(self.pairs),
        }
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

    def load(self, model: DualEncoder | None, pairs: Pairs | None) -> None:
        """Model, method, pairs; everything a user can get wrong fails here, before anything is computed."""
        recipe = self.recipe
        with torch.random.fork_rng(devices=[]):  # a method's own parameters start alike on every process
            torch.manual_seed(recipe.seed)
            self.method = methods.from_config(recipe.method)
        self.precision = autocast(recipe.precision, self.place)
        self.model = model.frozen_copy() if model is not None else models.load(recipe.model)
        self.model.to(self.place)
        columns = {"image_column": recipe.data.image_column, "text_column": recipe.data.text_column}
        if pairs is None:
            pairs = sources.pairs(recipe.data.train, max_bad=recipe.data.max_bad, **columns)
        self.held: Pairs | None = None
        if recipe.data.validation > 0:
            pairs, self.held = pairs.split_off(recipe.data.validation, recipe.seed)
        self.pairs = pairs
        self.scope = choose(self.model, self.method, recipe)
        size = recipe.data.batch_size
        order.steps_per_epoch(len(pairs), size, recipe.data.drop_last)
        if not recipe.data.drop_last and 0 < len(pairs) % size < self.processes.world:
            raise RecipeError(
                f"the last batch of {len(pairs) % size} rows is smaller than the {self.processes.world} processes; "
                "set data.drop_last=true or another data.batch_size"
            )
        tasks, templates = recipe.evaluation.tasks, recipe.evaluation.templates
        self.suite = suite.prepare(tasks, templates=templates) if tasks else None
        self.initial = {name: p.detach().to("cpu", copy=True) for name, p in self.scope.trained.items()}

    def _judge_validation(self, held: TrainingSet | None) -> None:
        """Without a task in the recipe: retrieval on the held-out rows, where there are enough of them."""
        if held is None or len(held.pairs) < SMALLEST_VALIDATION:
            rows = f"{len(held.pairs)} validation rows (20 are needed)" if held is not None else "no validation split"
            self.reporter.say(
                f"warning: no --eval task and {rows}, so nothing will be judged before and after; "
                "add --eval retrieval:SPEC or set a larger data.validation, such as --set data.validation=0.1"
            )
            return
        if self.processes.is_main:
            listed = run_folder.write_validation(self.out, held.pairs)
            self.suite = suite.prepare([f"retrieval:{listed}"])

    def train(self) -> None:
        """Stores the frozen signals, judges the initial model and trains."""
        recipe, reporter = self.recipe, self.reporter
        cost = Cost()
        begin = time.perf_counter()
        data, held = self._prepare(self.pairs, self.scope.plan), None
        if self.held is not None and len(self.held) > 1:
            held = self._prepare(
                self.held, Plan(self.scope.plan.trunk, self.scope.plan.features | set(self.scope.live))
            )
        waited = data.waited + (held.waited if held is not None else 0.0)
        cost.spend("data", waited)
        cost.spend("towers", time.perf_counter() - begin - waited)
        bad = [*data.bad, *(held.bad if held is not None else ())]
        refuse_above(recipe.data.max_bad, [str(row) for row in bad], len(self.pairs), "images cannot be read")
        for row in bad:
            reporter.say(f"left out: {row}")
        if self.suite is None:
            self._judge_validation(held)
        self.before: Results | None = None
        with cost.timed("evaluation"):
            if self.processes.is_main:
                self.before = self._judge("before")
                if self.before is not None:
                    check_tolerances(self.before, recipe.evaluation.tolerance)
            self.processes.barrier()
        if self.method.needs_fit:
            self.method.fit(data.features["image"], data.features["text"])
        self.loop = Loop(
            self.model, self.method, recipe, self.scope, data, held, self.out, self.processes, reporter, cost
        )
        for prepared in (data, held):
            for tower, count in prepared.passes.items() if prepared is not None else ():
                cost.forward[tower] += count
        spent = sum(cost.seconds.values())
        if self.loop.restore():
            reporter.say(f"resuming after step {self.loop.step} of {self.loop.steps}")
        self.began -= sum(cost.seconds.values()) - spent  # what an earlier part of the run took
        self.loop.run()

    def _prepare(self, pairs: Pairs, plan: Plan) -> TrainingSet:
        return prepare(
            self.model,
            pairs,
            self.recipe,
            plan,
            self.cache,
            self.processes,
            self.reporter,
            self.precision,
            self._shared_memo,
        )

    @property
    def _shared_memo(self) -> TrunkMemo | None:
        """Models are judged in float32, so only trunk outputs in float32 serve there."""
        return self.memo if self.scope.projection and self.recipe.precision == "fp32" else None

    def _judge(self, name: str) -> Results | None:
        """Evaluates the present weights; of the initial model, reads what an earlier try of this run wrote."""
        if self.suite is None:
            return None
        kept, folder = self.out / "evaluation" / f"{name}.json", self.out / "features"
        if name == "before" and kept.is_file():
            with contextlib.suppress(DataError):
                found = Results.load(kept)
                if found.model["fingerprint"] == self.model.fingerprint:
                    return found
        results = self._evaluate(name)
        if results.features is not None:
            run_folder.write_features(folder, name, results.features)
        kept.parent.mkdir(exist_ok=True)
        results.save(kept)
        return results

    def _evaluate(self, name: str) -> Results:
        assert self.suite is not None
        settings, seed = self.recipe.evaluation, self.recipe.seed
        with tf32(False), self.reporter.progress(f"evaluating {name}", len(self.suite.paths), "pictures") as update:
            encoded = encode(
                self.model,
                self.suite,
                batch_size=settings.batch_size,
                workers=self.recipe.data.workers,
                memo=self._shared_memo,
                progress=lambda done, _: update(done),
            )
        return self.suite.score(
            encoded,
            model={"spec": self.recipe.model, "fingerprint": self.model.fingerprint},
            environment=environment.describe(seed, str(self.place), self.processes.world),
            resamples=settings.resamples,
            seed=seed,
        )

    def conclude(self) -> Run:
        """Saves the model, judges it, compares, writes the report."""
        gate: Gate | None = None
        if self.processes.is_main:
            with self.loop.cost.timed("other"):
                self.model.save(self.out / "model")
            with self.loop.cost.timed("evaluation"):
                after = self._judge("after")
                interpolation = None
                if self.before is not None and after is not None:
                    settings = self.recipe.evaluation
                    gate = judge(
                        self.before, after, settings.tolerance, resamples=settings.resamples, seed=self.recipe.seed
                    )
                    if gate.worst == "worse":
                        interpolation = self._interpolate()
            record = {
                "gap": self._gap(),
                "before": self.before.to_dict() if self.before is not None else None,
                "after": after.to_dict() if after is not None else None,
                "gate": gate.to_dict() if gate is not None else None,
                "interpolation": interpolation,
            }
            write_atomically(self.out / "evaluation.json", json.dumps(record))
            frozen = sum(p.numel() for p in self.model.module.parameters() if not p.requires_grad)
            trained = [*self.loop.trained.values(), *self.loop.method_parameters.values()]
            elapsed = time.perf_counter() - self.began
            self.loop.cost.spend("other", max(0.0, elapsed - sum(self.loop.cost.seconds.values())))
            cost = self.loop.cost.report(sum(p.numel() for p in trained), frozen)
            write_atomically(self.out / "cost.json", json.dumps(cost, indent=1))
            page.write(self.out)
        self.processes.barrier()
        return Run.read(self.out)

    def _gap(self) -> dict[str, Any] | None:
        """The gap before and after on the same pairs, with paired intervals of each change."""
        pairs = [run_folder.read_first_pairs(self.out / "features", name) for name in ("before", "after")]
        if pairs[0] is None or pairs[1] is None or len(pairs[0][0]) < 3:
            return None
        seed = self.recipe.seed
        changes = gap.change(pairs[0], pairs[1], seed=seed)
        before, after = (gap.measure(*features, seed=seed).to_dict() for features in (pairs[0], pairs[1]))
        return {"before": before, "after": after, "change": {name: asdict(c) for name, c in changes.items()}}

    def _interpolate(self) -> dict[str, Any]:
        """Names the weights between before and after that are not worse; leaves the model as it was."""
        self.reporter.say("something got worse: looking for weights between before and after that are not")
        refined = {name: p.detach().to("cpu", copy=True) for name, p in self.scope.trained.items()}
        try:
            picked = pick_interpolation(
                lambda weight: self._at(weight, refined),
                self.recipe.evaluation.tolerance,
                before=self.before,
                seed=self.recipe.seed,
                resamples=self.recipe.evaluation.resamples,
            )
        finally:
            self._set(refined)
        return picked.to_dict()

    def _at(self, weight: float, refined: Mapping[str, Tensor]) -> Results:
        self._set({name: torch.lerp(self.initial[name], refined[name], weight) for name in refined})
        return self._evaluate(f"weight {weight:g}")

    def _set(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.scope.trained.items():
                parameter.copy_(weights[name])
