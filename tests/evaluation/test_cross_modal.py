from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.evaluation.cross_modal import cross_modal, ratio_outcomes
from modalign.evaluation.statistics import bootstrap_interval


def modality(shift: float, turn: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(4, 12, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(240) % 4
    x = centres[labels] + 0.7 * torch.randn(240, 12, generator=torch.Generator().manual_seed(seed)) + shift
    return (x.flip(1) if turn else x), labels


def halves(features: torch.Tensor, labels: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    return (features[:120], labels[:120]), (features[120:], labels[120:])


def test_modalities_that_agree_transfer_wholly_and_a_turned_one_does_not() -> None:
    image = halves(*modality(0, seed=1))
    for turn, low, high in ((False, 0.95, 1.05), (True, 0.0, 0.7)):
        text = halves(*modality(0, turn, seed=2))
        found = cross_modal({"image": image[0], "text": text[0]}, {"image": image[1], "text": text[1]}, 4)
        assert set(found.outcomes) == {"image_to_image", "image_to_text", "text_to_image", "text_to_text"}
        for name in ("image_to_text", "text_to_image"):
            ratio = found.ratios[f"{name}_transfer"].mean()
            within = found.outcomes[f"{name[-5:].strip('_')}_to_{name[-5:].strip('_')}"].mean()
            assert ratio == pytest.approx(found.outcomes[name].mean() / within)
            assert low <= ratio <= high


def test_a_ratios_outcomes_average_to_it_and_spread_as_its_bootstrap_does() -> None:
    rng = np.random.default_rng(0)
    below = (rng.random(800) < 0.8).astype(float)
    above = np.where(rng.random(800) < 0.7, below, rng.random(800) < 0.4)
    found = ratio_outcomes(above, below)
    assert found.mean() == pytest.approx(above.mean() / below.mean(), abs=1e-12)
    draws = rng.integers(0, 800, (4000, 800))
    direct = np.quantile(above[draws].mean(1) / below[draws].mean(1), [0.025, 0.975])
    np.testing.assert_allclose(bootstrap_interval(found), direct, atol=0.005)


def test_a_probe_that_is_never_right_within_its_modality_has_no_ratio() -> None:
    image, labels = torch.ones(40, 3), torch.arange(40) % 2
    found = cross_modal({"image": (image, labels), "text": (image, labels)}, {"image": (image, labels)}, 2)
    assert not found.outcomes["image_to_image"].any() and not found.ratios
