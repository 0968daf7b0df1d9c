"""Linear maps fitted on pairs: the strongest of the training-free transforms where pairs exist."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from modalign.gap.gaussian import full_rank
from modalign.gap.transforms.from_moments import MomentTransform
from modalign.gap.transforms.vectors import unit


@dataclass(eq=False, repr=False, kw_only=True)
class _PairTransform(MomentTransform):
    paired: ClassVar[bool] = True
    full: ClassVar[bool] = True

    def _cross(self) -> Tensor:
        """Sxt = E(x − μx)(t − μt)ᵀ, dx×dt."""
        return self._moments["pairs"].covariance[: self._image_width, self._image_width :]

    def _ridged(self, side: str, ridge: float) -> Tensor:
        """S + r·(tr S / d)·I."""
        covariance = self._side(side).covariance
        if ridge == 0 and not full_rank(covariance):
            raise self._wrong("ridge", f"more than 0: the {side} features do not vary in all their dimensions")
        return covariance + ridge * covariance.trace() / len(covariance) * torch.eye(len(covariance)).double()

    def _check_ridge(self, ridge: float) -> None:
        wrong = isinstance(ridge, bool) or not isinstance(ridge, int | float)
        if wrong or not math.isfinite(ridge) or ridge < 0:
            raise self._wrong("ridge", "a number, 0 or more, in units of the mean variance")


@dataclass(eq=False, repr=False, kw_only=True)
class Procrustes(_PairTransform):
    """Turns the texts onto the pictures: μx + R(t − μt), R the orthogonal matrix that brings pairs nearest.

        R = argmin Σ‖(x − μx) − R(t − μt)‖²,   R = UVᵀ of Sxt = UΣVᵀ

    Distances and angles among the texts stay as they were; pictures stay as they are. Where fewer pairs than
    dimensions leave R open, one of the best is taken.

    Args:
        normalize: scale every row to length 1 first.
        renormalize: scale rows to length 1 afterwards.

    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966.
    """

    kind: ClassVar[str] = "procrustes"

    renormalize: bool = False

    def _solve(self) -> None:
        left, _, right = torch.linalg.svd(self._cross())
        self.rotation_ = left @ right

    def _map(self, rows: Tensor, role: str) -> Tensor:
        if role.endswith("text"):
            rows = self.image_mean_ + (rows - self.text_mean_) @ self.rotation_.T
        return unit(rows) if self.renormalize else rows


@dataclass(eq=False, repr=False, kw_only=True)
class Ridge(_PairTransform):
    """Predicts the picture from the text: μx + W(t − μt), by least squares with a penalty on W.

        W = argmin E‖(x − μx) − W(t − μt)‖² + r·(tr St / d)·‖W‖² = Sxt (St + r·(tr St / d)·I)⁻¹

    Pictures stay as they are; texts come to have the pictures' width.

    Args:
        normalize: scale every row to length 1 first.
        ridge: r, in units of the texts' mean variance: 0.1 adds a tenth of it.
        renormalize: scale rows to length 1 afterwards.

    Source: Hoerl and Kennard, "Ridge regression", 1970.
    """

    kind: ClassVar[str] = "ridge"
    same_width: ClassVar[bool] = False

    ridge: float = 0.1
    renormalize: bool = False

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_ridge(self.ridge)

    def _solve(self) -> None:
        self.map_ = torch.linalg.solve(self._ridged("text", self.ridge), self._cross().T).T

    def _map(self, rows: Tensor, role: str) -> Tensor:
        if role.endswith("text"):
            rows = self.image_mean_ + (rows - self.text_mean_) @ self.map_.T
        return unit(rows) if self.renormalize else rows


@dataclass(eq=False, repr=False, kw_only=True)
class CCA(_PairTransform):
    """Projects both modalities onto the k directions that correlate most: Aᵀ(x − μx), Bᵀ(t − μt).

        Cx^−½ Sxt Ct^−½ = UΣVᵀ,   A = Cx^−½ U_k,  B = Ct^−½ V_k,   C = S + r·(tr S / d)·I

    `correlations_` is Σ, the canonical correlations (with r = 0 exactly). Both outputs have k columns, each of
    variance 1 where r = 0.

    Args:
        normalize: scale every row to length 1 first.
        k: how many directions; None = as many as the narrower modality has dimensions.
        ridge: r, in units of each modality's mean variance.
        renormalize: scale rows to length 1 afterwards.

    Source: Hotelling, "Relations between two sets of variates", 1936; the ridge Vinod 1976.
    """

    kind: ClassVar[str] = "cca"
    same_width: ClassVar[bool] = False

    k: int | None = None
    ridge: float = 0.1
    renormalize: bool = False

    def _check_parameters(self) -> None:
        super()._check_parameters()
        self._check_ridge(self.ridge)
        if self.k is not None and (isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1):
            raise self._wrong("k", "a number of directions, at least 1, or None")

    def _check_widths(self, widths: dict[str, int]) -> None:
        super()._check_widths(widths)
        if self.k is not None and self.k > min(widths.values()):
            raise self._wrong("k", f"at most the {min(widths.values())} dimensions there are")

    def _solve(self) -> None:
        image, text = (_inverse_root(self._ridged(side, self.ridge)) for side in ("image", "text"))
        left, correlations, right = torch.linalg.svd(image @ self._cross() @ text, full_matrices=False)
        kept = slice(self.k)
        self.image_map_, self.text_map_ = image @ left[:, kept], text @ right[kept].T
        self.correlations_ = correlations[kept]

    def _map(self, rows: Tensor, role: str) -> Tensor:
        if role.endswith("image"):
            rows = (rows - self.image_mean_) @ self.image_map_
        else:
            rows = (rows - self.text_mean_) @ self.text_map_
        return unit(rows) if self.renormalize else rows


def _inverse_root(covariance: Tensor) -> Tensor:
    """C^−½ of a covariance of full rank."""
    eigenvalues, directions = torch.linalg.eigh(covariance)
    root: Tensor = (directions / eigenvalues.sqrt()) @ directions.T
    return root
