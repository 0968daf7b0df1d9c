"""What the loop reads: the training pairs, what frozen networks said about them, and the order of batches.

`prepare` runs every frozen network once per picture and caption before the first step; with `frozen: live` the
initial model is asked again at every step instead. Either way the loop sees the same `Batch`es.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from modalign import features
from modalign.console import Reporter
from modalign.data import order
from modalign.data.bad_rows import BadRow
from modalign.data.feature_store import Rows
from modalign.data.images import image_batches
from modalign.data.sources import Pairs
from modalign.embedder import Embedder, Stored
from modalign.encoders import Decoded, Encoder, Tower
from modalign.errors import DataError
from modalign.models.dual_encoder import TOWERS, DualEncoder, TowerName
from modalign.models.vision import VisionEncoder
from modalign.recipe import Recipe
from modalign.training.distributed import Processes

IN_MEMORY = 2**30
"""Bytes of stored features that a process holds; more are read from the store as steps ask for them."""


@dataclass(frozen=True)
class Plan:
    """Which stored signals a run reads; decided by the recipe's scope and the method's needs.

    Attributes:
        trunk: towers whose trunk outputs are the inputs of a training projection.
        features: towers whose initial features are read as a signal or in place of a tower that does not train, and
            "target" where its features are read.
    """

    trunk: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()


@dataclass
class TrainingSet:
    """The readable training pairs and the stored signals.

    Attributes:
        pairs: the rows that can be read.
        trunk: tower → stored trunk outputs, N×w for pictures, M×w for all captions.
        features: tower → stored initial features, N×d for pictures, M×d for all captions; "target" → N×d_t.
        bad: rows that were left out.
        passes: images and captions sent through a frozen network to get here, and images through the target.
        waited: seconds spent waiting for decoded pictures.
    """

    pairs: Pairs
    trunk: dict[str, Tensor | Rows] = field(default_factory=dict)
    features: dict[str, Tensor | Rows] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    passes: dict[str, int] = field(default_factory=lambda: {"image": 0, "text": 0, "target": 0})
    waited: float = 0.0

    def __post_init__(self) -> None:
        self.image_ids = self.pairs.image_ids
        self.caption_ids = self.pairs.caption_ids
        self.captions = self.pairs.captions
        self.first = self.pairs.first_caption
        self.counts = torch.bincount(self.pairs.caption_rows, minlength=len(self.pairs))

    def captions_of(self, rows: Tensor, drawn: Tensor | int = 0) -> Tensor:
        """Positions of these rows' n-th captions among all captions; none where the data is pictures alone."""
        return self.first[rows] + drawn if self.captions else torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Batch:
    """One global batch.

    Attributes:
        step: counted from 0 over the whole run.
        epoch: counted from 0.
        rows: B row numbers of the training set.
        captions: B positions of the drawn captions among all captions; none where the data is pictures alone.
        own: the share of this process.
        pixels: own b×3×H×W, or None when no tower reads pictures.
        target_pixels: the same pictures as the target sees them, where it is asked at every step.
    """

    step: int
    epoch: int
    rows: Tensor
    captions: Tensor
    own: slice
    pixels: Tensor | None
    target_pixels: Tensor | None = None


