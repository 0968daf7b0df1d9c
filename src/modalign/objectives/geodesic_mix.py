"""Geodesic multi-modal mixup (m²-mix): hard negatives on the great circle between a picture and its caption."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modalign.objectives.full_precision import full_precision
from modalign.objectives.validation import require_pairs, shape_of

# Below this 1 − cos θ the power series is used: sin(λθ)/sin θ and its derivative cancel badly for small θ.
NEAR_ALIGNED = 1e-2
SERIES_ORDER = 6  # the remainder is about (NEAR_ALIGNED / 2)^7
# Within this of cos θ = −1 the great circle is not unique and its gradient grows without bound; θ is held there.
NEAR_ANTIPODAL = 1e-4


@full_precision
def geodesic_contrastive(
    image: Tensor,
    text: Tensor,
    mixing: float | Tensor,
    logit_scale: float | Tensor = 100.0,
    positives: Tensor | None = None,
) -> Tensor:
    """Contrastive loss against the mixtures of other pairs instead of the other pairs themselves.

        h_j = mixture of x_j and t_j on their great circle
        L = ½·mean_i [CE_i(s·(x_i·t_i on the diagonal, x_i·h_j off it)) + CE_i(s·(x_i·t_i, t_i·h_j))]

    The gradient also flows through the mixtures. The paper has no repeated pictures or captions; here the mixture
    of a pair that shares one with pair i is no negative of it and is left out of row i, in both directions.

    Args:
        image: B×d, raw or unit (normalised here).
        text: B×d, raw or unit (normalised here).
        mixing: λ in [0, 1], one number per batch; 1 makes h the picture, 0 the caption.
        logit_scale: s (paper: fixed at 100).
        positives: B×B, entries > 0 (or True) are pairs that belong together. None is the diagonal.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: shapes that differ.

    Source: m²-mix, arXiv 2203.03897.
    """
    require_pairs(image=image, text=text)
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    mixture = geodesic_mixture(image, text, mixing)

    own = torch.eye(len(image), dtype=torch.bool, device=image.device)
    positive = (image * text).sum(dim=-1).diag()
    logits_of_image = logit_scale * torch.where(own, positive, image @ mixture.T)
    logits_of_text = logit_scale * torch.where(own, positive, text @ mixture.T)
    if positives is not None:
        if positives.shape != own.shape:
            raise ValueError(f"positives is {shape_of(positives)} for {len(image)} pairs; pass B×B")
        related = ((positives > 0) | (positives > 0).T) & ~own
        logits_of_image = logits_of_image.masked_fill(related, -torch.inf)
        logits_of_text = logits_of_text.masked_fill(related, -torch.inf)
    labels = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits_of_image, labels) + F.cross_entropy(logits_of_text, labels)) / 2


def geodesic_mixture(image: Tensor, text: Tensor, mixing: float | Tensor) -> Tensor:
    """The point a share λ of the way from each caption to its picture, along their great circle.

        h_i = sin(λθ_i)/sin θ_i · x_i + sin((1−λ)θ_i)/sin θ_i · t_i,   θ_i = arccos(x_i·t_i)

    Value and gradient are finite everywhere: exact (to rounding) where x_i = t_i, and with θ held at 0.8° from π
    for opposite features, between which no great circle is singled out.

    Args:
        image: N×d, unit.
        text: N×d, unit.
        mixing: λ in [0, 1].

    Returns:
        N×d, unit (except within 0.8° of opposite).

    Source: m²-mix, arXiv 2203.03897.
    """
    cosine = (image * text).sum(dim=-1, keepdim=True)
    return _arc_weight(cosine, mixing) * image + _arc_weight(cosine, 1 - mixing) * text


def _arc_weight(cosine: Tensor, share: float | Tensor) -> Tensor:
    """sin(λθ)/sin θ as a function of cos θ, smooth at θ = 0.

    It is the Chebyshev function U_{λ−1}(cos θ) = λ·₂F₁(1−λ, 1+λ; 3/2; (1 − cos θ)/2), whose series needs no angle.
    """
    gap = 1 - cosine
    near = gap < NEAR_ALIGNED
    # The inner `where` keeps arccos away from 1, where its infinite derivative would turn the unused branch to NaN.
    angle = torch.where(near, torch.zeros_like(cosine), cosine).clamp(min=NEAR_ANTIPODAL - 1).acos()
    term = share * torch.ones_like(gap)
    series = term
    for k in range(SERIES_ORDER):
        term = term * gap * (((k + 1) ** 2 - share**2) / ((k + 1) * (2 * k + 3)))
        series = series + term
    return torch.where(near, series, (share * angle).sin() / angle.sin())
