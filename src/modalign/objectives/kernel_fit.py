"""Before a kernel is trained with: which scale suits two sets of features, and whether it tells anything apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from modalign.objectives.kernel_match import DIRECT_ROWS, kernel_alignment
from modalign.objectives.kernels import AnyKernel, Kernel, PolynomialKernel, as_kernel, scale_of, with_scale
from modalign.objectives.validation import shape_of

NEARLY_CONSTANT = 0.01
STEPS = 36  # each keeps 0.618 of the bracket: in all 3e-8 of it, about where a minimum drowns in rounding


@torch.no_grad()
def fit_kernel(
    student: Tensor, target: Tensor, like: AnyKernel | None = None, target_kernel: AnyKernel | None = None
) -> Kernel:
    """The scale at which the student's kernel is closest to the target's: r = c/γ of a polynomial, else σ.

        argmin over the scale of Σ_{i≠j} (k(x_i, x_j) − k_t(g_i, g_j))²

    A search on the logarithm, without randomness: a grid, then the golden section around its best point. r is sought
    from 10⁻⁴ to 10³ times the mean ‖x‖², σ from 10⁻² to 10² times the root mean squared distance.

    Args:
        student: N×d, raw; a few hundred pictures do.
        target: N×d_t, raw, of the same pictures.
        like: the kind of kernel; its present scale does not matter. None is the polynomial of degree 3.
        target_kernel: None is the paper's, the polynomial of degree 3 with γ = 1/d_t and c = 1.

    Returns:
        The same kind of kernel; a polynomial has γ = 1/d.

    Raises:
        ValueError: fewer than three rows, features that are not finite or all equal, or a kernel without a scale.

    Source: this library's; KUEA (arXiv 2506.02557) gives γ and c for ViT-L/14 only.
    """
    if student.dim() != 2 or target.dim() != 2 or len(student) != len(target) or len(student) < 3:
        raise ValueError(
            f"student is {shape_of(student)} and target {shape_of(target)}; pass N×d and N×d_t features of the same "
            "three or more pictures"
        )
    if not bool(student.isfinite().all()) or not bool(target.isfinite().all()):
        raise ValueError("features hold NaN or infinity; fit the kernel to features that are finite")
    x, g = student.double(), target.double()
    kernel = as_kernel(like) if like is not None else PolynomialKernel(1.0, 1.0)
    of_target = target_kernel if target_kernel is not None else PolynomialKernel(1 / g.shape[1], 1.0)
    scale_of(kernel)  # refuses a kernel without one
    spread = float((x - x.mean(dim=0)).square().sum(dim=1).mean())
    if spread <= 1e-12 * float(x.square().sum(dim=1).mean()):
        raise ValueError("all rows of student are equal, so every kernel is constant; fit to different pictures")

    def loss(log_scale: float) -> float:
        at = with_scale(kernel, math.exp(log_scale))
        return float(kernel_alignment(x, g, at, of_target, estimator="u"))

    if isinstance(kernel, PolynomialKernel):
        middle = math.log(float(x.square().sum(dim=1).mean()))
        r = math.exp(_minimum(loss, middle + math.log(1e-4), middle + math.log(1e3)))
        dim = x.shape[1]
        return PolynomialKernel(1 / dim, r / dim, kernel.degree)
    middle = 0.5 * math.log(2 * spread)
    return with_scale(kernel, math.exp(_minimum(loss, middle + math.log(1e-2), middle + math.log(1e2))))


def _minimum(loss: Callable[[float], float], low: float, high: float, points: int = 41) -> float:
    """Where a function of one variable is lowest, by a grid and the golden section between its best neighbours."""
    step = (high - low) / (points - 1)
    best = min((low + step * number for number in range(points)), key=loss)
    left, right = max(low, best - step), min(high, best + step)
    golden = (math.sqrt(5) - 1) / 2
    inner, outer = right - golden * (right - left), left + golden * (right - left)
    at_inner, at_outer = loss(inner), loss(outer)
    for _ in range(STEPS):
        if at_inner <= at_outer:
            right, outer, at_outer = outer, inner, at_inner
            inner = right - golden * (right - left)
            at_inner = loss(inner)
        else:
            left, inner, at_inner = inner, outer, at_outer
            outer = left + golden * (right - left)
            at_outer = loss(outer)
    return (left + right) / 2


def kernel_spread(
    student: Tensor, target: Tensor, student_kernel: AnyKernel, target_kernel: AnyKernel, estimator: str = "u"
) -> dict[str, float]:
    """What two kernels see in a batch: how much their values off the diagonal vary, and how strongly they pull.

    Args:
        student: N×d, raw, N ≥ 2 (of more than 2,048 rows, the first are measured).
        target: N×d_t, raw.
        student_kernel: as in `kernel_alignment`.
        target_kernel: as in `kernel_alignment`.
        estimator: whose gradient.

    Returns:
        "student_kernel_mean", "student_kernel_std", "target_kernel_mean", "target_kernel_std" of the values off the
        diagonal, and "kernel_gradient_norm" = ‖∂L_align/∂X‖ at these features, before any weight.
    """
    x, g = student[:DIRECT_ROWS].detach(), target[:DIRECT_ROWS].detach()
    found: dict[str, float] = {}
    with torch.no_grad():
        for side, kernel, rows in (("student", student_kernel, x), ("target", target_kernel, g)):
            matrix = as_kernel(kernel)(rows)
            values = matrix[~torch.eye(len(rows), dtype=torch.bool, device=rows.device)]
            found[f"{side}_kernel_mean"] = float(values.mean())
            found[f"{side}_kernel_std"] = float(values.std(correction=0))
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        loss = kernel_alignment(x, g, student_kernel, target_kernel, estimator)
        (gradient,) = torch.autograd.grad(loss, x)
    found["kernel_gradient_norm"] = float(torch.linalg.vector_norm(gradient))
    return found


def spread_warnings(spread: dict[str, float], *, fitted: bool = False) -> list[str]:
    """What to tell a user one of whose kernels finds all pictures alike, or all unlike.

    Args:
        spread: of `kernel_spread`.
        fitted: the student's scale was fitted to the target.
    """
    remedies = {
        "student": "the target may not suit this student; compare others with `modalign contrast`"
        if fitted
        else "set method.fit_kernel=true, or another r = coef0/gamma or bandwidth",
        "target": "set another target_coef0/target_gamma or target_bandwidth",
    }
    return [
        f"the {side}'s kernel is nearly constant off the diagonal (mean {spread[f'{side}_kernel_mean']:.3g}, standard "
        f"deviation {spread[f'{side}_kernel_std']:.2g}), so that its gradient almost vanishes; {remedy}"
        for side, remedy in remedies.items()
        if spread[f"{side}_kernel_std"] < NEARLY_CONSTANT
    ]
