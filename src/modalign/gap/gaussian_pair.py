"""The two Gaussians of a set of pairs: their covariances, shrunk where asked, and what cannot be measured on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from modalign.gap import gaussian

Shrinkage = float | Literal["ledoit-wolf"] | None
"""How covariances are shrunk before the Gaussian measures: not, by a share in (0, 1], or by Ledoit and Wolf's."""


@dataclass(frozen=True)
class GaussianPair:
    """Means and covariances of both modalities, as the Gaussian measures read them.

    Attributes:
        offset: μx − μt, d.
        image: Sx, d×d, shrunk.
        text: St, d×d, shrunk.
        intensities: ρ of either; None where nothing was shrunk.
        unavailable: measure → why it is refused here.
    """

    offset: Tensor
    image: Tensor
    text: Tensor
    intensities: tuple[float, float] | None
    unavailable: dict[str, str]

    @classmethod
    def of(
        cls,
        offset: Tensor,
        covariances: tuple[Tensor, Tensor],
        fourth: tuple[Tensor, Tensor],
        count: int,
        shrinkage: Shrinkage,
    ) -> GaussianPair:
        """Shrinks and judges.

        Args:
            offset: μx − μt, d.
            covariances: Sx and St, d×d.
            fourth: E‖x − μx‖⁴ and E‖t − μt‖⁴, for Ledoit and Wolf's intensity.
            count: N.
            shrinkage: as asked for.
        """
        dim = len(offset)
        intensities = None
        if shrinkage == "ledoit-wolf":
            found = [gaussian.ledoit_wolf(*each, count) for each in zip(covariances, fourth, strict=True)]
            intensities = (found[0], found[1])
        elif shrinkage is not None:
            intensities = (float(shrinkage), float(shrinkage))
        image, text = (
            gaussian.shrunk(covariance, rho)
            for covariance, rho in zip(covariances, intensities or (0.0, 0.0), strict=True)
        )
        unavailable = {}
        if intensities is None and count < dim:
            few = f"{count:,} pairs are fewer than {dim:,} dimensions; pass a shrinkage"
            unavailable = dict.fromkeys(("shape_gap", "shape_gap_scale_free", "frechet_distance", "symmetric_kl"), few)
        elif not (gaussian.full_rank(image) and gaussian.full_rank(text)):
            unavailable = {"symmetric_kl": "a covariance is singular; pass a shrinkage"}
        return cls(offset, image, text, intensities, unavailable)

    def bures_squared(self) -> Tensor:
        """The squared shape gap; NaN where refused."""
        if "shape_gap" in self.unavailable:
            return self.offset.new_full((), math.nan)
        return gaussian.bures_squared(self.image, self.text)

    def symmetric_kl(self) -> Tensor:
        """Jeffreys' divergence; NaN where refused."""
        if "symmetric_kl" in self.unavailable:
            return self.offset.new_full((), math.nan)
        return gaussian.symmetric_kl(self.offset, self.image, self.text)

    def bures_influence(self, image: Tensor, text: Tensor) -> Tensor:
        """First-order effect of each pair on the squared shape gap; the intensities stay as they are.

        Args:
            image: N×d, the features.
            text: N×d.

        Returns:
            N, of mean zero.
        """
        if "shape_gap" in self.unavailable:
            return torch.zeros_like(image[:, 0])
        return self._influence(image, text, *gaussian.bures_gradients(self.image, self.text))

    def symmetric_kl_influence(self, image: Tensor, text: Tensor) -> Tensor:
        """First-order effect of each pair on Jeffreys' divergence, as `bures_influence`."""
        if "symmetric_kl" in self.unavailable:
            return torch.zeros_like(image[:, 0])
        *shapes, slope = gaussian.symmetric_kl_gradients(self.offset, self.image, self.text)
        return self._influence(image, text, *shapes) + (image - text - self.offset) @ slope

    def _influence(self, image: Tensor, text: Tensor, by_image: Tensor, by_text: Tensor) -> Tensor:
        rho = self.intensities or (0.0, 0.0)
        first = gaussian.quadratic_influence(image, gaussian.shrunk(by_image, rho[0]))
        return first + gaussian.quadratic_influence(text, gaussian.shrunk(by_text, rho[1]))
