from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from modalign.methods import ClipRefine, Combine, GeodesicMix, Method, RandomFeatureAlignment
from modalign.objectives import random_feature_alignment
from tests.methods.batches import batch, drawn


def fitted(**settings: object) -> RandomFeatureAlignment:
    method = RandomFeatureAlignment(**settings)
    source = torch.Generator().manual_seed(1)
    image, text = (torch.randn(500, 8, generator=source) for _ in range(2))
    method.fit({"frozen_image": 3 + image, "frozen_text": 0.1 * text - 1})
    return method


DRAWING: dict[str, Callable[[], Method]] = {
    "normal": RandomFeatureAlignment,
    "uniform": lambda: RandomFeatureAlignment(prior="uniform"),
    "fitted": lambda: fitted(prior="fitted"),
    "not shared": lambda: RandomFeatureAlignment(shared=False),
    "clip-refine": ClipRefine,
    "m2-mix": GeodesicMix,
    "combine": lambda: Combine([RandomFeatureAlignment(), RandomFeatureAlignment(), GeodesicMix()]),
}


@pytest.mark.parametrize("build", DRAWING.values(), ids=DRAWING.keys())
def test_draws_are_a_pure_function_of_seed_step_rows_and_width(build: Callable[[], Method]) -> None:
    method = build()
    torch.manual_seed(0)
    first = method.draw(3, 10, 4, 8)
    method.draw(3, 11, 4, 8)
    torch.manual_seed(1)
    again, elsewhere = method.draw(3, 10, 4, 8), build().draw(3, 10, 4, 8)
    assert first and first.keys() == again.keys()
    for name, value in first.items():
        assert torch.equal(value, again[name]) and torch.equal(value, elsewhere[name])
        assert value.device.type == "cpu"
        for other in (method.draw(3, 11, 4, 8), method.draw(4, 10, 4, 8), method.draw(10, 3, 4, 8)):
            assert not torch.equal(value, other[name])


def test_draws_do_not_move_the_global_generator() -> None:
    before = torch.get_rng_state()
    RandomFeatureAlignment().draw(0, 0, 4, 8)
    GeodesicMix().draw(0, 0, 4, 8)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_seed_gives_the_same_numbers_for_ever() -> None:
    # Frozen (torch 2, CPU): a run resumed under another version of modalign must see the same z.
    z = RandomFeatureAlignment().draw(seed=0, step=0, rows=2, dim=2)["reference"]
    frozen = torch.tensor([[1.269052267, -1.562658310], [1.505521178, -1.264297605]])
    torch.testing.assert_close(z, frozen, rtol=1e-5, atol=0)


def test_rafa_and_clip_refine_see_the_same_vectors() -> None:
    # So that dropping a term is the only difference between two runs of one seed.
    drawn_alone, drawn_with = RandomFeatureAlignment().draw(5, 7, 4, 8), ClipRefine().draw(5, 7, 4, 8)
    assert torch.equal(drawn_alone["reference"], drawn_with["reference"])


def test_shared_pulls_both_sides_to_one_vector_and_unshared_to_two() -> None:
    shared, apart = RandomFeatureAlignment(), RandomFeatureAlignment(shared=False)
    assert shared.draw(0, 0, 4, 8).keys() == {"reference"}
    z = apart.draw(0, 0, 4, 8)
    assert z.keys() == {"image_reference", "text_reference"}
    assert not torch.equal(z["image_reference"], z["text_reference"])
    embeddings = batch()
    embeddings = drawn(apart, embeddings)
    expected = random_feature_alignment(
        embeddings.image, embeddings.text, (embeddings.draws["image_reference"], embeddings.draws["text_reference"])
    )
    assert torch.equal(apart.terms(embeddings, 0.5)["rafa"], expected)


@pytest.mark.parametrize("settings", [{"std": 0.0, "mean": 0.3}, {"prior": "point", "mean": 0.3}])
def test_no_spread_is_exactly_the_pull_to_the_mean(settings: dict[str, object]) -> None:
    method = RandomFeatureAlignment(**settings)
    embeddings = drawn(method, batch())
    mean = torch.full((6, 8), 0.3)
    assert torch.equal(embeddings.reference, mean)
    expected = random_feature_alignment(embeddings.image, embeddings.text, mean)
    assert torch.equal(method.terms(embeddings, 1.0)["rafa"], expected)


