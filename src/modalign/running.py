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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from torch import Tensor

from modalign import environment, gap, methods, models, run_folder
from modalign import recipe as recipes
from modalign.console import Reporter
from modalign.data import mixing, order
from modalign.data.bad_rows import refuse_above
from modalign.data.pictures import files_identity
from modalign.data.sources import Images, Pairs
from modalign.embedder import Embedder
from modalign.errors import DataError, RecipeError
from modalign.evaluation import suite
from modalign.evaluation.gate import Gate, check_tolerances, judge, pick_interpolation
from modalign.evaluation.results import Results
from modalign.evaluation.suite import Encoded
from modalign.evaluation.tasks import encode
from modalign.features import TrunkMemo
from modalign.methods import Method
from modalign.models import DualEncoder, VisionEncoder
from modalign.models.vectors import StoredVectors, VectorModel
from modalign.models.vision_transform import seen_by
from modalign.moved import Moved
from modalign.recipe import Recipe
from modalign.report import page
from modalign.training import bare, distributed
from modalign.training.between import Between
from modalign.training.checkpoint import write_atomically
from modalign.training.cost import Cost
from modalign.training.inputs import Plan, TrainingSet, prepare
from modalign.training.loop import Loop
from modalign.training.precision import autocast, device, tf32
from modalign.training.scope import choose
from modalign.training.trackers import Trackers

