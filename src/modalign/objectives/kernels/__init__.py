"""Kernels: how alike two rows of features are, as a symmetric matrix without negative eigenvalues.

Each is callable, N×d → N×N, on raw features. `Normalized`, `SumKernel` and `ProductKernel` make new ones of any;
`check` says what is wrong with a kernel of your own, which may be any function N×d → N×N.

Parameters may be numbers or 0-d tensors; a tensor that requires a gradient gets it. No input that is finite gives a
value or gradient that is not: a row without a direction (zero, or P_ii ≤ 0) is like nothing, and rows that coincide
within rounding are at distance 0, with gradient 0.
"""

from __future__ import annotations

from modalign.objectives.kernels.base import AnyKernel, Kernel, as_kernel
from modalign.objectives.kernels.checking import check
from modalign.objectives.kernels.combined import Normalized, ProductKernel, SumKernel
from modalign.objectives.kernels.families import CosineKernel, GaussianKernel, LaplacianKernel, PolynomialKernel
from modalign.objectives.kernels.learnable import LearnableKernel, scale_of, with_scale

__all__ = [
    "AnyKernel",
    "CosineKernel",
    "GaussianKernel",
    "Kernel",
    "LaplacianKernel",
    "LearnableKernel",
    "Normalized",
    "PolynomialKernel",
    "ProductKernel",
    "SumKernel",
    "as_kernel",
    "check",
    "scale_of",
    "with_scale",
]
