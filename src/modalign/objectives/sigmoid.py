"""Sigmoid alignment: every image-caption pair of the batch is a yes-or-no question of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modalign.objectives.full_precision import full_precision
from modalign.objectives.infonce import positive_targets
from modalign.objectives.validation import require_pairs


@full_precision
def sigmoid_contrastive(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    positives: Tensor | None = None,
) -> Tensor:
    """SigLIP's loss: pairs that belong together are told from those that do not, one by one.

        S = s·X Tᵀ + b on unit rows,   L = −(1/B) Σ_ij log σ(z_ij S_ij),   z_ij = +1 for positives, −1 else

    Args:
        image: B×d, raw or unit (normalised here).
        text: B×d, raw or unit (normalised here).
        logit_scale: s, the factor in front of cosine similarities (about 117 for SigLIP).
        logit_bias: b, added to every logit (about −12.9 for SigLIP): what makes most pairs negative to begin with.
        positives: B×B, boolean or weights ≥ 0; entry (i, j) > 0 where caption j fits image i. None is the diagonal.

    Returns:
        A scalar, in nats; the sum over captions makes it grow with B.

    Raises:
        ValueError: shapes that differ, or a row or column of `positives` without a positive entry.

    Source: SigLIP, arXiv 2303.15343, equation 1; several positives per row are this library's.
    """
    require_pairs(image=image, text=text)
    logits = logit_scale * (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T) + logit_bias
    belongs = positive_targets(positives, logits)[0] > 0
    return -F.logsigmoid(torch.where(belongs, logits, -logits)).sum() / len(logits)
