from __future__ import annotations

import pytest
import torch

from modalign.objectives import squared_pair_distance
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features


def test_loss_and_gradient_match_the_oracle() -> None:
    assert_matches(
        squared_pair_distance, oracle.pair_distance, features(4, 3, seed=1, scale=9), features(4, 3, seed=2, scale=0.1)
    )


def test_same_orthogonal_and_opposite_directions_cost_zero_two_and_four() -> None:
    image = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    text = torch.tensor([[0.5, 0.0], [0.0, 9.0], [-1.0, 0.0]])
    for row, cost in enumerate((0.0, 2.0, 4.0)):
        assert squared_pair_distance(image[row : row + 1], text[row : row + 1]).item() == pytest.approx(cost)
    assert squared_pair_distance(image, text).item() == pytest.approx(2.0)


def test_a_zero_row_has_a_finite_gradient() -> None:
    image = torch.zeros(1, 3, requires_grad=True)
    squared_pair_distance(image, torch.ones(1, 3)).backward()
    assert torch.isfinite(image.grad).all()
