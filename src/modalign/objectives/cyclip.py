"""CyCLIP's two consistency terms: the geometry of pictures, of captions and between them should agree."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from modalign.objectives.full_precision import full_precision
from modalign.objectives.modality_gap import geometry_gap
from modalign.objectives.validation import require_pairs


def in_modal_consistency(image: Tensor, text: Tensor) -> Tensor:
    """How much the pictures' similarities differ from those of their captions.

        L = (1/B²) Σ_ij (x_i·x_j − t_i·t_j)²,   x, t unit

    Args:
        image: B×d, raw or unit (normalised here).
        text: B×d, raw or unit (normalised here).

    Returns:
        A scalar ≥ 0; 0 when both modalities have one shape, wherever they lie.

    Raises:
        ValueError: shapes that differ.

    Source: CyCLIP, arXiv 2205.14459.
    """
    return geometry_gap(image, text)


@full_precision
def cross_modal_consistency(image: Tensor, text: Tensor) -> Tensor:
    """How far the picture-to-caption similarities are from symmetric.

        L = (1/B²) Σ_ij (x_i·t_j − x_j·t_i)²,   x, t unit

    Args:
        image: B×d, raw or unit (normalised here).
        text: B×d, raw or unit (normalised here).

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: shapes that differ.

    Source: CyCLIP, arXiv 2205.14459.
    """
    require_pairs(image=image, text=text)
    similarity = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    return (similarity - similarity.T).square().mean()
