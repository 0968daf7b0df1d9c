from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance_nd

from modalign.objectives.divergences import bures, cauchy_schwarz, coral, mmd, sliced_wasserstein
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features

X, T = features(5, 3, seed=1), features(5, 3, seed=2, scale=1.5) + 0.4


def squared(a: np.ndarray, b: np.ndarray) -> complex:
    return oracle.dot(a - b, a - b)


def median(x: np.ndarray, t: np.ndarray) -> float:
    """The lower median of the pooled sample's distinct distances squared, at the real point alone."""
    points = np.concatenate([x, t]).real
    values = sorted(squared(points[i], points[j]) for i in range(len(points)) for j in range(i))
    return values[(len(values) - 1) // 2]


def mmd_truth(x: np.ndarray, t: np.ndarray) -> complex:
    sigma2 = median(x, t)

    def k(a: np.ndarray, b: np.ndarray) -> complex:
        return sum(np.exp(-squared(a, b) / (2 * m * m * sigma2)) for m in (0.25, 0.5, 1, 2, 4)) / 5

    n, r = len(x), range(len(x))
    inside = sum(k(x[i], x[j]) + k(t[i], t[j]) for i in r for j in r if i != j) / (n * (n - 1))
    return inside - 2 * sum(k(a, b) for a in x for b in t) / n**2


def cauchy_schwarz_truth(x: np.ndarray, t: np.ndarray) -> complex:
    def mean(a: np.ndarray, b: np.ndarray) -> complex:
        return sum(np.exp(-squared(p, q) / (2 * 0.8**2)) for p in a for q in b) / (len(a) * len(b))

    return np.log(mean(x, x)) + np.log(mean(t, t)) - 2 * np.log(mean(x, t))


def covariance(x: np.ndarray) -> np.ndarray:
    rows = x - x.mean(0)
    return rows.T @ rows / len(x)


def coral_truth(x: np.ndarray, t: np.ndarray) -> complex:
    return ((covariance(x) - covariance(t)) ** 2).sum()


def test_kernel_divergences_and_coral_match_the_oracle_with_gradients() -> None:
    assert_matches(lambda x, t: cauchy_schwarz(x, t, 0.8), cauchy_schwarz_truth, X, T)
    assert_matches(coral, coral_truth, X, T)


def test_mmd_matches_the_oracle_and_its_bandwidth_carries_no_gradient() -> None:
    x = torch.tensor(X, requires_grad=True)
    loss = mmd(x, torch.tensor(T))
    assert loss.item() == pytest.approx(np.real(mmd_truth(X, T)), rel=1e-12)
    loss.backward()
    slopes = oracle.gradient(mmd_truth, X, T)  # `median` reads the real part: the complex step leaves it where it is
    np.testing.assert_allclose(x.grad.numpy(), slopes[0], rtol=0, atol=1e-9 * np.abs(slopes[0]).max())


def test_mmd_of_two_samples_of_one_distribution_has_mean_zero() -> None:
    drawn = torch.randn(400, 2, 30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.stack([mmd(x, t) for x, t in drawn])
    assert abs(values.mean()) < 3 * values.std() / 20
    assert (values < 0).any()  # unbiased, so it cannot be non-negative


def test_bures_is_the_formula_with_matrix_square_roots() -> None:
    x, t = features(40, 4, seed=3), features(40, 4, seed=4) @ np.diag([1, 2, 0.5, 1]) + 3
    sx, st = covariance(x), covariance(t)
    root = sqrtm(sx)
    expected = np.trace(sx + st - 2 * np.real(sqrtm(root @ st @ root)))
    assert bures(torch.tensor(x), torch.tensor(t)).item() == pytest.approx(expected, rel=1e-9)
    leaves = [torch.tensor(v[:6], requires_grad=True) for v in (x, t)]
    assert torch.autograd.gradcheck(bures, leaves)


def test_bures_is_finite_with_fewer_rows_than_dimensions_and_below_the_distribution_gap() -> None:
    x, t = torch.tensor(features(3, 8, seed=5), requires_grad=True), torch.tensor(features(3, 8, seed=6))
    value = bures(x, t)
    value.backward()
    assert torch.isfinite(x.grad).all()
    residual = (x - x.mean(0)) - (t - t.mean(0))
    assert 0 <= value.item() <= residual.square().sum(1).mean().item()


def test_sliced_wasserstein_on_one_line_is_scipys() -> None:
    x, t = features(7, 1, seed=7), features(7, 1, seed=8)
    value = sliced_wasserstein(torch.tensor(x), torch.tensor(t), torch.tensor([[-3.0]], dtype=torch.float64))
    order = np.sort(x[:, 0]), np.sort(t[:, 0])
    assert value.item() == pytest.approx(np.mean((order[0] - order[1]) ** 2), rel=1e-12)
    assert wasserstein_distance_nd(x, t) == pytest.approx(np.mean(np.abs(order[0] - order[1])), rel=1e-6)
    assert torch.autograd.gradcheck(
        lambda a, b: sliced_wasserstein(a, b, torch.tensor(features(3, 4, seed=9))),
        [torch.tensor(X, requires_grad=True), torch.tensor(T, requires_grad=True)],
    )


@pytest.mark.parametrize("divergence", [mmd, cauchy_schwarz, coral, bures])
def test_all_but_the_kernel_ones_ignore_where_the_clouds_lie_and_none_the_pairing(divergence) -> None:
    x, t = torch.tensor(X), torch.tensor(T)
    rotation = torch.linalg.qr(torch.tensor(features(3, 3, seed=10))).Q
    value = divergence(x, t)
    torch.testing.assert_close(divergence(x @ rotation, t @ rotation), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(divergence(x, t.flip(0)), value, rtol=1e-9, atol=1e-12)
    moved = divergence(x, t + 5)
    if divergence in (coral, bures):
        torch.testing.assert_close(moved, value, rtol=1e-9, atol=1e-12)
    else:
        assert moved > value


def test_equal_clouds_are_at_distance_zero_and_points_that_coincide_are_finite() -> None:
    x = torch.tensor(X)
    assert cauchy_schwarz(x, x).item() == pytest.approx(0, abs=1e-12)
    assert bures(x, x).item() == pytest.approx(0, abs=1e-12)
    one = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    for divergence in (mmd, cauchy_schwarz):
        (gradient,) = torch.autograd.grad(divergence(one, one + 0.0), one)
        assert torch.isfinite(gradient).all()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one space"):
        coral(torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(ValueError, match="at least two rows"):
        mmd(torch.ones(1, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="as many of each"):
        sliced_wasserstein(torch.ones(3, 2), torch.ones(4, 2), torch.ones(2, 8))
