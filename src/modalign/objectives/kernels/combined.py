"""Kernels made of kernels."""

from __future__ import annotations

from torch import Tensor

from modalign.objectives.kernels.base import AnyKernel, Kernel, as_kernel, inverse_root


class Normalized(Kernel):
    """Any kernel scaled to ones on the diagonal.

        k_ij / √(k_ii k_jj),   0 where k_ii or k_jj is not above 0

    Args:
        kernel: one of these, or any function N×d → N×N.
    """

    def __init__(self, kernel: AnyKernel) -> None:
        self.kernel = as_kernel(kernel)

    @property
    def splits(self) -> bool:
        """As the kernel inside."""
        return self.kernel.splits

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The kernel of every row with every column, n×m."""
        left, right = inverse_root(self.kernel.diagonal(rows)), inverse_root(self.kernel.diagonal(columns))
        return left[:, None] * self.kernel.between(rows, columns) * right

    def diagonal(self, rows: Tensor) -> Tensor:
        """Ones, n, but 0 where the kernel has no positive self-similarity."""
        diagonal = self.kernel.diagonal(rows)
        return diagonal * inverse_root(diagonal).square()


class _Several(Kernel):
    """Kernels combined entry by entry."""

    def __init__(self, *kernels: AnyKernel) -> None:
        if not kernels:
            raise ValueError(f"{type(self).__name__} needs at least one kernel; pass kernels")
        self.kernels = tuple(as_kernel(kernel) for kernel in kernels)

    @property
    def splits(self) -> bool:
        """Whether all of them do."""
        return all(kernel.splits for kernel in self.kernels)


class SumKernel(_Several):
    """The sum of kernels: Σ_m k_m(x_i, x_j); its diagonal is the sum of theirs.

    Args:
        kernels: each one of these, or any function N×d → N×N.
    """

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The kernel of every row with every column, n×m."""
        first, *others = (kernel.between(rows, columns) for kernel in self.kernels)
        return sum(others, first)

    def diagonal(self, rows: Tensor) -> Tensor:
        """The sum of the diagonals, n."""
        first, *others = (kernel.diagonal(rows) for kernel in self.kernels)
        return sum(others, first)


class ProductKernel(_Several):
    """The product of kernels, entry by entry: Π_m k_m(x_i, x_j).

    Args:
        kernels: each one of these, or any function N×d → N×N.
    """

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The kernel of every row with every column, n×m."""
        product, *others = (kernel.between(rows, columns) for kernel in self.kernels)
        for other in others:
            product = product * other
        return product

    def diagonal(self, rows: Tensor) -> Tensor:
        """The product of the diagonals, n."""
        product, *others = (kernel.diagonal(rows) for kernel in self.kernels)
        for other in others:
            product = product * other
        return product
