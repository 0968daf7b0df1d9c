from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.gap import representations
from modalign.gap.representations import centred_kernel_alignment, kernel_cka, mutual_knn


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def cka_truth(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    h = np.eye(len(k)) - 1 / len(k)
    hsic = lambda a, b: np.trace(h @ a @ h @ b)  # noqa: E731
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def test_cka_matches_the_definition_by_hsic() -> None:
    x, g = rows(20, 5, seed=1) + 3, rows(20, 7, seed=2) - 1
    expected = cka_truth(x @ x.T, g @ g.T)
    assert centred_kernel_alignment(torch.tensor(x), torch.tensor(g)).item() == pytest.approx(expected, rel=1e-10)
    k, l = (np.exp(-((a[:, None] - a) ** 2).sum(-1)) for a in (x, g))  # noqa: E741
    assert kernel_cka(torch.tensor(k), torch.tensor(l)).item() == pytest.approx(cka_truth(k, l), rel=1e-10)


def test_cka_sees_neither_rotation_nor_scale_nor_shift() -> None:
    x = torch.tensor(rows(30, 5, seed=3))
    turned = 7 * x @ torch.linalg.qr(torch.tensor(rows(5, 5, seed=4))).Q + 2
    assert centred_kernel_alignment(x, turned).item() == pytest.approx(1, rel=1e-12)
    assert centred_kernel_alignment(x, torch.ones(30, 2)).item() == 0


@pytest.mark.parametrize("k", [1, 3, 19])
def test_mutual_neighbours_match_sets_made_by_hand(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representations, "SIMILARITIES_AT_ONCE", 60)  # three rows at a time
    x, g = rows(20, 5, seed=5), rows(20, 7, seed=6)
    near = []
    for a in (x, g):
        unit = a / np.linalg.norm(a, axis=1)[:, None]
        near.append([set(sorted(set(range(20)) - {i}, key=lambda j: -(unit @ unit[i])[j])[:k]) for i in range(20)])
    expected = [len(a & b) / k for a, b in zip(*near, strict=True)]
    assert mutual_knn(torch.tensor(x), torch.tensor(g), k).tolist() == pytest.approx(expected)


def test_rotations_keep_every_neighbour_and_copies_are_told_apart_by_their_place() -> None:
    x = torch.tensor(rows(20, 5, seed=7))
    assert mutual_knn(x, 3 * x @ torch.linalg.qr(torch.tensor(rows(5, 5, seed=8))).Q, 4).mean() == 1
    assert mutual_knn(torch.ones(6, 3), torch.ones(6, 4), 2).mean() == 1


@pytest.mark.parametrize("k", [0, 4])
def test_refusals_say_what_to_pass(k: int) -> None:
    x = torch.ones(4, 3)
    with pytest.raises(ValueError, match=f"k is {k} for 4 pictures; use 1 to 3"):
        mutual_knn(x, x, k)
    with pytest.raises(ValueError, match="pass N×d and N×e of the same N pictures"):
        centred_kernel_alignment(x, torch.ones(5, 3))
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        centred_kernel_alignment(x, x.log().log())
    with pytest.raises(ValueError, match="pass two N×N matrices"):
        kernel_cka(x, x)


def test_cka_influence_is_the_derivative_of_its_logarithm_by_the_weights() -> None:
    x, g = rows(12, 3, seed=1), rows(12, 4, seed=2)

    def log_cka(weights: np.ndarray) -> float:
        a, b = x - weights @ x, g - weights @ g
        sizes = [((left * weights[:, None]).T @ right) for left, right in ((a, b), (a, a), (b, b))]
        cross, first, second = (float((size**2).sum()) for size in sizes)
        return np.log(cross) - np.log(first) / 2 - np.log(second) / 2

    uniform, step = np.full(12, 1 / 12), 1e-6
    slopes = [
        (log_cka((1 - step) * uniform + step * row) - log_cka((1 + step) * uniform - step * row)) / (2 * step)
        for row in np.eye(12)
    ]
    told = representations.centred_kernel_alignment_influence(torch.tensor(x), torch.tensor(g))
    np.testing.assert_allclose(told, slopes, atol=1e-7)
