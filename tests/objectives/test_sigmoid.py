from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from open_clip.loss import SigLipLoss

from modalign.objectives import contrastive, sigmoid_contrastive
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features

SHARED_CAPTION = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=bool)
# Weights and one-sided entries count as plain positives where they stand.
ONE_SIDED = np.array([[1, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 2.0, 0, 1]])


@pytest.mark.parametrize("positives", [None, SHARED_CAPTION, ONE_SIDED], ids=["diagonal", "shared", "one-sided"])
def test_loss_and_gradient_match_the_oracle(positives: np.ndarray | None) -> None:
    weights = None if positives is None else torch.tensor(positives)
    assert_matches(
        lambda image, text: sigmoid_contrastive(image, text, 9.0, -3.5, weights),
        lambda image, text: oracle.sigmoid(image, text, 9.0, -3.5, positives),
        features(4, 3, seed=1, scale=7),
        features(4, 3, seed=2, scale=0.3),
    )


def test_two_orthogonal_pairs_by_hand() -> None:
    # Logits s + b on the diagonal and b off it: each image costs log(1 + e^−(s+b)) + log(1 + e^b).
    image, text = torch.diag(torch.tensor([5.0, 0.1])).double(), torch.eye(2).double()
    expected = math.log1p(math.exp(-(3.0 - 1.0))) + math.log1p(math.exp(-1.0))
    assert sigmoid_contrastive(image, text, 3.0, -1.0).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (117.3, -12.9)])
def test_agrees_with_open_clip_on_one_process(scale: float, bias: float) -> None:
    image, text = (torch.nn.functional.normalize(torch.tensor(features(6, 5, seed=seed)), dim=-1) for seed in (3, 4))
    theirs = SigLipLoss()(image, text, *torch.tensor([scale, bias], dtype=torch.float64))
    torch.testing.assert_close(sigmoid_contrastive(image, text, scale, bias), theirs, rtol=1e-13, atol=0)


def test_invariant_to_permuting_pairs_and_to_feature_norms_and_rotations() -> None:
    image, text = torch.tensor(features(5, 4, seed=5)), torch.tensor(features(5, 4, seed=6))
    order = torch.tensor([3, 0, 4, 1, 2])
    rotation = torch.linalg.qr(torch.tensor(features(4, 4, seed=7))).Q
    loss = sigmoid_contrastive(image, text, 20.0, -4.0)
    torch.testing.assert_close(sigmoid_contrastive(image[order], text[order], 20.0, -4.0), loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(sigmoid_contrastive(image * 31, text / 17, 20.0, -4.0), loss, rtol=1e-13, atol=0)
    turned = sigmoid_contrastive(image @ rotation, text @ rotation, 20.0, -4.0)
    torch.testing.assert_close(turned, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(sigmoid_contrastive(text, image, 20.0, -4.0), loss, rtol=1e-13, atol=0)


def test_a_large_batch_at_a_large_scale_stays_finite_and_keeps_its_gradient() -> None:
    """1 − σ(z) is 0 in float32 from z = 17 on: the logarithm is taken of the logit, not of the probability."""
    image = torch.nn.functional.normalize(torch.randn(512, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    text = -image.clone().requires_grad_()
    loss = sigmoid_contrastive(image, text, 1000.0, 0.0)
    wide = sigmoid_contrastive(image.double(), text.double(), 1000.0, 0.0)
    assert loss.item() == pytest.approx(wide.item(), rel=1e-5) and loss.item() > 900
    (slope,) = torch.autograd.grad(loss, text)
    assert torch.isfinite(slope).all() and slope.abs().max() > 0


def test_half_precision_is_computed_in_float32_also_under_autocast() -> None:
    image, text = (torch.tensor(features(4, 8, seed=seed), dtype=torch.bfloat16) for seed in (1, 2))
    expected = sigmoid_contrastive(image.float(), text.float(), 100.0, -10.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sigmoid_contrastive(image, text, 100.0, -10.0)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_trained_scale_and_bias_get_their_gradients() -> None:
    image, text = torch.tensor(features(3, 4, seed=8)), torch.tensor(features(3, 4, seed=9))
    leaves = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (5.0, -2.0)]
    assert torch.autograd.gradcheck(lambda s, b: sigmoid_contrastive(image, text, s, b), leaves)


def test_a_bias_moves_the_sigmoid_loss_where_a_softmax_does_not_see_one() -> None:
    image, text = torch.tensor(features(4, 6, seed=1)), torch.tensor(features(4, 6, seed=2))
    assert sigmoid_contrastive(image, text, 10.0, 0.0) != sigmoid_contrastive(image, text, 10.0, -5.0)
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (image, text)]
    logits = 10.0 * unit[0] @ unit[1].T - 5.0
    own = torch.arange(4)
    softmax = (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(contrastive(image, text, 10.0), softmax, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("text", "positives", "message"),
    [
        (torch.ones(4, 16), None, "image is 4×8 but text is 4×16"),
        (torch.ones(4, 8), torch.ones(4, 3), "positives is 4×3 for 4 pairs; pass B×B"),
        (torch.ones(4, 8), torch.zeros(4, 4), "keep the diagonal set"),
    ],
)
def test_refusals_say_what_to_pass(text: torch.Tensor, positives: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sigmoid_contrastive(torch.ones(4, 8), text, 100.0, -10.0, positives)
