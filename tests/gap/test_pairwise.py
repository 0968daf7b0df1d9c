from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.gap import pairwise


def test_uniformity_of_two_opposite_points_counts_each_point_with_itself() -> None:
    image = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    text = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    # Four ordered pairs: two of a point with itself (1) and two at squared distance 4 (e^−8).
    assert pairwise.uniformity(image, text).item() == pytest.approx((1 + math.exp(-8)) / 2, abs=1e-15)
    assert pairwise.alignment(image, text).item() == 4


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_uniformity_against_numpy_whatever_the_block(block: int) -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 20, 5)) / 3
    union = np.concatenate([image, text])
    expected = np.exp(-2 * ((union[:, None] - union[None]) ** 2).sum(-1)).mean()
    parts = pairwise.pair_crowding(torch.from_numpy(image), torch.from_numpy(text), block=block)
    assert parts.mean().item() == pytest.approx(expected, abs=1e-14)
