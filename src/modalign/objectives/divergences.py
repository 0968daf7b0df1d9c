"""Distances between two clouds of features, differentiable: what form B of CMA and CS-Aligner minimise.

None of them looks at which picture belongs to which caption. Rows are taken as they are given: normalise and centre
before where that is meant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from modalign.objectives.full_precision import full_precision
from modalign.objectives.validation import require_range, shape_of

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


@full_precision
def mmd(image: Tensor, text: Tensor, multipliers: Sequence[float] = BANDWIDTHS) -> Tensor:
    """Unbiased squared maximum mean discrepancy under a mean of Gaussian kernels.

        L = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(t_i, t_j) − 2·mean_ij k(x_i, t_j)
        k(a, b) = mean_m exp(−‖a − b‖² / (2 (m·σ)²)),   σ = the median distance of the pooled sample, no gradient

    Args:
        image: N×d, N ≥ 2.
        text: M×d, M ≥ 2.
        multipliers: of the median distance, one kernel each.

    Returns:
        A scalar; its mean is 0 for equal distributions, so it may be negative.

    Raises:
        ValueError: widths that differ, fewer than two rows, or a multiplier that is not positive.

    Source: Gretton et al., "A kernel two-sample test", JMLR 2012, eq. 3 and its median heuristic.
    """
    _require_clouds(image, text)
    for multiplier in multipliers:
        require_range("a multiplier of the bandwidth", multiplier, 0, open_low=True)
    within_image, within_text, across = _squared_distances(image, text)
    sigma2 = _median_squared_distance(within_image, within_text, across)

    def kernel(squares: Tensor) -> Tensor:
        return torch.stack([(-squares / (2 * m * m * sigma2)).exp() for m in multipliers]).mean(0)

    return (
        _mean_off_diagonal(kernel(within_image)) + _mean_off_diagonal(kernel(within_text)) - 2 * kernel(across).mean()
    )


@full_precision
def cauchy_schwarz(image: Tensor, text: Tensor, bandwidth: float | None = None) -> Tensor:
    """Cauchy–Schwarz divergence of the two clouds' kernel density estimates.

        L = log mean_ij k(x_i, x_j) + log mean_ij k(t_i, t_j) − 2·log mean_ij k(x_i, t_j),
        k(a, b) = exp(−‖a − b‖² / 2σ²)

    Args:
        image: N×d, N ≥ 2.
        text: M×d, M ≥ 2.
        bandwidth: σ; None = the median distance of the pooled sample, no gradient.

    Returns:
        A scalar ≥ 0, 0 for equal clouds; it stays informative however far apart the clouds are.

    Raises:
        ValueError: widths that differ, fewer than two rows, or a bandwidth that is not positive.

    Source: CS-Aligner, arXiv 2502.17028.
    """
    _require_clouds(image, text)
    within_image, within_text, across = _squared_distances(image, text)
    if bandwidth is None:
        sigma2 = _median_squared_distance(within_image, within_text, across)
    else:
        require_range("bandwidth", bandwidth, 0, open_low=True)
        sigma2 = image.new_tensor(bandwidth * bandwidth)

    def log_mean(squares: Tensor) -> Tensor:
        count = torch.log(squares.new_tensor(squares.numel()))
        return (-squares / (2 * sigma2)).flatten().logsumexp(0) - count

    divergence: Tensor = log_mean(within_image) + log_mean(within_text) - 2 * log_mean(across)
    return divergence


@full_precision
def coral(image: Tensor, text: Tensor) -> Tensor:
    """Squared Frobenius distance of the two covariances.

        L = ‖Sx − St‖²_F,   S = (1/N) Σ (x − μ)(x − μ)ᵀ

    Args:
        image: N×d.
        text: M×d.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: widths that differ or fewer than two rows.

    Source: Deep CORAL, arXiv 1607.01719, without its factor 1/(4d²).
    """
    _require_clouds(image, text)
    return (_covariance(image) - _covariance(text)).square().sum()


@full_precision
def bures(image: Tensor, text: Tensor) -> Tensor:
    """Squared Bures distance of the two covariances: the shape part of the Gaussian Wasserstein-2 distance.

        L = tr(Sx + St − 2 (Sx^½ St Sx^½)^½)

    computed as tr Sx + tr St − 2‖X̃ T̃ᵀ‖_* with X̃ = (x − μx)/√N, T̃ = (t − μt)/√M, whose nuclear norm has a gradient
    where the matrix square roots have none (fewer rows than dimensions).

    Args:
        image: N×d.
        text: M×d.

    Returns:
        A scalar ≥ 0 (up to rounding); never above the squared distribution gap of paired rows.

    Raises:
        ValueError: widths that differ or fewer than two rows.

    Source: Bhatia, Jain and Lim, "On the Bures–Wasserstein distance between positive definite matrices", 2019.
    """
    _require_clouds(image, text)
    x = (image - image.mean(0)) / math.sqrt(len(image))
    t = (text - text.mean(0)) / math.sqrt(len(text))
    overlap: Tensor = torch.linalg.matrix_norm(x @ t.T, "nuc")
    return x.square().sum() + t.square().sum() - 2 * overlap


@full_precision
def sliced_wasserstein(image: Tensor, text: Tensor, directions: Tensor) -> Tensor:
    """Mean squared Wasserstein-2 distance of the two clouds' shadows on many lines.

        L = mean_k (1/N) Σ_i (sort(X·u_k)_i − sort(T·u_k)_i)²

    Args:
        image: N×d.
        text: N×d, as many rows.
        directions: d×K, scaled to unit length here; 256 or more are usual.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: shapes that differ, or directions of another width.

    Source: Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures", 2015.
    """
    _require_clouds(image, text)
    if len(image) != len(text):
        raise ValueError(f"image has {len(image)} rows, text {len(text)}; pass as many of each")
    if directions.dim() != 2 or len(directions) != image.shape[1]:
        raise ValueError(f"directions is {shape_of(directions)} for features of width {image.shape[1]}; pass d×K")
    lines = F.normalize(directions, dim=0)
    return ((image @ lines).sort(dim=0).values - (text @ lines).sort(dim=0).values).square().mean()


def _covariance(features: Tensor) -> Tensor:
    rows = features - features.mean(0)
    return rows.T @ rows / len(rows)


def _squared_distances(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inside each cloud and across: N×N, M×M, N×M."""

    def between(a: Tensor, b: Tensor) -> Tensor:
        squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        return squares.clamp(min=0)

    return between(image, image), between(text, text), between(image, text)


def _median_squared_distance(within_image: Tensor, within_text: Tensor, across: Tensor) -> Tensor:
    """The median over distinct points of the pooled sample; 1 where all coincide."""
    parts = [_upper(within_image), _upper(within_text), across.flatten()]
    median = torch.cat(parts).detach().median()
    return torch.where(median > 0, median, torch.ones_like(median))


def _upper(squares: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(len(squares), len(squares), offset=1, device=squares.device)
    return squares[rows, columns]


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    count = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1))


def _require_clouds(image: Tensor, text: Tensor) -> None:
    for name, value in (("image", image), ("text", text)):
        if value.dim() != 2 or len(value) < 2:
            raise ValueError(f"{name} is {shape_of(value)}; pass N×d features with at least two rows")
    if image.shape[1] != text.shape[1]:
        raise ValueError(f"image is {shape_of(image)} but text is {shape_of(text)}; pass features of one space")
