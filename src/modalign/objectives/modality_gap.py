"""The parts of TPC-CMA's loss (a reconstruction): both gaps, re-weighted negatives, matching geometry.

Only the paper's abstract and two summaries could be read; where they are silent the formulas are this library's.
Source of all: arXiv 2604.00279.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modalign.objectives.full_precision import full_precision
from modalign.objectives.infonce import contrastive
from modalign.objectives.validation import require_pairs, require_range, shape_of


@full_precision
def centroid_gap(image: Tensor, text: Tensor) -> Tensor:
    """The squared centroid gap, without the bias of a batch mean.

        L_C = ‖d̄‖² − s²/B,   d_i = x_i − t_i,   s² = Σ‖d_i − d̄‖² / (B − 1),   x, t unit

    Args:
        image: B×d, raw or unit (normalised here); B ≥ 2.
        text: B×d, raw or unit (normalised here).

    Returns:
        A scalar whose mean over batches is the population's ‖μx − μt‖²; it may be negative.

    Raises:
        ValueError: shapes that differ, or a single pair.

    Source: reconstruction of arXiv 2604.00279.
    """
    difference = _unit_difference(image, text)
    mean = difference.mean(0)
    spread = (difference - mean).square().sum() / (len(difference) - 1)
    return mean.square().sum() - spread / len(difference)


@full_precision
def distribution_gap(image: Tensor, text: Tensor) -> Tensor:
    """The squared distribution gap: what is left of a pair's distance once both means are removed.

        L_D = mean_i ‖(x_i − μx) − (t_i − μt)‖²,   x, t unit, batch means

    Args:
        image: B×d, raw or unit (normalised here); B ≥ 2.
        text: B×d, raw or unit (normalised here).

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: shapes that differ, or a single pair.

    Source: reconstruction of arXiv 2604.00279.
    """
    difference = _unit_difference(image, text)
    return (difference - difference.mean(0)).square().sum(dim=1).mean()


@full_precision
def geometry_gap(image: Tensor, text: Tensor, centre: bool = False) -> Tensor:
    """How much the pictures' similarities differ from those of their captions.

        L_geo = (1/B²) Σ_ij (x_i·x_j − t_i·t_j)²,   x, t unit

    Args:
        image: B×d, raw or unit (normalised here).
        text: B×d, raw or unit (normalised here).
        centre: subtract row and column means of both Gram matrices first, so that the centroids do not count.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: shapes that differ.

    Source: reconstruction of arXiv 2604.00279.
    """
    require_pairs(image=image, text=text)
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    if centre:  # double-centring a Gram matrix is centring the features
        image, text = image - image.mean(0), text - text.mean(0)
    return (image @ image.T - text @ text.T).square().mean()


@full_precision
def reweighted_contrastive(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    strength: float,
    sharpness: float = 5.0,
    positives: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE whose negatives weigh the less the more alike the two pairs are inside their modalities.

        L_rw = −½ mean_i [log e^{s_ii}/(e^{s_ii} + Σ_{j≠i} w_ij e^{s_ij}) + the same for captions],   s_ij = s·x_i·t_j
        w_ij = (1 − a) + a·(B − 1)·softmax_{j≠i}(−g·½(x_i·x_j + t_i·t_j)),   no gradient through w

    At a = 0 it is `contrastive`, bit for bit. Pairs that share a picture or a caption are positives of each other:
    they keep weight 1, and the B − 1 others above become the n_i negatives of row i.

    Args:
        image: B×d, raw or unit (normalised here).
        text: B×d, raw or unit (normalised here).
        logit_scale: s.
        strength: a in [0, 1].
        sharpness: g > 0.
        positives: B×B, boolean or non-negative weights, as for `contrastive`; None is the diagonal.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: shapes that differ, or a number out of range.

    Source: reconstruction of arXiv 2604.00279.
    """
    require_pairs(image=image, text=text)
    require_range("strength", strength, 0, 1)
    require_range("sharpness", sharpness, 0, open_low=True)
    if positives is not None and positives.shape != (len(image), len(image)):
        raise ValueError(f"positives is {shape_of(positives)} for {len(image)} pairs; pass B×B")
    if strength == 0:
        return contrastive(image, text, logit_scale, positives)
    x, t = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    own = torch.eye(len(x), dtype=torch.bool, device=x.device)
    related = own if positives is None else positives > 0
    likeness = ((x @ x.T + t @ t.T) / 2).detach()
    logits = logit_scale * (x @ t.T)
    return (
        _reweighted_rows(logits, related, likeness, strength, sharpness, positives)
        + _reweighted_rows(
            logits.T, related.T, likeness, strength, sharpness, None if positives is None else positives.T
        )
    ) / 2


def _reweighted_rows(
    logits: Tensor, related: Tensor, likeness: Tensor, strength: float, sharpness: float, positives: Tensor | None
) -> Tensor:
    negatives = ~related
    count = negatives.sum(dim=1, keepdim=True)
    scores = (-sharpness * likeness).masked_fill(related, -torch.inf)
    # A row whose every entry is a positive has no negative to weigh: softmax over nothing would be NaN.
    shares = torch.where(count > 0, scores, torch.zeros_like(scores)).softmax(dim=1)
    weights = torch.where(negatives, (1 - strength) + strength * (count * shares), torch.ones_like(shares))
    log_shares = (logits + weights.log()).log_softmax(dim=1)  # read at positives alone, whose weight is 1
    targets = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    if positives is not None:
        targets = positives.to(logits.dtype)
        targets = targets / targets.sum(dim=1, keepdim=True)
    return -torch.where(targets > 0, targets * log_shares, torch.zeros_like(log_shares)).sum(dim=1).mean()


def _unit_difference(image: Tensor, text: Tensor) -> Tensor:
    require_pairs(image=image, text=text)
    if len(image) < 2:
        raise ValueError("a gap is measured over several pairs; pass at least two")
    return F.normalize(image, dim=-1) - F.normalize(text, dim=-1)
