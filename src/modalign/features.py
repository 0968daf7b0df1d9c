"""One pass of a frozen network over pictures or captions: each distinct input once, in a fixed order.

What a frozen network says about an input never changes, so everything that needs its features (the teacher's
signals, the stored inputs of a projection, every evaluation task) comes through here rather than calling a tower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from modalign.data.feature_store import Rows
from modalign.data.images import BadRow, BadRows, image_batches
from modalign.data.pictures import Picture
from modalign.models.dual_encoder import DualEncoder

Part = Literal["features", "trunk"]
Progress = Callable[[int, int], None]
"""Called with (done, total) after every batch."""


@dataclass
class ImagePass:
    """What one pass over pictures gave.

    Attributes:
        features: K×w float32 (or the model's wider type) on CPU, raw; row k belongs to input position `kept[k]`.
        kept: K positions that could be read, ascending.
        bad: the others, each with file, row and reason.
        waited: seconds spent waiting for decoded pictures.
    """

    features: Tensor
    kept: Tensor
    bad: list[BadRow]
    waited: float = 0.0


@dataclass
class TrunkMemo:
    """Image-trunk outputs by picture, shared by models that differ only in their projection.

    Valid for as long as the trunk is frozen and the files stay: one run, or one evaluation of several heads.
    """

    rows: dict[Picture, Tensor] = field(default_factory=dict)


@torch.no_grad()
def image_features(
    model: DualEncoder,
    paths: Sequence[Picture],
    wheres: Sequence[str],
    *,
    part: Part = "features",
    batch_size: int = 256,
    workers: int = 0,
    max_bad: int = 0,
    progress: Progress | None = None,
    memo: TrunkMemo | None = None,
    precision: AbstractContextManager[object] | None = None,
) -> ImagePass:
    """Decodes every picture once and runs the image tower, or its trunk, over it.

    Args:
        model: the network, on its device.
        paths: N pictures; repeated ones are decoded and encoded once.
        wheres: N texts that say where each path was named ("metadata.csv:17"), for messages.
        part: "features" = the raw d-dimensional features; "trunk" = the projection's input.
        batch_size: pictures in one forward pass.
        workers: decoding processes beside this one.
        max_bad: how many unreadable pictures may be left out before the pass stops.
        progress: told (done, total) distinct pictures.
        memo: trunk outputs known already; completed by this pass.
        precision: an autocast context for the towers.

    Raises:
        DataError: more than `max_bad` pictures cannot be read; names the first ten.
    """
    distinct: dict[Picture, int] = {}
    for position, path in enumerate(paths):
        distinct.setdefault(path, position)
    known = {} if memo is None else memo.rows
    wanted = [path for path in distinct if path not in known]
    hidden: dict[Picture, Tensor] = dict(known) if memo is not None else {}
    bad = BadRows(max_bad, len(distinct))
    trunk_only = part == "trunk" or memo is not None
    batches = torch.arange(len(wanted)).split(batch_size)
    done, waited, began = 0, 0.0, time.perf_counter()
    context = precision if precision is not None else nullcontext()
    for batch in image_batches(
        wanted, [wheres[distinct[p]] for p in wanted], model.preprocess, batches, workers=workers
    ):
        waited += time.perf_counter() - began
        bad.add(batch.bad)
        bad.check()
        if len(batch.index) and len(bad) <= max_bad:
            with context:
                pixels = batch.pixels.to(model.device, model.dtype)
                output = model.image_trunk(pixels) if trunk_only else model.encode_image(pixels)
            for position, row_features in zip(batch.index.tolist(), _wide(output).cpu(), strict=True):
                hidden[wanted[position]] = row_features
        done += len(batch.index) + len(batch.bad)
        if progress is not None:
            progress(done, len(wanted))
        began = time.perf_counter()
    bad.finish()
    if memo is not None:
        memo.rows = hidden
    kept = [position for position, path in enumerate(paths) if path in hidden]
    stacked = torch.stack([hidden[paths[position]] for position in kept]) if kept else torch.empty(0, model.embed_dim)
    if trunk_only and part == "features":
        stacked = project(model, "image", stacked, batch_size=batch_size, precision=precision)
    return ImagePass(stacked, torch.tensor(kept, dtype=torch.long), list(bad.rows), waited)


def readable(
    paths: Sequence[Picture],
    wheres: Sequence[str],
    *,
    workers: int = 0,
    max_bad: int = 0,
    progress: Progress | None = None,
) -> tuple[Tensor, list[BadRow]]:
    """Decodes every picture once and keeps nothing: which positions can be read, and what is wrong with the others.

    Args:
        paths: N pictures.
        wheres: N texts that say where each was named.
        workers: decoding processes beside this one.
        max_bad: how many may be unreadable.
        progress: told (done, total) distinct pictures.

    Raises:
        DataError: more than `max_bad` pictures cannot be read; names the first ten.
    """
    first: dict[Picture, int] = {}
    for position, path in enumerate(paths):
        first.setdefault(path, position)
    distinct = list(first)
    bad, good = BadRows(max_bad, len(distinct)), set[Picture]()
    batches = torch.arange(len(distinct)).split(256)
    for batch in image_batches(distinct, [wheres[first[p]] for p in distinct], _nothing, batches, workers=workers):
        bad.add(batch.bad)
        bad.check()
        good.update(distinct[i] for i in batch.index.tolist())
        if progress is not None:
            progress(len(good) + len(bad), len(distinct))
    bad.finish()
    kept = [position for position, path in enumerate(paths) if path in good]
    return torch.tensor(kept, dtype=torch.long), list(bad.rows)


def _nothing(image: object) -> Tensor:
    return torch.empty(0)


@torch.no_grad()
def text_features(
    model: DualEncoder,
    captions: Sequence[str],
    *,
    part: Part = "features",
    batch_size: int = 256,
    progress: Progress | None = None,
    precision: AbstractContextManager[object] | None = None,
) -> Tensor:
    """Embeds every distinct caption once, shortest first, so that each batch is as narrow as it can be.

    Args:
        model: the network, on its device.
        captions: M strings; repeated ones are encoded once.
        part: "features" = the raw d-dimensional features; "trunk" = the projection's input.
        batch_size: captions in one forward pass.
        progress: told (done, total) distinct captions.
        precision: an autocast context for the towers.

    Returns:
        M×w, raw, float32 (or the model's wider type), on CPU, in the order of `captions`.
    """
    distinct = list(dict.fromkeys(captions))
    if not distinct:
        return torch.empty(0, model.embed_dim)
    tokens = torch.cat([model.tokenize(distinct[i : i + 4096]) for i in range(0, len(distinct), 4096)])
    order = torch.argsort(model.token_lengths(tokens), stable=True)
    rows: list[Tensor] = []
    done = 0
    context = precision if precision is not None else nullcontext()
    for index in order.split(batch_size):
        batch = tokens[index].to(model.device)
        with context:
            output = model.text_trunk(batch) if part == "trunk" else model.encode_text(batch)
        rows.append(_wide(output).cpu())
        done += len(index)
        if progress is not None:
            progress(done, len(distinct))
    features = torch.cat(rows)[torch.argsort(order)]
    place = {caption: i for i, caption in enumerate(distinct)}
    return features[torch.tensor([place[caption] for caption in captions])]


@torch.no_grad()
def project(
    model: DualEncoder,
    tower: Literal["image", "text"],
    hidden: Tensor | Rows,
    *,
    batch_size: int = 256,
    precision: AbstractContextManager[object] | None = None,
) -> Tensor:
    """Runs only a tower's projection over stored trunk outputs.

    Args:
        model: the network.
        tower: "image" or "text".
        hidden: N×w trunk outputs, in memory or stored.
        batch_size: rows in one forward pass.
        precision: an autocast context.

    Returns:
        N×d, raw, on CPU.
    """
    run = model.project_image if tower == "image" else model.project_text
    with precision if precision is not None else nullcontext():
        parts = [_wide(run(rows.to(model.device))).cpu() for rows in hidden.split(batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, model.embed_dim)


def _wide(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
