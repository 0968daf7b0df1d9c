"""Blind pairs: the ranks against SciPy's, the pairs against a search over all N²."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from modalign.gap import blind_pairs as module
from modalign.gap.blind_pairs import SimilarityRanks, blind_pairs


def _features(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) + 0.5


def _oracle(student: Tensor, target: Tensor, count: int, most: int = 2) -> list[tuple[int, int]]:
    """Every pair of N, in float64 NumPy, ranks by SciPy."""
    i, j = np.triu_indices(len(student), 1)
    ranks = []
    for features in (student, target):
        x = features.double().numpy()
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        ranks.append((rankdata((x[i] * x[j]).sum(1)) - 0.5) / len(i))
    score = np.where((ranks[0] > 0.5) & (ranks[1] < 0.5), -np.log10(1 - ranks[0]) * (1 - ranks[1]), 0)
    used = np.zeros(len(student), dtype=int)
    chosen = []
    for at in np.argsort(-score):
        if score[at] > 0 and used[i[at]] < most and used[j[at]] < most:
            used[[i[at], j[at]]] += 1
            chosen.append((int(i[at]), int(j[at])))
    return chosen[:count]


def test_ranks_are_those_of_all_pairs() -> None:
    features = _features(50, 6, seed=0)
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    i, j = torch.triu_indices(50, 50, 1)
    cosines = (unit[i] * unit[j]).sum(dim=1)
    expected = (rankdata(cosines.numpy()) - 0.5) / len(i)
    ranks = SimilarityRanks(features)
    np.testing.assert_allclose(ranks.of(cosines.float()).numpy(), expected, atol=1.01 / len(i))
    cosine, rank = ranks.between(3, 17)
    at = int(((i == 3) & (j == 17)).nonzero())
    assert cosine == pytest.approx(float(cosines[at]), abs=1e-6) and rank == pytest.approx(expected[at], abs=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_those_of_a_search_over_all(seed: int) -> None:
    student, target = _features(60, 5, seed), _features(60, 9, seed + 100)
    found = blind_pairs(SimilarityRanks(student), SimilarityRanks(target), 12)
    assert [(pair.first, pair.second) for pair in found] == _oracle(student, target, 12)
    assert [pair.score for pair in found] == sorted((pair.score for pair in found), reverse=True)


def test_four_pictures_by_hand() -> None:
    """Student: 0 and 1 alike, 2 and 3 alike. Target: 0 with 2, 1 with 3; 0 and 1 lie farther apart than 2 and 3."""
    student = torch.tensor([[1, 0.0], [1, 0.1], [0.1, 1], [0.0, 1]])
    target = torch.tensor([[1, 0.0, 0], [-1, 0.1, 0], [1, 0.0, 0.1], [0, 0.2, 0.1]])
    (first,) = blind_pairs(SimilarityRanks(student), SimilarityRanks(target), 1)
    assert (first.first, first.second) == (0, 1)


def test_encoders_that_agree_have_no_blind_pair() -> None:
    features = _features(40, 8, seed=1)
    rotation = torch.linalg.qr(_features(8, 8, seed=2)).Q
    assert blind_pairs(SimilarityRanks(features), SimilarityRanks(3 * features @ rotation), 10) == []


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    student, target = _features(64, 4, seed=3), _features(64, 6, seed=4)
    whole = blind_pairs(SimilarityRanks(student), SimilarityRanks(target), 20)
    monkeypatch.setattr(module, "ENTRIES_AT_ONCE", 7 * 64)
    assert blind_pairs(SimilarityRanks(student), SimilarityRanks(target), 20) == whole


def test_a_picture_and_its_copies_appear_twice_at_most() -> None:
    student, target = _features(30, 3, seed=5), _features(30, 3, seed=6)
    student, target = (torch.cat([side, side[:10]]) for side in (student, target))  # rows 30… are copies of 0…9
    found = blind_pairs(SimilarityRanks(student), SimilarityRanks(target), 100, content=lambda row: row % 30)
    names = [row % 30 for pair in found for row in (pair.first, pair.second)]
    assert max(names.count(name) for name in names) == 2
    assert all(pair.first % 30 != pair.second % 30 for pair in found)


def test_a_zero_feature_and_two_pictures_are_no_trouble() -> None:
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert blind_pairs(SimilarityRanks(features), SimilarityRanks(features), 5) == []