SMALLEST_VALIDATION = 20


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where everything lies.
        gate: the verdict per metric, or None when no task was judged.
        strict: whether "cannot tell" fails.
        interpolation: where something got worse: which weights between before and after did not, in one line.
        certificate: where the text tower did not train: what is certain of the pictures judged, in one line.
    """

    folder: Path
    gate: Gate | None
    strict: bool = False
    interpolation: str = ""
    certificate: str = ""

    @classmethod
    def read(cls, folder: Path) -> Run:
        """A finished run, from what its folder holds."""
        record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        strict = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["evaluation"]["strict"]
        gate = Gate.from_dict(record["gate"]) if record["gate"] is not None else None
        told = [(record.get(key) or {}).get("sentence", "") for key in ("interpolation", "certificate")]
        return cls(folder, gate, bool(strict), *told)

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
    data: str | Pairs | Images,
    method: str | Method | None = None,
    *,
    out: str | Path,
    target: str | VisionEncoder | None = None,
    resume: bool = False,
    recipe: str | Path | None = None,
    silent: bool = False,
    **training: Any,
) -> Run:
    """Refines a model on image-text pairs and says, with intervals, what changed.

    Args:
        model: a spec for `modalign.load`, or a loaded model (a copy of it is trained).
        data: a spec for `modalign.pairs`, or pairs; `images:SPEC` or images for a method that reads no captions.
        method: a name, a method object, or None for the recipe's (CLIP-Refine where it names none).
        out: the run folder; must be new or empty unless `resume`.
        target: a spec for `modalign.load_vision`, or a loaded vision encoder, for a method that aligns with one.
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
    if isinstance(data, Images):
        data = mixing.without_captions(data)
    source = data if isinstance(data, str) else data.spec
    aligned = target.spec if isinstance(target, VisionEncoder) else target
    settings: dict[str, Any] = {"model": spec, "data__train": source, "target": aligned, **training}
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
        target=target if isinstance(target, VisionEncoder) else None,
        reporter=Reporter(silent),
    )


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    model: DualEncoder | None = None,
    pairs: Pairs | None = None,
    target: VisionEncoder | None = None,
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
        target: the vision encoder where it is loaded already.
        reporter: what the user sees.
        memo: image-trunk outputs shared with other runs on the same frozen trunk.
        cache: where frozen features are kept, for runs that share them; None = in the run folder.
    """
    for key, value, example in (
        ("model", recipe.model, "--model hf:./my-clip"),
        ("data.train", recipe.data.train, "--data ./pairs"),
    ):
        if not value and not (key == "data.train" and recipe.model.startswith("vectors:")):
            raise RecipeError(f"the recipe names no {key}; add it, for example {example}")
    place = device(recipe.device)
    processes = distributed.start(place)
    reporter = reporter if processes.is_main and reporter is not None else Reporter(silent=not processes.is_main)
    if recipe.data.batch_size < processes.world:
        raise RecipeError(f"data.batch_size = {recipe.data.batch_size} is smaller than the {processes.world} processes")
    job = _Job(
        recipe,
        out,
        place,
        processes,
        reporter,
        memo or TrunkMemo(),
        cache or (Path(recipe.store) if recipe.store else out / "cache"),
    )
    if run_folder.look(out, recipe, resume):
        reporter.say(f"{out} is finished already; nothing to do")
        return Run.read(out)
    with tf32(recipe.precision == "tf32"):
        job.load(model, pairs, target)
        try:
            job.claim(resume)
            job.train()
            return job.conclude()
        finally:
            if job.trackers is not None:
                job.trackers.close()
            if job.lock is not None:  # else an error that a notebook keeps would keep the folder locked
                job.lock.close()


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
        self.cost = Cost()
        self.loop: Loop | None = None
        self.lock: IO[str] | None = None
        self.trackers: Trackers | None = None
        if processes.is_main:
            self.trackers = Trackers(recipe.trackers, out, recipe.model_dump(mode="json"), reporter.say)

    def claim(self, resume: bool) -> None:
        """Writes what decides the run; on a resume checks that model and data are still those it began with."""
        told = environment.describe(self.recipe.seed, str(self.place), self.processes.world)
        told["identity"] = {
            "model": self.model.fingerprint,
            "data": self.pairs.fingerprint,
            "pictures": files_identity(self.pairs.paths),
        }
        for aligned in (self.target, self.vectors):
            if aligned is not None:
                told["identity"]["target"] = aligned.fingerprint
        if self.held is not None:
            told["identity"]["held-out pictures"] = files_identity(self.held.paths)
        if self.suite is not None:
            told["identity"]["evaluation data"] = self.suite.identity
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

    def load(self, model: DualEncoder | None, pairs: Pairs | None, target: VisionEncoder | None) -> None:
        """Model, method, pairs, target; everything a user can get wrong fails here, before anything is computed."""
        recipe = self.recipe
        with torch.random.fork_rng(devices=[]):  # a method's own parameters start alike on every process
            torch.manual_seed(recipe.seed)
            self.method = methods.from_config(recipe.method)
        self.precision = autocast(recipe.precision, self.place)
        self.model = model.frozen_copy() if model is not None else models.load(recipe.model)
        self.model.to(self.place)
        self.vectors: StoredVectors | None = None
        if isinstance(self.model, VectorModel):
            self.vectors = bare.read_target(self.model, self.method, recipe)
            pairs = self.model.vectors.as_pairs() if self.model.vectors is not None else None
        if pairs is None:
            pairs = mixing.read(
                recipe.data.train,
                image_column=recipe.data.image_column,
                text_column=recipe.data.text_column,
                max_bad=recipe.data.max_bad,
            )
        if not pairs.captions and ("text" in self.method.towers or "frozen_text" in self.method.needs):
            raise RecipeError(
                f"method {self.method.name!r} reads captions and {pairs.spec} has none; name pairs, or use a method "
                "that trains the image tower alone, such as kuea"
            )
        self.held: Pairs | None = None
        if recipe.data.validation > 0:
            pairs, self.held = pairs.split_off(recipe.data.validation, recipe.seed)
        pairs = pairs.subset(fraction=recipe.data.fraction, limit=recipe.data.limit, seed=recipe.seed)
        self.pairs = pairs
        self.scope = choose(self.model, self.method, recipe, self.processes.world)
        self.target: VisionEncoder | None = None
        if recipe.target and self.vectors is None:
            found = target if target is not None else models.load_vision(recipe.target)
            self.target = seen_by(found, self.model, recipe.target_preprocess).to(self.place)
        size = recipe.data.batch_size
        order.steps_per_epoch(len(pairs), size, recipe.data.drop_last)
        if pairs.weights:  # the first batch tells whether every source has its share
            order.mixed_batch(recipe.seed, 0, pairs.members, pairs.weights, size, recipe.data.drop_last)
        if not recipe.data.drop_last and 0 < len(pairs) % size < self.processes.world:
            raise RecipeError(
                f"the last batch of {len(pairs) % size} rows is smaller than the {self.processes.world} processes; "
                "set data.drop_last=true or another data.batch_size"
            )
        tasks, templates = recipe.evaluation.tasks, recipe.evaluation.templates
        limit = recipe.data.max_bad
        self.suite = suite.prepare(tasks, templates=templates, max_bad=limit) if tasks else None
        self.between = Between(self.scope.changing)

    def _judge_validation(self, held: TrainingSet | None) -> None:
        """Without a task in the recipe: retrieval on the held-out rows, or their drift where they have no captions."""
        if held is None or not held.captions or len(held.pairs) < SMALLEST_VALIDATION:
            rows = f"{len(held.pairs)} validation rows (20 are needed)" if held is not None else "no validation split"
            if held is not None and not held.captions:
                rows = "validation rows without captions"
            self.reporter.say(
                f"warning: no --eval task and {rows}, so nothing will be judged before and after; "
                "add --eval retrieval:SPEC or set a larger data.validation, such as --set data.validation=0.1"
            )
        if held is None or len(held.pairs) < SMALLEST_VALIDATION:
            return
        if self.processes.is_main:
            listed = run_folder.write_validation(self.out, held.pairs)
            self.suite = suite.prepare([f"retrieval:{listed}" if held.captions else f"drift:images:{listed}"])

    def train(self) -> None:
        """Stores the frozen signals, judges the initial model and trains."""
        recipe, reporter, cost = self.recipe, self.reporter, self.cost
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
        if self.suite is None and self.vectors is None:
            self._judge_validation(held)
        if self.suite is not None:
            fixed = "text" not in self.scope.parameters
            aligned = self.target is not None and self.method.towers != {"text"}
            self.moved = Moved(self.suite, self.out / "evaluation", recipe.model, text_fixed=fixed, aligned=aligned)
        self.before: Results | None = None
        with cost.timed("evaluation"):
            if self.processes.is_main:
                self.before = self._judge("before")
                if self.before is not None and self.before.tasks:
                    check_tolerances(self.before, recipe.evaluation.tolerance)
            self.processes.barrier()
        if self.method.needs_fit:
            named = {"image": "frozen_image", "text": "frozen_text", "target": "target"}
            self.method.fit({named[name]: rows[:] for name, rows in data.features.items()})
        for prepared in (data, held):
            for tower, count in prepared.passes.items() if prepared is not None else ():
                cost.forward[tower] += count
        if not self.method.towers:  # fitted, not trained
            return
        self.loop = Loop(
            self.model,
            self.method,
            recipe,
            self.scope,
            data,
            held,
            self.out,
            self.processes,
            reporter,
            cost,
            self.trackers,
            self.target,
        )
        spent = sum(cost.seconds.values())
        if self.loop.restore():
            reporter.say(f"resuming after step {self.loop.step} of {self.loop.steps}")
        self.began -= sum(cost.seconds.values()) - spent  # what an earlier part of the run took
        self.loop.run()

    def _prepare(self, pairs: Pairs, plan: Plan) -> TrainingSet:
        if self.vectors is not None and isinstance(self.model, VectorModel):
            return bare.prepare(self.model, self.vectors, pairs)
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
            self.target,
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
                if found.model["fingerprint"] == self.model.fingerprint and self.moved.recall():
                    return found
        encoded = self._encode(name)
        self.moved.keep(name, encoded)
        results = self._score(encoded)
        results.drift = self.moved.drift()
        if results.features is not None:
            run_folder.write_features(folder, name, results.features)
        kept.parent.mkdir(exist_ok=True)
        results.save(kept)
        return results

    def _encode(self, name: str) -> Encoded:
        assert self.suite is not None
        settings = self.recipe.evaluation
        with tf32(False), self.reporter.progress(f"evaluating {name}", len(self.suite.paths), "pictures") as update:
            encoded = encode(
                self.model,
                self.suite,
                batch_size=settings.batch_size,
                workers=self.recipe.data.workers,
                max_bad=self.recipe.data.max_bad,
                memo=self._shared_memo,
                progress=lambda done, _: update(done),
            )
        return self._replaced(encoded) if name == "after" and not self.method.towers else encoded

    def _score(self, encoded: Encoded) -> Results:
        assert self.suite is not None
        settings, seed = self.recipe.evaluation, self.recipe.seed
        return self.suite.score(
            encoded,
            model={"spec": self.recipe.model, "fingerprint": self.model.fingerprint},
            environment=environment.describe(seed, str(self.place), self.processes.world),
            resamples=settings.resamples,
            seed=seed,
        )

    def _replaced(self, encoded: Encoded) -> Encoded:
        """What a method without a tower puts in place of the image features."""
        stood_in = self.method.stand_in(self._target_features(encoded.kept))
        assert stood_in is not None
        return replace(encoded, image=stood_in)

    def _target_features(self, pictures: Tensor) -> Tensor:
        """What the target says of some of the suite's pictures, by number, through the run's store."""
        assert self.suite is not None
        assert self.target is not None
        wanted = self.suite.of(pictures)
        embedder = Embedder(
            self.cache,
            batch_size=self.recipe.evaluation.batch_size,
            workers=self.recipe.data.workers,
            reporter=self.reporter,
        )
        return embedder.images(self.target, wanted.paths, wanted.wheres).rows[:]

    def conclude(self) -> Run:
        """Saves the model, judges it, compares, writes the report."""
        gate: Gate | None = None
        if self.processes.is_main:
            with self.cost.timed("other"):
                if self.method.towers:
                    self.model.save(self.out / "model")
                else:
                    run_folder.write_stand_in(self.out, self.method.module())
                if self.scope.adapters is not None:
                    self.scope.adapters.write(self.out / "adapter")
            with self.cost.timed("evaluation"):
                after = self._judge("after")
                interpolation = None
                moved = self.moved.record(self._target_features, self.method.kernels) if after is not None else {}
                if self.before is not None and after is not None and after.tasks:
                    settings = self.recipe.evaluation
                    gate = judge(
                        self.before, after, settings.tolerance, resamples=settings.resamples, seed=self.recipe.seed
                    )
                    if gate.worst == "worse" and self.loop is not None:
                        interpolation = self._interpolate()
                    if self.trackers is not None:
                        self.trackers.conclude(gate.to_numbers(), self.loop.steps if self.loop is not None else 0)
            record = {
                "gap": self._gap(),
                "before": self.before.to_dict() if self.before is not None else None,
                "after": after.to_dict() if after is not None else None,
                "gate": gate.to_dict() if gate is not None else None,
                "interpolation": interpolation,
                **moved,
            }
            write_atomically(self.out / "evaluation.json", json.dumps(record))
            frozen = sum(p.numel() for p in self.model.module.parameters() if not p.requires_grad)
            loop = self.loop
            trained = [*loop.trained.values(), *loop.method_parameters.values()] if loop is not None else []
            elapsed = time.perf_counter() - self.began
            self.cost.spend("other", max(0.0, elapsed - sum(self.cost.seconds.values())))
            cost = self.cost.report(sum(p.numel() for p in trained), frozen)
            write_atomically(self.out / "cost.json", json.dumps(cost, indent=1))
            page.write(self.out)
        self.processes.barrier()
        return Run.read(self.out)

    def _gap(self) -> dict[str, Any] | None:
        """The gap before and after on the same pairs, with paired intervals of each change."""
        pairs = [run_folder.read_first_pairs(self.out / "features", name) for name in ("before", "after")]
        if pairs[0] is None or pairs[1] is None or len(pairs[0][0]) < 3:
            return None
        told = gap.compare(pairs[0], pairs[1], seed=self.recipe.seed)
        if told.collapse is not None:
            self.reporter.say(f"warning: {told.collapse}")
        return told.to_dict()

    def _interpolate(self) -> dict[str, Any]:
        """Names the weights between before and after that are not worse; leaves the model as it was."""
        self.reporter.say("something got worse: looking for weights between before and after that are not")
        with self.between.kept() as refined:
            picked = pick_interpolation(
                lambda weight: self._at(weight, refined),
                self.recipe.evaluation.tolerance,
                before=self.before,
                seed=self.recipe.seed,
                resamples=self.recipe.evaluation.resamples,
            )
        return picked.to_dict()

    def _at(self, weight: float, refined: Mapping[str, Tensor]) -> Results:
        self.between.put(refined, weight)
        return self._score(self._encode(f"weight {weight:g}"))
