"""What the loop reads: the training pairs, what frozen networks said about them, and the order of batches.

`prepare` runs every frozen network once per picture and caption before the first step; with `frozen: live` the
initial model is asked again at every step instead. Either way the loop sees the same `Batch`es.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from modalign import features
from modalign.console import Reporter
from modalign.data import order
from modalign.data.bad_rows import BadRow, refuse_above
from modalign.data.images import image_batches
from modalign.data.sources import Pairs
from modalign.environment import versions
from modalign.errors import DataError
from modalign.models.dual_encoder import DualEncoder, TowerName
from modalign.recipe import Recipe
from modalign.training.distributed import Processes


@dataclass(frozen=True)
class Plan:
    """Which stored signals a run reads; decided by the recipe's scope and the method's needs.

    Attributes:
        trunk: towers whose trunk outputs are the inputs of a training projection.
        features: towers whose initial features are read as a signal or in place of a tower that does not train.
    """

    trunk: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()


@dataclass
class TrainingSet:
    """The readable training pairs and the stored signals.

    Attributes:
        pairs: the rows that can be read.
        trunk: tower → stored trunk outputs, N×w for pictures, M×w for all captions.
        features: tower → stored initial features, N×d for pictures, M×d for all captions.
        bad: rows that were left out.
        passes: images and captions sent through a frozen network to get here.
        waited: seconds spent waiting for decoded pictures.
    """

    pairs: Pairs
    trunk: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    passes: dict[str, int] = field(default_factory=lambda: {"image": 0, "text": 0})
    waited: float = 0.0

    def __post_init__(self) -> None:
        self.image_ids = self.pairs.image_ids
        self.caption_ids = self.pairs.caption_ids
        self.captions = self.pairs.captions
        self.first = self.pairs.first_caption
        self.counts = torch.bincount(self.pairs.caption_rows, minlength=len(self.pairs))


@dataclass(frozen=True)
class Batch:
    """One global batch.

    Attributes:
        step: counted from 0 over the whole run.
        epoch: counted from 0.
        rows: B row numbers of the training set.
        captions: B positions of the drawn captions among all captions.
        own: the share of this process.
        pixels: own b×3×H×W, or None when no tower reads pictures.
    """

    step: int
    epoch: int
    rows: Tensor
    captions: Tensor
    own: slice
    pixels: Tensor | None


def prepare(
    model: DualEncoder,
    pairs: Pairs,
    recipe: Recipe,
    plan: Plan,
    cache: Path | None,
    processes: Processes,
    reporter: Reporter,
    precision: AbstractContextManager[object] | None = None,
    memo: features.TrunkMemo | None = None,
) -> TrainingSet:
    """Checks that every picture decodes and computes the stored signals, each network once per input.

    Args:
        model: the initial model.
        pairs: the training rows.
        recipe: limits, workers, precision.
        plan: which signals are stored.
        cache: where the signals are kept for `--resume`; None = nowhere.
        processes: the passes are shared out among them.
        reporter: shows progress.
        precision: the towers' autocast context.
        memo: given the image-trunk outputs, for evaluations of the same pictures; never read here, so that a row's
            bits do not depend on what was evaluated before.

    Raises:
        DataError: more than `data.max_bad` pictures cannot be read; names the first ten.
    """
    precision = precision or nullcontext()
    file = cache / f"frozen-{_key(model, pairs, recipe, plan)}.safetensors" if cache is not None else None
    result = _read(file, pairs) if file is not None and file.is_file() else None
    if result is not None:
        reporter.say(f"frozen features: read from {file}")
    else:
        result = _compute(model, pairs, recipe, plan, processes, reporter, precision, file)
    refuse_above(recipe.data.max_bad, [str(row) for row in result.bad], len(pairs), "images cannot be read")
    for tower in plan.trunk & plan.features:
        result.features[tower] = features.project(model, _tower(tower), result.trunk[tower], precision=precision)
    if memo is not None and "image" in result.trunk:
        memo.rows.update(zip(result.pairs.paths, result.trunk["image"], strict=True))
    return result


def _compute(
    model: DualEncoder,
    pairs: Pairs,
    recipe: Recipe,
    plan: Plan,
    processes: Processes,
    reporter: Reporter,
    precision: AbstractContextManager[object],
    file: Path | None,
) -> TrainingSet:
    share = order.own_share(torch.arange(len(pairs)), processes.rank, processes.world).tolist()
    rows, kept, bad, waited = _image_pass(model, pairs, share, recipe, plan, reporter, precision)
    found = processes.gather_objects((kept, bad))
    all_kept = torch.tensor([row for rows, _ in found for row in rows], dtype=torch.long)
    all_bad = [row for _, rows in found for row in rows]
    refuse_above(recipe.data.max_bad, [str(row) for row in all_bad], len(pairs), "images cannot be read")
    result = TrainingSet(pairs if len(all_kept) == len(pairs) else pairs.take(all_kept), bad=all_bad, waited=waited)
    if rows is not None:
        stored = result.trunk if "image" in plan.trunk else result.features
        stored["image"] = _gather_cpu(processes, rows)
        result.passes["image"] = len(set(result.pairs.paths))
    if "text" in plan.trunk | plan.features:
        stored = result.trunk if "text" in plan.trunk else result.features
        stored["text"] = _gather_cpu(processes, _text_pass(model, result, recipe, plan, processes, reporter, precision))
        result.passes["text"] = len(set(result.captions))
    if file is not None and processes.is_main:
        _write(file, result, all_kept)
    processes.barrier()
    return result


def batches(
    data: TrainingSet, model: DualEncoder, recipe: Recipe, processes: Processes, start: int, stop: int, *, pixels: bool
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
    """
    size, drop_last, rows = recipe.data.batch_size, recipe.data.drop_last, len(data.pairs)
    per_epoch = order.steps_per_epoch(rows, size, drop_last)

    def plan(step: int) -> Batch:
        index = order.global_batch(recipe.seed, step, rows, size, drop_last)
        epoch = step // per_epoch
        drawn = order.drawn_caption(recipe.seed, epoch, index, data.counts[index])
        share = order.own_share(torch.arange(len(index)), processes.rank, processes.world)
        own = slice(int(share[0]), int(share[-1]) + 1) if len(share) else slice(0, 0)
        return Batch(step, epoch, index, data.first[index] + drawn, own, None)

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

    for images in image_batches(paths, wheres, model.preprocess, own_rows(), workers=recipe.data.workers):
        if images.bad:
            row = images.bad[0]
            raise DataError(
                f"{row.path} ({row.where}): {row.reason}; it could be read before training began, "
                "so it was changed or removed since: restore it and use --resume"
            )
        batch = ahead.pop(0)
        yield Batch(batch.step, batch.epoch, batch.rows, batch.captions, batch.own, images.pixels)


