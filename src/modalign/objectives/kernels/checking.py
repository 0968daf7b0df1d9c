"""What can be wrong with a kernel of one's own."""

from __future__ import annotations

import torch
from torch import Tensor

from modalign.objectives.kernels.base import AnyKernel, Kernel, as_kernel


def check(kernel: AnyKernel, dim: int = 16, *, rows: int = 48, seed: int = 0) -> None:
    """Tries a kernel on random float64 features, two equal rows and a zero row among them, at three scales.

    Args:
        kernel: a function N×d → N×N.
        dim: d that it accepts.
        rows: N of the trial.
        seed: of the features.

    Raises:
        ValueError: naming what fails: the shape, finite values and gradients, symmetry, no eigenvalue below 0 beyond
            rounding, or entries that depend on other rows than their own two.
    """
    source = torch.Generator().manual_seed(seed)
    trial = torch.randn(rows, dim, generator=source, dtype=torch.float64)
    trial[1], trial[2] = trial[0], 0
    for scale in (0.1, 1.0, 10.0):
        features = (scale * trial).requires_grad_()
        _check_at(as_kernel(kernel), features, f"on random features of {dim} dimensions, norm {scale * dim**0.5:.2g}")


def _check_at(kernel: Kernel, features: Tensor, where: str) -> None:
    def fail(what: str, remedy: str) -> None:
        raise ValueError(f"the kernel {what} {where}; {remedy}")

    matrix = kernel(features)
    if not isinstance(matrix, Tensor) or not matrix.requires_grad:
        fail("gives no gradient", "compute it of the features with PyTorch alone, without detach()")
    if not bool(matrix.isfinite().all()):
        fail("has values that are NaN or infinite", "guard equal rows, zero rows and negative bases")
    (gradient,) = torch.autograd.grad(matrix.sum(), features, retain_graph=True)
    if not bool(gradient.isfinite().all()):
        fail("has gradients that are NaN or infinite", "guard equal rows and zero rows (√ and ‖·‖ have none at 0)")
    values = matrix.detach()
    rounding = 100 * len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    skew = float((values - values.T).abs().max())
    if skew > rounding:
        fail(f"is not symmetric (entries differ by {skew:.2g})", "make k(x, y) = k(y, x)")
    lowest = float(torch.linalg.eigvalsh(values.double()).min())
    if lowest < -rounding:
        fail(f"has a negative eigenvalue ({lowest:.2g})", "use one that is positive semi-definite")
    half = len(values) // 2
    alone = kernel(features[:half]).detach()
    if float((alone - values[:half, :half]).abs().max()) > rounding:
        fail("depends on the other rows", "let k_ij depend on rows i and j alone")
