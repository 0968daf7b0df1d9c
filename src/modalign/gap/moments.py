"""Gap measures made of first and second moments.

Every function is a plug-in estimate: means and covariances divide by N. Features are N×d, row i of both modalities
is pair i, and nothing is normalised here.
"""

from __future__ import annotations

import torch
from torch import Tensor


def centred(features: Tensor) -> Tensor:
    """Features minus their mean: x_i − μ.

    Args:
        features: N×d.

    Returns:
        N×d, of mean zero.
    """
    return features - features.mean(0)


def raw_gap(image: Tensor, text: Tensor) -> Tensor:
    """Root mean square distance of a pair: G_raw = √E‖x − t‖².

    Args:
        image: N×d.
        text: N×d.

    Returns:
        Scalar ≥ 0; at most 2 for unit features.

    Source: arXiv 2604.00279 (the decomposition G_raw² = G_C² + G_D² is exact).
    """
    return (image - text).square().sum(1).mean().sqrt()


def centroid_gap(image: Tensor, text: Tensor) -> Tensor:
    """Distance of the two means: G_C = ‖μx − μt‖.

    Args:
        image: N×d.
        text: N×d; rows need not be paired.

    Returns:
        Scalar ≥ 0; at most 2 for unit features.

    Source: arXiv 2203.02053; arXiv 2604.00279.
    """
    return (image.mean(0) - text.mean(0)).square().sum().sqrt()


def distribution_gap(image: Tensor, text: Tensor) -> Tensor:
    """What is left of a pair's distance once both means are removed: G_D = √E‖(x − μx) − (t − μt)‖².

    Args:
        image: N×d.
        text: N×d.

    Returns:
        Scalar ≥ 0.

    Source: arXiv 2604.00279 (the paired residual).
    """
    return raw_gap(centred(image), centred(text))


def total_variance(features: Tensor) -> Tensor:
    """Trace of the covariance: tr S = E‖x − μ‖².

    Args:
        features: N×d.

    Returns:
        Scalar ≥ 0; at most 1 for unit features.
    """
    return centred(features).square().sum(1).mean()


def effective_rank(features: Tensor) -> Tensor:
    """How many directions carry the variance: exp(−Σ p_k log p_k), p_k = λ_k / Σλ, λ the covariance's eigenvalues.

    Args:
        features: N×d.

    Returns:
        Scalar between 1 and min(N − 1, d); 0 when nothing varies. It is biased downwards unless N ≫ d.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    shares, _ = _spectrum(features)
    return torch.special.entr(shares).sum().exp() if shares.numel() else features.new_zeros(())


def effective_rank_influence(features: Tensor) -> Tensor:
    """First-order effect of each row on the logarithm of the effective rank.

    With z_ik the coordinates of x_i − μ along the covariance's eigenvectors and Λ = Σλ,
    IF_i = −Σ_k log p_k · (z_ik² − p_k ‖z_i‖²) / Λ, so that under row weights w (Σw = 1)
    log effective_rank(w) ≈ log effective_rank + Σ_i w_i IF_i.

    Args:
        features: N×d.

    Returns:
        N, of mean zero.
    """
    shares, coordinates = _spectrum(features)
    if not shares.numel():
        return features.new_zeros(features.shape[0])
    squares = coordinates.square()
    total = squares.sum(1).mean()
    return -(squares - squares.sum(1, keepdim=True) * shares) @ shares.log() / total


def _spectrum(features: Tensor) -> tuple[Tensor, Tensor]:
    """The positive normalised eigenvalues of the covariance (r) and the rows' coordinates along them (N×r)."""
    rows = centred(features)
    eigenvalues, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
    eps = torch.finfo(rows.dtype).eps
    # Below these a direction does not vary: what is left is the rounding of eigh, and of the centring itself.
    rounding = features.square().sum(1).mean() * (eps * len(rows)) ** 2
    keep = (eigenvalues > eps * eigenvalues[-1]) & (eigenvalues > rounding)
    return eigenvalues[keep] / eigenvalues[keep].sum(), rows @ directions[:, keep]
