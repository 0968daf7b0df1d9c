from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from modalign.evaluation.few_shot import few_shot
from modalign.evaluation.splits import draw_shots


def blobs(rows: int, seed: int, classes: int = 5, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(rows) % classes
    return centres[labels] + torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), labels


def test_outcomes_are_those_of_scikit_learn_on_the_same_draws() -> None:
    (x, y), (test, truth) = blobs(200, 1), blobs(300, 2)
    (found,) = few_shot(x, y, test, truth, 5, shots=[4], seeds=3, scale="raw", penalties=[1.0])
    for seed, row in enumerate(found.outcomes):
        learn, _ = draw_shots(y, 4, 4, seed)
        peer = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(x[learn].numpy(), y[learn].numpy())
        agreed = row == (peer.predict(test.numpy()) == truth.numpy())
        assert agreed.mean() >= 0.995


def test_mean_and_deviation_by_hand_and_more_shots_help() -> None:
    (x, y), (test, truth) = blobs(200, 1), blobs(300, 2)
    found = few_shot(x, y, test, truth, 5, shots=[1, 16], seeds=3)
    assert [f.shots for f in found] == [1, 16]
    assert found[0].outcomes.shape == (3, 300) and len(found[0].penalties) == 3
    means = found[0].outcomes.mean(1)
    assert found[0].deviation == pytest.approx(np.sqrt(((means - means.mean()) ** 2).sum() / 2))
    assert found[1].outcomes.mean() > found[0].outcomes.mean() + 0.05
    (alone,) = few_shot(x, y, test, truth, 5, shots=[1], seeds=1)
    assert alone.deviation == 0
    np.testing.assert_array_equal(alone.outcomes[0], found[0].outcomes[0])


def test_two_models_meet_the_same_draws() -> None:
    (x, y), (test, truth) = blobs(100, 1), blobs(300, 2)
    scaled = few_shot(3 * x, y, 3 * test, truth, 5, shots=[2], seeds=2)[0]
    np.testing.assert_array_equal(scaled.outcomes, few_shot(x, y, test, truth, 5, shots=[2], seeds=2)[0].outcomes)
