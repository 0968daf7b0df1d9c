from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modalign.methods import ClipRefine
from tests.methods.batches import batch, drawn
from tests.objectives import oracle


def test_defaults_are_the_published_recipe() -> None:
    method = ClipRefine()
    assert (method.rafa, method.hycd, method.contrastive, method.pair_pull) == (1, 1, 0, 0)
    assert (method.alpha, method.temperature, method.features) == (0.5, 1, "raw")
    assert (method.prior, method.mean, method.std, method.shared) == ("normal", 0, 1, True)
    assert (method.reduction, method.decay) == ("mean", "none")
    assert method.towers == {"image", "text"}


def test_all_terms_and_their_gradients_match_the_oracle_with_repeats() -> None:
    # Pairs 0 and 1 share the picture, 2 and 3 the caption.
    method = ClipRefine(rafa=0.7, hycd=0.5, contrastive=0.3, pair_pull=0.2, decay="linear", alpha=0.4, temperature=2.0)
    embeddings = replace(
        batch(5), image_ids=torch.tensor([4, 4, 0, 1, 2]), caption_ids=torch.tensor([0, 1, 2, 2, 9]), logit_scale=8.0
    )
    embeddings = drawn(method, embeddings)
    positives = np.eye(5)
    positives[0, 1] = positives[1, 0] = positives[2, 3] = positives[3, 2] = 1
    z = embeddings.reference.numpy().astype(np.float64)
    frozen = [value.numpy() for value in (embeddings.frozen_image, embeddings.frozen_text)]
    truths = {
        "rafa": lambda i, t: 0.7 * (1 - 0.25) * oracle.random_feature(i, t, z, z, "mean"),
        "hycd": lambda i, t: 0.5 * oracle.hybrid_distillation(i, t, *frozen, 0.4, 2.0, None, positives),
        "contrastive": lambda i, t: 0.3 * oracle.contrastive(i, t, 8.0, positives),
        "pair_pull": lambda i, t: 0.2 * oracle.pair_distance(i, t),
    }
    terms = method.terms(embeddings, progress=0.25)
    assert list(terms) == list(truths)
    student = [value.detach().numpy() for value in (embeddings.image, embeddings.text)]
    for name, truth in truths.items():
        assert terms[name].item() == pytest.approx(np.real(truth(*student)), rel=1e-12)
        found = torch.autograd.grad(terms[name], (embeddings.image, embeddings.text), retain_graph=True)
        for gradient, slope in zip(found, oracle.gradient(truth, *student), strict=True):
            np.testing.assert_allclose(gradient.numpy(), slope, rtol=0, atol=1e-10 * np.abs(slope).max())


def test_unit_features_use_the_models_logit_scale() -> None:
    method = ClipRefine(rafa=0, features="unit")
    embeddings = batch()
    expected = oracle.hybrid_distillation(
        *(v.detach().numpy() for v in (embeddings.image, embeddings.text)),
        embeddings.frozen_image.numpy(),
        embeddings.frozen_text.numpy(),
        0.5,
        1.0,
        20.0,
    )
    assert method.terms(embeddings, 1.0)["hycd"].item() == pytest.approx(expected, rel=1e-12)


def test_a_term_of_weight_zero_is_not_computed_and_needs_nothing() -> None:
    assert ClipRefine().needs == {"frozen_image", "frozen_text"}
    without = ClipRefine(hycd=0, rafa=0, pair_pull=1)
    assert without.needs == frozenset()
    assert without.draw(0, 0, 4, 8) == {}
    bare = replace(batch(), frozen_image=None, frozen_text=None)
    assert list(without.terms(bare, 1.0)) == ["pair_pull"]
    assert list(drawn_terms(ClipRefine())) == ["rafa", "hycd"]


def drawn_terms(method: ClipRefine) -> dict[str, torch.Tensor]:
    return method.terms(drawn(method, batch()), 1.0)


def test_loss_does_not_depend_on_the_order_of_pairs() -> None:
    method = ClipRefine(contrastive=1, pair_pull=1)
    embeddings = drawn(method, batch())
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    permuted = replace(
        embeddings,
        **{
            name: getattr(embeddings, name)[order]
            for name in ("image", "text", "frozen_image", "frozen_text", "image_ids", "caption_ids")
        },
        draws={"reference": embeddings.reference[order]},
    )
    before, after = method.terms(embeddings, 1.0), method.terms(permuted, 1.0)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-12, atol=0)


def test_effective_scale_is_what_stands_before_the_cosines() -> None:
    embeddings = batch()
    norms = embeddings.frozen_image.norm(dim=1).mean() * embeddings.frozen_text.norm(dim=1).mean()
    assert ClipRefine(temperature=2).effective_logit_scale(embeddings) == pytest.approx(norms.item() / 2)
    assert ClipRefine(features="unit").effective_logit_scale(embeddings) == 20.0
    assert ClipRefine(hycd=0).effective_logit_scale(embeddings) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rafa": -1.0}, "rafa is -1; use a number from 0 up"),
        ({"hycd": float("nan")}, "hycd is nan; use a finite number"),
        ({"rafa": 0, "hycd": 0}, "every weight .* is 0"),
        ({"alpha": 1.01}, "alpha is 1.01; use a number from 0 to 1"),
        ({"temperature": 0}, "temperature is 0; use a number above 0"),
        ({"std": -0.1}, "std is -0.1"),
        ({"low": 2.0, "high": 1.0}, "high is 1; use a number from 2 up"),
        ({"prior": "gauss"}, "prior is 'gauss'; use 'normal' or"),
        ({"features": "norm"}, "features is 'norm'; use 'raw' or 'unit'"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipRefine(**settings)


def test_a_batch_that_lacks_frozen_features_is_named() -> None:
    method = ClipRefine()
    with pytest.raises(ValueError, match="the batch has no frozen_text"):
        method.terms(replace(drawn(method, batch()), frozen_text=None), 1.0)
