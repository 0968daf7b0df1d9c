"""The whole of a sweep: every run, the weights between, the front, gap against quality, the pick, and their page.

A sweep's folder:

    sweep.json                      what is swept, and how many runs go at once
    cache/                          what the frozen networks said, shared by all runs
    <values>,seed=<n>/              one run folder a point; between/ holds the weights between before and after
    training-free/                  the transforms that train nothing, judged on the same tasks
    picked/                         the picked model, where it lies between before and after
    results.json, results.csv, pareto.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalign import recipe as recipes
from modalign.console import Reporter
from modalign.errors import DataError, InterruptedRunError
from modalign.recipe import Recipe
from modalign.recipe.file import dump
from modalign.sweeping import picking, quality, training_free
from modalign.sweeping.checkpoints import Checkpoint
from modalign.sweeping.front import Setting, Trend, settings, trends
from modalign.sweeping.interpolating import check_weights, curve, model_at
from modalign.sweeping.job import Job
from modalign.sweeping.picking import Picked
from modalign.sweeping.plan import Axis, check_axes, points_of
from modalign.sweeping.quality import Quality

PAGE = "pareto.html"
TREND_MEASURES = ("raw_gap", "centroid_gap", "distribution_gap")
EXIT_FAILED = 1


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        folder: where everything lies.
        axes: what was swept.
        checkpoints: of every finished run, at every weight; weight 0 is the model before.
        transforms: the training-free transforms, judged on the same tasks.
        settings: the checkpoints by setting and weight, over seeds.
        baselines: the transforms likewise.
        trends: the swept numbers against the gap.
        quality: gap against quality, or None where there are too few checkpoints.
        picked: the outcome of `pick`, or None where nothing was asked.
        model: the folder of the picked model, or the spec of the model before.
        failed: point → why it failed, in one line.
        remarks: what could not be told, in one line each.
    """

    folder: Path
    axes: Sequence[Axis]
    checkpoints: Sequence[Checkpoint]
    transforms: Sequence[Checkpoint] = ()
    settings: Sequence[Setting] = ()
    baselines: Sequence[Setting] = ()
    trends: Sequence[Trend] = ()
    quality: Quality | None = None
    picked: Picked | None = None
    model: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def exit_code(self) -> int:
        """0; 1 where a point failed or nothing met the conditions of the pick."""
        unmet = self.picked is not None and self.picked.checkpoint is None
        return EXIT_FAILED if self.failed or unmet else 0

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / PAGE


def sweep(
    over: Mapping[str, Iterable[Any]] | Sequence[Axis] = (),
    *,
    out: str | Path,
    model: str | None = None,
    data: str | None = None,
    method: str | None = None,
    target: str | None = None,
    recipe: str | Path | None = None,
    overrides: Iterable[str] = (),
    seeds: Sequence[int] | None = None,
    interpolate: Sequence[float] = (),
    pick: str | None = None,
    transforms: bool = True,
    jobs: int | None = None,
    resume: bool = False,
    silent: bool = False,
    **training: Any,
) -> Sweep:
    """Runs a recipe at every combination of swept values and seeds, and draws what the gap costs.

    Args:
        over: dotted recipe key → its values, such as {"method.alpha_target": [0, 0.05, 0.5]}.
        out: the sweep's folder; must be new or empty unless `resume`. Each point is a run folder in it.
        model: a spec for `modalign.load`.
        data: a spec for `modalign.pairs`.
        method: a name of `modalign.methods.METHODS`.
        target: a spec for `modalign.load_vision`.
        recipe: a recipe file, a run folder or the name of a shipped recipe, under everything given here.
        overrides: texts "a.b=c" over it.
        seeds: of the runs; None = the recipe's own.
        interpolate: weights between before (0) and after (1) to judge of every run.
        pick: a rule such as "max retrieval.r1 where zero_shot.acc1 >= before - 0.5"; chooses on a validation half and
            reports on the other (docs/sweep.md).
        transforms: judge the training-free transforms as well.
        jobs: runs at once; None = what cores and free memory allow.
        resume: go on with the sweep in `out`.
        silent: no progress on standard error.
        training: recipe keys as in `modalign.refine`; `evaluation__tasks` must hold a retrieval task, on whose pairs
            the gap is measured.

    Returns:
        The sweep; `sweep.exit_code` is 1 where a point failed.

    Raises:
        ModalignError: any of its kinds, in one line that says what to do.
        InterruptedRunError: stopped; what is done is kept.
    """
    axes = [Axis(key, tuple(values)) for key, values in over.items()] if isinstance(over, Mapping) else list(over)
    check_axes(axes)
    given = {"model": model, "data__train": data, "target": target, "method__name": method, **training}

    def recipe_of(values: Mapping[str, Any], seed: int | None) -> Recipe:
        named = {"method__name": values["method.name"]} if "method.name" in values else {}
        over = [f"{key}={dump(value, flow=True)}" for key, value in values.items() if key != "method.name"]
        seeded = {} if seed is None else {"seed": seed}
        return recipes.load(recipe, [*overrides, *over], **{**given, **named, **seeded})

    first = recipe_of({axis.key: axis.values[0] for axis in axes}, None)
    points = points_of(axes, list(seeds) if seeds is not None else [first.seed], recipe_of)
    weights = tuple(check_weights(interpolate)) if interpolate else ()
    rule = picking.parse(pick) if pick else None
    job = Job(Path(out), axes, points, weights, rule, jobs, Reporter(silent))
    with job.claimed(resume):
        try:
            job.run()
            return _conclude(job, transforms)
        except (KeyboardInterrupt, InterruptedRunError):
            done = sum(job.is_finished(point) for point in points)
            raise InterruptedRunError(
                f"stopped with {done} of {len(points)} runs finished; go on with the same command and --resume"
            ) from None


