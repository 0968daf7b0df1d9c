"""The gap of more pairs than memory holds: one pass over blocks, O(d²) numbers kept, cost linear in N.

    block ─▶ float64, unit ─▶ its mean, centred scatter, third and fourth moments ─▶ merged (Chan) ─▶ GapReport

Each block is centred on its own mean before anything is squared, so that an offset however large costs no digits; two
sets of moments merge exactly, in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.gap.features import FeatureError, Features, checked, enough
from modalign.gap.gaussian_pair import GaussianPair, Shrinkage
from modalign.gap.measuring import measure
from modalign.gap.report import READINGS, GapReport, Measure
from modalign.gap.resampling import compared_pairs, of_moments
from modalign.gap.spectrum import Spectrum

BLOCK = 4096
"""Pairs squared at once."""

Array = NDArray[np.float64]


class StreamingMoments:
    """Accumulates pairs block by block and reports every measure made of their moments.

    Args:
        normalize: scale every row to unit length first.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    def __init__(self, *, normalize: bool = True) -> None:
        self.normalize = normalize
        self._moments: _Moments | None = None

    @property
    def pairs(self) -> int:
        """N so far."""
        return 0 if self._moments is None else self._moments.count

    def update(self, image: Features, text: Features) -> StreamingMoments:
        """Adds pairs.

        Args:
            image: n×d; row i belongs to row i of `text`. May be memory-mapped: it is read in blocks.
            text: n×d.

        Raises:
            FeatureError: as `modalign.gap.measure`, and where d differs from what came before; rows are numbered from
                the first pair of all.
        """
        if len(image) != len(text):
            raise FeatureError(f"{len(image):,} image and {len(text):,} text features: pass one row a pair")
        for start in range(0, len(image), BLOCK):
            rows = slice(start, start + BLOCK)
            block = checked(image[rows], text[rows], self.normalize, first_row=self.pairs)
            self._add(_Moments.of(*block))
        return self

    def merge(self, other: StreamingMoments) -> StreamingMoments:
        """Adds what another stream saw.

        Raises:
            FeatureError: the other has another d, or normalised otherwise.
        """
        if other.normalize != self.normalize:
            raise FeatureError("one stream normalises and the other does not: give both the same normalize")
        if other._moments is not None:
            self._add(other._moments)
        return self

    def report(
        self,
        sample: tuple[Features, Features] | None = None,
        *,
        seed: int = 0,
        resamples: int = 1_000,
        shrinkage: Shrinkage = None,
    ) -> GapReport:
        """Every measure: those made of moments from all pairs, without intervals; the others from a sample.

        Args:
            sample: image and text features of some of the pairs, for what compares all with all; without one these
                measures are not available.
            seed: as in `modalign.gap.measure`.
            resamples: as in `modalign.gap.measure`, of the sample.
            shrinkage: as in `modalign.gap.measure`.

        Raises:
            FeatureError: fewer than 3 pairs, or as `modalign.gap.measure` for the sample.
        """
        enough(self.pairs, shrinkage)
        assert self._moments is not None
        gaussians = self._moments.gaussians(shrinkage)
        facts: dict[str, Any] = {"compared": 0, "resamples": 0}
        measures: dict[str, Measure] = dict.fromkeys(READINGS, Measure(math.nan))
        unavailable = dict.fromkeys(READINGS, "not made of moments; pass a sample")
        if sample is not None:
            of_sample = measure(*sample, normalize=self.normalize, seed=seed, resamples=resamples)
            measures, unavailable = of_sample.measures, dict(of_sample.unavailable)
            facts = {name: getattr(of_sample, name) for name in ("compared", "resamples", "knn_mixing_null")}
        streamed = self._moments.measures(gaussians)
        measures |= {name: Measure(value) for name, value in streamed.items()}
        unavailable = {name: why for name, why in unavailable.items() if name not in streamed}
        whole: dict[str, Any] = measures
        return GapReport(
            **whole,
            **facts,
            pairs=self.pairs,
            dim=self._moments.dim,
            normalized=self.normalize,
            seed=seed,
            shrinkage=gaussians.intensities,
            streamed=True,
            unavailable=unavailable | gaussians.unavailable,
        )

    def _add(self, moments: _Moments) -> None:
        if self._moments is not None and self._moments.dim != moments.dim:
            raise FeatureError(
                f"features of {moments.dim} dimensions after {self._moments.dim}: stream one model's features"
            )
        self._moments = moments if self._moments is None else self._moments.merged(moments)


def measure_streamed(
    image: Features,
    text: Features,
    *,
    normalize: bool = True,
    seed: int = 0,
    resamples: int = 1_000,
    shrinkage: Shrinkage = None,
) -> GapReport:
    """`measure` for arrays that need not fit into memory: moments of all pairs in one pass, the rest on a subsample.

    Args:
        image: N×d, for example from `numpy.load(…, mmap_mode="r")`; row i belongs to row i of `text`.
        text: N×d.
        normalize: scale every row to unit length first.
        seed: as in `measure`; the subsample of 5,000 is drawn by row number here.
        resamples: of the subsample; what is made of moments has no interval.
        shrinkage: as in `measure`.

    Returns:
        A `GapReport` whose protocol says what was streamed.

    Raises:
        FeatureError: as `measure`.
    """
    stream = StreamingMoments(normalize=normalize).update(image, text)
    rows = compared_pairs(stream.pairs, seed).numpy()
    sample = image[rows], text[rows]
    return stream.report(sample, seed=seed, resamples=resamples, shrinkage=shrinkage)


