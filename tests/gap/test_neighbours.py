from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import skew
from sklearn.neighbors import NearestNeighbors

from modalign.gap import neighbours
from modalign.gap.separability import held_out_accuracy


def noise(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [3, 1024])
def test_nearest_against_scikit_learn(block: int) -> None:
    queries, candidates = noise(20, 4, 0), noise(31, 4, 1)
    expected = NearestNeighbors(n_neighbors=5).fit(candidates).kneighbors(queries, return_distance=False)
    np.testing.assert_array_equal(neighbours.nearest(queries, candidates, 5, block=block), expected)
    expected = NearestNeighbors(n_neighbors=5).fit(queries).kneighbors(return_distance=False)
    np.testing.assert_array_equal(neighbours.nearest(queries, queries, 5, alone=True, block=block), expected)


def test_mixing_against_scikit_learn() -> None:
    image, text = noise(40, 3, 0), noise(40, 3, 1) + 0.5
    union = torch.cat([image, text]).numpy()
    near = NearestNeighbors(n_neighbors=10).fit(union).kneighbors(return_distance=False)
    other = (near >= 40) != (np.arange(80) >= 40)[:, None]
    told = neighbours.knn_mixing(image, text)
    assert told is not None
    assert told.rate.item() == pytest.approx(other.mean() / (40 / 79), abs=1e-14)


def test_apart_is_zero_and_one_distribution_lies_inside_the_null() -> None:
    image = noise(300, 3, 0)
    apart = neighbours.knn_mixing(image, image + 100)
    assert apart is not None and apart.rate.item() == 0
    mixed = neighbours.knn_mixing(image, noise(300, 3, 2))
    assert mixed is not None and mixed.null[0] < mixed.rate.item() < mixed.null[1]
    assert mixed.null[0] < 1 < mixed.null[1]


def test_mixing_sees_what_a_linear_probe_does_not() -> None:
    # Two shells around one centre: no plane parts them, and no neighbour is of the other.
    image = torch.nn.functional.normalize(noise(300, 3, 0), dim=1)
    text = 9 * torch.nn.functional.normalize(noise(300, 3, 1), dim=1)
    image, text = image - image.mean(0), text - text.mean(0)
    told = neighbours.knn_mixing(image, text)
    assert held_out_accuracy(image, text).mean().item() < 0.65
    assert told is not None and told.rate.item() < 0.5 * told.null[0]


def test_captions_that_repeat_count_once() -> None:
    image, text = noise(60, 3, 0), noise(20, 3, 1)
    repeated = torch.cat([text] * 3) * (1 + 1e-9 * noise(60, 1, 2))  # equal up to rounding
    told = neighbours.knn_mixing(image, repeated)
    assert told is not None and told.weight.tolist() == [2.0] * 20 + [1.0] * 40
    union = torch.cat([image, text]).numpy()
    near = NearestNeighbors(n_neighbors=10).fit(union).kneighbors(return_distance=False)
    other = ((near >= 60) != (np.arange(80) >= 60)[:, None]).mean(1)
    expected = other / np.where(np.arange(80) >= 60, 60 / 79, 20 / 79)
    assert told.rate.item() == pytest.approx(expected.mean(), abs=1e-12)
    assert neighbours.knn_mixing(image, torch.cat([text[:5]] * 12)) is None


def test_distinct_keeps_the_first_of_each() -> None:
    rows = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0.5, 0.5], [1, 1e-9]], dtype=torch.float64)
    assert neighbours.distinct(rows).tolist() == [True, True, False, True, False]
    assert neighbours.distinct(torch.ones(50, 3, dtype=torch.float64)).sum() == 1


def test_a_hub_worked_by_hand() -> None:
    queries = torch.eye(3, dtype=torch.float64)
    candidates = torch.tensor([[1.0, 1, 1], [1, 0, 0], [-1, 0, 0]], dtype=torch.float64)
    # By cosine: the first candidate is near to all; the second is nearest to one query only.
    assert neighbours.k_occurrence(queries, candidates, k=1).tolist() == [2, 1, 0]
    counts = torch.tensor([0.0, 0, 0, 0, 8], dtype=torch.float64)
    weights = torch.tensor([[0.2] * 5, [0.5, 0, 0, 0, 0.5]], dtype=torch.float64)
    assert neighbours.skewness(counts, weights).tolist() == pytest.approx([1.5, 0], abs=1e-12)
    assert neighbours.skewness(torch.ones(5, dtype=torch.float64), weights).tolist() == [0, 0]


def test_skewness_is_scipys() -> None:
    counts = neighbours.k_occurrence(noise(80, 20, 0), noise(50, 20, 1))
    assert counts.sum() == 80 * 10
    told = neighbours.skewness(counts, torch.full((1, 50), 1 / 50, dtype=torch.float64)).item()
    assert told == pytest.approx(skew(counts.numpy()), abs=1e-12)
