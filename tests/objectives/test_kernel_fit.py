from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.objectives.kernel_fit import fit_kernel, kernel_spread, spread_warnings
from modalign.objectives.kernels import CosineKernel, GaussianKernel, LaplacianKernel, PolynomialKernel, scale_of
from tests.objectives import kernel_oracle as oracle
from tests.objectives.comparison import features


def test_the_scale_that_the_target_was_made_with_is_found_again() -> None:
    rows = torch.tensor(features(60, 8, seed=1, scale=3))
    turned = rows @ torch.linalg.qr(torch.tensor(features(8, 8, seed=2))).Q
    polynomial = fit_kernel(rows, turned, target_kernel=PolynomialKernel(0.02, 1.3))
    assert isinstance(polynomial, PolynomialKernel)
    assert scale_of(polynomial) == pytest.approx(65, rel=1e-6) and polynomial.gamma == 1 / 8
    for kind in (GaussianKernel, LaplacianKernel):
        fitted = fit_kernel(rows, turned, kind(1.0), kind(5.5))
        assert isinstance(fitted, kind) and scale_of(fitted) == pytest.approx(5.5, rel=1e-6)


def test_it_is_the_lowest_of_a_scan_with_the_papers_target() -> None:
    student, target = features(24, 6, seed=3, scale=2), features(24, 5, seed=4)
    fitted = fit_kernel(torch.tensor(student), torch.tensor(target))

    def loss(r: float) -> float:
        own, other = oracle.polynomial(1.0, r, 3), oracle.polynomial(1 / 5, 1.0, 3)
        return oracle.alignment(student, target, own, other, "u")

    best = loss(scale_of(fitted))
    assert best <= min(loss(r) for r in np.geomspace(0.01, 1000, 25)) + 1e-12
    assert best <= min(loss(scale_of(fitted) * (1 + step)) for step in (-1e-3, 1e-3))


def test_it_is_the_same_at_every_call_and_whatever_the_scale_it_is_like() -> None:
    student, target = torch.randn(40, 6), torch.randn(40, 5)
    found = {scale_of(fit_kernel(student, target, like)) for like in (None, PolynomialKernel(3.0, 0.0))}
    assert len(found | {scale_of(fit_kernel(student, target))}) == 1


def test_spread_is_measured_off_the_diagonal() -> None:
    student, target = features(6, 4, seed=5), features(6, 5, seed=6)
    found = kernel_spread(torch.tensor(student), torch.tensor(target), GaussianKernel(2.0), CosineKernel())
    off = ~np.eye(6, dtype=bool)
    for side, kernel, rows in (("student", oracle.gaussian(2.0), student), ("target", oracle.cosine(), target)):
        values = oracle.matrix(kernel, rows)[off]
        assert found[f"{side}_kernel_mean"] == pytest.approx(values.mean(), rel=1e-12)
        assert found[f"{side}_kernel_std"] == pytest.approx(values.std(), rel=1e-12)
    step = 1e-6

    def loss(x: np.ndarray) -> float:
        return oracle.alignment(x, target, oracle.gaussian(2.0), oracle.cosine(), "u")

    slopes = [
        (loss(student + step * unit) - loss(student - step * unit)) / (2 * step)
        for unit in np.eye(24).reshape(24, 6, 4)
    ]
    assert found["kernel_gradient_norm"] == pytest.approx(math.hypot(*slopes), rel=1e-6)
    assert spread_warnings(found) == []


@pytest.mark.parametrize(("bandwidth", "mean"), [(1e3, 1.0), (1e-2, 0.0)])
def test_a_kernel_that_finds_all_alike_or_all_unlike_is_told(bandwidth: float, mean: float) -> None:
    rows = torch.tensor(features(6, 4, seed=7))
    found = kernel_spread(rows, rows, GaussianKernel(bandwidth), PolynomialKernel(0.25, 1.0))
    assert found["student_kernel_mean"] == pytest.approx(mean, abs=1e-4)
    (warning,) = spread_warnings(found)
    assert "the student's kernel is nearly constant" in warning and "fit_kernel=true" in warning
    (fitted,) = spread_warnings(found, fitted=True)
    assert "nearly constant" in fitted and "fit_kernel" not in fitted


def test_refusals_say_what_to_pass() -> None:
    rows = torch.tensor(features(6, 4, seed=8))
    with pytest.raises(ValueError, match="same three or more pictures"):
        fit_kernel(rows[:2], rows[:2])
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        fit_kernel(rows.log(), rows)
    with pytest.raises(ValueError, match="all rows of student are equal"):
        fit_kernel(torch.full((6, 4), 7.3), rows)
    with pytest.raises(ValueError, match="has no single scale"):
        fit_kernel(rows, rows, CosineKernel())
