from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from modalign import objectives
from modalign.embeddings import Embeddings
from modalign.errors import RecipeError
from modalign.methods import Contrastive, TpcCma, from_config

B, D = 9, 5


@pytest.fixture
def record() -> Embeddings:
    g = torch.Generator().manual_seed(0)
    image, text = (torch.randn(B, D, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ids = torch.arange(B)
    captions = ids.clone()
    captions[3] = 1
    return Embeddings(image=image, text=text, image_ids=ids, caption_ids=captions, logit_scale=20.0)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def oracle(record: Embeddings, a: float, g: float = 5.0) -> dict[str, float]:
    """The spec's formulas, written out pair by pair."""
    x, t = unit(record.image.detach().numpy()), unit(record.text.detach().numpy())
    positive = np.eye(B, dtype=bool)
    positive[1, 3] = positive[3, 1] = True
    rows = []
    for logits in (20 * x @ t.T, 20 * t @ x.T):
        total = 0.0
        for i in range(B):
            others = [j for j in range(B) if not positive[i, j]]
            shares = np.array([np.exp(-g * (x[i] @ x[j] + t[i] @ t[j]) / 2) for j in others])
            weights = (1 - a) + a * len(others) * shares / shares.sum()
            bottom = sum(np.exp(logits[i, j]) for j in np.flatnonzero(positive[i]))
            bottom += sum(w * np.exp(logits[i, j]) for w, j in zip(weights, others, strict=True))
            mine = np.flatnonzero(positive[i])
            total -= sum(logits[i, j] - np.log(bottom) for j in mine) / len(mine)
        rows.append(total / B)
    d = x - t
    mean = d.mean(0)
    return {
        "contrastive": (rows[0] + rows[1]) / 2,
        "centroid": mean @ mean - ((d - mean) ** 2).sum() / (B - 1) / B,
        "distribution": ((d - mean) ** 2).sum(1).mean(),
        "geometry": ((x @ x.T - t @ t.T) ** 2).mean(),
    }


@pytest.mark.parametrize("mix", ["convex", "additive"])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_form_a_agrees_with_the_formula_written_out(record: Embeddings, mix: str, strength: float) -> None:
    method = TpcCma(alpha_target=1.0, mix=mix, centroid=2.0, distribution=0.5)
    terms = method.terms(replace(record, strength=strength), 0.1)
    expected = oracle(record, strength)
    weights = {"centroid": 2.0, "distribution": 0.5, "geometry": 1.0}
    assert float(terms["contrastive"]) == pytest.approx(
        expected["contrastive"] * ((1 - strength) if mix == "convex" else 1), rel=1e-10
    )
    for name, weight in weights.items():
        assert float(terms[name]) == pytest.approx(strength * weight * expected[name], rel=1e-10)


def test_its_gradient_is_the_formulas_by_finite_differences(record: Embeddings) -> None:
    # The weights of the negatives carry no gradient, so they are checked at a = 0.4 with g = 0: all of them 1.
    method = TpcCma(alpha_target=1.0, sharpness=0.0)

    def loss(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return sum(method.terms(replace(record, image=image, text=text, strength=0.4), 1.0).values())

    assert torch.autograd.gradcheck(loss, (record.image, record.text))


@pytest.mark.parametrize("divergence", ["mmd", "coral", "bures", "sliced-wasserstein", "cauchy-schwarz"])
def test_form_b_is_the_centroid_gap_and_a_divergence_of_centred_features(record: Embeddings, divergence: str) -> None:
    method = TpcCma(
        alpha_target=1.0, form="centroid+divergence", divergence=divergence, divergence_weight=0.5, mix="additive"
    )
    record = replace(record, strength=0.4, draws=method.draw(0, 0, B, D))
    terms = method.terms(record, 1.0)
    assert set(terms) == {"contrastive", "centroid", "divergence"}
    x, t = (torch.from_numpy(unit(f.detach().numpy())) for f in (record.image, record.text))
    x, t = x - x.mean(0), t - t.mean(0)
    extra = (record.draws["directions"].double(),) if divergence == "sliced-wasserstein" else ()
    expected = getattr(objectives, divergence.replace("-", "_"))(x, t, *extra)
    assert float(terms["divergence"]) == pytest.approx(0.2 * float(expected), rel=1e-10)
    assert float(terms["contrastive"]) == pytest.approx(oracle(record, 0.0)["contrastive"], rel=1e-10)
    assert float(terms["centroid"]) == pytest.approx(0.4 * oracle(record, 0.0)["centroid"], rel=1e-10)


@pytest.mark.parametrize("form", ["cma", "centroid+divergence"])
def test_at_strength_zero_it_is_contrastive_bit_for_bit(record: Embeddings, form: str) -> None:
    record = replace(record, image=record.image.float(), text=record.text.float())
    expected = Contrastive().terms(record, 0.5)
    for method, progress in ((TpcCma(form=form, alpha_target=0.0), 1.0), (TpcCma(form=form), 0.2)):
        found = method.terms(record, progress)
        assert list(found) == ["contrastive"]
        assert torch.equal(found["contrastive"], expected["contrastive"])


def test_without_a_strength_it_follows_its_phases(record: Embeddings) -> None:
    method = TpcCma(alpha_target=0.4, phases=[(0.5, 0.0, 1.0), (0.5, 1, 1)])
    half = method.terms(record, 0.25)
    told = method.terms(replace(record, strength=0.2), 0.25)
    assert {name: float(term) for name, term in half.items()} == {name: float(term) for name, term in told.items()}


def test_phases_in_a_recipe_are_a_list_of_mappings_or_a_name() -> None:
    phases = [{"share": 0.5, "start": 0, "end": 1, "shape": "cosine"}, {"share": 0.5, "start": 1, "end": 1}]
    method = from_config({"name": "tpc-cma", "phases": phases, "alpha_target": 0.5})
    assert method.strength(Embeddings(), 0.25) == pytest.approx(0.25)
    with pytest.raises(RecipeError, match=r"the phases' shares sum to 0.5"):
        from_config({"name": "tpc-cma", "phases": phases[:1]})
    with pytest.raises(RecipeError, match=r"phases is 'anchor'; use"):
        from_config({"name": "tpc-cma", "phases": "anchor"})
    with pytest.raises(RecipeError, match=r"alpha_target is 1.5; use a number from 0 to 1"):
        from_config({"name": "tpc-cma", "alpha_target": 1.5})
    with pytest.raises(RecipeError, match=r"nothing is aligned; set one above 0"):
        from_config({"name": "tpc-cma", "centroid": 0, "distribution": 0, "geometry": 0})


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        (
            [{"share": 1, "start": 0, "stop": 1}],
            r"\{'share': 1, 'start': 0, 'stop': 1\} is no phase; write \{share: 0.5",
        ),
        ([{"share": 1, "start": 0, "end": 1, "shap": "cosine"}], "is no phase; write"),
        ([[1, 0]], r"\[1, 0\] is no phase; write"),
        ([[1, 0, 1, "bogus"]], "a shape is linear, cosine, smoothstep"),
        ([["1", 0, True]], "is no phase; write"),
        (5, "= 5: write anchor-ramp-stabilise, article, constant, or a list"),
        ([[float("nan"), 0, 1]], "share is ≥ 0"),
    ],
)
def test_phases_that_cannot_be_read_are_told_in_one_sentence(phases: object, told: str) -> None:
    with pytest.raises(RecipeError, match=told) as raised:
        from_config({"name": "tpc-cma", "phases": phases})
    assert len(raised.value.problems) == 1 and "union" not in str(raised.value)


def test_parts_are_the_terms_before_the_strength(record: Embeddings) -> None:
    method = TpcCma(alpha_target=1.0)
    record = replace(record, strength=0.3)
    base, aligning = method.parts(record, 1.0)
    assert float(0.7 * base + 0.3 * aligning) == pytest.approx(float(sum(method.terms(record, 1.0).values())))
