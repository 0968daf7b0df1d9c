from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.objectives import random_feature_alignment
from modalign.objectives.random_feature import draw_normal, draw_point, draw_uniform, fit_prior
from tests.objectives import oracle
from tests.objectives.comparison import assert_matches, features


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("reduction", ["mean", "paper"])
@pytest.mark.parametrize("shared", [True, False])
def test_loss_and_gradient_match_the_oracle(reduction: str, shared: bool) -> None:
    z, y = features(4, 3, seed=1), features(4, 3, seed=2)
    reference = torch.tensor(z) if shared else (torch.tensor(z), torch.tensor(y))
    assert_matches(
        lambda image, text: random_feature_alignment(image, text, reference, reduction),
        lambda image, text: oracle.random_feature(image, text, z, z if shared else y, reduction),
        features(4, 3, seed=3, scale=5),
        features(4, 3, seed=4, scale=5),
    )


def test_two_pairs_by_hand() -> None:
    # (I − z)² = 1, 4, 0, 9 and (T − z)² = 0, 1, 16, 1: sums 14 and 18 over B·d = 4 entries.
    image = torch.tensor([[1.0, 2.0], [1.0, -2.0]])
    text = torch.tensor([[0.0, 1.0], [5.0, 0.0]])
    z = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert random_feature_alignment(image, text, z).item() == 14 / 4 + 18 / 4
    assert random_feature_alignment(image, text, z, "paper").item() == (14 + 18) / 2 / 2


def test_published_identity_and_hand_derived_gradient() -> None:
    image, text, z = (torch.randn(6, 10, dtype=torch.float64, generator=generator(s)) for s in range(3))
    image.requires_grad_()
    mean, paper = random_feature_alignment(image, text, z), random_feature_alignment(image, text, z, "paper")
    torch.testing.assert_close(mean, 2 / 10 * paper, rtol=1e-14, atol=0)
    mean.backward()
    torch.testing.assert_close(image.grad, 2 * (image.detach() - z) / 60, rtol=1e-14, atol=0)


def test_expected_loss_over_the_prior_is_the_pull_to_its_mean_plus_its_variance() -> None:
    # E‖I − z‖² = ‖I − μ‖² + d·σ²: the randomness shifts the loss and leaves the mean gradient that of pulling to μ.
    image, text = (torch.randn(4, 3, dtype=torch.float64, generator=generator(s)) for s in (1, 2))
    source, losses = generator(3), []
    for _ in range(4000):
        losses.append(random_feature_alignment(image, text, draw_normal(4, 3, source, mean=0.5, std=1.5)).item())
    expected = random_feature_alignment(image, text, draw_point(4, 3, 0.5)).item() + 2 * 1.5**2
    assert abs(np.mean(losses) - expected) < 4 * np.std(losses) / np.sqrt(len(losses))


def test_a_standard_deviation_of_zero_is_the_mean_exactly() -> None:
    mean = torch.tensor([0.1, -7.3, 1e-9])
    assert torch.equal(draw_normal(5, 3, generator(), mean=mean, std=0.0), mean.expand(5, 3))
    assert torch.equal(draw_normal(5, 3, generator(), mean=0.1, std=0.0), draw_point(5, 3, 0.1))
    assert torch.equal(draw_point(5, 3, mean), mean.expand(5, 3))


def test_moments_of_the_draws() -> None:
    rows = 40_000
    mean, std = torch.tensor([-1.0, 0.0, 3.0]), torch.tensor([0.5, 1.0, 100.0])
    z = draw_normal(rows, 3, generator(), mean=mean, std=std)
    assert torch.all((z.mean(0) - mean).abs() < 4 * std / rows**0.5)
    assert torch.all((z.std(0) / std - 1).abs() < 4 / (2 * rows) ** 0.5)
    u = draw_uniform(rows, 3, generator(), low=-2.0, high=4.0)
    assert u.min() >= -2 and u.max() < 4
    assert torch.all((u.mean(0) - 1).abs() < 4 * 6 / (12 * rows) ** 0.5)
    assert torch.all((u.var(0) - 3).abs() < 0.1)


def test_fitted_prior_is_the_pooled_set_when_shared_and_divides_by_n() -> None:
    image, text = torch.tensor(features(50, 4, seed=1, scale=2)) + 3, torch.tensor(features(50, 4, seed=2))
    mean, std = fit_prior(image, text)
    pooled = np.concatenate([image.numpy(), text.numpy()])
    np.testing.assert_allclose(mean.numpy(), pooled.mean(axis=0)[None], rtol=1e-6)
    np.testing.assert_allclose(std.numpy(), pooled.std(axis=0)[None], rtol=1e-6)
    mean, std = fit_prior(image, text, shared=False)
    np.testing.assert_allclose(mean.numpy(), np.stack([image.numpy().mean(0), text.numpy().mean(0)]), rtol=1e-6)
    np.testing.assert_allclose(std.numpy(), np.stack([image.numpy().std(0), text.numpy().std(0)]), rtol=1e-6)


def test_fitted_prior_does_not_depend_on_how_many_captions_a_picture_has() -> None:
    image, text = torch.tensor(features(20, 4, seed=1)) + 1, torch.tensor(features(20, 4, seed=2))
    for once, thrice in zip(fit_prior(image, text), fit_prior(image, text.repeat(3, 1)), strict=True):
        torch.testing.assert_close(once, thrice)


def test_fitted_prior_keeps_its_digits_far_from_zero() -> None:
    # E[x²] − E[x]² in float32 would lose the whole spread here.
    far = torch.tensor([[1000.0], [1000.25], [1000.5], [1000.75]])
    assert fit_prior(far, far)[1].item() == pytest.approx(np.std([0, 0.25, 0.5, 0.75]), rel=1e-6)


def test_refusals_say_what_to_pass() -> None:
    with pytest.raises(ValueError, match="image is 4×8 but reference is 8×4; pass features of the same pairs"):
        random_feature_alignment(torch.ones(4, 8), torch.ones(4, 8), torch.ones(8, 4))
    with pytest.raises(ValueError, match="reduction is 'sum'; use 'mean' or 'paper'"):
        random_feature_alignment(torch.ones(4, 8), torch.ones(4, 8), torch.ones(4, 8), "sum")
    with pytest.raises(ValueError, match="of one width"):
        fit_prior(torch.ones(4, 8), torch.ones(4, 7))