def test_weight_and_linear_decay() -> None:
    plain = RandomFeatureAlignment()
    embeddings = drawn(plain, batch())
    base = plain.terms(embeddings, 0.25)["rafa"].item()
    assert RandomFeatureAlignment(rafa=3.0).terms(embeddings, 0.25)["rafa"].item() == pytest.approx(3 * base)
    fading = RandomFeatureAlignment(decay="linear")
    assert fading.terms(embeddings, 1 / 4)["rafa"].item() == pytest.approx(0.75 * base)
    assert fading.terms(embeddings, 1.0)["rafa"].item() == 0.0  # still there at the last step, and differentiable
    fading.terms(embeddings, 1.0)["rafa"].backward()


def test_paper_reduction_is_half_the_width_times_the_mean() -> None:
    mean, paper = RandomFeatureAlignment(), RandomFeatureAlignment(reduction="paper")
    embeddings = drawn(mean, batch(dim=8))
    ratio = paper.terms(embeddings, 1.0)["rafa"] / mean.terms(embeddings, 1.0)["rafa"]
    assert ratio.item() == pytest.approx(8 / 2)


def test_fitted_prior_draws_with_the_features_moments() -> None:
    z = fitted(prior="fitted").draw(0, 0, 20_000, 8)["reference"]
    # Two clusters, N(3, 1) and N(−1, 0.01): mean 1, variance ½(1 + 0.01) + ¼·4².
    torch.testing.assert_close(z.mean(0), torch.ones(8), rtol=0, atol=0.15)
    torch.testing.assert_close(z.var(0), torch.full((8,), 0.505 + 4.0), rtol=0.1, atol=0)
    apart = fitted(prior="fitted", shared=False).draw(0, 0, 20_000, 8)
    torch.testing.assert_close(apart["image_reference"].mean(0), torch.full((8,), 3.0), rtol=0, atol=0.2)
    torch.testing.assert_close(apart["text_reference"].mean(0), torch.full((8,), -1.0), rtol=0, atol=0.05)
    torch.testing.assert_close(apart["text_reference"].std(0), torch.full((8,), 0.1), rtol=0.1, atol=0)


def test_fitted_point_is_the_features_mean_in_every_row() -> None:
    method = fitted(prior="point", point="fitted")
    z = method.draw(0, 0, 3, 8)["reference"]
    assert torch.equal(z, method.module().mean.expand(3, 8))


def test_fitted_prior_is_checkpointed_and_loads_into_an_unfitted_method() -> None:
    trained, resumed = fitted(prior="fitted", shared=False), RandomFeatureAlignment(prior="fitted", shared=False)
    combined = Combine([GeodesicMix(), resumed])
    with pytest.raises(RuntimeError, match=r"call fit\(\) with the initial model"):
        resumed.draw(0, 0, 4, 8)
    state = Combine([GeodesicMix(), trained]).module().state_dict()
    combined.module().load_state_dict(state)
    for name, value in trained.draw(0, 0, 4, 8).items():
        assert torch.equal(resumed.draw(0, 0, 4, 8)[name], value)


def test_only_fitted_priors_need_a_fit() -> None:
    assert RandomFeatureAlignment(prior="fitted").needs_fit
    assert RandomFeatureAlignment(prior="point", point="fitted").needs_fit
    for settings in ({}, {"prior": "point"}, {"prior": "normal", "point": "fitted"}):
        method = RandomFeatureAlignment(**settings)
        assert not method.needs_fit and method.module() is None
    assert not ClipRefine(rafa=0, prior="fitted").needs_fit


def test_a_batch_without_draws_is_told_how_to_get_them() -> None:
    with pytest.raises(ValueError, match=r"no draws reference; pass draws=method\.draw"):
        RandomFeatureAlignment().terms(batch(), 1.0)