def _image_pass(
    model: DualEncoder,
    pairs: Pairs,
    share: list[int],
    recipe: Recipe,
    plan: Plan,
    reporter: Reporter,
    precision: AbstractContextManager[object],
) -> tuple[Tensor | None, list[int], list[BadRow], float]:
    """Own rows through the image tower, or only decoded where nothing of it is stored; the last is the time waited."""
    begin = time.perf_counter()
    paths = [pairs[i].path for i in share]
    wheres = [pairs[i].where for i in share]
    workers, limit = recipe.data.workers, recipe.data.max_bad
    if "image" not in plan.trunk | plan.features:
        with reporter.progress("checking the pictures", len(set(paths)), "pictures") as update:
            kept, bad = features.readable(
                paths, wheres, workers=workers, max_bad=limit, progress=lambda done, _: update(done)
            )
        return None, [share[i] for i in kept.tolist()], bad, time.perf_counter() - begin
    part: features.Part = "trunk" if "image" in plan.trunk else "features"
    with reporter.progress(f"pictures through the frozen {_network(part)}", len(set(paths)), "pictures") as update:
        seen = features.image_features(
            model,
            paths,
            wheres,
            part=part,
            batch_size=recipe.evaluation.batch_size,
            workers=workers,
            max_bad=limit,
            progress=lambda done, _: update(done),
            precision=precision,
        )
    return seen.features, [share[i] for i in seen.kept.tolist()], seen.bad, seen.waited


