from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modalign.methods import (
    ClipRefine,
    Combine,
    Contrastive,
    GeodesicMix,
    HybridDistillation,
    HybridDistillationPairPull,
    Method,
    SelfDistillation,
    Sigmoid,
)
from modalign.objectives import sharpness_warning
from tests.methods.batches import batch, drawn
from tests.objectives import oracle

TWINS = torch.tensor([3, 3, 0, 1, 2, 8])


def student() -> list[np.ndarray]:
    embeddings = batch()
    return [value.detach().numpy() for value in (embeddings.image, embeddings.text)]


def with_twins() -> np.ndarray:
    positives = np.eye(6)
    positives[0, 1] = positives[1, 0] = 1
    return positives


@pytest.mark.parametrize("ids", ["image_ids", "caption_ids"])
def test_contrastive_counts_a_repeated_picture_or_caption_as_positive(ids: str) -> None:
    embeddings = replace(batch(), **{ids: TWINS})
    expected = 2 * oracle.contrastive(*student(), 20.0, with_twins())
    terms = Contrastive(contrastive=2).terms(embeddings, 1.0)
    assert list(terms) == ["contrastive"]
    assert terms["contrastive"].item() == pytest.approx(expected, rel=1e-12)
    assert Contrastive().needs == frozenset()


def test_sigmoid_reads_scale_bias_and_repeats() -> None:
    embeddings = replace(batch(), caption_ids=TWINS, logit_bias=-7.0)
    expected = 2 * oracle.sigmoid(*student(), 20.0, -7.0, with_twins())
    terms = Sigmoid(sigmoid=2).terms(embeddings, 1.0)
    assert list(terms) == ["sigmoid"] and terms["sigmoid"].item() == pytest.approx(expected, rel=1e-12)
    assert Sigmoid().needs == frozenset() and Sigmoid().needs_logit_bias and not Contrastive().needs_logit_bias
    assert Combine([Contrastive(), Sigmoid()]).needs_logit_bias and not Combine([Contrastive()]).needs_logit_bias
    with pytest.raises(ValueError, match=r"no logit_bias.*use contrastive"):
        Sigmoid().terms(batch(), 1.0)


@pytest.mark.parametrize(
    "method", [Contrastive(), HybridDistillation(features="unit"), SelfDistillation(), HybridDistillation()]
)
def test_a_softmax_does_not_see_a_logit_bias(method: Method) -> None:
    """It adds the same to every logit of a row: these methods are what they are on SigLIP, too."""
    assert method.terms(replace(batch(), logit_bias=-12.9), 1.0) == method.terms(batch(), 1.0)


def test_distillation_in_units_works_at_the_models_own_scale_whatever_the_raw_norms() -> None:
    """Far from CLIP's norms near 10, raw inner products are much too sharp or too soft; unit features are not."""
    embeddings = batch()
    assert embeddings.frozen_image is not None and embeddings.frozen_text is not None
    large = replace(
        embeddings,
        frozen_image=30 * embeddings.frozen_image,
        frozen_text=30 * embeddings.frozen_text,
        logit_scale=117.0,
    )
    raw, unit = (ClipRefine(features=features).effective_logit_scale(large) for features in ("raw", "unit"))
    assert unit == 117.0 and sharpness_warning(unit) is None
    assert raw is not None and 'features to "unit"' in str(sharpness_warning(raw))


def test_self_distillation_is_hybrid_with_alpha_zero_even_with_repeats() -> None:
    embeddings = replace(batch(), image_ids=TWINS)
    own = SelfDistillation(self_kd=0.5, temperature=2, features="unit").terms(embeddings, 1.0)
    hybrid = HybridDistillation(hycd=0.5, alpha=0, temperature=2, features="unit").terms(embeddings, 1.0)
    assert list(own) == ["self_kd"]
    torch.testing.assert_close(own["self_kd"], hybrid["hycd"], rtol=1e-14, atol=0)


def test_ablations_are_clip_refine_with_weights_of_zero() -> None:
    embeddings = replace(batch(), image_ids=TWINS)
    assert HybridDistillation().terms(embeddings, 1.0) == ClipRefine(rafa=0).terms(embeddings, 1.0)
    pulled = HybridDistillationPairPull().terms(embeddings, 1.0)
    assert pulled == ClipRefine(rafa=0, pair_pull=1).terms(embeddings, 1.0)
    assert pulled["pair_pull"].item() == pytest.approx(oracle.pair_distance(*student()), rel=1e-12)
    for method in (HybridDistillation(), HybridDistillationPairPull(), SelfDistillation()):
        assert method.needs == {"frozen_image", "frozen_text"}


def test_geodesic_mix_stands_beside_infonce_at_its_own_fixed_scale() -> None:
    method = GeodesicMix()
    embeddings = drawn(method, replace(batch(), image_ids=TWINS, logit_scale=3.0))
    share = embeddings.draws["mixing"].item()
    terms = method.terms(embeddings, 1.0)
    assert list(terms) == ["contrastive", "m2_mix"]
    assert terms["contrastive"].item() == pytest.approx(oracle.contrastive(*student(), 100.0, with_twins()), rel=1e-12)
    # λ is drawn in float32, so that 1 − λ is rounded there too
    expected = 0.01 * oracle.geodesic_contrastive(*student(), share, 100.0, with_twins())
    assert terms["m2_mix"].item() == pytest.approx(expected, rel=1e-6)
    assert list(GeodesicMix(contrastive=0).terms(embeddings, 1.0)) == ["m2_mix"]
    assert GeodesicMix(m2_mix=0).draw(0, 0, 4, 8) == {}


def test_mixing_follows_beta_one_half() -> None:
    # Beta(½, ½): mean ½, variance ⅛, and P(λ < ¼) = (2/π)·arcsin ½ = ⅓.
    shares = torch.stack([GeodesicMix().draw(0, step, 4, 8)["mixing"] for step in range(4000)])
    assert shares.min() >= 0 and shares.max() <= 1
    assert abs(shares.mean() - 0.5) < 4 * (1 / 8 / 4000) ** 0.5
    assert abs(shares.var() - 1 / 8) < 0.01
    assert abs((shares < 0.25).double().mean() - 1 / 3) < 4 * (2 / 9 / 4000) ** 0.5


def test_weights_of_zero_or_less_are_refused() -> None:
    for build in (
        lambda: Contrastive(contrastive=0),
        lambda: Sigmoid(sigmoid=0),
        lambda: SelfDistillation(self_kd=0),
        lambda: HybridDistillation(hycd=-1),
        lambda: HybridDistillationPairPull(pair_pull=0),
        lambda: GeodesicMix(m2_mix=0, contrastive=0),
    ):
        with pytest.raises(ValueError, match=r"is (0|-1)"):
            build()
