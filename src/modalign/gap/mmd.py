"""Maximum mean discrepancy: whether two modalities are samples of one distribution, seen through a Gaussian kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modalign.gap.pairwise import kernel_means
from modalign.gap.principal_axes import random_directions

MEDIAN_PAIRS = 1_000
"""The median distance is taken over the rows of at most so many pairs, evenly spaced."""


def median_bandwidth(image: Tensor, text: Tensor) -> float:
    """The median heuristic: σ = the median distance of two distinct rows of the union.

    Args:
        image: N×d.
        text: N×d.

    Returns:
        σ; 1 where more than half of the distances are 0.

    Source: Gretton et al., "A kernel two-sample test", JMLR 2012, section 8.
    """
    spaced = torch.linspace(0, len(image) - 1, min(len(image), MEDIAN_PAIRS)).round().long()
    rows = torch.cat([image[spaced], text[spaced]])
    squares = rows.square().sum(1)
    distances = squares[:, None] + squares - 2 * rows @ rows.T
    above = distances[torch.ones_like(distances, dtype=torch.bool).triu(1)].clamp_min(0)
    # Distances that rounding alone makes are those of rows that coincide.
    median = float(torch.quantile(above, 0.5))
    return median**0.5 if median > 1e-12 * float(squares.mean()) else 1.0


def mmd_squared(image: Tensor, text: Tensor, bandwidth: float | None = None) -> tuple[Tensor, Tensor]:
    """Unbiased squared MMD of paired samples, with k(a, b) = exp(−‖a − b‖² / 2σ²).

        1/(N(N−1)) Σ_{i≠j} h_ij,   h_ij = k(x_i, x_j) + k(t_i, t_j) − k(x_i, t_j) − k(x_j, t_i)

    Leaving out i = j across modalities too keeps it unbiased although the members of a pair depend on each other.

    Args:
        image: N×d.
        text: N×d.
        bandwidth: σ; None = `median_bandwidth`.

    Returns:
        The scalar, 0 on average where both modalities have one distribution (so it may fall below 0), at most 2; and
        the N first-order effects of the pairs on it, of mean zero.

    Source: Gretton et al., "A kernel two-sample test", JMLR 2012, equation 4.
    """
    sigma = bandwidth or median_bandwidth(image, text)
    means = kernel_means(image, text, 1 / (2 * sigma**2))
    count = len(image)
    of_row = count * (means.image + means.text - means.image_to_text - means.text_to_image) - 2 + 2 * means.pair
    return _with_influence(of_row / (count - 1))


def random_feature_mmd_squared(
    image: Tensor, text: Tensor, bandwidth: float | None = None, *, features: int = 1024, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """`mmd_squared` through random Fourier features, in time linear in N.

        k(a, b) ≈ φ(a)·φ(b),   φ(a) = √(1/D) [cos ω_j·a, sin ω_j·a],   ω_j ~ N(0, I/σ²), j = 1…D

    Frequencies are drawn in the features' principal axes, so that a joint rotation turns them along.

    Args:
        image: N×d.
        text: N×d.
        bandwidth: σ; None = `median_bandwidth`.
        features: D; the kernel's error is about √(1/(2D)).
        seed: of the frequencies.

    Returns:
        As `mmd_squared`.

    Source: Rahimi and Recht, "Random features for large-scale kernel machines", 2007.
    """
    sigma = bandwidth or median_bandwidth(image, text)
    frequencies = random_directions(image, text, features, seed) / sigma
    count, block = len(image), max(1, 2**22 // features)

    def differences(start: int) -> Tensor:
        x, t = (rows[start : start + block] @ frequencies for rows in (image, text))
        return torch.cat([x.cos() - t.cos(), x.sin() - t.sin()], dim=1) / math.sqrt(features)

    starts = range(0, count, block)
    mean = torch.stack([differences(start).sum(0) for start in starts]).sum(0) / count
    of_row = [d @ mean * count - d.square().sum(1) for d in map(differences, starts)]
    return _with_influence(torch.cat(of_row) / (count - 1))


def _with_influence(of_row: Tensor) -> tuple[Tensor, Tensor]:
    """A U-statistic of order two from its rows' means: each row enters twice."""
    value = of_row.mean()
    return value, 2 * (of_row - value)
