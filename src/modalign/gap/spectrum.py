"""How many directions carry a modality's variance: two counts made of the covariance's eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modalign.gap.moments import centred


def effective_rank(features: Tensor) -> Tensor:
    """How many directions carry the variance: exp(−Σ p_k log p_k), p_k = λ_k / Σλ, λ the covariance's eigenvalues.

    Args:
        features: N×d.

    Returns:
        Scalar between 1 and min(N − 1, d); 0 when nothing varies. It is biased downwards unless N ≫ d.

    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    return Spectrum.of(features).effective_rank()


def participation_ratio(features: Tensor) -> Tensor:
    """How many directions carry the variance, large ones above all: (Σλ)² / Σλ², λ the covariance's eigenvalues.

    Args:
        features: N×d.

    Returns:
        Scalar between 1 and min(N − 1, d), at most the effective rank; 0 when nothing varies.

    Source: Gao et al., bioRxiv 214262, equation 3 (the dimension of a population's activity).
    """
    return Spectrum.of(features).participation_ratio()


@dataclass(frozen=True)
class Spectrum:
    """The variance of one modality along its principal axes.

    Attributes:
        shares: p_k = λ_k / Σλ of the axes along which anything varies, r ≤ d.
        rows: N×r, the centred rows' coordinates along them; N = 0 where only the covariance is known.
    """

    shares: Tensor
    rows: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Spectrum:
        """Of N×d features."""
        rows = centred(features)
        mean_square = features.square().sum(1).mean()
        return cls.of_covariance(rows.T @ rows / len(rows), mean_square, len(rows), rows)

    @classmethod
    def of_covariance(cls, covariance: Tensor, mean_square: Tensor, count: int, rows: Tensor | None = None) -> Spectrum:
        """Of a covariance.

        Args:
            covariance: d×d, from 1/N.
            mean_square: E‖x‖² before centring, whose rounding the centring has left in the covariance.
            count: N.
            rows: N×d, centred, where at hand.
        """
        eigenvalues, axes = torch.linalg.eigh(covariance)
        eps = torch.finfo(covariance.dtype).eps
        # Below these a direction does not vary: what is left is the rounding of eigh, and of the centring itself.
        keep = (eigenvalues > eps * eigenvalues[-1]) & (eigenvalues > mean_square * (eps * count) ** 2)
        eigenvalues, axes = eigenvalues[keep], axes[:, keep]
        rows = covariance[:0] if rows is None else rows
        return cls(eigenvalues / eigenvalues.sum(), rows @ axes)

    def effective_rank(self) -> Tensor:
        """exp(−Σ p log p); 0 where nothing varies."""
        shares = self.shares
        return torch.special.entr(shares).sum().exp() if shares.numel() else shares.new_zeros(())

    def participation_ratio(self) -> Tensor:
        """1 / Σp²; 0 where nothing varies."""
        shares = self.shares
        return 1 / shares.square().sum() if shares.numel() else shares.new_zeros(())

    def effective_rank_influence(self) -> Tensor:
        """First-order effect of each row on the logarithm of the effective rank, N of mean zero.

        With z_i the coordinates of x_i − μ and Λ = Σλ, IF_i = −Σ_k log p_k · (z_ik² − p_k ‖z_i‖²) / Λ, so that under
        row weights w (Σw = 1) log effective_rank(w) ≈ log effective_rank + Σ_i w_i IF_i.
        """
        squares = self.rows.square()
        length = squares.sum(1)
        return (length * (self.shares @ self.shares.log()) - squares @ self.shares.log()) / self._variance(length)

    def participation_ratio_influence(self) -> Tensor:
        """First-order effect of each row on the logarithm of the participation ratio, N of mean zero.

        IF_i = 2‖z_i‖²/Λ − 2 Σ_k p_k z_ik² / (Λ Σ_k p_k²)
        """
        squares = self.rows.square()
        length = squares.sum(1)
        turned = squares @ self.shares / self.shares.square().sum() if self.shares.numel() else length
        return 2 * (length - turned) / self._variance(length)

    def _variance(self, length: Tensor) -> Tensor:
        """Λ; 1 where nothing varies, so that nothing has an effect."""
        return length.mean() if self.shares.numel() else torch.ones_like(length)
