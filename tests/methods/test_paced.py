from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modalign import methods
from modalign.embeddings import Embeddings
from modalign.errors import RecipeError
from modalign.methods import (
    ClipRefine,
    Combine,
    Contrastive,
    Kuea,
    Method,
    OnCurriculum,
    TpcCma,
    from_config,
    to_config,
)
from tests.methods.batches import batch, drawn


def embeddings(method: Method) -> Embeddings:
    target = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return drawn(method, replace(batch(), target=target))


def test_clip_refine_on_a_curriculum_brings_its_random_vectors_in_slowly() -> None:
    alone = ClipRefine()
    paced = from_config({"name": "curriculum", "method": {"name": "clip-refine"}, "phases": "constant"})
    record = embeddings(alone)
    whole = alone.terms(record, 1.0)
    assert {n: float(t) for n, t in paced.terms(record, 1.0).items()} == {n: float(t) for n, t in whole.items()}
    half = paced.terms(replace(record, strength=0.5), 1.0)
    assert float(half["rafa"]) == pytest.approx(0.5 * float(whole["rafa"]))
    assert float(half["hycd"]) == float(whole["hycd"])
    assert list(paced.terms(replace(record, strength=0.0), 1.0)) == ["hycd"]
    base, aligning = paced.parts(replace(record, strength=0.5), 1.0)
    assert (float(base), float(aligning)) == (float(whole["hycd"]), float(whole["rafa"]))


def test_kuea_on_a_curriculum_trains_the_image_tower_and_its_kernel() -> None:
    paced = OnCurriculum(method=Kuea(), alpha_target=2.0, phases="constant")
    assert paced.towers == {"image"} and paced.needs == Kuea().needs and paced.aligning == ("kernel",)
    assert "method.rho" in dict(paced.module().named_parameters())
    record = embeddings(paced.method)
    assert float(paced.terms(record, 1.0)["kernel"]) == pytest.approx(
        2 * float(paced.method.terms(record, 1)["kernel"])
    )


def test_the_recipe_of_a_curriculum_survives_the_round_trip() -> None:
    config = {
        "name": "curriculum",
        "method": {"name": "hycd-pair-pull", "pair_pull": 0.5},
        "aligning": ["pair_pull"],
        "phases": [{"share": 1.0, "start": 0.0, "end": 1.0, "shape": "cosine"}],
    }
    built = from_config(config)
    assert from_config(to_config(built)) == built
    assert to_config(built)["method"] == {**to_config(methods.HybridDistillationPairPull(pair_pull=0.5))}
    assert to_config(built)["phases"] == config["phases"]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"name": "curriculum"}, "method.method is missing"),
        ({"name": "curriculum", "method": {"name": "contrastive"}}, "contrastive names no terms as aligning"),
        ({"name": "curriculum", "method": {"name": "tpc-cma"}}, "tpc-cma is on a curriculum of its own already"),
        ({"name": "curriculum", "method": {"name": "rafa", "stdd": 1}}, "unknown key 'method.method.stdd'"),
        ({"name": "curriculum", "method": {"name": "rafa"}, "alpha": 1}, "unknown key 'method.alpha'"),
    ],
)
def test_mistakes_are_told_in_a_line(config: dict, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        from_config(config)


def test_a_term_that_the_method_does_not_have_is_named() -> None:
    paced = OnCurriculum(method=ClipRefine(), aligning=["raffa"])
    with pytest.raises(RecipeError, match=r"names 'raffa', which clip-refine .* use some of rafa, hycd"):
        paced.terms(embeddings(paced.method), 1.0)


def test_combined_with_others_everything_else_is_the_base() -> None:
    combined = Combine([Contrastive(), TpcCma(alpha_target=0.5)])
    record = replace(embeddings(combined), strength=0.2)
    base, aligning = combined.parts(record, 1.0)
    own_base, own_aligning = combined.methods[1].parts(record, 1.0)
    assert float(base) == pytest.approx(float(own_base) + float(Contrastive().terms(record, 1.0)["contrastive"]))
    assert float(aligning) == float(own_aligning)
    with pytest.raises(ValueError, match="combine at most one"):
        Combine([TpcCma(), OnCurriculum(method=ClipRefine())])


def test_a_method_of_aligning_terms_alone_has_no_base() -> None:
    paced = OnCurriculum(method=methods.RandomFeatureAlignment())
    record = embeddings(paced.method)
    assert paced.parts(record, 1.0)[0] is None
    assert paced.terms(replace(record, strength=0.0), 1.0) == {}
    assert isinstance(record, Embeddings) and torch.isfinite(paced.parts(record, 1.0)[1])
