"""Kernel alignment: two encoders should find the same pictures alike, whatever their widths.

Both kernel matrices are N×N. Up to `DIRECT_ROWS` rows they are made whole; beyond, block by block, in the forward pass
and again in the backward pass, so that memory grows with N and not with N².
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modalign.objectives.full_precision import full_precision
from modalign.objectives.kernels import AnyKernel, Kernel, as_kernel
from modalign.objectives.validation import require_choice, shape_of

ESTIMATORS = ("v", "u", "pairs")
DIRECT_ROWS = 2048
PAIRS_AT_ONCE = 128


@full_precision
def kernel_alignment(
    student: Tensor,
    target: Tensor,
    student_kernel: AnyKernel,
    target_kernel: AnyKernel,
    estimator: str = "v",
    block: int | None = None,
) -> Tensor:
    """The mean squared difference between the student's and the target's kernel over pairs of rows.

        v:      (1/N²) Σ_ij (k(x_i, x_j) − k_t(g_i, g_j))²         (the diagonal included; the published runs)
        u:      (1/(N(N−1))) Σ_{i≠j} …                              (unbiased for independent pairs of pictures)
        pairs:  (2/N) Σ_m …  over the rows (0, 1), (2, 3), …        (a last odd row is left out; the paper's §3.2)

    With ones on both diagonals v is (N−1)/N of u, so that under v a term's weight depends on the batch.

    Args:
        student: N×d, raw; the global batch.
        target: N×d_t, raw, of the same pictures; a constant.
        student_kernel: any function N×d → N×N of which entry (i, j) depends on rows i and j alone.
        target_kernel: likewise N×d_t → N×N.
        estimator: "v", "u" or "pairs".
        block: rows of the matrices held at once; None chooses. It changes memory and time only. A kernel that is
            not one of `modalign.objectives.kernels` cannot be computed in blocks and is always made whole.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: shapes that do not fit, another estimator, one row for "u" or "pairs", or a block below 1.

    Source: KUEA, arXiv 2506.02557.
    """
    _require_rows(student, target)
    require_choice("estimator", estimator, ESTIMATORS)
    if block is not None and block < 1:
        raise ValueError(f"block is {block}; use a whole number of rows above 0, or None")
    count = len(student)
    if count < 2 and estimator != "v":
        raise ValueError(f'one row makes no pair for estimator "{estimator}"; pass two or more, or use "v"')
    of_student, of_target = as_kernel(student_kernel), as_kernel(target_kernel)
    if estimator == "pairs":
        return _over_pairs(student, target, of_student, of_target)
    if not (of_student.splits and of_target.splits):
        block = count
    off_diagonal, diagonal = _over_all(student, target, of_student, of_target, block)
    if estimator == "v":
        return (off_diagonal + diagonal) / count**2
    return off_diagonal / (count * (count - 1))


def _require_rows(student: Tensor, target: Tensor) -> None:
    if student.dim() != 2 or target.dim() != 2 or len(student) != len(target) or 0 in (*student.shape, *target.shape):
        raise ValueError(
            f"student is {shape_of(student)} and target {shape_of(target)}; pass N×d and N×d_t features of the same N "
            "pictures"
        )


def _over_all(
    student: Tensor, target: Tensor, of_student: Kernel, of_target: Kernel, block: int | None
) -> tuple[Tensor, Tensor]:
    """Σ_{i≠j} (k − k_t)² and Σ_i (k_ii − k_t,ii)²; of the symmetric matrices only what lies right of the diagonal."""
    count = len(student)
    if block is None:
        block = count if count <= DIRECT_ROWS else max(1, DIRECT_ROWS**2 // count)

    def of_block(start: int, student: Tensor, target: Tensor) -> Tensor:
        x, g = student[start:], target[start:]
        rows = slice(0, block)
        squares = (of_student.between(x[rows], x) - of_target.between(g[rows], g)).square()
        return torch.stack([2 * squares.triu(1).sum(), squares.diagonal().sum()])

    if block >= count:
        off_diagonal, diagonal = of_block(0, student, target)
    else:
        parts = [_forgetting(partial(of_block, start), student, target) for start in range(0, count, block)]
        off_diagonal, diagonal = torch.stack(parts).sum(dim=0)
    return off_diagonal, diagonal


def _forgetting(part: Callable[[Tensor, Tensor], Tensor], student: Tensor, target: Tensor) -> Tensor:
    """Runs a part without keeping what it made; the backward pass makes it again."""
    result: Tensor = checkpoint(part, student, target, use_reentrant=False, preserve_rng_state=False)
    return result


def _over_pairs(student: Tensor, target: Tensor, of_student: Kernel, of_target: Kernel) -> Tensor:
    """The mean of (k − k_t)² over the rows (0, 1), (2, 3), …"""
    pairs = len(student) // 2
    values = [
        (of_student(x)[0::2, 1::2].diagonal() - of_target(g)[0::2, 1::2].diagonal()).square().sum()
        for x, g in _pieces(student[: 2 * pairs], target[: 2 * pairs])
    ]
    return torch.stack(values).sum() / pairs


def _pieces(student: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(student.split(2 * PAIRS_AT_ONCE), target.split(2 * PAIRS_AT_ONCE), strict=True)
