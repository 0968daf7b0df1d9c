"""Before and after: how far a student and its target agree about the same pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from modalign.gap.representations import centred_kernel_alignment, mutual_knn
from modalign.objectives.kernel_fit import fit_kernel
from modalign.objectives.kernel_match import kernel_alignment
from modalign.objectives.kernels import AnyKernel, PolynomialKernel, scale_of

NEIGHBOURS = 10
MOST = 10_000
"""Pictures, evenly spaced, that are compared where there are more: the cost grows with their square."""
FITTED_ON = 512
FEWEST = 4


@dataclass(frozen=True)
class Agreement:
    """How a student and a target agree.

    Attributes:
        kernel_loss: mean squared difference of their kernels over pairs of different pictures; lower is closer.
        cka: linear centred kernel alignment.
        mutual_knn: share of the nearest neighbours by cosine that both name.
    """

    kernel_loss: float
    cka: float
    mutual_knn: float


def target_alignment(
    before: Tensor, after: Tensor, target: Tensor, kernels: tuple[AnyKernel, AnyKernel] | None = None
) -> dict[str, Any] | None:
    """`Agreement` of the features before and after with a target's, under the same kernels.

    Args:
        before: N×d, raw.
        after: N×d, raw, of the same pictures.
        target: N×d_t, raw, of the same pictures.
        kernels: the student's and the target's; None fits a polynomial to the features before, to the target's of
            γ = 1/d_t and c = 1.

    Returns:
        {"before", "after", "protocol"}, ready for JSON; None for fewer than four pictures.

    Raises:
        ValueError: features that are not finite, or to which no kernel can be fitted.
    """
    if len(target) < FEWEST:
        return None
    count = min(MOST, len(target))
    chosen = torch.arange(count) * len(target) // count
    before, after, target = before[chosen], after[chosen], target[chosen]
    if kernels is None:
        some = torch.arange(min(FITTED_ON, count)) * count // min(FITTED_ON, count)
        fitted = fit_kernel(before[some], target[some])
        kernels, told = (fitted, PolynomialKernel(1 / target.shape[1], 1.0)), "fitted to the features before"
    else:
        told = "the method's, as training left them"
    neighbours = min(NEIGHBOURS, count - 1)
    sides = [
        Agreement(
            float(kernel_alignment(student, target, *kernels, "u")),
            float(centred_kernel_alignment(student, target)),
            float(mutual_knn(student, target, neighbours).mean()),
        )
        for student in (before, after)
    ]
    return {
        "before": asdict(sides[0]),
        "after": asdict(sides[1]),
        "protocol": {
            "pictures": count,
            "kernels": f"{_named(kernels[0])} to {_named(kernels[1])}, {told}",
            "estimator": "u",
            "neighbours": neighbours,
            "chance_of_a_neighbour": neighbours / (count - 1),
        },
    }


def _named(kernel: AnyKernel) -> str:
    name = type(kernel).__name__.removesuffix("Kernel").lower()
    try:
        scale = scale_of(kernel)
    except ValueError:
        return name
    return f"{name} ({'r = c/γ' if isinstance(kernel, PolynomialKernel) else 'σ'} = {scale:.4g})"
