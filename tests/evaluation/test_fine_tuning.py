from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modalign.errors import RecipeError
from modalign.evaluation.fine_tuning import Budget, Tuned, fine_tune
from modalign.features import image_features
from modalign.models import load
from modalign.models.dual_encoder import DualEncoder
from tests.tiny import tiny_hf_clip, tiny_open_clip

CLASSES = 3


@pytest.fixture(scope="module", params=[tiny_open_clip, tiny_hf_clip])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return load(request.param(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = []
    for number in range(24):
        pixels = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8)
        pixels[..., number % CLASSES] += 150
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def tuned(model: DualEncoder, pictures: list[Path], budget: Budget, seed: int = 0) -> tuple[Tuned, torch.Tensor]:
    features = image_features(model, pictures, [str(p) for p in pictures]).features
    source = torch.Generator().manual_seed(1)
    head = torch.nn.functional.normalize(torch.randn(CLASSES, model.embed_dim, generator=source))
    labels = torch.arange(len(pictures)) % CLASSES
    return fine_tune(model, pictures, ["" for _ in pictures], features, labels, head, budget, seed=seed), head


def changed(model: DualEncoder, after: DualEncoder) -> set[str]:
    first, second = model.module.state_dict(), after.module.state_dict()
    assert set(first) == set(second)  # adapters are merged: the library's own layout
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize("scope", ["full", "last:1", "lora", "head"])
def test_only_the_scope_changes_and_the_model_itself_never_does(
    model: DualEncoder, pictures: list[Path], scope: str
) -> None:
    before = model.fingerprint
    found, head = tuned(model, pictures, Budget(scope, epochs=1, batch_size=8, lr=1e-3))
    assert model.fingerprint == before and len(found.losses) == 3
    names = changed(model, found.model)
    assert all(model.tower_of(name) == "image" for name in names)
    if scope == "head":
        assert not names and found.model is model
    elif scope == "full":
        assert names == {name for name, _ in model.named_parameters("image")}
    else:
        blocks = {name for name in names if ".0." in name}
        assert names and (not blocks if scope == "last:1" else blocks)
    assert not torch.equal(found.weights, model.logit_scale * head)


@pytest.mark.parametrize("scope", ["full", "last:1", "lora", "head"])
def test_what_trains_of_the_model_and_its_mode_stay_as_they_were(
    pictures: list[Path], tmp_path: Path, scope: str
) -> None:
    model = load(tiny_hf_clip(tmp_path / "clip"))
    next(model.module.parameters()).requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.module.parameters()]
    modes = [module.training for module in model.module.modules()]
    assert len(set(before)) == 2
    features, head = torch.randn(len(pictures), model.embed_dim), torch.eye(CLASSES, model.embed_dim)
    labels = torch.arange(len(pictures)) % CLASSES
    fine_tune(model, pictures, ["" for _ in pictures], features, labels, head, Budget(scope, epochs=1, batch_size=24))
    assert [parameter.requires_grad for parameter in model.module.parameters()] == before
    assert [module.training for module in model.module.modules()] == modes


def test_it_starts_at_the_zero_shot_loss_and_learns(model: DualEncoder, pictures: list[Path]) -> None:
    found, head = tuned(model, pictures, Budget("full", epochs=6, batch_size=24, lr=2e-3))
    image = torch.nn.functional.normalize(image_features(model, pictures, [str(p) for p in pictures]).features)
    labels = torch.arange(len(pictures)) % CLASSES
    start = torch.nn.functional.cross_entropy(model.logit_scale * image @ head.T, labels)
    assert found.losses[0] == pytest.approx(float(start), abs=1e-4)
    assert found.losses[-1] < 0.5 * found.losses[0]


def test_the_same_seed_gives_the_same_weights_and_another_another_order(
    model: DualEncoder, pictures: list[Path]
) -> None:
    budget = Budget("last:1", epochs=2, batch_size=8, lr=1e-3)
    (first, _), (again, _), (other, _) = (tuned(model, pictures, budget, seed) for seed in (0, 0, 1))
    assert first.losses == again.losses != other.losses
    assert not changed(first.model, again.model) and changed(first.model, other.model)


def test_a_scope_that_the_tower_does_not_have_is_named(model: DualEncoder, pictures: list[Path]) -> None:
    with pytest.raises(RecipeError, match="use at most last:2"):
        tuned(model, pictures, Budget("last:9"))


def test_the_rate_follows_what_trains() -> None:
    assert [Budget(scope).rate for scope in ("full", "last:2", "lora", "head")] == [1e-5, 1e-5, 1e-4, 1e-3]
    assert Budget("head", lr=0.5).rate == 0.5
