"""Gap measures of the two Gaussians that share the features' means and covariances; pairs do not matter here.

Covariances are d×d, from 1/N. The gradients serve first-order intervals: under row weights a covariance moves by
Σ_i w_i z_i z_iᵀ − S, so a measure with gradient G moves by Σ_i w_i (z_iᵀ G z_i − tr GS).
"""

from __future__ import annotations

import torch
from torch import Tensor

from modalign.gap.moments import centred


def covariance(features: Tensor) -> Tensor:
    """S = E(x − μ)(x − μ)ᵀ, N×d → d×d."""
    rows = centred(features)
    return rows.T @ rows / len(rows)


def shrunk(covariance: Tensor, intensity: float) -> Tensor:
    """A covariance drawn towards the sphere of its own trace: (1 − ρ) S + ρ · (tr S / d) · I.

    Args:
        covariance: S, d×d.
        intensity: ρ in [0, 1].

    Returns:
        d×d, of full rank for ρ > 0 and S ≠ 0; applied to a gradient by S it gives the one by the unshrunk S.
    """
    dim = len(covariance)
    eye = torch.eye(dim, dtype=covariance.dtype)
    return (1 - intensity) * covariance + intensity * covariance.trace() / dim * eye


def ledoit_wolf(covariance: Tensor, mean_fourth: Tensor, count: int) -> float:
    """The shrinkage that brings a covariance nearest to the true one on average.

        ρ = min(1, (E‖z‖⁴ − ‖S‖²) / (N ‖S − (tr S / d) I‖²)),   z = x − μ

    Args:
        covariance: S, d×d.
        mean_fourth: E‖x − μ‖⁴.
        count: N.

    Returns:
        ρ in [0, 1]; 0 where S is a multiple of the identity already.

    Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
    """
    away = (covariance - shrunk(covariance, 1.0)).square().sum()
    noise = (mean_fourth - covariance.square().sum()) / count
    return float((noise / away).clamp(0, 1)) if float(away) > 0 else 0.0


def bures_squared(first: Tensor, second: Tensor) -> Tensor:
    """How far two covariances are apart in shape and size: tr(Sx + St − 2 (Sx^½ St Sx^½)^½).

    The squared 2-Wasserstein distance of two Gaussians of one mean. It never exceeds the squared distribution gap:
    that one keeps the pairs, this one is free to pair as it likes.

    Args:
        first: Sx, d×d.
        second: St, d×d.

    Returns:
        Scalar ≥ 0; biased upwards unless N ≫ d.

    Source: Bhatia, Jain and Lim, arXiv 1712.01504; the shape gap of arXiv 2604.00279.
    """
    # The nuclear norm of a product of factors keeps digits that the square root of a product of S's would lose.
    overlap: Tensor = torch.linalg.svdvals(_factor(first)[0].T @ _factor(second)[0]).sum()
    return (first.trace() + second.trace() - 2 * overlap).clamp_min(0)


def bures_gradients(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `bures_squared` by both covariances: I − A and I − A⁺, A the optimal map from x to t.

    Args:
        first: Sx, d×d.
        second: St, d×d.

    Returns:
        d×d each, on the directions in which the features vary.

    Source: Bhatia, Jain and Lim, arXiv 1712.01504 (A = Sx^−½ (Sx^½ St Sx^½)^½ Sx^−½).
    """
    (x, x_inverse), (t, t_inverse) = _factor(first), _factor(second)
    u, s, vh = torch.linalg.svd(x.T @ t, full_matrices=False)
    eye = torch.eye(len(first), dtype=first.dtype)
    maps = (x_inverse @ u * s @ (x_inverse @ u).T, t_inverse @ vh.T * s @ (t_inverse @ vh.T).T)
    return eye - maps[0], eye - maps[1]


def frechet_distance(offset: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance of two Gaussians: ‖μx − μt‖² + tr(Sx + St − 2 (Sx^½ St Sx^½)^½).

    Args:
        offset: μx − μt, d.
        first: Sx, d×d.
        second: St, d×d.

    Returns:
        Scalar ≥ 0: the squared centroid gap and the squared shape gap.

    Source: Dowson and Landau 1982; squared as in arXiv 1706.08500 (FID).
    """
    return offset.square().sum() + bures_squared(first, second)


def full_rank(covariance: Tensor) -> bool:
    """Whether a covariance can be inverted: its smallest eigenvalue stands above rounding."""
    eigenvalues = torch.linalg.eigvalsh(covariance)
    return bool(eigenvalues[0] > len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues[-1])


def symmetric_kl(offset: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Jeffreys' divergence of two Gaussians, KL(x‖t) + KL(t‖x), in nats.

        ½ tr(Sx⁻¹St + St⁻¹Sx − 2I) + ½ Δᵀ(Sx⁻¹ + St⁻¹)Δ,   Δ = μx − μt

    Args:
        offset: Δ, d.
        first: Sx, d×d, of full rank.
        second: St, d×d, of full rank.

    Returns:
        Scalar ≥ 0; no invertible map of both modalities changes it. Biased upwards unless N ≫ d.

    Source: Jeffreys, "An invariant form for the prior probability", 1946; Kullback and Leibler 1951.
    """
    inverses: list[Tensor] = [torch.linalg.inv(first), torch.linalg.inv(second)]
    shapes = (inverses[0] * second).sum() + (inverses[1] * first).sum() - 2 * len(first)
    means = offset @ (inverses[0] + inverses[1]) @ offset
    return (shapes + means).clamp_min(0) / 2


def symmetric_kl_gradients(offset: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `symmetric_kl` by both covariances and by the offset.

    Args:
        offset: Δ, d.
        first: Sx, d×d, of full rank.
        second: St, d×d, of full rank.

    Returns:
        d×d, d×d and d.
    """
    x, t = torch.linalg.inv(first), torch.linalg.inv(second)
    apart = torch.outer(offset, offset)
    return (t - x @ (second + apart) @ x) / 2, (x - t @ (first + apart) @ t) / 2, (x + t) @ offset


def quadratic_influence(features: Tensor, gradient: Tensor) -> Tensor:
    """z_iᵀ G z_i − tr GS for each row: what it does, to first order, to a measure with gradient G by S.

    Args:
        features: N×d.
        gradient: G, d×d.

    Returns:
        N, of mean zero.
    """
    rows = centred(features)
    products = ((rows @ gradient) * rows).sum(1)
    return products - products.mean()


def _factor(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """R with RRᵀ = S over the directions that vary, d×r, and the transposed pseudo-inverse of R, d×r."""
    eigenvalues, directions = torch.linalg.eigh(covariance)
    keep = eigenvalues > len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues[-1].clamp_min(0)
    roots, directions = eigenvalues[keep].sqrt(), directions[:, keep]
    return directions * roots, directions / roots