def _conclude(job: Job, transforms: bool) -> Sweep:
    """Everything that is told of the finished runs, and the page."""
    from modalign.report import pareto

    found: list[Checkpoint] = []
    for point in job.points:
        if job.is_finished(point):
            found += curve(job.out / point.name, job.weights, values=point.values)
    free = _transforms(job, found) if transforms else []
    numeric = [axis.key for axis in job.axes if axis.numeric and len(axis.values) > 1]
    remarks: list[str] = []
    try:
        fits = quality.regress(found)
    except DataError as error:
        fits = None
        remarks.append(f"gap against quality: {error}")
    picked, model = _picked(job, found)
    concluded = Sweep(
        folder=job.out,
        axes=job.axes,
        checkpoints=found,
        transforms=free,
        settings=settings(found),
        baselines=settings(free),
        trends=trends(found, numeric, TREND_MEASURES),
        quality=fits,
        picked=picked,
        model=model,
        failed=job.failed,
        remarks=remarks,
    )
    pareto.write(concluded)
    return concluded


def _transforms(job: Job, found: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The training-free transforms of every initial model."""
    judged: dict[str, list[Checkpoint]] = {}
    by_name = {point.name: point for point in job.points}
    for start in found:
        recipe = by_name[start.run.name].recipe
        if recipe.model not in judged and not recipe.model.startswith("vectors:"):
            base, memo = job.shared.base(recipe.model), job.shared.memo(recipe.model)
            judged[recipe.model] = training_free.judged(job.out, start, recipe, base, memo, job.reporter)
    return [checkpoint for checkpoints in judged.values() for checkpoint in checkpoints]


def _picked(job: Job, found: Sequence[Checkpoint]) -> tuple[Picked | None, str]:
    """The pick, and the folder of its model; a model between before and after is written."""
    if job.rule is None:
        return None, ""
    # The model before is one candidate, and only where its weight was asked for.
    starts = [c for c in found if c.weight == 0][: 1 if 0.0 in job.weights else 0]
    picked = picking.pick([*starts, *(c for c in found if c.weight > 0)], job.rule)
    chosen = picked.checkpoint
    if chosen is None or chosen.weight == 0:
        return picked, chosen.before.model["spec"] if chosen is not None else ""
    if chosen.weight == 1:
        return picked, str(chosen.run)
    recipe = next(point.recipe for point in job.points if point.name == chosen.run.name)
    model_at(chosen.run, chosen.weight, job.shared.base(recipe.model)).save(job.out / "picked")
    return picked, str(job.out / "picked")
