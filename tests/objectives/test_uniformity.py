from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.objectives.uniformity import centroid_uniformity, cross_modal_uniformity, in_modal_uniformity
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features


def crowding(a: np.ndarray, b: np.ndarray) -> complex:
    n = len(a)
    kernel = [np.exp(-2 * oracle.dot(a[i] - b[j], a[i] - b[j])) for i in range(n) for j in range(n) if i != j]
    return np.log(sum(kernel) / len(kernel))


def in_modal(image: np.ndarray, text: np.ndarray) -> complex:
    x, t = oracle.unit(image), oracle.unit(text)
    return (crowding(x, x) + crowding(t, t)) / 2


def cross_modal(image: np.ndarray, text: np.ndarray) -> complex:
    return crowding(oracle.unit(image), oracle.unit(text))


def of_centroids(image: np.ndarray, text: np.ndarray) -> complex:
    middles = oracle.unit(oracle.unit(image) + oracle.unit(text))
    return crowding(middles, middles)


@pytest.mark.parametrize(
    ("objective", "truth"),
    [(in_modal_uniformity, in_modal), (cross_modal_uniformity, cross_modal), (centroid_uniformity, of_centroids)],
)
def test_loss_and_gradient_match_the_oracle(objective, truth) -> None:
    assert_matches(objective, truth, features(4, 3, seed=1, scale=7), features(4, 3, seed=2, scale=0.3))


def test_opposite_points_are_the_most_uniform_pair_and_one_point_the_least() -> None:
    apart, together = torch.tensor([[1.0, 0], [-3.0, 0]]).double(), torch.ones(3, 2).double()
    assert in_modal_uniformity(apart, apart).item() == pytest.approx(-8)  # ‖a − b‖² = 4
    assert in_modal_uniformity(together, together).item() == pytest.approx(0)
    assert cross_modal_uniformity(together, together).item() == pytest.approx(0)


def test_a_pair_is_never_its_own_negative() -> None:
    # Each caption equals its picture, the two pairs are orthogonal (‖·‖² = 2): only i ≠ j counts.
    points = torch.eye(2).double()
    assert cross_modal_uniformity(points, points).item() == pytest.approx(-4)
    assert centroid_uniformity(points, points).item() == pytest.approx(-4)
    assert centroid_uniformity(points, points.flip(0)).item() == pytest.approx(math.log(1))  # both middles coincide


def test_one_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        in_modal_uniformity(torch.ones(1, 3), torch.ones(1, 3))
