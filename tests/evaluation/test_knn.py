from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.errors import DataError
from modalign.evaluation.knn import knn_outcomes, knn_probe_outcomes


def blobs(rows: int = 300, classes: int = 5, dim: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    centres, labels = torch.randn(classes, dim, generator=source), torch.arange(rows) % classes
    return centres[labels] + 1.2 * torch.randn(rows, dim, generator=source), labels


@pytest.mark.parametrize(("k", "chunk"), [(1, 300), (5, 64), (10, 7)])
def test_leave_one_out_equals_scikit_learn_but_for_tied_votes(k: int, chunk: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    image, labels = blobs()
    x, y = image.double().numpy(), labels.numpy()
    found = knn_outcomes(image, labels, k=k, chunk=chunk)
    settled = 0
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x[others], y[others])
        votes = np.sort(peer.predict_proba(x[i : i + 1])[0])[::-1]
        if votes[0] > votes[1]:
            settled += 1
            assert found[i] == (peer.predict(x[i : i + 1])[0] == y[i])
        else:  # the nearest of those in the lead decides, where scikit-learn takes the lowest number
            lead = np.flatnonzero(peer.predict_proba(x[i : i + 1])[0] == votes[0])
            order = y[others][peer.kneighbors(x[i : i + 1])[1][0]]
            assert found[i] == (next(c for c in order if c in lead) == y[i])
    assert settled > 200 and 0.3 < found.mean() < 0.95


def at(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_ties_by_hand() -> None:
    # The picture at 0° sees 10° (class 1), 20° (class 0) and, with k = 2, one vote each: the nearer one wins.
    image = at(0, 10, 20, 120)
    assert knn_outcomes(image, torch.tensor([0, 1, 0, 0]), k=2)[0] == 0
    assert knn_outcomes(image, torch.tensor([1, 1, 0, 0]), k=2)[0] == 1
    # 10° on either side are as near: both vote where one neighbour is asked for, and what stays equal is wrong.
    mirrored = at(0, 10, -10, 120)
    assert knn_outcomes(mirrored, torch.tensor([0, 0, 1, 1]), k=1)[0] == 0
    assert knn_outcomes(mirrored, torch.tensor([0, 0, 0, 1]), k=1)[0] == 1


def test_copies_do_not_vote_for_one_another() -> None:
    image, labels = at(0, 0, 30, 31), torch.tensor([0, 0, 1, 1])
    assert knn_outcomes(image, labels, k=1).tolist() == [0, 0, 1, 1]  # the copies see 30° alone
    rounded = image.clone()
    rounded[1] = rounded[1] * 3 + 1e-7  # the same up to rounding
    assert knn_outcomes(rounded, labels, k=1).tolist() == [0, 0, 1, 1]
    apart = at(0, 1, 30, 31)
    assert knn_outcomes(apart, labels, k=1).tolist() == [1, 1, 1, 1]
    assert knn_outcomes(apart, labels, torch.tensor([7, 7, 8, 9]), k=1).tolist() == [0, 0, 1, 1]  # one file twice


@pytest.mark.parametrize("image", [torch.ones(6, 3), torch.zeros(6, 3)])
def test_features_that_do_not_depend_on_the_picture_score_0(image: torch.Tensor) -> None:
    assert knn_outcomes(image, torch.tensor([0, 0, 0, 0, 0, 1])).sum() == 0


def test_neither_order_nor_scale_of_the_rows_nor_a_rotation_matters() -> None:
    image, labels = blobs(120)
    source = torch.Generator().manual_seed(1)
    order = torch.randperm(120, generator=source)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=source, dtype=torch.float64)).Q
    found = knn_outcomes(image, labels)
    scaled = image.double() * torch.rand(120, 1, generator=source, dtype=torch.float64).add(0.1)
    np.testing.assert_array_equal(knn_outcomes((scaled @ rotation)[order], labels[order]), found[order.numpy()])


def test_fewer_pictures_than_neighbours_all_vote_and_a_class_of_one_is_never_right() -> None:
    assert knn_outcomes(at(0, 5, 90), torch.tensor([0, 0, 1])).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("image", "labels", "k"),
    [(torch.ones(3), torch.ones(3), 1), (torch.ones(3, 2), torch.ones(2), 1), (torch.ones(2, 2), torch.ones(2), 0)],
)
def test_refusals_say_what_to_pass(image: torch.Tensor, labels: torch.Tensor, k: int) -> None:
    with pytest.raises(DataError, match="pass N×d, N and k ≥ 1"):
        knn_outcomes(image, labels.long(), k=k)
    with pytest.raises(DataError, match="NaN or infinity"):
        knn_outcomes(torch.full((2, 2), float("nan")), torch.zeros(2).long())


@pytest.mark.parametrize("k", [1, 5])
def test_among_training_pictures_it_equals_scikit_learn_but_for_tied_votes(k: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    image, labels = blobs(400)
    peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(image[:200].numpy(), labels[:200].numpy())
    votes = np.sort(peer.predict_proba(image[200:].numpy()), 1)
    settled = votes[:, -1] > votes[:, -2]
    found = knn_probe_outcomes(image[:200], labels[:200], image[200:], labels[200:], k, chunk=64)
    np.testing.assert_array_equal(found[settled], (peer.predict(image[200:].numpy()) == labels[200:].numpy())[settled])
    assert settled.sum() > 150


def test_a_class_that_was_never_learned_is_always_wrong_and_a_training_copy_has_no_vote() -> None:
    found = knn_probe_outcomes(at(0, 40), torch.tensor([0, 1]), at(0, 41, 42), torch.tensor([0, 1, 2]), 1)
    assert found.tolist() == [0, 1, 0]  # at 0° only 40° is left
    with pytest.raises(DataError, match="width 2 and 3"):
        knn_probe_outcomes(torch.ones(2, 3), torch.zeros(2).long(), torch.ones(2, 2), torch.zeros(2).long())
