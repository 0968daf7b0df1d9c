from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.objectives.adaptors import fit_linear_map, head_match, linear_match, mean_and_std
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features


def test_least_squares_and_ridge_match_numpy() -> None:
    g, f = features(50, 6, seed=1), features(50, 4, seed=2)
    plain = np.linalg.lstsq(g, f, rcond=None)[0].T
    # A ridge is least squares with √ridge·I appended, to be mapped to 0.
    longer = np.vstack([g, np.sqrt(3.0) * np.eye(6)])
    ridged = np.linalg.lstsq(longer, np.vstack([f, np.zeros((6, 4))]), rcond=None)[0].T
    for ridge, expected in ((0.0, plain), (3.0, ridged)):
        np.testing.assert_allclose(fit_linear_map(torch.tensor(g), torch.tensor(f), ridge), expected, rtol=1e-10)


def test_of_several_best_maps_it_takes_the_shortest() -> None:
    g, f = features(5, 8, seed=3), features(5, 4, seed=4)
    g[:, 7] = g[:, 6]
    weight = fit_linear_map(torch.tensor(g), torch.tensor(f))
    np.testing.assert_allclose(weight, np.linalg.lstsq(g, f, rcond=None)[0].T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(torch.tensor(g) @ weight.T, f, atol=1e-9)


def test_a_map_that_exists_is_found() -> None:
    weight = torch.tensor(features(4, 6, seed=5))
    g = torch.tensor(features(30, 6, seed=6))
    torch.testing.assert_close(fit_linear_map(g, g @ weight.T), weight, rtol=1e-10, atol=1e-12)


def test_linear_match_and_both_its_gradients_match_the_oracle() -> None:
    g = features(5, 6, seed=7)

    def truth(x: np.ndarray, w: np.ndarray) -> complex:
        gaps = [a - np.array([oracle.dot(row, b) for row in w]) for a, b in zip(x, g, strict=True)]
        return sum(oracle.dot(gap, gap) for gap in gaps) / 5

    x, w = features(5, 4, seed=8), features(4, 6, seed=9)
    assert_matches(lambda x, w: linear_match(x, torch.tensor(g), w), truth, x, w, gradients=1e-10)


def test_head_match_is_the_papers_mixture() -> None:
    y = features(5, 6, seed=10, scale=1.5)

    def truth(h: np.ndarray) -> complex:
        total = 0.0
        for a, b in zip(h, y, strict=True):
            angle = 1 - oracle.dot(a, b) / np.sqrt(oracle.dot(a, a) * oracle.dot(b, b))
            steps = [e * e / 2 if abs(np.real(e)) < 1 else np.sign(np.real(e)) * e - 0.5 for e in a - b]
            total += 0.9 * angle + 0.1 * sum(steps) / 6
        return total / 5

    assert_matches(lambda h: head_match(h, torch.tensor(y)), truth, features(5, 6, seed=11), gradients=1e-10)


def test_standardisation_leaves_a_constant_dimension_alone() -> None:
    rows = torch.tensor(features(40, 3, seed=12, scale=4)).float()
    rows[:, 1] = 7.3
    mean, std = mean_and_std(rows)
    np.testing.assert_allclose(mean, rows.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(std[[0, 2]], rows.double().std(0, correction=0)[[0, 2]], rtol=1e-12)
    assert std[1] == 1


def test_refusals_say_what_to_pass() -> None:
    with pytest.raises(ValueError, match="target is 4×3 and features 5×3"):
        fit_linear_map(torch.ones(4, 3), torch.ones(5, 3))
    with pytest.raises(ValueError, match="ridge is -1"):
        fit_linear_map(torch.ones(4, 3), torch.ones(4, 3), -1)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        fit_linear_map(torch.full((4, 3), float("nan")), torch.ones(4, 3))
    with pytest.raises(ValueError, match="target is 4×3 and weight 2×5"):
        linear_match(torch.ones(4, 2), torch.ones(4, 3), torch.ones(2, 5))
    with pytest.raises(ValueError, match="predicted is 4×2 but teacher is 4×3"):
        head_match(torch.ones(4, 2), torch.ones(4, 3))
