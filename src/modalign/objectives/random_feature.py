"""Random Feature Alignment: both features of a pair are pulled to one shared random vector.

The random vectors come from a prior; the functions below draw them. A fitted prior is `draw_normal` with the mean
and standard deviation of `fit_prior`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modalign.objectives.full_precision import full_precision
from modalign.objectives.validation import require_choice, require_pairs

REDUCTIONS = ("mean", "paper")


@full_precision
def random_feature_alignment(
    image: Tensor, text: Tensor, reference: Tensor | tuple[Tensor, Tensor], reduction: str = "mean"
) -> Tensor:
    """The squared distance of both features of each pair to the random vector of that pair.

        mean:  L = mean_{B,d} (I − z)² + mean_{B,d} (T − z)²     (the released recipe; = 2/d of the other)
        paper: L = ½·mean_B (‖I − z‖² + ‖T − z‖²)

    Args:
        image: B×d, raw.
        text: B×d, raw.
        reference: z, B×d, row i shared by image i and its caption; or a pair of B×d, one per modality (an ablation).
        reduction: "mean" or "paper".

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that differ, or another reduction.

    Source: CLIP-Refine, arXiv 2504.12717 ("paper" as printed there).
    """
    of_image, of_text = reference if isinstance(reference, tuple) else (reference, reference)
    require_pairs(image=image, text=text, reference=of_image, text_reference=of_text)
    require_choice("reduction", reduction, REDUCTIONS)
    loss = (image - of_image).square().mean() + (text - of_text).square().mean()
    return loss if reduction == "mean" else loss * (image.shape[1] / 2)


def draw_normal(
    rows: int, dim: int, generator: torch.Generator, mean: float | Tensor = 0.0, std: float | Tensor = 1.0
) -> Tensor:
    """z ~ N(mean, std²), elementwise; std = 0 gives the mean exactly.

    Args:
        rows: B.
        dim: d.
        generator: a CPU generator.
        mean: a number, or d numbers.
        std: a number, or d numbers, ≥ 0.

    Returns:
        B×d, float32, CPU.
    """
    return torch.randn(rows, dim, generator=generator) * std + mean


def draw_uniform(rows: int, dim: int, generator: torch.Generator, low: float = -1.0, high: float = 1.0) -> Tensor:
    """z ~ U[low, high), elementwise.

    Returns:
        B×d, float32, CPU.
    """
    return torch.rand(rows, dim, generator=generator) * (high - low) + low


def draw_point(rows: int, dim: int, mean: float | Tensor = 0.0) -> Tensor:
    """z ≡ mean in every row: no randomness.

    Args:
        rows: B.
        dim: d.
        mean: a number, or d numbers.

    Returns:
        B×d, float32, CPU.
    """
    return torch.zeros(rows, dim) + mean


def fit_prior(image: Tensor, text: Tensor, shared: bool = True) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation of each dimension over a training set's features.

        shared:      m = ½(m_I + m_T),   s² = ½(s_I² + s_T²) + ¼(m_I − m_T)²
        not shared:  (m_I, m_T), (s_I, s_T)

    Both modalities weigh the same, however many captions a picture has; with as many captions as pictures `shared`
    is the pooled set. Variances divide by N.

    Args:
        image: N×d, raw.
        text: M×d, raw.
        shared: one prior for both modalities, or one each.

    Returns:
        mean and std, float32: 1×d each when shared, else 2×d (image, text).

    Raises:
        ValueError: widths that differ, or an empty set.
    """
    if image.dim() != 2 or text.dim() != 2 or image.shape[1] != text.shape[1] or not len(image) or not len(text):
        raise ValueError("a prior is fitted to image features N×d and text features M×d; pass both, of one width")
    means = torch.stack([features.mean(dim=0, dtype=torch.float64) for features in (image, text)])
    variances = torch.stack([_variance(features, mean) for features, mean in zip((image, text), means, strict=True)])
    if shared:
        variances = (variances + (means - means.mean(dim=0)).square()).mean(dim=0, keepdim=True)
        means = means.mean(dim=0, keepdim=True)
    return means.float(), variances.sqrt().float()


def _variance(features: Tensor, mean: Tensor) -> Tensor:
    """The variance of each dimension in float64, in pieces: a float64 copy of a whole training set is gigabytes."""
    squares = torch.zeros_like(mean)
    for piece in torch.split(features, 65_536):
        squares += (piece - mean).square().sum(dim=0)
    return squares / len(features)
