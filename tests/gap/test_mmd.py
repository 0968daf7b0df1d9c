from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel

from modalign.gap import mmd


def pairs(rows: int = 25, width: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(rows, width)) + 0.5
    return torch.from_numpy(image), torch.from_numpy(0.6 * image + rng.normal(size=(rows, width)) - 0.4)


def unbiased(image: np.ndarray, text: np.ndarray, sigma: float) -> float:
    gamma = 1 / (2 * sigma**2)
    h = rbf_kernel(image, image, gamma) + rbf_kernel(text, text, gamma)
    h -= rbf_kernel(image, text, gamma) + rbf_kernel(text, image, gamma)
    return float(h[~np.eye(len(image), dtype=bool)].mean())


def test_against_scikit_learns_kernel_and_the_median_of_all_distances() -> None:
    image, text = (rows.numpy() for rows in pairs())
    union = np.concatenate([image, text])
    distances = np.linalg.norm(union[:, None] - union, axis=2)[np.triu_indices(50, 1)]
    sigma = float(np.median(distances**2) ** 0.5)
    assert mmd.median_bandwidth(*pairs()) == pytest.approx(sigma, abs=1e-12)
    assert mmd.mmd_squared(*pairs())[0].item() == pytest.approx(unbiased(image, text, sigma), abs=1e-14)


def test_three_pairs_worked_by_hand() -> None:
    image = torch.zeros(3, 1, dtype=torch.float64)
    far = torch.full((3, 1), 1e3, dtype=torch.float64)
    # Two points that never meet: 1 + 1 − 0 − 0; one point: 1 + 1 − 1 − 1.
    assert mmd.mmd_squared(image, far, bandwidth=1.0)[0].item() == pytest.approx(2)
    assert mmd.mmd_squared(image, image)[0].item() == 0


def test_one_distribution_gives_zero_on_average_even_when_pairs_depend_on_each_other() -> None:
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=(12, 2))
        image, text = (torch.from_numpy(shared + 0.3 * rng.normal(size=(12, 2))) for _ in range(2))
        found.append(mmd.mmd_squared(image, text, bandwidth=1.0)[0].item())
    assert abs(np.mean(found)) < 3 * np.std(found) / 20


def test_effects_of_pairs_are_the_derivative_by_their_weights() -> None:
    image, text = pairs()
    value, effects = mmd.mmd_squared(image, text, bandwidth=1.5)
    x, t, gamma, count = image.numpy(), text.numpy(), 1 / (2 * 1.5**2), len(image)
    h = rbf_kernel(x, x, gamma) + rbf_kernel(t, t, gamma) - rbf_kernel(x, t, gamma) - rbf_kernel(t, x, gamma)
    np.fill_diagonal(h, 0)
    h *= count / (count - 1)
    # Of wᵀHw, along 1_i − w, at w = 1/N.
    np.testing.assert_allclose(effects, 2 * (h.mean(1) - h.mean()), atol=1e-13)
    assert value.item() == pytest.approx(h.mean(), abs=1e-14)


def test_random_features_agree_with_the_kernel_and_better_so_the_more_there_are() -> None:
    image, text = pairs(150, 6)
    exact, effects = mmd.mmd_squared(image, text)
    errors = []
    for features in (32, 2048):
        draws = [mmd.random_feature_mmd_squared(image, text, features=features, seed=seed) for seed in range(20)]
        errors.append(np.std([value.item() - exact.item() for value, _ in draws]))
    # The error falls with the root of their number: eightfold here.
    assert errors[1] < errors[0] / 4 and errors[1] < 0.03 * exact.item()
    assert np.corrcoef(draws[0][1], effects)[0, 1] > 0.99


def test_random_features_turn_along_with_the_features() -> None:
    image, text = pairs(60, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    told = mmd.random_feature_mmd_squared(image @ rotation, text @ rotation, seed=3)[0].item()
    assert told == pytest.approx(mmd.random_feature_mmd_squared(image, text, seed=3)[0].item(), abs=1e-11)
