"""Hybrid contrastive distillation: the frozen model's similarities, mixed with the true pairs, as soft targets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modalign.objectives.full_precision import full_precision
from modalign.objectives.infonce import positive_targets
from modalign.objectives.validation import require_choice, require_pairs, require_range

FEATURES = ("raw", "unit")
USUAL_LOGIT_SCALES = (20.0, 200.0)


@full_precision
def hybrid_distillation(
    image: Tensor,
    text: Tensor,
    frozen_image: Tensor,
    frozen_text: Tensor,
    alpha: float = 0.5,
    temperature: float = 1.0,
    features: str = "raw",
    logit_scale: float | Tensor | None = None,
    positives: Tensor | None = None,
) -> Tensor:
    """The divergence of the student's similarities from the frozen model's mixed with the true pairs.

        S = I Tᵀ/τ,  S0 = I0 T0ᵀ/τ,  q = α·P + (1−α)·softmax_row(S0)
        L_dir = τ²·(1/B) Σ_ij q_ij (log q_ij − log softmax_row(S)_ij),   0·log 0 = 0
        L = ½ [L_dir(S, S0) + L_dir(Sᵀ, S0ᵀ)]

    α = 0 is self-distillation. α = 1 is symmetric InfoNCE on S less the entropy of P, which is 0 on the diagonal.

    Args:
        image: B×d, raw, the student's.
        text: B×d, raw, the student's.
        frozen_image: B×d, raw, of the initial model; a constant.
        frozen_text: B×d, raw, of the initial model; a constant.
        alpha: the share of the true pairs in the target, 0 to 1 (paper: 0.5).
        temperature: τ > 0 (released recipe: 1).
        features: "raw" takes inner products as they are, so ‖I‖‖T‖ is their scale (suits norms near 10);
            "unit" takes `logit_scale` times cosine similarities.
        logit_scale: the factor, a constant; only for "unit".
        positives: B×B, boolean or non-negative weights; P is its rows scaled to sum 1. None is the diagonal.

    Returns:
        A scalar ≥ 0, in nats.

    Raises:
        ValueError: shapes that differ, a setting out of range, or "unit" without a logit scale.

    Source: CLIP-Refine, arXiv 2504.12717. "unit" and several positives are this library's.
    """
    require_pairs(image=image, text=text, frozen_image=frozen_image, frozen_text=frozen_text)
    require_range("alpha", alpha, 0, 1)
    require_range("temperature", temperature, 0, open_low=True)
    require_choice("features", features, FEATURES)

    scale: float | Tensor = 1.0
    if features == "unit":
        if logit_scale is None:
            raise ValueError('features="unit" needs logit_scale; pass the factor, e.g. 100.0')
        scale = logit_scale.detach() if isinstance(logit_scale, Tensor) else logit_scale
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        frozen_image, frozen_text = F.normalize(frozen_image, dim=-1), F.normalize(frozen_text, dim=-1)
    student = image @ text.T * (scale / temperature)
    with torch.no_grad():
        teacher = frozen_image @ frozen_text.T * (scale / temperature)
        text_of_image, image_of_text = positive_targets(positives, teacher)
        target_text = alpha * text_of_image + (1 - alpha) * teacher.softmax(dim=1)
        target_image = alpha * image_of_text + (1 - alpha) * teacher.T.softmax(dim=1)
    divergence = _row_divergence(target_text, student) + _row_divergence(target_image, student.T)
    return divergence * (temperature * temperature / 2)


def _row_divergence(target: Tensor, logits: Tensor) -> Tensor:
    """(1/B) Σ_ij q_ij (log q_ij − log softmax_row(S)_ij)."""
    return (torch.xlogy(target, target) - target * logits.log_softmax(dim=1)).sum(dim=1).mean()


@full_precision
def effective_logit_scale(image: Tensor, text: Tensor) -> Tensor:
    """The factor that raw inner products put in front of cosine similarities: how sharp raw distillation is.

        mean_i ‖I_i‖ · mean_j ‖T_j‖

    About 100 for OpenAI's CLIP, whose raw norms are near 10.

    Args:
        image: B×d, raw.
        text: B×d, raw.

    Returns:
        A scalar, to compare with a logit scale.
    """
    scale: Tensor = torch.linalg.vector_norm(image, dim=-1).mean() * torch.linalg.vector_norm(text, dim=-1).mean()
    return scale


def sharpness_warning(scale: float) -> str | None:
    """What to tell a user whose distillation is much too soft or too sharp; None inside 20–200.

    Args:
        scale: what stands in front of the cosine similarities: `effective_logit_scale` (raw) or the logit scale
            (unit), over τ.
    """
    low, high = USUAL_LOGIT_SCALES
    if low <= scale <= high:
        return None
    fault = "nearly uniform targets" if scale < low else "nearly one-hot targets"
    return (
        f"distillation works at an effective logit scale of {scale:.3g}, outside {low:g}–{high:g}, "
        f'which gives {fault}; set features to "unit" (the model\'s own logit scale) or change the temperature'
    )
