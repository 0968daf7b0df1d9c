from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.objectives.cyclip import cross_modal_consistency, in_modal_consistency
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features


def in_modal(image: np.ndarray, text: np.ndarray) -> complex:
    x, t = oracle.unit(image), oracle.unit(text)
    return sum((oracle.dot(x[i], x[j]) - oracle.dot(t[i], t[j])) ** 2 for i in range(4) for j in range(4)) / 16


def cross_modal(image: np.ndarray, text: np.ndarray) -> complex:
    x, t = oracle.unit(image), oracle.unit(text)
    return sum((oracle.dot(x[i], t[j]) - oracle.dot(x[j], t[i])) ** 2 for i in range(4) for j in range(4)) / 16


@pytest.mark.parametrize(
    ("objective", "truth"), [(in_modal_consistency, in_modal), (cross_modal_consistency, cross_modal)]
)
def test_loss_and_gradient_match_the_oracle(objective, truth) -> None:
    assert_matches(objective, truth, features(4, 3, seed=1, scale=7), features(4, 3, seed=2, scale=0.3))


def test_captions_that_are_rotated_pictures_have_equal_geometry_but_no_symmetry() -> None:
    image = torch.tensor(features(5, 4, seed=3))
    rotation = torch.linalg.qr(torch.tensor(features(4, 4, seed=4))).Q
    assert in_modal_consistency(image, image @ rotation).item() == pytest.approx(0, abs=1e-28)
    assert cross_modal_consistency(image, image @ rotation).item() > 0.01
    assert cross_modal_consistency(image, image).item() == 0


def test_two_pairs_by_hand() -> None:
    # Pictures orthogonal (cosine 0), captions parallel (cosine 1): two of four entries differ by 1.
    image, text = torch.eye(2).double(), torch.tensor([[1.0, 0], [2.0, 0]]).double()
    assert in_modal_consistency(image, text).item() == pytest.approx(0.5)
    # x0·t1 = 1 and x1·t0 = 0: again two of four entries differ by 1.
    assert cross_modal_consistency(image, text).item() == pytest.approx(0.5)
