"""Gap measures made of distances: between the members of a pair, and between everything and everything."""

from __future__ import annotations

import torch
from torch import Tensor


def alignment(image: Tensor, text: Tensor) -> Tensor:
    """Mean squared distance of a pair: E‖x − t‖².

    Args:
        image: N×d, unit.
        text: N×d, unit.

    Returns:
        Scalar in [0, 4]; lower is closer. It equals the squared raw gap.

    Source: arXiv 2005.10242; arXiv 2504.12717, Table 1.
    """
    return (image - text).square().sum(1).mean()


def uniformity(image: Tensor, text: Tensor) -> Tensor:
    """How crowded the sphere is: the mean of exp(−2‖a − b‖²) over all pairs of the union of both modalities.

    All (2N)² ordered pairs count, a point with itself included (a plug-in estimate, as the covariances are), so N
    points that never meet score 1/(2N). No logarithm is taken.

    Args:
        image: N×d, unit.
        text: N×d, unit.

    Returns:
        Scalar in (0, 1]; lower is more uniform, 1 is one single point.

    Source: arXiv 2504.12717, Table 1 (arXiv 2005.10242 without its logarithm).
    """
    return pair_crowding(image, text).mean()


def pair_crowding(image: Tensor, text: Tensor, *, block: int = 1024) -> Tensor:
    """Each pair's part in the uniformity: its two members' mean exp(−2‖a − b‖²) to all 2N points.

    Args:
        image: N×d.
        text: N×d.
        block: rows of the 2N×2N kernel held at once, squared.

    Returns:
        N, in (0, 1]; its mean is the uniformity.
    """
    points = torch.cat([image, text])
    squares = points.square().sum(1)
    sums = torch.zeros_like(squares)
    for low in range(0, len(points), block):
        rows = slice(low, low + block)
        for start in range(low, len(points), block):
            columns = slice(start, start + block)
            distances = squares[rows, None] + squares[columns] - 2 * points[rows] @ points[columns].T
            kernel = distances.clamp_min_(0).mul_(-2).exp_()
            sums[rows] += kernel.sum(1)
            if start > low:  # the kernel is symmetric: each block off the diagonal serves both sides
                sums[columns] += kernel.sum(0)
    means = sums / len(points)
    return (means[: len(image)] + means[len(image) :]) / 2