@dataclass(frozen=True)
class _Moments:
    """Moments of pairs z = (x, t) about their mean, everything a sum over pairs.

    Attributes:
        count: N.
        mean: 2d.
        scatter: Σ zzᵀ, 2d×2d.
        residual: Σ‖x − t‖² of centred rows: the difference of two large traces would lose its digits.
        third: Σ‖x‖²x and Σ‖t‖²t, 2d; the fourth moment needs it to move to another mean.
        fourth: Σ‖x‖⁴ and Σ‖t‖⁴.
    """

    count: int
    mean: Array
    scatter: Array
    residual: float
    third: Array
    fourth: Array

    @property
    def dim(self) -> int:
        return len(self.mean) // 2

    @classmethod
    def of(cls, image: Tensor, text: Tensor) -> _Moments:
        rows = torch.cat([image, text], dim=1)
        mean = rows.mean(0)
        rows -= mean
        halves = rows.chunk(2, dim=1)
        squares = [torch.linalg.vector_norm(half, dim=1).square() for half in halves]
        centred = rows.numpy()
        return cls(
            len(rows),
            mean.numpy(),
            centred.T @ centred,  # NumPy knows a product with itself, at half the work
            float(torch.linalg.vector_norm(halves[0] - halves[1]).square()),
            torch.cat([size @ half for size, half in zip(squares, halves, strict=True)]).numpy(),
            np.array([float(size @ size) for size in squares]),
        )

    def merged(self, other: _Moments) -> _Moments:
        count = self.count + other.count
        step = (other.mean - self.mean) / count
        about = [each._about(e) for each, e in ((self, -step * other.count), (other, step * self.count))]
        mean = self.mean + step * other.count
        scatter, residual, third, fourth = (a + b for a, b in zip(*about, strict=True))
        return _Moments(count, mean, scatter, residual, third, fourth)

    def _about(self, shift: Array) -> tuple[Array, float, Array, Array]:
        """The sums over z + e: about a mean that lies e before this one."""
        n, dim = self.count, self.dim
        scatter = self.scatter + n * np.outer(shift, shift)
        apart = shift[:dim] - shift[dim:]
        third, fourth = self.third.copy(), self.fourth.copy()
        for side, half in enumerate((slice(dim), slice(dim, None))):
            e, own = shift[half], self.scatter[half, half]
            square, trace, turned = e @ e, np.trace(own), own @ e
            # Σ‖z+e‖⁴ and Σ‖z+e‖²(z+e), with Σz = 0.
            fourth[side] += 4 * e @ turned + n * square**2 + 4 * e @ self.third[half] + 2 * square * trace
            third[half] += e * trace + 2 * turned + n * square * e
        return scatter, self.residual + n * float(apart @ apart), third, fourth

    def gaussians(self, shrinkage: Shrinkage) -> GaussianPair:
        covariances = [torch.from_numpy(self.scatter[half, half] / self.count) for half in self._halves()]
        fourth = torch.from_numpy(self.fourth / self.count)
        offset = torch.from_numpy(self.mean[: self.dim] - self.mean[self.dim :])
        return GaussianPair.of(offset, (covariances[0], covariances[1]), (fourth[0], fourth[1]), self.count, shrinkage)

    def measures(self, gaussians: GaussianPair) -> dict[str, float]:
        """The measures that moments decide."""
        first, second = self._halves()
        covariance = torch.from_numpy(self.scatter / self.count)
        centroid, residual = gaussians.offset.square().sum(), gaussians.offset.new_tensor(self.residual / self.count)
        found = of_moments(
            self.count, self.dim, centroid + residual, centroid, residual, covariance.trace(), gaussians.bures_squared()
        )
        found["symmetric_kl"] = gaussians.symmetric_kl()
        for side, half in (("image", first), ("text", second)):
            own = covariance[half, half]
            mean_square = own.trace() + float(self.mean[half] @ self.mean[half])
            spread = Spectrum.of_covariance(own, mean_square, self.count)
            found[f"effective_rank_{side}"] = spread.effective_rank()
            found[f"participation_ratio_{side}"] = spread.participation_ratio()
        sizes = covariance[first, first].square().sum().sqrt() * covariance[second, second].square().sum().sqrt()
        cross = covariance[first, second].square().sum()
        found["cka"] = cross / sizes if float(sizes) > 0 else sizes
        return {name: float(value) for name, value in found.items()}

    def _halves(self) -> tuple[slice, slice]:
        return slice(self.dim), slice(self.dim, 2 * self.dim)
