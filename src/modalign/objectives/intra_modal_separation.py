"""Intra-modal separation: pictures of different content are negatives of each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modalign.objectives.full_precision import full_precision
from modalign.objectives.validation import require_pairs


@full_precision
def intra_modal_separation(image: Tensor, text: Tensor, semantic: Tensor, logit_scale: float | Tensor) -> Tensor:
    """Each picture finds its caption among the other pictures, which count the less the more alike they are.

        L = mean_i CE(row i, class i),   row_ii = s·x_i·t_i,   row_ij = s·x_i·x_j·(1 − sem_ij) for j ≠ i

    sem_ij is the cosine of captions i and j under a frozen text encoder: pictures with the same caption are no
    negatives of each other.

    Args:
        image: B×d, raw or unit (normalised here).
        text: B×d, raw or unit (normalised here).
        semantic: B×e features of the captions by a frozen text encoder, raw or unit (normalised here); no gradient.
        logit_scale: s.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: shapes that differ.

    Source: AlignCLIP, arXiv 2406.17639 (weight ½ there).
    """
    require_pairs(image=image, text=text)
    if semantic.dim() != 2 or len(semantic) != len(image):
        raise ValueError(f"semantic has {len(semantic)} rows for {len(image)} pairs; pass one feature a caption")
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    meaning = F.normalize(semantic.detach(), dim=-1)
    own = torch.eye(len(image), dtype=torch.bool, device=image.device)
    others = (image @ image.T) * (1 - meaning @ meaning.T)
    logits = logit_scale * torch.where(own, (image * text).sum(dim=-1).diag(), others)
    return F.cross_entropy(logits, torch.arange(len(image), device=image.device))
