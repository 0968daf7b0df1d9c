from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modalign.embeddings import Embeddings
from modalign.methods import AmRadio, FeatureMatching, Method, Projection
from modalign.objectives import feature_anchor
from tests.methods.batches import batch


def features(rows: int = 60, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(5)
    frozen, target = (torch.randn(rows, d, generator=source, dtype=torch.float64) + 1 for d in (8, 5))
    return {"frozen_image": frozen.to(dtype), "target": target.to(dtype)}


def with_target() -> Embeddings:
    return replace(batch(), target=features(6)["target"])


def fitted(method: Method, dtype: torch.dtype = torch.float64) -> Method:
    method.fit(features(dtype=dtype))
    return method


def test_the_projection_stands_in_for_the_image_feature_and_takes_no_step() -> None:
    stored = features()
    expected = np.linalg.lstsq(stored["target"].numpy(), stored["frozen_image"].numpy(), rcond=None)[0]
    method = fitted(Projection())
    given = torch.randn(4, 5, dtype=torch.float64)
    np.testing.assert_allclose(method.stand_in(given), given.numpy() @ expected, rtol=1e-10)
    assert method.terms(with_target(), 1.0) == {} and method.towers == frozenset()
    assert not list(method.module().parameters())
    assert method.stand_in(given.float()).dtype == torch.float32
    assert fitted(Projection(ridge=1e9)).stand_in(given).abs().max() < 1e-4
    assert FeatureMatching().stand_in(given) is None


def test_feature_matching_starts_at_least_squares_and_trains_its_map() -> None:
    method, given = fitted(FeatureMatching(feature_weight=2, anchor_weight=3)), with_target()
    (weight,) = method.module().parameters()
    stored = features()
    np.testing.assert_allclose(
        weight.detach(), np.linalg.lstsq(stored["target"], stored["frozen_image"], rcond=None)[0].T, rtol=1e-10
    )
    terms = method.terms(given, 1.0)
    gaps = given.image.detach() - given.target @ weight.detach().T
    assert terms["feature"].item() == pytest.approx(2 * gaps.square().sum(1).mean().item(), rel=1e-12)
    assert terms["anchor"].item() == pytest.approx(3 * feature_anchor(given.image, given.frozen_image).item())
    terms["feature"].backward()
    np.testing.assert_allclose(weight.grad, -2 * 2 / 6 * gaps.T @ given.target, rtol=1e-10)
    assert fitted(FeatureMatching(anchor_weight=0)).terms(given, 1.0).keys() == {"feature"}


def test_am_radio_matches_each_standardised_teacher_by_a_head_of_its_own() -> None:
    method, given, stored = fitted(AmRadio(target_weight=0.5)), with_target(), features()
    terms = method.terms(given, 1.0)
    for name, weight, teacher, all_rows in (
        ("clip", 1.0, given.frozen_image, stored["frozen_image"]),
        ("target", 0.5, given.target, stored["target"]),
    ):
        head = {key: value.double() for key, value in method.module()[name].state_dict().items()}
        hidden = F.gelu(given.image @ head["layers.0.weight"].T + head["layers.0.bias"])
        predicted = hidden @ head["layers.2.weight"].T + head["layers.2.bias"]
        y = (teacher - all_rows.mean(0)) / all_rows.std(0, correction=0)
        angle = 1 - (predicted * y).sum(1) / predicted.norm(dim=1) / y.norm(dim=1)
        error = (predicted - y).abs()
        smooth = torch.where(error < 1, error**2 / 2, error - 0.5).mean(1)
        assert terms[name].item() == pytest.approx(weight * (0.9 * angle + 0.1 * smooth).mean().item(), rel=1e-10)
    sum(terms.values()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in method.module().parameters())
    assert fitted(AmRadio(clip_weight=0)).terms(given, 1.0).keys() == {"target"}


def test_heads_follow_from_the_seed_at_construction_whatever_is_drawn_before_the_fit() -> None:
    def made(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            method = AmRadio()
        torch.rand(3)
        state = torch.get_rng_state()
        fitted(method)
        assert torch.equal(torch.get_rng_state(), state)
        return method.module()

    first, again, other = (nn.utils.parameters_to_vector(made(seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("method", [FeatureMatching, AmRadio, Projection])
def test_parameters_have_their_names_before_the_fit_and_use_asks_for_it(method: type[Method]) -> None:
    fresh = method()
    names = [name for name, _ in fresh.module().named_parameters()]
    assert fresh.needs_fit and fresh.needs == {"frozen_image", "target"}
    with pytest.raises(RuntimeError, match=r"call fit\(\) with the training set's frozen_image and target first"):
        fresh.stand_in(torch.ones(2, 5)) if method is Projection else fresh.terms(with_target(), 1.0)
    assert [name for name, _ in fitted(fresh).module().named_parameters()] == names
    assert all(p.dtype == torch.float32 for p in fitted(method(), torch.float16).module().state_dict().values())
