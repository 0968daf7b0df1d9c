"""All gap measures as functions of the pairs' weights, so that a bootstrap costs O(N) weights a resample.

A bootstrap of pairs draws how often each pair counts. Means, variances and gaps are re-computed exactly under such
weights from a matrix product; the effective ranks and the uniformity, whose exact recomputation would need a new
eigendecomposition or a new 2N×2N kernel each time, move by their first-order (influence function) expansion. The
separability's probes stay as fitted; their held-out outcomes are re-weighted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from modalign.gap import moments, pairwise, separability

PAIRS_COMPARED = 5_000
"""Beyond this many pairs, uniformity and separability are taken on a seeded subsample of so many."""


class PairMeasures:
    """The gap measures of N pairs under any pair weights.

    Args:
        image: N×d, float64.
        text: N×d, float64.
        seed: of the probe's cut and of the subsample.
    """

    def __init__(self, image: Tensor, text: Tensor, seed: int) -> None:
        self.count, self.dim = image.shape
        self.image, self.text = moments.centred(image), moments.centred(text)
        self.offset = image.mean(0) - text.mean(0)
        self.pair_squares = (image - text).square().sum(1)
        self.residual_squares = (self.image - self.text).square().sum(1)
        self.image_squares = self.image.square().sum(1)
        self.text_squares = self.text.square().sum(1)
        self.ranks = {
            name: (moments.effective_rank(features), moments.effective_rank_influence(features))
            for name, features in (("effective_rank_image", image), ("effective_rank_text", text))
        }
        self.compared = compared_pairs(self.count, seed)
        near = (image[self.compared], text[self.compared])
        self.crowding = pairwise.pair_crowding(*near)
        self.probe_outcomes = separability.held_out_accuracy(*near, seed=seed)

    def at(self, weights: Tensor) -> dict[str, Tensor]:
        """Every measure under each row of weights.

        Args:
            weights: R×N, rows sum to 1.

        Returns:
            Name → R values; at weights 1/N they are the exact measures.
        """
        mean_image, mean_text = weights @ self.image, weights @ self.text
        raw = weights @ self.pair_squares
        centroid = (self.offset + mean_image - mean_text).square().sum(1)
        residual = (weights @ self.residual_squares - (mean_image - mean_text).square().sum(1)).clamp_min(0)
        variance = weights @ (self.image_squares + self.text_squares)
        variance = variance - mean_image.square().sum(1) - mean_text.square().sum(1)
        near = weights[:, self.compared]
        near = near / near.sum(1, keepdim=True)
        crowding = self.crowding.mean()
        return {
            "raw_gap": raw.sqrt(),
            "centroid_gap": centroid.sqrt(),
            "distribution_gap": residual.sqrt(),
            "centroid_gap_scale_free": _ratio(centroid, variance / 2).sqrt(),
            "distribution_gap_scale_free": _ratio(residual, variance),
            "alignment": raw,
            "uniformity": crowding + 2 * (near @ (self.crowding - crowding)),
            "published_gap": centroid / self.dim,
            **{name: value * (weights @ influence).exp() for name, (value, influence) in self.ranks.items()},
            "separability": near @ self.probe_outcomes,
        }

    def values(self) -> dict[str, float]:
        """The measures themselves."""
        uniform = torch.full((1, self.count), 1 / self.count, dtype=torch.float64)
        return {name: float(value) for name, value in self.at(uniform).items()}


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


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole; 0/0, nothing that varies and nothing apart, is 0."""
    return torch.where(part <= 0, torch.zeros_like(part), part / whole.clamp_min(0))
