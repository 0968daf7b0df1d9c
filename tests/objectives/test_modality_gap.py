from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.objectives import contrastive
from modalign.objectives.modality_gap import centroid_gap, distribution_gap, geometry_gap, reweighted_contrastive
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features

IMAGE, TEXT = features(4, 3, seed=1, scale=7), features(4, 3, seed=2, scale=0.3)


def differences(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    return oracle.unit(image) - oracle.unit(text)


def centroid_truth(image: np.ndarray, text: np.ndarray) -> complex:
    d = differences(image, text)
    mean = sum(d) / len(d)
    spread = sum(oracle.dot(row - mean, row - mean) for row in d) / (len(d) - 1)
    return oracle.dot(mean, mean) - spread / len(d)


def distribution_truth(image: np.ndarray, text: np.ndarray) -> complex:
    d = differences(image, text)
    mean = sum(d) / len(d)
    return sum(oracle.dot(row - mean, row - mean) for row in d) / len(d)


def geometry_truth(image: np.ndarray, text: np.ndarray, centre: bool = False) -> complex:
    x, t = oracle.unit(image), oracle.unit(text)
    gram = np.array([[oracle.dot(x[i], x[j]) - oracle.dot(t[i], t[j]) for j in range(len(x))] for i in range(len(x))])
    if centre:
        gram = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    return (gram**2).mean()


@pytest.mark.parametrize(
    ("objective", "truth"),
    [
        (centroid_gap, centroid_truth),
        (distribution_gap, distribution_truth),
        (geometry_gap, geometry_truth),
        (lambda x, t: geometry_gap(x, t, centre=True), lambda x, t: geometry_truth(x, t, centre=True)),
    ],
    ids=["centroid", "distribution", "geometry", "centred geometry"],
)
def test_loss_and_gradient_match_the_oracle(objective, truth) -> None:
    assert_matches(objective, truth, IMAGE, TEXT)


def test_the_centroid_gap_of_batches_is_unbiased_and_both_gaps_add_up_to_the_raw_one() -> None:
    # Over all batches of two from four pairs (with replacement), the mean of L_C is the population's ‖μx − μt‖².
    x, t = torch.tensor(IMAGE), torch.tensor(TEXT)
    batches = [[i, j] for i in range(4) for j in range(4)]
    mean = torch.stack([centroid_gap(x[b], t[b]) for b in batches]).mean()
    unit = torch.tensor(differences(IMAGE, TEXT))
    assert mean.item() == pytest.approx(unit.mean(0).square().sum().item(), rel=1e-12)
    raw = unit.square().sum(1).mean()
    torch.testing.assert_close(unit.mean(0).square().sum() + distribution_gap(x, t), raw, rtol=1e-12, atol=0)


def reweighted_truth(image: np.ndarray, text: np.ndarray, a: float, g: float, related: np.ndarray) -> complex:
    x, t = oracle.unit(image), oracle.unit(text)
    n = len(x)
    positives = oracle.rows_to_one(related)
    loss = 0.0
    for first, second, target in ((x, t, positives), (t, x, oracle.rows_to_one(related.T))):
        for i in range(n):
            others = [j for j in range(n) if target[i, j] == 0]
            likeness = {j: np.real(oracle.dot(x[i], x[j]) + oracle.dot(t[i], t[j])) / 2 for j in others}
            total = sum(math.exp(-g * value) for value in likeness.values())
            weights = {j: 1 - a + a * len(others) * math.exp(-g * likeness[j]) / total for j in others}
            s = [20 * oracle.dot(first[i], second[j]) for j in range(n)]
            partition = sum(weights.get(j, 1.0) * np.exp(s[j]) for j in range(n))
            loss -= sum(target[i, j] * (s[j] - np.log(partition)) for j in range(n)) / n
    return loss / 2


@pytest.mark.parametrize("related", [np.eye(4), np.eye(4) + np.eye(4)[[1, 0, 2, 3]] * [[1], [1], [0], [0]]])
def test_reweighted_contrastive_matches_the_oracle_and_its_weights_carry_no_gradient(related: np.ndarray) -> None:
    positives = torch.tensor(related)
    leaves = [torch.tensor(value, requires_grad=True) for value in (IMAGE, TEXT)]
    loss = reweighted_contrastive(*leaves, 20.0, 0.6, 3.0, positives)

    def truth(image: np.ndarray, text: np.ndarray) -> complex:
        return reweighted_truth(image, text, 0.6, 3.0, related)

    assert loss.item() == pytest.approx(np.real(truth(IMAGE, TEXT)), rel=1e-12)
    loss.backward()
    for leaf, slope in zip(leaves, oracle.gradient(truth, IMAGE, TEXT), strict=True):
        np.testing.assert_allclose(leaf.grad.numpy(), slope, rtol=0, atol=1e-9 * np.abs(slope).max())


def test_strength_zero_is_plain_contrastive_bit_for_bit() -> None:
    image, text = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0)).unbind()
    positives = torch.eye(8).bool()
    assert torch.equal(reweighted_contrastive(image, text, 100.0, 0.0), contrastive(image, text, 100.0))
    assert torch.equal(
        reweighted_contrastive(image, text, 100.0, 0.0, 5.0, positives), contrastive(image, text, 100.0, positives)
    )


def test_alike_pairs_weigh_less_as_negatives() -> None:
    # Pair 1 resembles pair 0, pair 2 does not: at full strength the look-alike hardly repels.
    image = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1.0]], dtype=torch.float64)
    plain = contrastive(image, image, 10.0)
    assert reweighted_contrastive(image, image, 10.0, 1.0, 5.0) < plain


def test_extremes_stay_finite() -> None:
    image = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    loss = reweighted_contrastive(image, image.detach().clone(), 100.0, 1.0, 1e4)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(image.grad).all()
    everything = torch.ones(4, 4).bool()
    assert torch.isfinite(reweighted_contrastive(image, image, 100.0, 1.0, 5.0, everything))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="strength"):
        reweighted_contrastive(torch.ones(2, 2), torch.ones(2, 2), 1.0, 1.5)
    with pytest.raises(ValueError, match="at least two"):
        distribution_gap(torch.ones(1, 2), torch.ones(1, 2))
