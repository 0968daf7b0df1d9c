"""Gap measures made of distances: between the members of a pair, and between everything and everything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KernelMeans:
    """Each row's mean kernel exp(−γ‖a − b‖²) to all rows of a modality, a row with itself included; N numbers each.

    Attributes:
        image: of an image to all images.
        text: of a text to all texts.
        image_to_text: of an image to all texts.
        text_to_image: of a text to all images.
        pair: of an image to its own text (no mean).
    """

    image: Tensor
    text: Tensor
    image_to_text: Tensor
    text_to_image: Tensor
    pair: Tensor

    @property
    def joint(self) -> Tensor:
        """Each pair's part in the joint uniformity: its two members' mean kernel to all 2N rows."""
        return (self.image + self.text + self.image_to_text + self.text_to_image) / 4


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


def uniformity(first: Tensor, second: Tensor) -> Tensor:
    """How crowded the sphere is: the mean of exp(−2‖a − b‖²) over all rows a of one set and b of the other.

    A plug-in estimate, as the covariances are: of a set with itself each row counts with itself too, across modalities
    each pair counts, so N rows that never meet score 1/N. No logarithm is taken. The joint uniformity, of the union
    with itself, is (image + text + 2·cross)/4.

    Args:
        first: N×d, unit.
        second: M×d, unit; `first` again for a modality by itself.

    Returns:
        Scalar in (0, 1]; lower is more uniform, 1 is one single point.

    Source: arXiv 2504.12717, Table 1, for the union; arXiv 2405.18570 for each modality and across; both without the
        logarithm of arXiv 2005.10242.
    """
    return _kernel_sums(first, second, 2.0)[0].mean() / len(second)


def kernel_means(image: Tensor, text: Tensor, gamma: float = 2.0, *, block: int = 1024) -> KernelMeans:
    """Every row's mean kernel exp(−γ‖a − b‖²) to its own and to the other modality, in blocks.

    Args:
        image: N×d.
        text: N×d.
        gamma: γ; 2 for the uniformities.
        block: rows of the kernel held at once, squared.

    Returns:
        N numbers of each kind; their means are the uniformities.
    """
    count = len(image)
    image_to_text, text_to_image = _kernel_sums(image, text, gamma, block)
    return KernelMeans(
        _kernel_sums(image, None, gamma, block)[0] / count,
        _kernel_sums(text, None, gamma, block)[0] / count,
        image_to_text / count,
        text_to_image / count,
        (image - text).square().sum(1).mul(-gamma).exp(),
    )


def _kernel_sums(first: Tensor, second: Tensor | None, gamma: float, block: int = 1024) -> tuple[Tensor, Tensor]:
    """The kernel's row sums and column sums; of a set with itself (None), the row sums twice."""
    alone, other = second is None, first if second is None else second
    squares = first.square().sum(1), other.square().sum(1)
    sums = torch.zeros_like(squares[0]), torch.zeros_like(squares[1])
    for low in range(0, len(first), block):
        rows = slice(low, low + block)
        for start in range(low if alone else 0, len(other), block):
            columns = slice(start, start + block)
            distances = squares[0][rows, None] + squares[1][columns] - 2 * first[rows] @ other[columns].T
            kernel = distances.clamp_min_(0).mul_(-gamma).exp_()
            sums[0][rows] += kernel.sum(1)
            if not alone:
                sums[1][columns] += kernel.sum(0)
            elif start > low:  # a set's kernel with itself is symmetric: each block off the diagonal serves both sides
                sums[0][columns] += kernel.sum(0)
    return (sums[0], sums[0]) if alone else sums
