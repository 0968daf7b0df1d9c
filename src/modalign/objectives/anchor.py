"""Anchors: what keeps a trained tower near the initial one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modalign.objectives.full_precision import full_precision
from modalign.objectives.kernels.base import direction
from modalign.objectives.validation import require_choice, require_pairs, shape_of

FORMS = ("l2", "cosine")


@full_precision
def feature_anchor(student: Tensor, frozen: Tensor, form: str = "l2") -> Tensor:
    """How far features have moved from the initial model's.

        l2:      (1/N) Σ_i ‖x_i − f_i‖²          (summed over dimensions)
        cosine:  (1/N) Σ_i (1 − cos(x_i, f_i))

    Args:
        student: N×d, raw.
        frozen: N×d, raw, of the initial model; a constant.
        form: "l2" (the paper's) or "cosine", which leaves norms free.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: shapes that differ, or another form.

    Source: KUEA, arXiv 2506.02557; "cosine" is this library's.
    """
    require_pairs(student=student, frozen=frozen)
    require_choice("form", form, FORMS)
    if form == "l2":
        return (student - frozen).square().sum(dim=1).mean()
    # ½‖u − v‖² is 1 − cos without its cancellation near 0; two rows without a direction have not moved.
    return (direction(student) - direction(frozen)).square().sum(dim=1).mean() / 2


def weight_anchor(parameters: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> Tensor:
    """How far weights have moved from the initial model's (L2-SP).

        ½ Σ_θ ‖θ − θ_0‖²,   whose gradient is θ − θ_0

    Args:
        parameters: name → weights in training.
        initial: the same names → where they began; constants.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: names or shapes that differ, or no weights.

    Source: L2-SP, arXiv 1802.01483; KUEA, arXiv 2506.02557, remarks that it serves as well.
    """
    if not parameters:
        raise ValueError("parameters is empty; pass the weights in training")
    total: Tensor | None = None
    for name, value in parameters.items():
        if name not in initial:
            raise ValueError(f"initial has no weights {name!r}; pass the same names as in parameters")
        start = initial[name]
        if start.shape != value.shape:
            raise ValueError(
                f"{name!r} is {shape_of(value)} but began as {shape_of(start)}; pass the same model's weights"
            )
        moved = value - start.detach().to(value.device)
        part = moved.to(torch.promote_types(moved.dtype, torch.float32)).square().sum() / 2
        total = part if total is None else total + part
    assert total is not None
    return total
