"""The training-free transforms on the sweep's axes: fitted on the training pairs of the initial model, then judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modalign.console import Reporter
from modalign.data import mixing
from modalign.embedder import Embedder
from modalign.encoders import Tower
from modalign.errors import ModalignError
from modalign.evaluation.suite import parse_task
from modalign.evaluation.tasks import evaluate
from modalign.features import TrunkMemo
from modalign.gap import transforms
from modalign.models import DualEncoder
from modalign.recipe import Recipe
from modalign.run_folder import read_first_pairs
from modalign.sweeping import checkpoints
from modalign.sweeping.checkpoints import Checkpoint
from modalign.sweeping.front import TRAINING_FREE
from modalign.sweeping.interpolating import first_pairs
from modalign.training.precision import device, tf32

FOLDER = "training-free"
MAPS = tuple(kind for kind, made in transforms.KINDS.items() if made is not transforms.NNN)
"""The transforms that map features; NNN corrects scores."""


def judged(
    out: Path, start: Checkpoint, recipe: Recipe, base: DualEncoder, memo: TrunkMemo, reporter: Reporter
) -> list[Checkpoint]:
    """Fits each transform on the training pairs and judges it as the runs were; what was judged before is read.

    Args:
        out: the sweep's folder.
        start: the model before, as one of the runs judged it.
        recipe: of that run.
        base: the model before.
        memo: its image-trunk outputs.
        reporter: told of a transform that does not fit these features.
    """
    fitted: tuple[Any, Any] | None = None
    found = []
    base = base.to(device(recipe.device))
    for name in MAPS:
        identity = [start.before.model["fingerprint"], name]
        kept = out / FOLDER / f"{identity[0][:12]}-{name}.json"
        known = checkpoints.read(kept, identity)
        if known is None:
            try:
                fitted = fitted or _training_features(out, recipe, base, reporter)
                if fitted is None:
                    return []
                known = _judge(transforms.of_kind(name).fit(*fitted), start, recipe, base, memo, reporter)
            except ModalignError as error:
                reporter.say(f"training-free {name} is left out: {error}")
                continue
            kept.parent.mkdir(exist_ok=True)
            checkpoints.write(kept, identity, known, known.results)
        assert known.results is not None
        found.append(
            Checkpoint(
                run=Path(name),
                values={TRAINING_FREE: name},
                seed=start.seed,
                weight=1.0,
                before=start.before,
                results=known.results,
                ratios=known.ratios,
                changes=known.changes,
                half_gaps=known.half_gaps,
            )
        )
    return found


def _training_features(out: Path, recipe: Recipe, base: DualEncoder, reporter: Reporter) -> tuple[Any, Any] | None:
    """M×d image and text features, raw, one row a caption of the training pairs; None where there are no captions."""
    data = recipe.data
    pairs = mixing.read(data.train, image_column=data.image_column, text_column=data.text_column, max_bad=data.max_bad)
    if not pairs.captions:
        reporter.say("the training data has no captions, so no training-free transform can be fitted on it")
        return None
    if data.validation > 0:
        pairs, _ = pairs.split_off(data.validation, recipe.seed)
    pairs = pairs.subset(fraction=data.fraction, limit=data.limit, seed=recipe.seed)
    store = Path(recipe.store) if recipe.store else out / "cache"
    size = recipe.evaluation.batch_size
    with tf32(False):
        embedder = Embedder(store, batch_size=size, workers=data.workers, max_bad=data.max_bad, reporter=reporter)
        seen = embedder.images(Tower(base), pairs.paths, pairs.wheres)
        said = embedder.texts(Tower(base, "text"), pairs.captions)
    place = {int(position): row for row, position in enumerate(seen.kept.tolist())}
    owners = pairs.caption_rows.tolist()
    rows = [i for i, owner in enumerate(owners) if owner in place]
    return seen.rows[:][[place[owners[i]] for i in rows]], said.rows[:][rows]


def _judge(
    transform: transforms.Transform,
    start: Checkpoint,
    recipe: Recipe,
    base: DualEncoder,
    memo: TrunkMemo,
    reporter: Reporter,
) -> checkpoints.Found:
    settings = recipe.evaluation
    tasks = [task for task in settings.tasks if parse_task(task).kind != "drift"]
    passes: dict[str, Any] = {
        **settings.reading,
        "batch_size": settings.batch_size,
        "workers": recipe.data.workers,
        "max_bad": recipe.data.max_bad,
        "resamples": settings.resamples,
        "seed": recipe.seed,
        "memo": memo,
    }
    with tf32(False), reporter.counted(f"training-free {transform.kind}", "pictures") as update:
        results = evaluate(transforms.applied(base, transform), tasks, progress=update, **passes)
    assert results.features is not None
    pairs = first_pairs(results.features)
    found = checkpoints.judge(
        start.before, results, _before_pairs(start), pairs, resamples=settings.resamples, seed=recipe.seed
    )
    return checkpoints.Found(found.ratios, found.changes, found.half_gaps, results)


def _before_pairs(start: Checkpoint) -> checkpoints.Pairs:
    pairs = read_first_pairs(start.run / "features", "before")
    assert pairs is not None
    return pairs
