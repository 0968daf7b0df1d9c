from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.objectives import geodesic_contrastive
from modalign.objectives.geodesic_mix import NEAR_ALIGNED, SERIES_ORDER, geodesic_mixture
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features

TWINS = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("positives", [None, TWINS, np.triu(TWINS)], ids=["diagonal", "twins", "one-sided"])
@pytest.mark.parametrize("share", [0.0, 0.13, 0.5, 1.0])
def test_loss_and_gradient_match_the_oracle(share: float, positives: np.ndarray | None) -> None:
    weights = None if positives is None else torch.tensor(positives)
    assert_matches(
        lambda image, text: geodesic_contrastive(image, text, share, 12.0, weights),
        lambda image, text: oracle.geodesic_contrastive(image, text, share, 12.0, positives),
        features(4, 3, seed=1, scale=3),
        features(4, 3, seed=2, scale=3),
    )


def test_two_pairs_by_hand() -> None:
    # x_i ⟂ t_i, the pairs in two orthogonal planes: every h_j is orthogonal to pair i, so each row costs log(1 + e^0).
    basis = torch.eye(4, dtype=torch.float64)
    loss = geodesic_contrastive(basis[:2], basis[2:], 0.3, 100.0)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-14)
    # Half way between orthogonal x and t lies their bisector.
    half = geodesic_mixture(basis[:1], basis[2:3], 0.5)
    torch.testing.assert_close(half, (basis[:1] + basis[2:3]) / math.sqrt(2), rtol=1e-14, atol=0)


def test_with_mixing_one_negatives_are_pictures_and_with_zero_captions() -> None:
    image, text = (torch.nn.functional.normalize(torch.tensor(features(5, 4, seed=s)), dim=-1) for s in (1, 2))
    torch.testing.assert_close(geodesic_mixture(image, text, 1.0), image, rtol=0, atol=1e-14)
    torch.testing.assert_close(geodesic_mixture(image, text, 0.0), text, rtol=0, atol=1e-14)


@pytest.mark.parametrize("angle", [1e-8, 1e-3, 0.14, 0.1415, 0.1420, 0.5, 1.5, 3.0])
def test_mixture_is_unit_and_at_its_share_of_the_angle_for_every_angle(angle: float) -> None:
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    t = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    h = geodesic_mixture(x, t, 0.3)[0]
    expected = [math.cos(0.7 * angle), math.sin(0.7 * angle)]  # a share 0.3 of the way from t to x
    np.testing.assert_allclose(h.numpy(), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("side", [0.999, 1.001])
def test_gradient_is_continuous_where_the_series_takes_over(side: float) -> None:
    angle = math.acos(1 - NEAR_ALIGNED * side)
    image = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    text = np.array([[math.cos(angle), math.sin(angle), 0.0], [0.6, 0.0, 0.8]])
    assert_matches(
        lambda a, b: geodesic_contrastive(a, b, 0.2, 10.0),
        lambda a, b: oracle.geodesic_contrastive(a, b, 0.2, 10.0),
        image,
        text,
    )
    assert (NEAR_ALIGNED / 2) ** (SERIES_ORDER + 1) < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_and_opposite_pairs_have_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    x = torch.tensor(features(3, 4, seed=1), dtype=dtype)
    for factors in ([1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [1.0, -1.0, 0.0]):
        image = x.clone().requires_grad_()
        text = (x * torch.tensor(factors, dtype=dtype)[:, None]).requires_grad_()
        loss = geodesic_contrastive(image, text, 0.4)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(image.grad).all() and torch.isfinite(text.grad).all()


def test_equal_features_are_their_own_mixture_with_the_exact_gradient() -> None:
    # At x = t: f(c) = λ + λ(1 − λ²)/3·(1 − c) + …, so ∂(w·h)/∂x = λ·w − (w·x)·[λ(1−λ²) + (1−λ)(1−(1−λ)²)]/3·t.
    x = torch.nn.functional.normalize(torch.tensor(features(1, 4, seed=3)), dim=-1)
    w, share = torch.tensor(features(4, seed=4)), 0.3
    image = x.clone().requires_grad_()
    mixed = geodesic_mixture(image, x, share)
    torch.testing.assert_close(mixed.detach(), x, rtol=1e-13, atol=0)
    (mixed @ w).sum().backward()
    bend = (share * (1 - share**2) + (1 - share) * (1 - (1 - share) ** 2)) / 3
    torch.testing.assert_close(image.grad, share * w[None] - (x @ w) * bend * x, rtol=1e-12, atol=1e-13)


def test_a_pair_and_its_twin_are_no_negatives_of_each_other() -> None:
    image, text = torch.tensor(features(1, 4, seed=5)).repeat(2, 1), torch.tensor(features(1, 4, seed=6)).repeat(2, 1)
    assert geodesic_contrastive(image, text, 0.4).item() > 0.5
    assert geodesic_contrastive(image, text, 0.4, positives=torch.ones(2, 2)).item() == 0.0


def test_refusals_say_what_to_pass() -> None:
    with pytest.raises(ValueError, match="positives is 2×3 for 2 pairs; pass B×B"):
        geodesic_contrastive(torch.ones(2, 3), torch.ones(2, 3), 0.5, 10.0, torch.ones(2, 3))
