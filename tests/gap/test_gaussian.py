from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.covariance import ledoit_wolf_shrinkage

from modalign.gap import gaussian, moments


def pairs(rows: int = 200, width: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(rows, width)) * np.linspace(0.3, 2, width) + 0.5
    return image, 0.6 * image[:, ::-1] + rng.normal(size=(rows, width)) - 0.4


def covariances(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    image, text = pairs(seed=seed)
    return gaussian.covariance(torch.from_numpy(image)), gaussian.covariance(torch.from_numpy(text))


def test_bures_against_scipys_matrix_root() -> None:
    first, second = (each.numpy() for each in covariances())
    root = sqrtm(first)
    expected = np.trace(first + second - 2 * sqrtm(root @ second @ root)).real
    assert gaussian.bures_squared(*covariances()).item() == pytest.approx(expected, abs=1e-12)


def test_bures_of_commuting_covariances_is_the_distance_of_their_roots() -> None:
    first, second = torch.diag(torch.tensor([4.0, 9.0])).double(), torch.diag(torch.tensor([1.0, 25.0])).double()
    # (2 − 1)² + (3 − 5)².
    assert gaussian.bures_squared(first, second).item() == pytest.approx(5, abs=1e-12)
    assert gaussian.frechet_distance(torch.tensor([3.0, 4.0]).double(), first, second).item() == pytest.approx(30)
    # ½(1/4 + 4 − 2) + ½(25/9 + 9/25 − 2) + ½(9·(1/4 + 1) + 16·(1/9 + 1/25)).
    told = gaussian.symmetric_kl(torch.tensor([3.0, 4.0]).double(), first, second).item()
    assert told == pytest.approx(1.125 + 256 / 450 + (11.25 + 544 / 225) / 2, abs=1e-12)


def test_bures_of_a_singular_covariance_and_of_equal_ones() -> None:
    line, eye = torch.diag(torch.tensor([1.0, 0.0])).double(), torch.eye(2, dtype=torch.float64)
    assert gaussian.bures_squared(line, eye).item() == pytest.approx(1, abs=1e-12)
    assert gaussian.bures_squared(line, line).item() == pytest.approx(0, abs=1e-12)
    assert gaussian.bures_squared(0 * eye, eye).item() == pytest.approx(2, abs=1e-12)
    assert not gaussian.full_rank(line) and gaussian.full_rank(eye)


def test_the_shape_gap_never_exceeds_the_distribution_gap() -> None:
    for seed in range(5):
        image, text = (torch.from_numpy(rows) for rows in pairs(30, 6, seed))
        bures = gaussian.bures_squared(gaussian.covariance(image), gaussian.covariance(text))
        assert bures <= moments.distribution_gap(image, text).square()


def test_symmetric_kl_ignores_an_invertible_map_of_both() -> None:
    first, second = covariances()
    offset = torch.linspace(-1, 1, 5, dtype=torch.float64)
    by = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    told = gaussian.symmetric_kl(by @ offset, by @ first @ by.T, by @ second @ by.T)
    assert told.item() == pytest.approx(gaussian.symmetric_kl(offset, first, second).item(), rel=1e-9)


def test_gradients_are_autograds_of_the_textbook_formulas() -> None:
    first, second = (each.requires_grad_() for each in covariances())
    offset = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)

    def root(matrix: torch.Tensor) -> torch.Tensor:
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        return vectors * eigenvalues.sqrt() @ vectors.T

    bures = (first + second).trace() - 2 * root(root(first) @ second @ root(first)).trace()
    expected = [(each + each.T) / 2 for each in torch.autograd.grad(bures, (first, second))]
    for told, slope in zip(gaussian.bures_gradients(first.detach(), second.detach()), expected, strict=True):
        torch.testing.assert_close(told, slope, atol=1e-9, rtol=1e-9)

    kl = gaussian.symmetric_kl(offset, first, second)
    slopes = torch.autograd.grad(kl, (first, second, offset))
    found = gaussian.symmetric_kl_gradients(offset.detach(), first.detach(), second.detach())
    for told, slope in zip(found, slopes, strict=True):
        symmetric = (slope + slope.T) / 2 if slope.ndim == 2 else slope
        torch.testing.assert_close(told, symmetric, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("rows", "width"), [(200, 5), (10, 30)])
def test_ledoit_wolf_is_scikit_learns(rows: int, width: int) -> None:
    image, _ = pairs(rows, width)
    centred = image - image.mean(0)
    told = gaussian.ledoit_wolf(
        gaussian.covariance(torch.from_numpy(image)), torch.tensor(np.mean((centred**2).sum(1) ** 2)), rows
    )
    assert told == pytest.approx(ledoit_wolf_shrinkage(image), abs=1e-12)


def test_shrinking_keeps_the_trace_and_makes_full_rank() -> None:
    thin = gaussian.covariance(torch.from_numpy(pairs(3, 8)[0]))
    assert not gaussian.full_rank(thin)
    shrunk = gaussian.shrunk(thin, 0.1)
    assert gaussian.full_rank(shrunk) and shrunk.trace().item() == pytest.approx(thin.trace().item())