def _text_pass(
    model: DualEncoder,
    data: TrainingSet,
    recipe: Recipe,
    plan: Plan,
    processes: Processes,
    reporter: Reporter,
    precision: AbstractContextManager[object],
) -> Tensor:
    """Own captions through the text tower."""
    share = order.own_share(torch.arange(len(data.captions)), processes.rank, processes.world)
    own = [data.captions[i] for i in share.tolist()]
    part: features.Part = "trunk" if "text" in plan.trunk else "features"
    with reporter.progress(f"captions through the frozen {_network(part)}", len(set(own)), "captions") as update:
        return features.text_features(
            model,
            own,
            part=part,
            batch_size=recipe.evaluation.batch_size,
            progress=lambda done, _: update(done),
            precision=precision,
        )


def _network(part: features.Part) -> str:
    return "trunk" if part == "trunk" else "model"


def _tower(name: str) -> TowerName:
    return "image" if name == "image" else "text"


def _gather_cpu(processes: Processes, rows: Tensor) -> Tensor:
    parts = [part for part in processes.gather_objects(rows) if len(part)]  # an empty share does not know its width
    return torch.cat(parts) if parts else rows


def files_identity(pairs: Pairs) -> str:
    """A hash of every picture's path, size and modification time: changes when a file does, without reading any."""
    digest = hashlib.sha256()
    for path in dict.fromkeys(pairs.paths):
        stat = path.stat() if path.exists() else None
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode() if stat is not None else b"missing\n")
    return digest.hexdigest()


def _key(model: DualEncoder, pairs: Pairs, recipe: Recipe, plan: Plan) -> str:
    """Changes with weights, transform, tokenizer, captions, files (path, size, mtime), versions and precision.

    Where only trunk outputs are stored, the projections' weights do not count: other heads may share them.
    """
    projected_only = not plan.features - plan.trunk and bool(plan.trunk)
    facts = [
        model.trunk_fingerprint(map(_tower, sorted(plan.trunk))) if projected_only else model.fingerprint,
        pairs.fingerprint,
        files_identity(pairs),
        sorted(plan.trunk),
        sorted(plan.features - plan.trunk),  # the others follow from the trunk's outputs
        recipe.precision,
        recipe.evaluation.batch_size,
        str(model.dtype),
        versions(),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def _write(file: Path, result: TrainingSet, kept: Tensor) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"kept": kept}
    tensors |= {f"trunk.{tower}": rows for tower, rows in result.trunk.items()}
    tensors |= {f"features.{tower}": rows for tower, rows in result.features.items()}
    bad = json.dumps([[row.where, str(row.path), row.reason] for row in result.bad])
    temporary = file.with_name(f".{file.name}.tmp")
    save_file({name: rows.contiguous() for name, rows in tensors.items()}, temporary, metadata={"bad": bad})
    temporary.replace(file)


def _read(file: Path, pairs: Pairs) -> TrainingSet | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
            bad = [BadRow(where, Path(path), reason) for where, path, reason in json.loads(stored.metadata()["bad"])]
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    kept = tensors.pop("kept")
    result = TrainingSet(pairs if len(kept) == len(pairs) else pairs.take(kept), bad=bad)
    for name, rows in tensors.items():
        kind, tower = name.split(".")
        getattr(result, kind)[tower] = rows
    return result
