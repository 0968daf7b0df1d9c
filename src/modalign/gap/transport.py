"""Optimal transport between the modalities along random directions."""

from __future__ import annotations

import torch
from torch import Tensor

from modalign.gap.principal_axes import random_directions

DIRECTIONS = 256


def sliced_wasserstein_squared(
    image: Tensor, text: Tensor, *, directions: int = DIRECTIONS, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Squared sliced 2-Wasserstein distance: the mean over unit directions θ of the 1-D transport cost.

        E_θ (1/N) Σ_k ((θ·x)_(k) − (θ·t)_(k))²,   (k) = in ascending order

    It sees every difference of the two distributions, means included; pairs do not matter. A row's first-order effect
    is its Kantorovich potential, φ'(a) = 2(a − T(a)) with T the monotone map.

    Args:
        image: N×d.
        text: N×d.
        directions: how many θ.
        seed: of the directions (drawn in the features' principal axes: a joint rotation turns them along).

    Returns:
        The scalar ≥ 0, in squared units of the features (about 1/d of the full squared distance; biased upwards by
        finite N), and the N first-order effects of the pairs on it, of mean zero.

    Source: Bonneel et al., "Sliced and Radon Wasserstein barycenters", 2015; potentials, Santambrogio 2015, §7.2.2.
    """
    theta = random_directions(image, text, directions, seed)
    theta = theta / theta.square().sum(0).sqrt()
    total, effects = image.new_zeros(()), torch.zeros_like(image[:, 0])
    block = max(1, 2**22 // len(image))
    for start in range(0, directions, block):
        x, x_order = (image @ theta[:, start : start + block]).sort(dim=0)
        t, t_order = (text @ theta[:, start : start + block]).sort(dim=0)
        total += (x - t).square().mean(0).sum()
        for own, other, order in ((x, t, x_order), (t, x, t_order)):
            slopes = own - other
            # The trapezoid rule over 2(a − T(a)), from the lowest row up.
            steps = own.diff(dim=0) * (slopes[1:] + slopes[:-1])
            potential = torch.cat([torch.zeros_like(own[:1]), steps.cumsum(0)])
            effects += torch.zeros_like(potential).scatter_(0, order, potential).sum(1)
    effects = effects / directions
    return total / directions, effects - effects.mean()
