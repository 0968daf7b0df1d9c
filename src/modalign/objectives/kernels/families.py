"""The kernels of KUEA, and the Laplacian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modalign.objectives.kernels.base import Kernel, direction, inverse_root
from modalign.objectives.validation import require_range, shape_of

# Distances come from inner products; below so many units of rounding of the squared norms, two rows are one.
COINCIDENT = 16


@dataclass(frozen=True, eq=False)
class PolynomialKernel(Kernel):
    """The polynomial kernel, scaled to ones on the diagonal.

        P_ij = γ·x_i·x_j + c
        normalized:      k_ij = P_ij^p / √(P_ii^p P_jj^p)        (= cos([x_i, √r], [x_j, √r])^p with r = c/γ)
        not normalized:  k_ij = P_ij^p

    A degree that is not whole takes P_ij ≤ 0 as 0.

    Args:
        gamma: γ > 0 (student of the paper's ViT-L/14: 0.0032; target: 1/d_t).
        coef0: c ≥ 0 (0.191623; 1).
        degree: p > 0 (3).
        normalized: the paper's kernel, and the default.

    Raises:
        ValueError: a parameter out of range.

    Source: KUEA, arXiv 2506.02557.
    """

    gamma: float | Tensor
    coef0: float | Tensor
    degree: float = 3
    normalized: bool = True

    def __post_init__(self) -> None:
        _require("gamma", self.gamma, open_low=True)
        _require("coef0", self.coef0)
        require_range("degree", self.degree, 0, open_low=True)

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The kernel of every row with every column, n×m."""
        if not self.normalized:
            return _power(self.gamma * (rows @ columns.T) + self.coef0, self.degree)
        left, right = inverse_root(self._self_products(rows)), inverse_root(self._self_products(columns))
        # One product of rows scaled beforehand, γ·x_i·x_j and c side by side: no other n×m matrix is made.
        rows = torch.cat([self.gamma * left * rows, self.coef0 * left], dim=1)
        return _power(rows @ torch.cat([right * columns, right], dim=1).T, self.degree)

    def diagonal(self, rows: Tensor) -> Tensor:
        """The kernel of every row with itself, n: ones where normalised, but 0 where P_ii is 0."""
        products = self._self_products(rows)
        if self.normalized:
            products = products * inverse_root(products).square()
        return _power(products, self.degree)[:, 0]

    def _self_products(self, rows: Tensor) -> Tensor:
        return self.gamma * rows.square().sum(dim=1, keepdim=True) + self.coef0


@dataclass(frozen=True, eq=False)
class GaussianKernel(Kernel):
    """The Gaussian kernel.

        k_ij = exp(−‖x_i − x_j‖² / 2σ²)

    Args:
        bandwidth: σ > 0, in the features' own units (paper: 8.7 for the student, 15.8 for the target).

    Source: KUEA, arXiv 2506.02557.
    """

    bandwidth: float | Tensor

    def __post_init__(self) -> None:
        _require("bandwidth", self.bandwidth, open_low=True)

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The kernel of every row with every column, n×m."""
        return (_squared_distances(rows, columns) * (-0.5 / self.bandwidth**2)).exp()

    def diagonal(self, rows: Tensor) -> Tensor:
        """Ones, n."""
        return rows.new_ones(len(rows))


@dataclass(frozen=True, eq=False)
class LaplacianKernel(Kernel):
    """The Laplacian kernel of the Euclidean distance.

        k_ij = exp(−‖x_i − x_j‖ / σ)

    (scikit-learn's takes the sum of absolute differences instead.) It has a kink where rows coincide; the gradient
    there is 0.

    Args:
        bandwidth: σ > 0, in the features' own units.
    """

    bandwidth: float | Tensor

    def __post_init__(self) -> None:
        _require("bandwidth", self.bandwidth, open_low=True)

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The kernel of every row with every column, n×m."""
        squares = _squared_distances(rows, columns)
        same = squares.detach() == 0
        distances = squares.masked_fill(same, 1).sqrt().masked_fill(same, 0)
        return (-distances / self.bandwidth).exp()

    def diagonal(self, rows: Tensor) -> Tensor:
        """Ones, n."""
        return rows.new_ones(len(rows))


@dataclass(frozen=True, eq=False)
class CosineKernel(Kernel):
    """Cosine similarity; a zero row has cosine 0 with everything.

    k_ij = x_i·x_j / (‖x_i‖‖x_j‖)
    """

    def between(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The kernel of every row with every column, n×m."""
        return direction(rows) @ direction(columns).T

    def diagonal(self, rows: Tensor) -> Tensor:
        """Ones, n, but 0 for zero rows."""
        return direction(rows).square().sum(dim=1)


def _require(name: str, value: float | Tensor, open_low: bool = False) -> None:
    """Numbers are checked; a tensor is the caller's, and reading it would stop a GPU."""
    if isinstance(value, Tensor):
        if value.dim():
            raise ValueError(f"{name} is {shape_of(value)}; pass a number or a 0-d tensor")
        return
    require_range(name, value, 0, open_low=open_low)


def _power(base: Tensor, degree: float) -> Tensor:
    if degree == 1:
        return base
    if float(degree).is_integer():
        return base.pow(int(degree))
    positive = base.detach() > 0
    return base.masked_fill(~positive, 1).pow(degree).masked_fill(~positive, 0)


def _squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """‖a_i − b_j‖² from inner products, exactly 0 (with gradient 0) where two rows coincide within rounding."""
    # Distances do not change with the origin, and features of one tower lie in a narrow cone far from it.
    centre = columns.detach().mean(dim=0)
    rows, columns = rows - centre, columns - centre
    norms = rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1)
    squares = norms - 2 * (rows @ columns.T)
    coincide = squares.detach() <= COINCIDENT * torch.finfo(squares.dtype).eps * norms.detach()
    return squares.masked_fill(coincide, 0)
