from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.objectives import feature_anchor, weight_anchor
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features


def cosine_truth(x: np.ndarray, f: np.ndarray) -> complex:
    return sum(1 - oracle.dot(a, b) for a, b in zip(oracle.unit(x), oracle.unit(f), strict=True)) / len(x)


@pytest.mark.parametrize("form", ["l2", "cosine"])
def test_losses_and_gradients_match_the_oracle(form: str) -> None:
    frozen = features(5, 4, seed=1)
    squared = lambda x: sum(oracle.dot(a - b, a - b) for a, b in zip(x, frozen, strict=True)) / 5  # noqa: E731
    assert_matches(
        lambda x: feature_anchor(x, torch.tensor(frozen), form),
        squared if form == "l2" else lambda x: cosine_truth(x, frozen),
        features(5, 4, seed=2),
        gradients=1e-10,
    )


def test_the_sum_runs_over_dimensions_and_the_mean_over_rows() -> None:
    assert feature_anchor(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2)).item() == 12.5


def test_the_cosine_form_leaves_lengths_free_and_zero_rows_finite() -> None:
    student = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    loss = feature_anchor(student, torch.tensor([[30.0, 40.0], [1.0, 0.0]]), "cosine")
    (slope,) = torch.autograd.grad(loss, student)
    assert bool(slope.isfinite().all()) and float(slope.abs().max()) < 1


def test_the_weight_anchor_pulls_every_weight_back_by_how_far_it_went() -> None:
    weights = {"a": torch.tensor([[1.0, 2.0]], requires_grad=True), "b": torch.tensor([3.0], requires_grad=True)}
    initial = {"a": torch.zeros(1, 2), "b": torch.ones(1), "not trained": torch.ones(7)}
    loss = weight_anchor(weights, initial)
    assert loss.item() == (1 + 4 + 4) / 2
    slopes = torch.autograd.grad(loss, list(weights.values()))
    assert [slope.tolist() for slope in slopes] == [[[1.0, 2.0]], [2.0]]


def test_refusals_say_what_to_pass() -> None:
    with pytest.raises(ValueError, match="student is 2×3 but frozen is 2×4"):
        feature_anchor(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="form is 'l1'; use 'l2' or 'cosine'"):
        feature_anchor(torch.ones(2, 3), torch.ones(2, 3), "l1")
    with pytest.raises(ValueError, match="initial has no weights 'a'"):
        weight_anchor({"a": torch.ones(2)}, {})
    with pytest.raises(ValueError, match="'a' is 2 but began as 3"):
        weight_anchor({"a": torch.ones(2)}, {"a": torch.ones(3)})
    with pytest.raises(ValueError, match="parameters is empty"):
        weight_anchor({}, {})
