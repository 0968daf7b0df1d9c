"""Kernels and their alignment once more, from the formulas, entry by entry in NumPy; analytic for complex steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.objectives.oracle import Matrix, dot

PairKernel = Callable[[Matrix, Matrix], complex]


def polynomial(gamma: complex, coef0: complex, degree: float) -> PairKernel:
    def product(a: Matrix, b: Matrix) -> complex:
        return gamma * dot(a, b) + coef0

    def kernel(a: Matrix, b: Matrix) -> complex:
        return product(a, b) ** degree / np.sqrt(product(a, a) ** degree * product(b, b) ** degree)

    return kernel


def gaussian(bandwidth: complex) -> PairKernel:
    return lambda a, b: np.exp(-dot(a - b, a - b) / (2 * bandwidth**2))


def laplacian(bandwidth: complex) -> PairKernel:
    return lambda a, b: np.exp(-np.sqrt(dot(a - b, a - b)) / bandwidth)


def cosine() -> PairKernel:
    return lambda a, b: dot(a, b) / np.sqrt(dot(a, a) * dot(b, b))


def matrix(kernel: PairKernel, features: Matrix) -> Matrix:
    """Entry by entry; the kernels whose diagonal is 1 by definition are not differentiated there."""
    rows = range(len(features))
    return np.array([[kernel(features[i], features[j]) if i != j else 1.0 for j in rows] for i in rows])


def alignment(
    student: Matrix, target: Matrix, kernel: PairKernel, target_kernel: PairKernel, estimator: str
) -> complex:
    count, total = len(student), 0.0
    squares = (matrix(kernel, student) - matrix(target_kernel, target)) ** 2
    if estimator == "v":
        for i in range(count):
            for j in range(count):
                total += squares[i, j]
        return total / count**2
    if estimator == "u":
        for i in range(count):
            for j in range(count):
                total += squares[i, j] if i != j else 0
        return total / (count * (count - 1))
    for m in range(count // 2):
        total += squares[2 * m, 2 * m + 1]
    return total / (count // 2)
