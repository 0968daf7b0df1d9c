"""Localisation probing: what the frozen patch tokens of a tower know about which class lies where.

    local    σ(W·ẑ_t + b)                              of each patch t: its classes
    global   σ(W·Σ_t a_t ẑ_t + b),  a = softmax(q·ẑ)    of the picture: its classes          q: one learned query

ẑ are the tokens, standardised by the training pictures. Both heads learn by binary cross-entropy over all classes;
what is told is the recall at probability ½, averaged over classes. Labels are multi-hot: every class that covers more
than a given share of the patch, as the model's own preprocessing shows it.

Source: local and global probing of Covert et al. 2025 (arXiv 2410.11087), as KUEA reports it. Known of it are
frozen tokens, per-patch and per-image multi-label heads, COCO, macro recall; heads, optimiser and threshold are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from modalign.errors import DataError
from modalign.evaluation.cross_modal import ratio_outcomes
from modalign.evaluation.panoptic import NOTHING

STEPS, BATCH, RATE, DECAY = 1_000, 32, 3e-3, 1e-4


@dataclass
class Window:
    """Where the pixels that a preprocessing makes come from: a straight map of rows and columns, found by trial.

    A picture whose red grows along x and green along y, with full blue, is preprocessed; a line fitted to what comes
    out tells the source of each column and row, and where there is no blue there is padding.

    Attributes:
        preprocess: a PIL picture → 3×H×W: resizing, cutting, padding and scaling of values.
    """

    preprocess: Callable[[Any], Tensor]
    _known: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)

    def places(self, width: int, height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source column of each output column and the source row of each output row; `NOTHING` for padding."""
        if (width, height) not in self._known:
            self._known[width, height] = self._found(width, height)
        return self._known[width, height]

    def _found(self, width: int, height: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        from PIL import Image

        ramp = np.zeros((height, width, 3), np.uint8)
        ramp[..., 0] = np.linspace(0, 255, width).round()[None, :]
        ramp[..., 1] = np.linspace(0, 255, height).round()[:, None]
        ramp[..., 2] = 255
        seen, black, white = (
            self.preprocess(picture).double().numpy()
            for picture in (
                Image.fromarray(ramp),
                Image.new("RGB", (width, height), "black"),
                Image.new("RGB", (width, height), "white"),
            )
        )
        low, high = (side[:, side.shape[1] // 2, side.shape[2] // 2, None, None] for side in (black, white))
        values = (seen - low) / (high - low)
        inside = values[2] > 0.99
        columns = _line(values[0], inside, width, axis=0)
        rows = _line(values[1], inside, height, axis=1)
        return columns, rows


def _line(values: NDArray[np.float64], inside: NDArray[np.bool_], length: int, axis: int) -> NDArray[np.int64]:
    """The source index of each output column (axis 0) or row (axis 1) along which `values` grow."""
    known = inside.any(axis=axis)
    if known.sum() < 2 or length < 2:
        return np.where(known, 0, NOTHING)
    total = np.where(inside, values, 0.0).sum(axis=axis)
    mean = total / np.maximum(inside.sum(axis=axis), 1)
    at = np.flatnonzero(known)
    slope, start = np.polyfit(at, mean[at] * (length - 1), 1)
    source = np.rint(np.arange(known.size) * slope + start).astype(np.int64)
    return np.where(known, source.clip(0, length - 1), NOTHING)


def patch_labels(
    classes: NDArray[np.int64], window: Window, grid: tuple[int, int], count: int, area: float = 0.0
) -> Tensor:
    """Which classes lie in which patch of a picture.

    Args:
        classes: H×W class numbers of the picture itself, `NOTHING` where none is known.
        window: of the model's preprocessing.
        grid: rows and columns of patches.
        count: C classes.
        area: a class counts where it covers more than this share of a patch.

    Returns:
        T×C booleans, patches row by row.
    """
    columns, rows = window.places(classes.shape[1], classes.shape[0])
    shown = np.full((rows.size, columns.size), NOTHING, np.int64)
    inside = np.ix_(rows != NOTHING, columns != NOTHING)
    shown[inside] = classes[np.ix_(rows[rows != NOTHING], columns[columns != NOTHING])]
    high, wide = rows.size // grid[0], columns.size // grid[1]
    patches = shown[: high * grid[0], : wide * grid[1]].reshape(grid[0], high, grid[1], wide).transpose(0, 2, 1, 3)
    flat = patches.reshape(grid[0] * grid[1], -1)
    if int(flat.max(initial=NOTHING)) >= count:
        raise DataError(f"a map holds class {int(flat.max())} of {count}: is it of another data set?")
    at = np.arange(len(flat))[:, None] * (count + 1) + np.where(flat == NOTHING, count, flat)
    counts = np.bincount(at.ravel(), minlength=len(flat) * (count + 1)).reshape(len(flat), count + 1)[:, :count]
    return torch.from_numpy(counts > area * flat.shape[1])


class Heads(nn.Module):
    """The two heads over standardised tokens."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, count: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.local, self.whole = nn.Linear(width, count), nn.Linear(width, count)
        self.query = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        for layer in (self.local, self.whole):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """B×T×w → logits B×T×C of patches and B×C of pictures."""
        z = (tokens.float() - self.mean) / self.std
        weights = (z @ self.query).softmax(dim=1)
        local: Tensor = self.local(z)
        whole: Tensor = self.whole((weights[..., None] * z).sum(dim=1))
        return local, whole


def train_heads(
    tokens: Tensor, labels: Tensor, *, steps: int = STEPS, seed: int = 0, device: torch.device | str = "cpu"
) -> Heads:
    """Fits both heads: AdamW on batches of pictures, the rate falling to 0 along a cosine. A function of its arguments.

    Args:
        tokens: N×T×w, raw; half precision will do.
        labels: N×T×C booleans.
        steps: batches of pictures.
        seed: of their order.
        device: where it runs.
    """
    wide = tokens.shape[2]
    chunks = [tokens[i : i + BATCH].float().flatten(0, 1).double() for i in range(0, len(tokens), BATCH)]
    patches = sum(len(chunk) for chunk in chunks)
    mean = torch.stack([chunk.sum(0) for chunk in chunks]).sum(0) / patches
    variance = torch.stack([(chunk - mean).square().sum(0) for chunk in chunks]).sum(0) / patches
    heads = Heads(wide, labels.shape[2], mean.float(), variance.sqrt().clamp(min=1e-6).float()).to(device)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in islice(_batches(len(tokens), seed), steps):
        local, whole = heads(tokens[batch].to(device))
        wanted = labels[batch].to(device)
        loss = F.binary_cross_entropy_with_logits(local, wanted.float())
        loss = loss + F.binary_cross_entropy_with_logits(whole, wanted.any(dim=1).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return heads.eval()


def _batches(count: int, seed: int) -> Iterator[Tensor]:
    """Without end: all pictures in one order, then in another."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).split(BATCH)


@dataclass(frozen=True)
class Recalls:
    """What was found, one entry a (picture, class) with the class in the picture.

    Attributes:
        pictures: M picture numbers.
        classes: M class numbers.
        hits: M: of the class's patches in the picture, how many were found (0 or 1 for whole pictures).
        wanted: M: how many there are.
    """

    pictures: NDArray[np.int64]
    classes: NDArray[np.int64]
    hits: NDArray[np.int64]
    wanted: NDArray[np.int64]

    @property
    def macro(self) -> float:
        """The mean over classes of Σ hits / Σ wanted."""
        return float(np.mean([self.hits[at].sum() / self.wanted[at].sum() for at in self._strata]))

    @property
    def outcomes(self) -> NDArray[np.float64]:
        """M numbers; within each class their mean is its recall Σ hits / Σ wanted, their spread that of the ratio."""
        values = np.zeros(len(self.hits))
        for at in self._strata:
            values[at] = ratio_outcomes(self.hits[at], self.wanted[at])
        return values

    @property
    def _strata(self) -> list[NDArray[np.int64]]:
        return [np.flatnonzero(self.classes == number) for number in np.unique(self.classes)]


@torch.no_grad()
def recalls(heads: Heads, tokens: Tensor, labels: Tensor) -> tuple[Recalls, Recalls]:
    """The recall of patches and of whole pictures at probability ½.

    Args:
        heads: trained.
        tokens: N×T×w, raw.
        labels: N×T×C booleans.
    """
    device = heads.query.device
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, len(tokens), BATCH):
        local, whole = heads(tokens[start : start + BATCH].to(device))
        wanted = labels[start : start + BATCH].to(device)
        sides = ((local > 0) & wanted).sum(1), wanted.sum(1)
        parts[0].append(torch.stack(sides).cpu())
        parts[1].append(torch.stack([(whole > 0) & wanted.any(1), wanted.any(1)]).long().cpu())
    found = []
    for side in parts:
        hits, wanted = torch.cat(side, dim=1).numpy()
        pictures, classes = wanted.nonzero()
        found.append(Recalls(pictures, classes, hits[pictures, classes], wanted[pictures, classes]))
    return found[0], found[1]
