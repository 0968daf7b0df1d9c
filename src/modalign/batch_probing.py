"""`modalign probe-batch`: how large a batch of pictures a kernel objective needs, before any training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modalign.data.records import Images
from modalign.embedder import Embedder
from modalign.encoders import Tower
from modalign.errors import DataError, RecipeError
from modalign.models import DualEncoder
from modalign.models.vision import VisionEncoder
from modalign.objectives.gradient_error import SIZES, GradientError, gradient_error
from modalign.objectives.kernel_fit import fit_kernel
from modalign.objectives.kernels import PolynomialKernel, scale_of
from modalign.training.precision import tf32

GOOD = 0.1
MOST = 16_384
"""Pictures that stand for all where there are more: the true gradient costs as many kernel entries as their square."""
FITTED_ON = 512


@dataclass(frozen=True)
class BatchProbe:
    """What a batch of each size is worth.

    Attributes:
        found: the errors.
        model: the student's spec.
        target: the target's spec.
        data: what the pictures were asked for by.
        available: how many pictures there are.
        left_out: how many of those drawn could not be read.
        sizes_left_out: sizes above the number of pictures.
        scale: r = c/γ of the student's polynomial kernel, fitted.
        seed: of the drawn pictures and batches.
    """

    found: GradientError
    model: str
    target: str
    data: str
    available: int
    left_out: int
    sizes_left_out: tuple[int, ...]
    scale: float
    seed: int

    @property
    def sentence(self) -> str:
        """The smallest size that is good enough, or what the law says of one that would be."""
        told = [size for size, error in zip(self.found.sizes, self.found.errors, strict=True) if error < GOOD]
        pictures = f"that of all {self.found.rows:,} pictures"
        if told:
            return f"N = {told[0]:,} is the smallest size tried whose gradient is within {100 * GOOD:g} % of {pictures}"
        needed = math.ceil((self.found.constant / GOOD) ** 2)
        return (
            f"no size tried has a gradient within {100 * GOOD:g} % of {pictures}; by the 1/√N law that takes about "
            f"N = {float(f'{needed:.2g}'):,.0f}"
        )

    @property
    def remarks(self) -> list[str]:
        """What was left out, and what the errors are errors of."""
        told = [
            f"polynomial kernels of degree 3, the student's fitted (r = c/γ = {self.scale:.4g}); {self.found.trials} "
            f"batches of each size; error and law, C·√((1 − N/M)/N), are relative to all M = {self.found.rows:,}"
        ]
        if self.available - self.left_out > self.found.rows:
            told.append(f"{self.found.rows:,} of {self.available:,} pictures were drawn to stand for all")
        if self.left_out:
            told.append(f"left out because they cannot be read: {self.left_out:,} pictures")
        if self.sizes_left_out:
            sizes = ", ".join(f"{size:,}" for size in self.sizes_left_out)
            told.append(f"left out, for they are not below the {self.found.rows:,} pictures: N = {sizes}")
        return told

    def rows(self) -> list[list[str]]:
        """The errors as a table of text, in per cent; the header first."""
        table = [["N", "gradient error", "± over batches", "1/√N law"]]
        columns = (self.found.sizes, self.found.errors, self.found.spreads, self.found.law)
        for size, *shares in zip(*columns, strict=True):
            table.append([f"{size:,}", *(f"{100 * share:.2f} %" for share in shares)])
        return table

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        return {
            "format": 1,
            "model": self.model,
            "target": self.target,
            "data": {"spec": self.data, "pictures": self.available, "left_out": self.left_out},
            **self.found.to_dict(),
            "sizes_left_out": list(self.sizes_left_out),
            "kernel": {"degree": 3, "student_scale": self.scale},
            "seed": self.seed,
            "sentence": self.sentence,
        }


def probe_batch(
    model: DualEncoder,
    target: VisionEncoder,
    images: Images,
    *,
    sizes: Sequence[int] = SIZES,
    trials: int = 8,
    seed: int = 0,
    embedder: Embedder,
) -> BatchProbe:
    """Compares the kernel gradient of random batches with that of all pictures, from one pass of each network.

    Args:
        model: the initial student.
        target: the network it is to be aligned with.
        images: the training pictures; of more than 16,384, so many are drawn.
        sizes: batch sizes N; those not below the number of pictures are left out.
        trials: batches of each size.
        seed: of the drawn pictures and batches.
        embedder: where features are read from and kept.

    Returns:
        A `BatchProbe`.

    Raises:
        RecipeError: a size below 2.
        DataError: too few pictures, or features to which no kernel can be fitted.

    Source: KUEA, arXiv 2506.02557, Proposition 3.1; what is compared is told in `gradient_error`.
    """
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < 2:
        raise RecipeError(f"sizes {', '.join(map(str, wanted)) or 'are none'}: a batch needs 2 pictures or more")
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:MOST].sort().values.tolist()
    _tried(wanted, len(drawn), images.spec)  # before anything is embedded
    paths, wheres = ([values[position] for position in drawn] for values in (images.paths, images.wheres))
    with tf32(False):
        seen = embedder.images(Tower(model), paths, wheres)
        kept = seen.kept.tolist()
        student = seen.rows[:]
        other = embedder.images(target, [paths[i] for i in kept], [wheres[i] for i in kept]).rows[:]
    tried = _tried(wanted, len(student), images.spec)
    some = torch.arange(min(FITTED_ON, len(student))) * len(student) // min(FITTED_ON, len(student))
    try:
        kernel = fit_kernel(student[some], other[some])
        found = gradient_error(
            student, other, kernel, PolynomialKernel(1 / other.shape[1], 1.0), tried, trials=trials, seed=seed
        )
    except ValueError as problem:
        raise DataError(f"{images.spec}: {problem}") from None
    above = tuple(size for size in wanted if size >= len(student))
    return BatchProbe(
        found,
        model.spec,
        target.spec,
        images.spec,
        len(images),
        len(seen.bad),
        above,
        scale_of(kernel),
        seed,
    )


def _tried(sizes: Sequence[int], pictures: int, spec: str) -> list[int]:
    """The sizes below the number of pictures."""
    found = [size for size in sizes if size < pictures]
    if not found:
        raise DataError(
            f"{spec} has {pictures:,} picture(s) that can be read and the smallest size is {sizes[0]:,}; "
            "pass more pictures or smaller --sizes"
        )
    return found
