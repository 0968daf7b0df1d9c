from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.embeddings import Embeddings
from modalign.objectives import contrastive
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features

SHARED_PICTURE = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=bool)
# Image 0 also fits caption 2, but caption 0 does not fit image 2: the two directions have different targets.
ONE_SIDED = np.array([[1, 0, 0.5, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 2.0, 0, 1]])


@pytest.mark.parametrize("positives", [None, SHARED_PICTURE, ONE_SIDED], ids=["diagonal", "shared", "one-sided"])
def test_loss_and_gradient_match_the_oracle(positives: np.ndarray | None) -> None:
    weights = None if positives is None else torch.tensor(positives)
    assert_matches(
        lambda image, text: contrastive(image, text, 14.0, weights),
        lambda image, text: oracle.contrastive(image, text, 14.0, positives),
        features(4, 3, seed=1, scale=7),
        features(4, 3, seed=2, scale=0.3),
    )


def test_two_orthogonal_pairs_by_hand() -> None:
    # S = [[s, 0], [0, s]], so each row costs log(1 + e^−s) when matched and s more when swapped.
    image, text = torch.diag(torch.tensor([5.0, 0.1])).double(), torch.eye(2).double()
    assert contrastive(image, text, 2.0).item() == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-14)
    assert contrastive(image, text.flip(0), 2.0).item() == pytest.approx(math.log1p(math.exp(2.0)), rel=1e-14)


def test_equal_features_cost_log_of_the_batch_whatever_the_positives() -> None:
    same = torch.ones(4, 3, dtype=torch.float64)
    for positives in (None, torch.tensor(SHARED_PICTURE), torch.ones(4, 4)):
        assert contrastive(same, same, 100.0, positives).item() == pytest.approx(math.log(4), rel=1e-14)


def test_a_repeated_picture_and_a_repeated_caption_cost_the_same_with_the_modalities_exchanged() -> None:
    image, text = torch.tensor(features(3, 4, seed=3)), torch.tensor(features(3, 4, seed=4))
    image[1] = image[0]
    repeated_picture = Embeddings(image_ids=torch.tensor([7, 7, 9]), caption_ids=torch.tensor([0, 1, 2])).positives
    repeated_caption = Embeddings(image_ids=torch.tensor([0, 1, 2]), caption_ids=torch.tensor([4, 4, 5])).positives
    expected = oracle.contrastive(image.numpy(), text.numpy(), 10.0, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert contrastive(image, text, 10.0, repeated_picture).item() == pytest.approx(expected, rel=1e-12)
    assert contrastive(text, image, 10.0, repeated_caption).item() == pytest.approx(expected, rel=1e-12)


def test_invariant_to_permuting_pairs_and_to_feature_norms_and_rotations() -> None:
    image, text = torch.tensor(features(5, 4, seed=5)), torch.tensor(features(5, 4, seed=6))
    order = torch.tensor([3, 0, 4, 1, 2])
    rotation = torch.linalg.qr(torch.tensor(features(4, 4, seed=7))).Q
    loss = contrastive(image, text, 20.0)
    torch.testing.assert_close(contrastive(image[order], text[order], 20.0), loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(contrastive(image * 31, text / 17, 20.0), loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(contrastive(image @ rotation, text @ rotation, 20.0), loss, rtol=1e-12, atol=0)


def test_a_trained_logit_scale_gets_its_gradient() -> None:
    image, text = torch.tensor(features(3, 4, seed=8)), torch.tensor(features(3, 4, seed=9))
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: contrastive(image, text, s), (scale,))


def test_a_float64_scale_does_not_widen_a_float32_batch() -> None:
    image = torch.randn(3, 4)
    assert contrastive(image, image, torch.tensor(10.0, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize(
    ("image", "text", "positives", "message"),
    [
        (torch.ones(4, 8), torch.ones(4, 16), None, "image is 4×8 but text is 4×16; pass features of the same pairs"),
        (torch.ones(8), torch.ones(8), None, "image is 8; pass B×d"),
        (torch.ones(0, 8), torch.ones(0, 8), None, "image is 0×8; pass B×d"),
        (torch.ones(4, 8), torch.ones(4, 8), torch.ones(4, 3), "positives is 4×3 for 4 pairs; pass B×B"),
        (torch.ones(2, 8), torch.ones(2, 8), torch.tensor([[1, 1], [0, 0]]), "keep the diagonal set"),
        (torch.ones(2, 8), torch.ones(2, 8), torch.tensor([[2, -1], [0, 1]]), "must be ≥ 0"),
    ],
)
def test_refusals_say_what_to_pass(
    image: torch.Tensor, text: torch.Tensor, positives: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        contrastive(image, text, 100.0, positives)