def prepare(
    model: DualEncoder,
    pairs: Pairs,
    recipe: Recipe,
    plan: Plan,
    cache: Path,
    processes: Processes,
    reporter: Reporter,
    precision: AbstractContextManager[object] | None = None,
    memo: features.TrunkMemo | None = None,
    target: VisionEncoder | None = None,
) -> TrainingSet:
    """Checks that every picture decodes and computes the stored signals, each network once per input.

    Args:
        model: the initial model.
        pairs: the training rows.
        recipe: limits, workers, precision.
        plan: which signals are stored.
        cache: where the signals are stored, for `--resume` and for other runs.
        processes: the passes are shared out among them.
        reporter: shows progress.
        precision: the towers' autocast context.
        memo: given the image-trunk outputs, for evaluations of the same pictures; never read here, so that a row's
            bits do not depend on what was evaluated before.
        target: the vision encoder whose features a plan may name.

    Raises:
        DataError: more than `data.max_bad` pictures cannot be read; names the first ten.
        ModelError: the network's features are not always the same, so that they cannot be stored.
        OutputError: the store cannot be written.
    """
    embedder = Embedder(
        cache,
        precision=recipe.precision,
        context=precision or nullcontext(),
        batch_size=recipe.evaluation.batch_size,
        workers=recipe.data.workers,
        max_bad=recipe.data.max_bad,
        processes=processes,
        reporter=reporter,
    )

    def tower(name: TowerName) -> Tower:
        return Tower(model, name, "trunk" if name in plan.trunk else "features")

    stored = plan.trunk | plan.features
    bad: list[BadRow] = []
    waited = 0.0

    def look(encoder: Encoder, pairs: Pairs) -> tuple[Stored, Pairs]:
        nonlocal waited
        seen = embedder.images(encoder, pairs.paths, pairs.wheres)
        waited += seen.waited
        bad.extend(seen.bad)
        return seen, pairs if len(seen.kept) == len(pairs) else pairs.take(seen.kept)

    by_target: Stored | None = None
    if "target" in plan.features:
        assert target is not None
        by_target, pairs = look(target, pairs)
    seen, kept = look(tower("image") if "image" in stored else Decoded(), pairs)
    if by_target is not None and target is not None and len(kept) < len(pairs):
        computed = by_target.passes
        by_target = replace(embedder.images(target, kept.paths, kept.wheres), passes=computed)  # all of it is stored
    result = TrainingSet(kept, bad=bad, waited=waited)

    def keep(name: str, title: str, found: Stored) -> None:
        (result.trunk if name in plan.trunk else result.features)[name] = _held(found.rows)
        result.passes[name] = found.passes.computed
        reporter.say(f"frozen features of the {title}: {found.passes}")

    if by_target is not None:
        keep("target", "target", by_target)
    if "image" in stored:
        keep("image", "pictures", seen)
    if "text" in stored:
        keep("text", "captions", embedder.texts(tower("text"), result.captions))
    for name in TOWERS:
        if name in plan.trunk & plan.features:
            result.features[name] = features.project(model, name, result.trunk[name], precision=precision)
    if memo is not None and "image" in result.trunk:
        memo.rows.update(zip(result.pairs.paths, result.trunk["image"][:], strict=True))
    return result


def _held(rows: Rows) -> Tensor | Rows:
    """In memory where they are few: every step reads them."""
    return rows[:] if rows.nbytes <= IN_MEMORY else rows


def batches(
    data: TrainingSet,
    model: DualEncoder,
    recipe: Recipe,
    processes: Processes,
    start: int,
    stop: int,
    *,
    pixels: bool,
    target: VisionEncoder | None = None,
) -> Iterator[Batch]:
    """The global batches of steps start … stop − 1: a pure function of (seed, step) and the rows.

    Args:
        data: the training set.
        model: gives the image transform.
        recipe: seed, batch size, workers.
        processes: this process decodes only its own share.
        start: first step.
        stop: one past the last.
        pixels: whether any tower reads pictures.
        target: given where it is asked at every step: its transform makes a second view of each picture.
    """
    size, drop_last, rows = recipe.data.batch_size, recipe.data.drop_last, len(data.pairs)
    per_epoch = order.steps_per_epoch(rows, size, drop_last)
    weights = data.pairs.weights
    members = data.pairs.members if weights else []

    def plan(step: int) -> Batch:
        epoch = step // per_epoch
        turn: int | Tensor = epoch
        if weights:
            index, turn = order.mixed_batch(recipe.seed, step, members, weights, size, drop_last)
        else:
            index = order.global_batch(recipe.seed, step, rows, size, drop_last)
        drawn = order.drawn_caption(recipe.seed, turn, index, data.counts[index]) if data.captions else 0
        share = order.own_share(torch.arange(len(index)), processes.rank, processes.world)
        own = slice(int(share[0]), int(share[-1]) + 1) if len(share) else slice(0, 0)
        return Batch(step, epoch, index, data.captions_of(index, drawn), own, None)

    planned = map(plan, range(start, stop))
    if not pixels:
        yield from planned
        return
    paths = data.pairs.paths
    wheres = [row.where for row in data.pairs.rows]
    ahead: list[Batch] = []

    def own_rows() -> Iterator[Tensor]:
        for batch in planned:
            ahead.append(batch)
            yield batch.rows[batch.own]

    other = target.preprocess if target is not None else None
    for images in image_batches(paths, wheres, model.preprocess, own_rows(), other=other, workers=recipe.data.workers):
        if images.bad:
            row = images.bad[0]
            raise DataError(
                f"{row.path} ({row.where}): {row.reason}; it could be read before training began, "
                "so it was changed or removed since: restore it and use --resume"
            )
        batch = ahead.pop(0)
        yield replace(batch, pixels=images.pixels, target_pixels=images.other)
