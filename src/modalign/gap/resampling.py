"""All gap measures as functions of the pairs' weights, so that a bootstrap costs O(N) weights a resample.

A bootstrap of pairs draws how often each pair counts. What it does to a measure is found in one of three ways:

- exactly, from a matrix product: means, variances, the gaps made of them;
- to first order, by the measure's influence function, where the exact way would need a new eigendecomposition, kernel
  or sort each time: Gaussian measures, effective ranks, uniformities, MMD, transport, CKA;
- by re-weighting what happened to each pair, where a repeated pair would make nonsense (it would be its own nearest
  neighbour, or be seen in fitting): separability, neighbours. The fits and the neighbours stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from modalign.gap import (
    gaussian,
    mmd,
    moments,
    neighbours,
    pairwise,
    representations,
    separability,
    transport,
)
from modalign.gap.gaussian_pair import GaussianPair, Shrinkage
from modalign.gap.spectrum import Spectrum

PAIRS_COMPARED = 5_000
"""Beyond this many pairs, what compares all with all is taken on a seeded subsample of so many."""

Effect = tuple[Tensor, Tensor]
"""A measure and the first-order effect of each pair on it."""


class MomentMeasures:
    """The measures made of first and second moments, under any pair weights.

    Args:
        image: N×d, float64.
        text: N×d, float64.
        shrinkage: of the covariances, for the Gaussian measures.
    """

    def __init__(self, image: Tensor, text: Tensor, shrinkage: Shrinkage) -> None:
        self.count, self.dim = image.shape
        self.image, self.text = moments.centred(image), moments.centred(text)
        self.offset = image.mean(0) - text.mean(0)
        self.pair_squares = (image - text).square().sum(1)
        self.residual_squares = (self.image - self.text).square().sum(1)
        squares = self.image.square().sum(1), self.text.square().sum(1)
        self.squares = squares[0] + squares[1]
        self.gaussians = GaussianPair.of(
            self.offset,
            (gaussian.covariance(image), gaussian.covariance(text)),
            (squares[0].square().mean(), squares[1].square().mean()),
            self.count,
            shrinkage,
        )
        self.bures: Effect = self.gaussians.bures_squared(), self.gaussians.bures_influence(image, text)
        self.kl: Effect = self.gaussians.symmetric_kl(), self.gaussians.symmetric_kl_influence(image, text)
        # These are positive: they move by a factor, not by a sum.
        self.factors: dict[str, Effect] = {}
        for side, features in (("image", image), ("text", text)):
            spread = Spectrum.of(features)
            self.factors[f"effective_rank_{side}"] = spread.effective_rank(), spread.effective_rank_influence()
            ratio = spread.participation_ratio(), spread.participation_ratio_influence()
            self.factors[f"participation_ratio_{side}"] = ratio
        aligned = representations.centred_kernel_alignment(image, text)
        self.factors["cka"] = aligned, representations.centred_kernel_alignment_influence(image, text)

    def at(self, weights: Tensor) -> dict[str, Tensor]:
        """R×N weights whose rows sum to 1 → name → R values."""
        mean_image, mean_text = weights @ self.image, weights @ self.text
        raw = weights @ self.pair_squares
        centroid = (self.offset + mean_image - mean_text).square().sum(1)
        residual = (weights @ self.residual_squares - (mean_image - mean_text).square().sum(1)).clamp_min(0)
        variance = weights @ self.squares - mean_image.square().sum(1) - mean_text.square().sum(1)
        return {
            **of_moments(self.count, self.dim, raw, centroid, residual, variance, _moved(self.bures, weights)),
            "symmetric_kl": _moved(self.kl, weights),
            **{name: value * (weights @ influence).exp() for name, (value, influence) in self.factors.items()},
        }


class ComparedMeasures:
    """The measures that compare everything with everything, or fit, under any pair weights.

    Args:
        image: N×d, float64.
        text: N×d, float64.
        seed: of the probe's cut, the directions and the permutations.
    """

    def __init__(self, image: Tensor, text: Tensor, seed: int) -> None:
        kernel = pairwise.kernel_means(image, text)
        self.kernels = {
            "uniformity": kernel.joint,
            "uniformity_image": kernel.image,
            "uniformity_text": kernel.text,
            "uniformity_cross": (kernel.image_to_text + kernel.text_to_image) / 2,
        }
        self.outcomes = {"separability": separability.held_out_accuracy(image, text, seed=seed)}
        self.transport: Effect = transport.sliced_wasserstein_squared(image, text, seed=seed)
        self.mixing = neighbours.knn_mixing(image, text, seed=seed)
        self.occurrences: dict[str, Tensor] = {}
        self.unavailable: dict[str, str] = {}
        if len(image) > neighbours.NEIGHBOURS:
            self.outcomes["mutual_knn"] = representations.mutual_knn(image, text, neighbours.NEIGHBOURS)
            self.occurrences["hubness_image_to_text"] = neighbours.k_occurrence(image, text)
            self.occurrences["hubness_text_to_image"] = neighbours.k_occurrence(text, image)
        else:
            few = f"needs more than {neighbours.NEIGHBOURS} pairs"
            names = ("mutual_knn", "hubness_image_to_text", "hubness_text_to_image")
            self.unavailable.update(dict.fromkeys(names, few))
        if self.mixing is None:
            self.unavailable["knn_mixing"] = f"needs more than {neighbours.NEIGHBOURS} distinct rows of each modality"

    def at(self, weights: Tensor) -> dict[str, Tensor]:
        """R×N weights whose rows sum to 1 → name → R values."""
        found = {name: _moved((of.mean(), 2 * (of - of.mean())), weights) for name, of in self.kernels.items()}
        found["sliced_wasserstein"] = _moved(self.transport, weights).sqrt()
        found |= {name: weights @ of_pair for name, of_pair in self.outcomes.items()}
        found |= {name: neighbours.skewness(counts, weights) for name, counts in self.occurrences.items()}
        if self.mixing is not None:
            met = weights * self.mixing.weight
            found["knn_mixing"] = met @ self.mixing.of_pair / met.sum(1)
        return found | {name: weights.new_full((len(weights),), math.nan) for name in self.unavailable}


class PairMeasures:
    """The gap measures of N pairs under any pair weights.

    Args:
        image: N×d, float64.
        text: N×d, float64.
        seed: of the subsample and of what `ComparedMeasures` draws.
        shrinkage: of the covariances, for the Gaussian measures.
    """

    def __init__(self, image: Tensor, text: Tensor, seed: int, shrinkage: Shrinkage = None) -> None:
        self.count, self.dim = image.shape
        self.rows = compared_pairs(self.count, seed)
        self.moments = MomentMeasures(image, text, shrinkage)
        self.compared = ComparedMeasures(image[self.rows], text[self.rows], seed)
        few = len(self.rows) == self.count
        self.mmd = mmd.mmd_squared(image, text) if few else mmd.random_feature_mmd_squared(image, text, seed=seed)
        self.unavailable = self.moments.gaussians.unavailable | self.compared.unavailable

    def at(self, weights: Tensor) -> dict[str, Tensor]:
        """Every measure under each row of weights.

        Args:
            weights: R×N, rows sum to 1.

        Returns:
            Name → R values; at weights 1/N they are the exact measures.
        """
        near = weights[:, self.rows]
        value, influence = self.mmd
        return {
            **self.moments.at(weights),
            "mmd_squared": value + weights @ influence,
            **self.compared.at(near / near.sum(1, keepdim=True)),
        }

    def values(self) -> dict[str, float]:
        """The measures themselves."""
        uniform = torch.full((1, self.count), 1 / self.count, dtype=torch.float64)
        return {name: float(value) for name, value in self.at(uniform).items()}


def of_moments(
    count: int, dim: int, raw: Tensor, centroid: Tensor, residual: Tensor, variance: Tensor, bures: Tensor
) -> dict[str, Tensor]:
    """The gaps that five moments decide.

    Args:
        count: N.
        dim: d.
        raw: G_raw², R.
        centroid: G_C², R.
        residual: G_D², R.
        variance: tr Sx + tr St, R.
        bures: the squared shape gap, R.
    """
    return {
        "raw_gap": raw.sqrt(),
        "centroid_gap": centroid.sqrt(),
        "distribution_gap": residual.sqrt(),
        "shape_gap": bures.sqrt(),
        "centroid_gap_scale_free": _ratio(centroid, variance / 2).sqrt(),
        "distribution_gap_scale_free": _ratio(residual, variance),
        "shape_gap_scale_free": _ratio(bures, variance),
        "relative_modality_gap": _ratio(raw, raw + variance * count / (count - 1)),
        "alignment": raw,
        "frechet_distance": centroid + bures,
        "published_gap": centroid / dim,
    }


def compared_pairs(count: int, seed: int) -> Tensor:
    """The pairs that enter the measures quadratic in N: all of them, or a seeded `PAIRS_COMPARED` of them."""
    if count <= PAIRS_COMPARED:
        return torch.arange(count)
    drawn = np.random.default_rng(seed).choice(count, PAIRS_COMPARED, replace=False)
    return torch.from_numpy(np.sort(drawn))


def bootstrap_weights(count: int, resamples: int, seed: int, *, cells: int = 8_000_000) -> Iterator[Tensor]:
    """Chunks of r×N weights (times a pair was drawn / N), `resamples` rows in all, at most `cells` numbers at once."""
    rng = np.random.default_rng(seed)
    step = max(1, cells // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, count, size=(rows, count)) + np.arange(rows)[:, None] * count
        counts = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield torch.from_numpy(counts / count)


def _moved(effect: Effect, weights: Tensor) -> Tensor:
    """A measure that cannot be negative, to first order."""
    value, influence = effect
    return (value + weights @ influence).clamp_min(0)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole; 0/0, nothing that varies and nothing apart, is 0."""
    return torch.where(part <= 0, torch.zeros_like(part), part / whole.clamp_min(0))
