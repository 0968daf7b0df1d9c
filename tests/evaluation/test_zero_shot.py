from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from modalign.errors import DataError
from modalign.evaluation.results import Metric
from modalign.evaluation.zero_shot import class_weights, zero_shot_outcomes


def test_classifier_normalises_before_and_after_the_mean() -> None:
    # A long prompt feature must not outvote a short one: unit vectors (1,0) and (0,1) meet at 45°.
    prompts = torch.tensor([[[100.0, 0.0], [0.0, 0.01]], [[0.0, 2.0], [0.0, 5.0]]], dtype=torch.float64)
    expected = torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(class_weights(prompts), expected, rtol=0, atol=1e-15)


def test_outcomes_against_sklearn() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(200, 10, dtype=torch.float64, generator=generator)
    weights = class_weights(torch.randn(12, 3, 10, dtype=torch.float64, generator=generator))
    labels = torch.randint(0, 12, (200,), generator=generator)
    told = zero_shot_outcomes(image, weights, labels, chunk=33)
    scores = (image @ weights.T).numpy()
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=range(12))
        assert told[f"acc{k}"].mean() == pytest.approx(expected)
    recall = Metric.of("mean_per_class_recall", told["acc1"], strata=labels.numpy(), average="strata", resamples=50)
    assert recall.value == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_features_are_never_rewarded(dtype: torch.dtype) -> None:
    row = torch.randn(1, 33, dtype=dtype, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(99) % 9
    constant_classes = zero_shot_outcomes(torch.randn(99, 33, dtype=dtype), class_weights(row.expand(9, 1, 33)), labels)
    assert constant_classes["acc1"].max() == 0 and constant_classes["acc5"].max() == 0
    weights = class_weights(torch.randn(9, 1, 33, dtype=dtype, generator=torch.Generator().manual_seed(1)))
    constant_images = zero_shot_outcomes(row.expand(99, 33), weights, labels)
    assert constant_images["acc1"].mean() == pytest.approx(1 / 9)


def test_k_that_covers_all_classes_is_left_out() -> None:
    weights = class_weights(torch.eye(5)[:, None])
    assert list(zero_shot_outcomes(torch.eye(5), weights, torch.arange(5))) == ["acc1"]
    six = class_weights(torch.eye(6)[:, None])
    assert list(zero_shot_outcomes(torch.eye(6), six, torch.arange(6))) == ["acc1", "acc5"]


@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (torch.eye(3), [0, 1], "do not fit"),
        (torch.eye(3), [0, 1, 3], "labels reach from 0 to 3"),
        (torch.full((3, 3), torch.nan), [0, 1, 2], "NaN"),
        (torch.ones(0, 3), [], "do not fit"),
    ],
)
def test_bad_input_is_named(image: torch.Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        zero_shot_outcomes(image, class_weights(torch.eye(3)[:, None]), torch.tensor(labels, dtype=torch.long))


def test_a_class_recall_is_not_a_picture_recall() -> None:
    outcomes, classes = np.array([1, 1, 1, 1, 0.0]), np.array([0, 0, 0, 0, 1])
    metric = Metric.of("mean_per_class_recall", outcomes, strata=classes, average="strata", resamples=50)
    assert metric.value == 0.5
