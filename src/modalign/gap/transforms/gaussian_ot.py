"""The linear map between two Gaussians: whitening and colouring, along the shortest way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from modalign.gap.gaussian import bures_gradients, shrunk
from modalign.gap.transforms.from_moments import MomentTransform
from modalign.gap.transforms.vectors import unit

ENOUGH = 10
"""Rows per dimension from which covariances are taken as they are by default."""


@dataclass(eq=False, repr=False, kw_only=True)
class GaussianOT(MomentTransform):
    """Gives the texts the pictures' mean and covariance: μx + A(t − μt), A = Sx^½ (Sx^½ St Sx^½)^−½ Sx^½.

    Of all maps that do, the one that moves the texts least (of two Gaussians, optimal transport). Pairs do not matter.
    Pictures stay as they are. Directions in which no text differs are left out.

    Args:
        normalize: scale every row to length 1 first.
        shrinkage: draws each covariance towards the sphere of its trace: a share in (0, 1], "oas", None = never, or
            "auto" = "oas" where a modality has fewer than 10 rows per dimension. `shrinkage_` says what was done.
        renormalize: scale rows to length 1 afterwards.

    Source: Knott and Smith 1984, "On the optimal mapping of distributions"; shrinkage Chen et al., arXiv 0907.4698.
    """

    kind: ClassVar[str] = "gaussian-ot"
    full: ClassVar[bool] = True

    shrinkage: float | Literal["auto", "oas"] | None = "auto"
    renormalize: bool = False

    def _check_parameters(self) -> None:
        super()._check_parameters()
        given = self.shrinkage
        if given in ("auto", "oas") or given is None:
            return
        if isinstance(given, bool | str) or not 0 < given <= 1:
            raise self._wrong("shrinkage", 'a number above 0 up to 1, "oas", "auto" or None')

    def _solve(self) -> None:
        sides = self._side("image"), self._side("text")
        found = [self._intensity(side.covariance, side.count) for side in sides]
        image, text = (shrunk(side.covariance, rho) for side, rho in zip(sides, found, strict=True))
        self.shrinkage_ = {"image": found[0], "text": found[1]}
        # The gradient of the Bures distance by St is I − A.
        self.map_ = torch.eye(len(text), dtype=text.dtype) - bures_gradients(text, image)[0]

    def _intensity(self, covariance: Tensor, count: int) -> float:
        if self.shrinkage in ("auto", "oas"):
            few = count < ENOUGH * len(covariance)
            return oracle_approximating(covariance, count) if few or self.shrinkage == "oas" else 0.0
        return float(self.shrinkage or 0.0)

    def _map(self, rows: Tensor, role: str) -> Tensor:
        if role.endswith("text"):
            rows = self.image_mean_ + (rows - self.text_mean_) @ self.map_.T
        return unit(rows) if self.renormalize else rows


def oracle_approximating(covariance: Tensor, count: int) -> float:
    """The shrinkage that is nearly the best for Gaussian rows; it needs nothing but the covariance.

        ρ = min(1, (tr S²/d² + m²) / ((N + 1)(tr S²/d² − m²/d))),   m = tr S / d

    Args:
        covariance: S, d×d, from 1/N.
        count: N.

    Returns:
        ρ in [0, 1].

    Source: Chen, Wiesel, Eldar and Hero, arXiv 0907.4698, as scikit-learn's `oas` has it (without the −2/d).
    """
    dim = len(covariance)
    alpha, mean = covariance.square().mean(), covariance.trace() / dim
    apart = (count + 1) * (alpha - mean.square() / dim)
    return float(((alpha + mean.square()) / apart).clamp(max=1)) if float(apart) > 0 else 1.0
