"""What batch a kernel objective needs: how far a mini-batch's gradient is from that of all rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import Any

import torch
from torch import Tensor

from modalign.objectives.kernel_match import kernel_alignment
from modalign.objectives.kernels import AnyKernel
from modalign.objectives.validation import require_range, shape_of

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class GradientError:
    """Relative gradient errors by batch size.

    Attributes:
        rows: M, the sample whose gradient stands for the true one.
        trials: batches drawn of each size.
        sizes: the batch sizes N.
        errors: root mean squared relative errors, one a size.
        spreads: standard deviations of the relative error over the trials, one a size.
        constant: C of the law C·√((1 − N/M)/N), the geometric mean over the sizes below M.
    """

    rows: int
    trials: int
    sizes: tuple[int, ...]
    errors: tuple[float, ...]
    spreads: tuple[float, ...]
    constant: float

    @property
    def law(self) -> tuple[float, ...]:
        """What 1/√N gives at the same sizes (times √(1 − N/M): drawn without replacement from M rows)."""
        return tuple(self.constant * _law(size, self.rows) for size in self.sizes)

    def to_dict(self) -> dict[str, Any]:
        """For a file."""
        return {
            "rows": self.rows,
            "trials": self.trials,
            "sizes": list(self.sizes),
            "errors": list(self.errors),
            "spreads": list(self.spreads),
            "law": list(self.law),
            "constant": self.constant,
        }


def gradient_error(
    student: Tensor,
    target: Tensor,
    student_kernel: AnyKernel,
    target_kernel: AnyKernel,
    sizes: Sequence[int] = SIZES,
    trials: int = 4,
    seed: int = 0,
    estimator: str = "u",
) -> GradientError:
    """How far the gradient of a random batch of N rows is from that of all M rows, relative to the latter's norm.

        g(S) = ∂L_align(X_S A, G_S)/∂A at A = I = X_Sᵀ ∂L_align/∂X_S          (d×d)
        error(N) = √(mean over batches S of N rows of ‖g(S) − g(all)‖² / ‖g(all)‖²)

    Gradients with respect to the rows themselves cannot be compared: every batch has other rows, and each row's share
    shrinks as 1/N. What training averages is the gradient of parameters that all rows share, and the plainest of
    those, which needs features only, is a linear map A behind the tower. "u" is used so that the error is one of
    chance; "v" adds its bias of 1/N.

    Args:
        student: M×d, raw, of the initial model.
        target: M×d_t, raw. The cost is that of M² kernel entries, and of N² in every trial.
        student_kernel: as in `kernel_alignment`.
        target_kernel: as in `kernel_alignment`.
        sizes: N, each from 2 to M.
        trials: batches of each size, drawn without replacement.
        seed: of the batches.
        estimator: "u", "v" or "pairs".

    Returns:
        A `GradientError`.

    Raises:
        ValueError: a size outside 2 … M, no trial, no size below M, or a gradient that vanishes.

    Source: KUEA, arXiv 2506.02557, Proposition 3.1 (the gradient concentrates as 1/√N); the comparison is ours.
    """
    rows = len(student)
    require_range("trials", trials, 1)
    for size in sizes:
        if not 2 <= size <= rows:
            raise ValueError(f"size {size} of {shape_of(student)} features; use batches of 2 to {rows} rows")
    if not any(size < rows for size in sizes):
        raise ValueError(f"no size is below the {rows} rows there are; pass smaller sizes or more rows")

    def gradient(index: Tensor) -> Tensor:
        x = student[index].detach().to(torch.promote_types(student.dtype, torch.float32)).requires_grad_()
        with torch.enable_grad():
            loss = kernel_alignment(x, target[index], student_kernel, target_kernel, estimator)
        (slope,) = torch.autograd.grad(loss, x)
        return x.detach().T.double() @ slope.double()

    truth = gradient(torch.arange(rows))
    norm = float(torch.linalg.matrix_norm(truth))
    if not 0 < norm < math.inf:
        raise ValueError(
            f"the gradient of all rows has norm {norm:g}, and no error is relative to it; change the kernel"
        )
    source = torch.Generator().manual_seed(seed)
    errors, spreads = [], []
    for size in sizes:
        found = [
            float(torch.linalg.matrix_norm(gradient(torch.randperm(rows, generator=source)[:size]) - truth)) / norm
            for _ in range(trials)
        ]
        errors.append(math.sqrt(sum(error**2 for error in found) / trials))
        spreads.append(pstdev(found))
    below = [(size, error) for size, error in zip(sizes, errors, strict=True) if size < rows and error > 0]
    ratios = [math.log(error / _law(size, rows)) for size, error in below]
    constant = math.exp(sum(ratios) / len(ratios)) if ratios else 0.0
    return GradientError(rows, trials, tuple(sizes), tuple(errors), tuple(spreads), constant)


def _law(size: int, rows: int) -> float:
    return math.sqrt((1 - size / rows) / size)
