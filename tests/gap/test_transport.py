from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from modalign.gap.principal_axes import random_directions
from modalign.gap.transport import sliced_wasserstein_squared


def pairs(rows: int = 30, width: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(rows, width)) * np.linspace(0.5, 2, width) + 0.5
    return torch.from_numpy(image), torch.from_numpy(0.6 * image + rng.normal(size=(rows, width)) - 0.4)


def test_each_direction_costs_what_the_best_assignment_costs() -> None:
    image, text = pairs()
    theta = random_directions(image, text, 16, seed=2).numpy()
    theta /= np.linalg.norm(theta, axis=0)
    expected = []
    for x, t in zip((image.numpy() @ theta).T, (text.numpy() @ theta).T, strict=True):
        cost = (x[:, None] - t) ** 2
        expected.append(cost[linear_sum_assignment(cost)].mean())
    told = sliced_wasserstein_squared(image, text, directions=16, seed=2)[0].item()
    assert told == pytest.approx(np.mean(expected), abs=1e-13)


def test_a_shift_costs_its_square_over_the_dimension() -> None:
    image, _ = pairs(50, 3)
    value, effects = sliced_wasserstein_squared(image, image + torch.tensor([0.0, 3.0, 0.0]), directions=20_000)
    assert value.item() == pytest.approx(9 / 3, rel=0.03)
    assert effects.abs().max().item() == pytest.approx(0, abs=1e-9)  # whichever pairs are drawn, the shift is the same


def test_a_rotation_of_everything_and_an_order_of_rows_change_nothing() -> None:
    image, text = pairs(40, 5)
    value = sliced_wasserstein_squared(image, text)[0].item()
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    turned = sliced_wasserstein_squared(image @ rotation, text @ rotation)[0].item()
    assert turned == pytest.approx(value, abs=1e-12)
    assert sliced_wasserstein_squared(image, text.flip(0))[0].item() == pytest.approx(value, abs=1e-12)


def test_effects_foretell_a_resample() -> None:
    image, text = pairs(200, 3)
    start, effects = sliced_wasserstein_squared(image, text, directions=64)
    told, found = [], []
    for seed in range(12):
        rows = torch.from_numpy(np.random.default_rng(seed).integers(0, 200, 200))
        told.append(effects[rows].mean().item())
        found.append(sliced_wasserstein_squared(image[rows], text[rows], directions=500)[0].item() - start.item())
    assert np.corrcoef(told, found)[0, 1] > 0.9
    assert np.polyfit(told, found, 1)[0] == pytest.approx(1, abs=0.3)
