"""Random directions that turn along with the features, so that what is measured along them ignores rotations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def random_directions(image: Tensor, text: Tensor, count: int, seed: int) -> Tensor:
    """Independent N(0, I) directions, drawn in the principal axes of the union of both modalities.

    An axis's sign is set by the third moment along it. A rotation of all features then gives the rotated directions,
    where no two axes carry the same variance; along axes without variance the directions do not matter.

    Args:
        image: N×d.
        text: N×d.
        count: how many.
        seed: of the draw.

    Returns:
        d×count.
    """
    rows = torch.cat([image, text])
    rows = rows - rows.mean(0)
    axes: Tensor = torch.linalg.eigh(rows.T @ rows / len(rows)).eigenvectors
    signs = torch.where((rows @ axes).pow(3).sum(0) < 0, -1.0, 1.0)
    drawn = torch.from_numpy(np.random.default_rng(seed).normal(size=(axes.shape[1], count)))
    return (axes * signs) @ drawn
