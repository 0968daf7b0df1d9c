"""Pair pull: the plainest way to close a gap, and the ablation that shows why it does not do."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from modalign.objectives.full_precision import full_precision
from modalign.objectives.validation import require_pairs


@full_precision
def squared_pair_distance(image: Tensor, text: Tensor) -> Tensor:
    """The mean squared distance between the unit features of each pair.

        L = mean_i ‖x_i − t_i‖² = 2 − 2·mean_i cos(I_i, T_i),   x, t unit

    Args:
        image: B×d, raw or unit (normalised here).
        text: B×d, raw or unit (normalised here).

    Returns:
        A scalar in [0, 4].

    Raises:
        ValueError: shapes that differ.

    Source: CLIP-Refine, arXiv 2504.12717, the ablation "HyCD + E‖I − T‖²".
    """
    require_pairs(image=image, text=text)
    return (F.normalize(image, dim=-1) - F.normalize(text, dim=-1)).square().sum(dim=-1).mean()
