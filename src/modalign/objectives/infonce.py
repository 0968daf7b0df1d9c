"""Contrastive alignment: each row finds its own pair among all pairs of the batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modalign.objectives.full_precision import full_precision
from modalign.objectives.validation import require_pairs, shape_of


@full_precision
def contrastive(image: Tensor, text: Tensor, logit_scale: float | Tensor, positives: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE, with several positives per row where a picture or caption repeats.

        S = s·X Tᵀ on unit rows,   L = ½ [CE(S, P) + CE(Sᵀ, P')],   mean over rows

    P is `positives` with rows scaled to sum 1, P' its transpose scaled likewise; the diagonal when None.

    Args:
        image: B×d, raw or unit (normalised here).
        text: B×d, raw or unit (normalised here).
        logit_scale: s, the factor in front of cosine similarities (100.0 for OpenAI's CLIP).
        positives: B×B, boolean or non-negative weights; entry (i, j) is caption j's for image i.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: shapes that differ, or a row or column of `positives` without a positive entry.

    Source: CLIP, arXiv 2103.00020, figure 3; several positives per row are this library's.
    """
    require_pairs(image=image, text=text)
    logits = logit_scale * (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T)
    text_of_image, image_of_text = positive_targets(positives, logits)
    return (F.cross_entropy(logits, text_of_image) + F.cross_entropy(logits.T, image_of_text)) / 2


def positive_targets(positives: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The two target distributions that a matrix of positives means, one per direction.

    Args:
        positives: B×B, boolean or non-negative weights; None is the diagonal.
        logits: B×B, tells size, type and device.

    Returns:
        B×B over captions for each image, and B×B over images for each caption; rows sum to 1.

    Raises:
        ValueError: another shape, a negative weight, or a row or column that sums to 0.
    """
    if positives is None:
        diagonal = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
        return diagonal, diagonal
    if positives.shape != logits.shape:
        raise ValueError(
            f"positives is {shape_of(positives)} for {len(logits)} pairs; pass B×B, (i, j) for image i and caption j"
        )
    weights = positives.to(logits.dtype)
    per_image, per_text = weights.sum(dim=1, keepdim=True), weights.sum(dim=0).unsqueeze(1)
    if not bool((weights >= 0).all() & (per_image > 0).all() & (per_text > 0).all()):
        raise ValueError("positives must be ≥ 0 with a positive entry in every row and column; keep the diagonal set")
    return weights / per_image, weights.T / per_text
