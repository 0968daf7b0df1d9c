"""Methods on a curriculum, across the boundary and through the loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from modalign.embeddings import Embeddings
from modalign.methods import TpcCma
from modalign.methods.paced import Paced
from modalign.training import boundary
from tests.training.test_boundary import B, batch, gradients, sides
from tests.training.test_loop import make, recipe, records, run_until, same, weights
from tests.training.toy import ToyEncoder, toy_pairs


@dataclass(kw_only=True)
class Pulls(Paced):
    """base = ⟨image, u⟩, aligning = s·⟨image, v⟩: two gradients at the embeddings that are known."""

    name: ClassVar[str] = "pulls"
    angle: float = 0.0
    size: float = 0.5

    def parts(self, embeddings: Embeddings, progress: float) -> tuple[Tensor, Tensor]:
        first = embeddings.image[:, 0].sum()
        cosine, sine = torch.cos(torch.tensor(self.angle)), torch.sin(torch.tensor(self.angle))
        return first, self.size * (cosine * first + sine * embeddings.image[:, 1].sum())

    def terms(self, embeddings: Embeddings, progress: float) -> dict[str, Tensor]:
        base, aligning = self.parts(embeddings, progress)
        return {"base": base, "aligning": self.strength(embeddings, progress) * aligning}


def step(method: Paced, progress: float = 1.0, dtype: torch.dtype = torch.float64, chunk: int | None = None):
    model = ToyEncoder(dtype=dtype)
    pixels, tokens, rest = batch(model, method, dtype)
    outcome = boundary.backward(sides(model, pixels, tokens), rest, slice(0, B), method, progress, chunk=chunk)
    return model, outcome


def test_agreement_leaves_the_strength_and_a_conflict_lowers_it() -> None:
    constant = {"phases": "constant", "alpha_target": 0.5}
    _, agree = step(Pulls(angle=0.5, **constant))
    assert agree.curriculum["alpha"] == 0.5 and agree.curriculum["kappa"] == 1
    assert agree.curriculum["cosine"] == pytest.approx(torch.cos(torch.tensor(0.5)).item())
    assert agree.curriculum["ratio"] == pytest.approx(0.5)
    _, opposed = step(Pulls(angle=torch.pi, **constant))
    assert opposed.curriculum["alpha"] == pytest.approx(0.5 * 0.1)
    assert opposed.terms["aligning"] == pytest.approx(-0.05 * 0.5 * opposed.terms["base"], rel=1e-5)
    _, too_large = step(Pulls(angle=0.5, size=4.0, **constant))
    assert too_large.curriculum["alpha"] == pytest.approx(0.5 / 4)
    _, ignored = step(Pulls(angle=torch.pi, on_conflict="ignore", **constant))
    assert ignored.curriculum == {"alpha": 0.5, "planned": 0.5, "kappa": 1.0}


@pytest.mark.parametrize("chunk", [None, 5])
def test_projected_the_gradient_is_the_base_one_plus_what_is_orthogonal_to_it(chunk: int | None) -> None:
    constant = {"phases": "constant", "alpha_target": 0.5, "on_conflict": "project"}
    angle = 2.4
    found, outcome = step(Pulls(angle=angle, **constant), chunk=chunk)
    assert outcome.curriculum["alpha"] == 0.5
    model = ToyEncoder(dtype=torch.float64)
    pixels, _, _ = batch(model, Pulls(), torch.float64)
    model.module.requires_grad_(True)
    features = model.encode_image(pixels)
    (features[:, 0].sum() + 0.5 * 0.5 * torch.sin(torch.tensor(angle)) * features[:, 1].sum()).backward()
    torch.testing.assert_close(gradients(found), gradients(model), rtol=1e-6, atol=1e-9)
    unopposed, _ = step(Pulls(angle=0.5, **constant))
    plain, _ = step(Pulls(angle=0.5, **{**constant, "on_conflict": "ignore"}))
    assert torch.equal(gradients(unopposed), gradients(plain))


@pytest.mark.parametrize("chunk", [None, 5])
def test_compared_in_the_towers_the_gradient_stays_and_every_parameter_tells_its_products(chunk: int | None) -> None:
    settings = {"phases": "constant", "alpha_target": 0.5}
    method = TpcCma(on_conflict="learning_rate", **settings)
    apart, outcome = step(method, chunk=chunk)
    whole, _ = step(TpcCma(on_conflict="ignore", **settings))
    torch.testing.assert_close(gradients(apart), gradients(whole), rtol=1e-9, atol=1e-12)
    model = ToyEncoder(dtype=torch.float64)
    pixels, tokens, rest = batch(model, method, torch.float64)
    model.module.requires_grad_(True)
    record = replace(rest, image=model.encode_image(pixels), text=model.encode_text(tokens), strength=0.5)
    base, aligning = method.parts(record, 1.0)
    for name, p in model.module.named_parameters():
        a = torch.autograd.grad(0.5 * aligning, p, retain_graph=True)[0]
        b = torch.autograd.grad(0.5 * base, p, retain_graph=True)[0]
        expected = (float((a * b).sum()), float(a.square().sum()), float(b.square().sum()))
        assert outcome.conflicts[name] == pytest.approx(expected, rel=1e-6, abs=1e-12)


TPC = {"name": "tpc-cma", "alpha_target": 0.5}


def test_target_zero_gives_the_weights_of_contrastive_fine_tuning_bit_for_bit(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    runs = {}
    for name, method in {
        "contrastive": {"name": "contrastive"},
        "strength": {**TPC, "alpha_target": 0.0},
        "rates": {**TPC, "alpha_target": 0.0, "on_conflict": "learning_rate"},
        "project": {**TPC, "alpha_target": 0.0, "on_conflict": "project", "form": "centroid+divergence"},
        "half": TPC,
    }.items():
        loop = make(pairs, tmp_path / name, recipe(method=method))
        loop.run()
        runs[name] = weights(loop)
    for name in ("strength", "rates", "project"):
        assert same(runs["contrastive"], runs[name]), name
    assert not same(runs["contrastive"], runs["half"])


@pytest.mark.parametrize("conflict", ["strength", "learning_rate", "project"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_killed_and_resumed_the_curriculum_goes_on_bit_for_bit(
    tmp_path: Path, conflict: str, chunk: int | None
) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    settings = recipe(method={**TPC, "on_conflict": conflict, "conflict_every": 2, "cosine_min": 0.2}, chunk=chunk)
    whole = make(pairs, tmp_path / "whole", settings)
    whole.run()
    broken = make(pairs, tmp_path / "broken", settings)
    run_until(broken, 9)
    resumed = make(pairs, tmp_path / "broken", settings)
    assert resumed.restore() and resumed.step == 8
    resumed.run()
    assert same(weights(whole), weights(resumed))
    lines = records(tmp_path / "whole")
    assert lines == records(tmp_path / "broken")
    told = [line["curriculum"] for line in lines if line["step"]]
    assert told[0]["alpha"] == 0 and {"alpha", "planned", "kappa", "ratio", "cosine"} <= told[-1].keys()
    if conflict == "learning_rate":
        assert all("learning_rates" in line for line in told)


def test_a_conflict_lowers_the_rate_of_its_block_alone(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    # A limit just below 1 makes nearly every cosine a conflict.
    settings = recipe(method={**TPC, "on_conflict": "learning_rate", "cosine_min": 0.999, "phases": "constant"})
    loop = make(pairs, tmp_path / "run", settings)
    loop.run()
    line = records(tmp_path / "run")[-1]
    told = line["curriculum"]["learning_rates"]
    assert told and all(0.1 <= rate < 1 for rate in told.values())
    for group in loop.optimizer.param_groups:
        assert group["lr"] == pytest.approx(line["lr"] * told.get(group["part"], 1.0))
    assert {group["part"] for group in loop.optimizer.param_groups} == {"image", "text"}
