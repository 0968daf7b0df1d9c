from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.objectives import contrastive, effective_logit_scale, hybrid_distillation, sharpness_warning
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features

TWINS = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)
ONE_SIDED = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]], dtype=bool)


@pytest.mark.parametrize("positives", [None, TWINS, ONE_SIDED], ids=["diagonal", "twins", "one-sided"])
@pytest.mark.parametrize("scale", [None, 9.0], ids=["raw", "unit"])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 1.0), (0.0, 2.0), (1.0, 0.5), (0.3, 4.0)])
def test_loss_and_gradient_match_the_oracle(
    alpha: float, temperature: float, scale: float | None, positives: np.ndarray | None
) -> None:
    image0, text0 = features(3, 4, seed=1, scale=1.5), features(3, 4, seed=2, scale=1.5)
    weights = None if positives is None else torch.tensor(positives)
    kind = "raw" if scale is None else "unit"
    assert_matches(
        lambda image, text: hybrid_distillation(
            image, text, torch.tensor(image0), torch.tensor(text0), alpha, temperature, kind, scale, weights
        ),
        lambda image, text: oracle.hybrid_distillation(
            image, text, image0, text0, alpha, temperature, scale, positives
        ),
        features(3, 4, seed=3, scale=1.5),
        features(3, 4, seed=4, scale=1.5),
    )


def test_two_pairs_by_hand() -> None:
    # Teacher logits [[log 3, 0], [0, log 3]] → softmax (¾, ¼); α = ½ → q = (⅞, ⅛); student logits all 0 → ½ each.
    teacher = torch.diag(torch.tensor([math.log(3.0)] * 2, dtype=torch.float64))
    student = torch.zeros(2, 2, dtype=torch.float64)
    expected = 7 / 8 * math.log(7 / 4) + 1 / 8 * math.log(1 / 4)
    loss = hybrid_distillation(student, torch.eye(2).double(), teacher, torch.eye(2).double())
    assert loss.item() == pytest.approx(expected, rel=1e-14)


def test_alpha_one_is_infonce_less_the_entropy_of_the_targets() -> None:
    image, text, image0, text0 = (torch.tensor(features(3, 4, seed=s)) for s in range(4))

    def hard(positives: torch.Tensor | None) -> torch.Tensor:
        return hybrid_distillation(
            image, text, image0, text0, alpha=1, features="unit", logit_scale=30.0, positives=positives
        )

    torch.testing.assert_close(hard(None), contrastive(image, text, 30.0), rtol=1e-12, atol=0)
    twins = torch.tensor(TWINS)
    entropy = 2 / 3 * math.log(2)  # two of three rows share their mass between two positives
    torch.testing.assert_close(hard(twins), contrastive(image, text, 30.0, twins) - entropy, rtol=1e-12, atol=0)


def test_alpha_one_and_far_away_logits_stay_finite_in_float32() -> None:
    image = (torch.eye(3) * 1e3).requires_grad_()
    loss = hybrid_distillation(image, torch.eye(3).flip(0) * 1e3, torch.eye(3) * 1e3, torch.eye(3) * 1e3, alpha=1.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(image.grad).all()


@pytest.mark.parametrize("kind", ["raw", "unit"])
def test_self_distillation_starts_at_zero_with_zero_gradient(kind: str) -> None:
    image, text = (torch.tensor(features(5, 4, seed=s), requires_grad=True) for s in (1, 2))
    loss = hybrid_distillation(
        image, text, image.detach(), text.detach(), alpha=0, temperature=0.7, features=kind, logit_scale=50.0
    )
    loss.backward()
    assert abs(loss.item()) < 1e-14
    assert image.grad.abs().max() < 1e-14 and text.grad.abs().max() < 1e-14


def test_invariant_to_permuting_pairs_and_to_exchanging_the_modalities() -> None:
    image, text, image0, text0 = (torch.tensor(features(5, 4, seed=s)) for s in range(4))
    order = torch.tensor([2, 4, 0, 1, 3])
    loss = hybrid_distillation(image, text, image0, text0)
    permuted = hybrid_distillation(image[order], text[order], image0[order], text0[order])
    torch.testing.assert_close(permuted, loss, rtol=1e-13, atol=0)
    torch.testing.assert_close(hybrid_distillation(text, image, text0, image0), loss, rtol=1e-13, atol=0)


def test_the_temperature_keeps_the_gradient_in_size() -> None:
    # The purpose of τ²: for large τ, ∂L/∂S tends to a constant instead of falling off like 1/τ².
    image, text, image0, text0 = (torch.tensor(features(6, 4, seed=s)) for s in range(4))

    def slope(temperature: float) -> float:
        leaf = image.clone().requires_grad_()
        hybrid_distillation(leaf, text, image0, text0, alpha=0.0, temperature=temperature).backward()
        return leaf.grad.norm().item()

    assert slope(400.0) == pytest.approx(slope(200.0), rel=0.02)


def test_teacher_and_logit_scale_are_constants() -> None:
    image, text, image0, text0 = (torch.tensor(features(3, 4, seed=s), requires_grad=True) for s in range(4))
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    hybrid_distillation(image, text, image0, text0, features="unit", logit_scale=scale).backward()
    assert image.grad is not None and text.grad is not None
    assert image0.grad is None and text0.grad is None and scale.grad is None


def test_raw_features_of_norm_ten_are_as_sharp_as_clips_logit_scale() -> None:
    image = torch.nn.functional.normalize(torch.tensor(features(6, 4, seed=1)), dim=-1) * 10
    text = torch.nn.functional.normalize(torch.tensor(features(6, 4, seed=2)), dim=-1) * 10
    image0, text0 = image.flip(1), text.roll(1, dims=1)
    assert effective_logit_scale(image, text).item() == pytest.approx(100.0)
    raw = hybrid_distillation(image, text, image0, text0)
    unit = hybrid_distillation(image, text, image0, text0, features="unit", logit_scale=100.0)
    torch.testing.assert_close(raw, unit, rtol=1e-12, atol=0)


def test_effective_scale_is_the_product_of_the_mean_norms() -> None:
    image, text = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    assert effective_logit_scale(image, text).item() == 9.0


@pytest.mark.parametrize(("scale", "word"), [(19.9, "uniform"), (20.0, None), (200.0, None), (1e4, "one-hot")])
def test_sharpness_is_warned_of_outside_20_to_200(scale: float, word: str | None) -> None:
    warning = sharpness_warning(scale)
    assert (warning is None) if word is None else (warning is not None and word in warning and '"unit"' in warning)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, "alpha is 1.5; use a number from 0 to 1"),
        ({"temperature": 0.0}, "temperature is 0; use a number above 0"),
        ({"features": "norm"}, "features is 'norm'; use 'raw' or 'unit'"),
        ({"features": "unit"}, "needs logit_scale"),
    ],
)
def test_refusals_say_what_to_pass(settings: dict[str, object], message: str) -> None:
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match=message):
        hybrid_distillation(ones, ones, ones, ones, **settings)
    with pytest.raises(ValueError, match="image is 2×3 but frozen_text is 3×3"):
        hybrid_distillation(ones, ones, ones, torch.ones(3, 3))
