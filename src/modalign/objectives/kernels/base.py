"""What a kernel is, and how any function N×d → N×N becomes one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modalign.objectives.full_precision import full_precision
from modalign.objectives.validation import shape_of

AnyKernel = Callable[[Tensor], Tensor]


class Kernel(ABC):
    """Base of the kernels here; k_ij depends on rows i and j alone, so that any block can be computed by itself."""

    @abstractmethod
    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The kernel of every row with every column.

        Args:
            rows: n×d, raw, float32 or wider.
            columns: m×d, raw, the same type.

        Returns:
            n×m.
        """

    @abstractmethod
    def diagonal(self, rows: Tensor) -> Tensor:
        """The kernel of every row with itself.

        Args:
            rows: n×d, raw.

        Returns:
            n.
        """

    @property
    def splits(self) -> bool:
        """Whether a block costs no more than its own entries."""
        return True

    @full_precision
    def __call__(self, features: Tensor) -> Tensor:
        """The whole kernel matrix.

        Args:
            features: N×d, raw.

        Returns:
            N×N, float32 or wider.

        Raises:
            ValueError: features that are no matrix.
        """
        if features.dim() != 2 or 0 in features.shape:
            raise ValueError(f"features is {shape_of(features)}; pass N×d, one row per sample")
        return self.between(features, features)


@dataclass(frozen=True, eq=False)
class _Function(Kernel):
    """A user's own function N×d → N×N; a block of it is cut out of the whole."""

    function: AnyKernel

    @property
    def splits(self) -> bool:
        return False

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        if rows is columns:
            return self._matrix(rows)
        return self._matrix(torch.cat([rows, columns]))[: len(rows), len(rows) :]

    def diagonal(self, rows: Tensor) -> Tensor:
        return self._matrix(rows).diagonal()

    def _matrix(self, features: Tensor) -> Tensor:
        matrix = self.function(features)
        if matrix.shape != (len(features), len(features)):
            raise ValueError(
                f"a kernel must turn {shape_of(features)} features into {len(features)}×{len(features)} similarities, "
                f"but {self.function!r} gives {shape_of(matrix)}; return one number for every pair of rows"
            )
        return matrix


def as_kernel(kernel: AnyKernel) -> Kernel:
    """A kernel as it is, or a function N×d → N×N as a kernel."""
    return kernel if isinstance(kernel, Kernel) else _Function(kernel)


def inverse_root(values: Tensor) -> Tensor:
    """1/√v, and 0 without a gradient where v is not above 0."""
    positive = values.detach() > 0
    return values.masked_fill(~positive, 1).rsqrt().masked_fill(~positive, 0)


def direction(rows: Tensor) -> Tensor:
    """Unit rows; zero rows stay zero, without a gradient."""
    norms = torch.linalg.vector_norm(rows.detach(), dim=1, keepdim=True)
    zero = norms == 0
    rows = rows / norms.masked_fill(zero, 1)  # first to about 1: squares of very small rows would vanish
    return rows * inverse_root(rows.square().sum(dim=1, keepdim=True))
