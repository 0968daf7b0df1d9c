"""Linear maps between feature spaces, and distillation through adaptor heads: what KUEA is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modalign.objectives.full_precision import full_precision
from modalign.objectives.validation import require_pairs, require_range, shape_of

PIECE = 65_536


@torch.no_grad()
def fit_linear_map(target: Tensor, features: Tensor, ridge: float = 0.0) -> Tensor:
    """The linear map that takes a target encoder's features nearest to another's.

        W = argmin Σ_i ‖W g_i − f_i‖² + ridge·‖W‖_F²

    Without a ridge, of several best maps the one of least norm: directions in which G does not vary beyond rounding
    are left out. Computed in float64 from GᵀG, in pieces, so that the training set need not be copied.

    Args:
        target: G, N×d_t, raw.
        features: F, N×d, raw, of the same pictures.
        ridge: ≥ 0, in units of Σ_i g_i²; 0 is least squares.

    Returns:
        W, d×d_t, float64; `target @ W.T` replaces the features.

    Raises:
        ValueError: shapes that do not fit, or a negative ridge.

    Source: KUEA, arXiv 2506.02557, the baseline "projection" of its Table 1.
    """
    require_range("ridge", ridge, 0)
    if target.dim() != 2 or features.dim() != 2 or len(target) != len(features) or 0 in target.shape:
        raise ValueError(
            f"target is {shape_of(target)} and features {shape_of(features)}; pass N×d_t and N×d of the same N pictures"
        )
    width = target.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64, device=target.device)
    cross = torch.zeros(width, features.shape[1], dtype=torch.float64, device=target.device)
    for g, f in zip(target.split(PIECE), features.split(PIECE), strict=True):
        g = g.double()
        gram += g.T @ g
        cross += g.T @ f.to(g)
    if not bool(gram.isfinite().all()) or not bool(cross.isfinite().all()):
        raise ValueError("features hold NaN or infinity; fit the map to features that are finite")
    values, vectors = torch.linalg.eigh(gram)
    kept = values > width * torch.finfo(torch.float64).eps * values[-1]
    inverse = torch.where(kept, 1 / torch.where(kept, values + ridge, 1), 0)
    weight: Tensor = (vectors @ (inverse[:, None] * (vectors.T @ cross))).T
    return weight


@torch.no_grad()
def mean_and_std(features: Tensor) -> tuple[Tensor, Tensor]:
    """The statistics that standardise features per dimension: (y − mean) / std.

    Args:
        features: N×d, raw.

    Returns:
        mean and std, d each, float64; variances divide by N, and a dimension that is constant has std 1.
    """
    mean = features.mean(dim=0, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for piece in features.split(PIECE):
        squares += (piece.double() - mean).square().sum(dim=0)
    std = (squares / len(features)).sqrt()
    # Summation leaves a constant dimension with a rounding error for a spread.
    return mean, std.masked_fill(std <= 1e-7 * mean.abs(), 1)


@full_precision
def linear_match(student: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """How far features are from a linear map of the target's, both of which may train.

        (1/N) Σ_i ‖x_i − W g_i‖²

    Args:
        student: N×d, raw.
        target: N×d_t, raw; a constant.
        weight: W, d×d_t.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: shapes that do not fit.

    Source: KUEA, arXiv 2506.02557, the baseline "feature" of its Table 1.
    """
    if target.dim() != 2 or weight.dim() != 2 or target.shape[1] != weight.shape[1]:
        raise ValueError(f"target is {shape_of(target)} and weight {shape_of(weight)}; pass N×d_t and d×d_t")
    mapped = target @ weight.T
    require_pairs(student=student, mapped=mapped)
    return (student - mapped).square().sum(dim=1).mean()


@full_precision
def head_match(predicted: Tensor, teacher: Tensor, cosine: float = 0.9, smooth_l1: float = 0.1) -> Tensor:
    """How far an adaptor head's output is from a teacher's standardised features.

        mean_i [cosine·(1 − cos(h_i, y_i)) + smooth_l1·mean_j s(h_ij − y_ij)],   s(e) = ½e² if |e| < 1, else |e| − ½

    Args:
        predicted: h, N×d_k, the head's output.
        teacher: y, N×d_k, standardised per dimension; a constant.
        cosine: weight of the angle (paper: 0.9).
        smooth_l1: weight of the distance (paper: 0.1).

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: shapes that differ.

    Source: AM-RADIO, arXiv 2312.06709, equation 3.
    """
    require_pairs(predicted=predicted, teacher=teacher)
    angle = 1 - F.cosine_similarity(predicted, teacher, dim=1).mean()
    return cosine * angle + smooth_l1 * F.smooth_l1_loss(predicted, teacher)
