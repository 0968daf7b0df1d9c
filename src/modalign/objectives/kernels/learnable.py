"""A kernel with its scale on a logarithmic axis: to train, to fit, to store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from modalign.objectives.kernels.base import AnyKernel, Kernel
from modalign.objectives.kernels.families import GaussianKernel, LaplacianKernel, PolynomialKernel


class LearnableKernel(nn.Module):
    """A kernel whose one degree of freedom is trained, or stored once fitted.

        polynomial: r = c/γ = exp(ρ), γ = 1            Gaussian, Laplacian: σ = exp(ρ)

    A normalised polynomial depends on γ and c through r alone. ρ is float64: updates of a learning rate of 1e-5 are
    lost in float32, whose numbers near ρ = 4 lie 5e-7 apart.

    Args:
        kernel: a normalised polynomial, a Gaussian or a Laplacian; its parameters are where ρ starts.
        learn: a parameter; False makes ρ a buffer.

    Attributes:
        rho: 0-d.

    Raises:
        ValueError: a kernel without such a parameter, or a polynomial with c = 0, whose ρ is infinite.
    """

    rho: Tensor

    def __init__(self, kernel: AnyKernel, learn: bool = True) -> None:
        super().__init__()
        start = torch.tensor(scale_of(kernel), dtype=torch.float64)
        if not start > 0:
            raise ValueError("coef0 is 0, so that r = c/γ has no logarithm; set coef0 above 0 or learn_kernel to false")
        self.like = kernel
        if learn:
            self.rho = nn.Parameter(start.log())
        else:
            self.register_buffer("rho", start.log())

    @property
    def kernel(self) -> Kernel:
        """The kernel at the present ρ, with its gradient."""
        return with_scale(self.like, self.rho.exp())

    @torch.no_grad()
    def set(self, kernel: AnyKernel) -> None:
        """Moves ρ to that of another kernel of the same kind."""
        self.rho.fill_(torch.tensor(scale_of(kernel), dtype=torch.float64).log())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        try:
            moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        except TypeError:  # a device without float64 (Apple's)
            moved = super()._apply(lambda tensor: fn(tensor.float()), recurse)  # type: ignore[no-untyped-call]
        return moved


def scale_of(kernel: AnyKernel) -> float:
    """The one degree of freedom of a kernel: r = c/γ of a normalised polynomial, σ of a Gaussian or Laplacian.

    Raises:
        ValueError: another kernel.
    """
    if isinstance(kernel, PolynomialKernel) and kernel.normalized:
        return _number(kernel.coef0) / _number(kernel.gamma)
    if isinstance(kernel, GaussianKernel | LaplacianKernel):
        return _number(kernel.bandwidth)
    raise ValueError(f"{kernel!r} has no single scale; pass a normalised PolynomialKernel, a Gaussian or a Laplacian")


def with_scale(kernel: AnyKernel, scale: float | Tensor) -> Kernel:
    """The kernel of the same kind at another r (γ = 1) or σ.

    Raises:
        ValueError: another kernel than `scale_of` takes.
    """
    if isinstance(kernel, PolynomialKernel) and kernel.normalized:
        return replace(kernel, gamma=1.0, coef0=scale)
    if isinstance(kernel, GaussianKernel | LaplacianKernel):
        return replace(kernel, bandwidth=scale)
    raise ValueError(f"{kernel!r} has no single scale; pass a normalised PolynomialKernel, a Gaussian or a Laplacian")


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value
