from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.cluster import KMeans

from modalign.errors import DataError
from modalign.evaluation.clustering import adjusted_rand, cluster, v_measure


def table(truth: np.ndarray, found: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(metrics.cluster.contingency_matrix(truth, found).astype(float))


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, 300)
    found = np.where(rng.random(300) < 0.2 * seed, truth, rng.integers(0, 9, 300))
    counts = table(truth, found)
    assert float(adjusted_rand(counts)) == pytest.approx(metrics.adjusted_rand_score(truth, found), abs=1e-12)
    assert float(v_measure(counts)) == pytest.approx(metrics.normalized_mutual_info_score(truth, found), abs=1e-12)
    assert float(v_measure(counts)) == pytest.approx(metrics.v_measure_score(truth, found), abs=1e-12)


@pytest.mark.parametrize(("truth", "found"), [([0, 0, 0], [0, 0, 0]), ([0, 1, 2], [2, 0, 1]), ([0, 0, 1], [0, 0, 0])])
def test_trivial_partitions_are_as_scikit_learn_has_them(truth: list[int], found: list[int]) -> None:
    counts = table(np.array(truth), np.array(found))
    assert float(adjusted_rand(counts)) == metrics.adjusted_rand_score(truth, found)
    assert float(v_measure(counts)) == pytest.approx(metrics.v_measure_score(truth, found))


def blobs(spread: float, rows: int = 240) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % 4
    return torch.randn(4, 8, generator=source)[labels] + spread * torch.randn(rows, 8, generator=source), labels


def test_clusters_and_scores_are_those_of_scikit_learn_on_unit_features() -> None:
    features, labels = blobs(0.9)
    found = cluster(features, labels, 4, seeds=3)
    unit = torch.nn.functional.normalize(features, dim=1).numpy()
    for seed in range(3):
        peer = KMeans(4, n_init=10, random_state=seed).fit_predict(unit)
        np.testing.assert_array_equal(found.assignments[seed], peer)
        assert found.scores["ari"][seed] == pytest.approx(metrics.adjusted_rand_score(labels.numpy(), peer), abs=1e-12)
        assert found.scores["nmi"][seed] == pytest.approx(metrics.normalized_mutual_info_score(labels.numpy(), peer))
    for name, values in found.scores.items():
        assert found.outcomes[name].mean() == pytest.approx(np.mean(values), abs=1e-12)
        assert found.deviation(name) == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("name", ["ari", "nmi"])
def test_outcomes_spread_as_the_score_of_resampled_examples_does(name: str) -> None:
    features, labels = blobs(0.9, 400)
    found = cluster(features, labels, 4, seeds=1)
    score = {"ari": adjusted_rand, "nmi": v_measure}[name]
    rng = np.random.default_rng(1)
    truth, run = labels.numpy(), found.assignments[0]
    direct = [float(score(table(truth[rows], run[rows]))) for rows in rng.integers(0, 400, (600, 400))]
    assert found.outcomes[name].std() / 20 == pytest.approx(np.std(direct), rel=0.12)


def test_fewer_distinct_points_than_clusters_is_told() -> None:
    points = torch.eye(2).repeat_interleave(5, 0)
    found = cluster(points, torch.arange(10) % 3, 3, seeds=1)
    assert found.notes == {"clusters_found": 2}


def test_refusals_say_what_to_pass() -> None:
    with pytest.raises(DataError, match="between 2 and N"):
        cluster(torch.ones(3, 2), torch.zeros(3).long(), 4)
    with pytest.raises(DataError, match="NaN or infinity"):
        cluster(torch.full((4, 2), float("nan")), torch.zeros(4).long(), 2)
