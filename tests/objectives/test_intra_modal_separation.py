from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.objectives.intra_modal_separation import intra_modal_separation
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features

SEMANTIC = features(4, 5, seed=9)


def truth(image: np.ndarray, text: np.ndarray) -> complex:
    x, t, m = oracle.unit(image), oracle.unit(text), oracle.unit(SEMANTIC)
    rows = [
        [
            14 * oracle.dot(x[i], t[i]) if i == j else 14 * oracle.dot(x[i], x[j]) * (1 - oracle.dot(m[i], m[j]))
            for j in range(4)
        ]
        for i in range(4)
    ]
    return oracle.cross_entropy(rows, np.eye(4))


def test_loss_and_gradient_match_the_oracle() -> None:
    semantic = torch.tensor(SEMANTIC)
    assert_matches(
        lambda image, text: intra_modal_separation(image, text, semantic, 14.0),
        truth,
        features(4, 3, seed=1, scale=7),
        features(4, 3, seed=2, scale=0.3),
    )


def test_the_same_caption_is_a_logit_of_zero_whatever_the_pictures() -> None:
    image = torch.tensor([[1.0, 0], [1.0, 0]], dtype=torch.float64)
    same = torch.ones(2, 3, dtype=torch.float64)
    loss = intra_modal_separation(image, image, same, 10.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-10.0)), rel=1e-12)


def test_no_gradient_reaches_the_frozen_encoder() -> None:
    semantic = torch.randn(3, 4, requires_grad=True)
    intra_modal_separation(torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), semantic, 10.0).backward()
    assert semantic.grad is None


def test_another_number_of_captions_is_refused() -> None:
    with pytest.raises(ValueError, match="2 rows for 3 pairs"):
        intra_modal_separation(torch.ones(3, 4), torch.ones(3, 4), torch.ones(2, 4), 1.0)
