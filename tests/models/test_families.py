"""Every family that comes through open_clip: loaded, trained in chunks and whole, saved, exported, read back.

Each model is tiny, has random weights, and was made and saved by open_clip itself.
"""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

import modalign
from modalign.errors import ExportError
from modalign.models import load
from modalign.models.open_clip import OpenClip
from tests import tiny
from tests.models.conftest import CAPTIONS
from tests.models.refining import assert_chunks_change_nothing

MADE = {
    "plain": tiny.tiny_open_clip,
    "rn50": tiny.tiny_rn50,
    "coca": tiny.tiny_coca,
    "eva": tiny.tiny_eva,
    "meta_clip": tiny.tiny_meta_clip,
    "custom": tiny.tiny_custom_text,
}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for name, make in MADE.items():
        make(root / name)
    return {name: root / name for name in MADE}


def opened(folder: Path) -> OpenClip:
    model = load(folder)
    assert isinstance(model, OpenClip)
    return model


def pixels(model: OpenClip, rows: int = 4) -> Tensor:
    size = model.preprocess_config["size"]
    height, width = size if isinstance(size, list) else (size, size)
    return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(1))


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm(dim=-1).max() / theirs.norm(dim=-1).min())


@pytest.mark.parametrize("name", ["rn50", "coca", "eva", "meta_clip"])
def test_features_are_the_librarys_own(family: dict[str, Path], name: str) -> None:
    ours, theirs = opened(family[name]), open_clip.create_model(f"local-dir:{family[name]}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{family[name]}")(CAPTIONS)
    assert torch.equal(ours.tokenize(CAPTIONS), tokens)
    x = pixels(ours)
    with torch.no_grad():
        image, text = ours.encode_image(x), ours.encode_text(tokens)
        assert relative(image, theirs.encode_image(x, normalize=False)) < 1e-6
        assert relative(text, theirs.encode_text(tokens, normalize=False)) < 2e-6
        assert torch.equal(ours.project_image(ours.image_trunk(x)), image)
        assert torch.equal(ours.project_text(ours.text_trunk(tokens)), text)


@pytest.mark.parametrize(
    ("name", "image", "text"),
    [
        ("rn50", ["visual.attnpool.c_proj.weight", "visual.attnpool.c_proj.bias"], ["text_projection"]),
        ("coca", ["visual.proj"], ["text.text_projection"]),
        ("eva", ["visual.trunk.head.weight", "visual.trunk.head.bias"], ["text.text_projection"]),
    ],
)
def test_the_projection_is_all_that_a_stored_trunk_leaves(
    family: dict[str, Path], name: str, image: list[str], text: list[str]
) -> None:
    model = opened(family[name])
    assert model.projection_names("image") == image and model.projection_names("text") == text
    model.project_image(model.image_trunk(pixels(model)).detach()).square().sum().backward()
    model.project_text(model.text_trunk(model.tokenize(CAPTIONS)).detach()).square().sum().backward()
    reached = {n for n, p in model.module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {*image, *text}


def test_a_resnets_feature_does_not_depend_on_its_batch(family: dict[str, Path]) -> None:
    """BatchNorm runs on its stored statistics, whatever mode somebody left the network in, and leaves them."""
    model = opened(family["rn50"])
    x, before = pixels(model), dict(model.module.named_buffers())
    kept = {name: buffer.clone() for name, buffer in before.items()}
    model.module.train()
    with torch.no_grad():
        whole = model.encode_image(x)
        alone = torch.cat([model.encode_image(row[None]) for row in x])
    assert relative(alone, whole) < 1e-6
    assert all(torch.equal(buffer, kept[name]) for name, buffer in before.items())


def test_a_cocas_decoder_is_of_no_tower_and_its_text_stays_padded(family: dict[str, Path]) -> None:
    model = opened(family["coca"])
    decoder = {name for name, _ in model.module.named_parameters() if name.startswith("text_decoder.")}
    assert decoder and all(model.tower_of(name) is None for name in decoder)
    assert model.tower_of("visual.attn_pool.query") == "image" and model.tower_of("text.cls_emb") == "text"
    assert model.token_lengths(model.tokenize(CAPTIONS)).tolist() == [15] * len(CAPTIONS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("plain", "rn50", "coca") else pytest.mark.slow) for name in MADE]
)
def test_ten_steps_whole_and_in_chunks_agree(family: dict[str, Path], name: str, tmp_path: Path) -> None:
    """What is of neither tower stays bit for bit, as the statistics of BatchNorm do."""
    assert_chunks_change_nothing(family[name], tmp_path, {"name": "clip-refine"})
    before, after = opened(family[name]), opened(tmp_path / "whole")
    trained = {n for tower in ("image", "text") for n, _ in before.named_parameters(tower)}  # type: ignore[arg-type]
    state = after.module.state_dict()
    moved = {n for n, tensor in before.module.state_dict().items() if not torch.equal(state[n], tensor.to(after.dtype))}
    assert moved <= trained and len(moved) > 0.9 * len(trained)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "coca" else pytest.mark.slow) for name in MADE]
)
def test_saved_loaded_exported_and_loaded_again(family: dict[str, Path], name: str, tmp_path: Path) -> None:
    if name == "eva":  # verification runs in a process of its own, which knows timm's architectures alone
        tiny.tiny_eva(tmp_path / "made", "eva02_tiny_patch14_224", 224)
    model = opened(tmp_path / "made" if name == "eva" else family[name])
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert saved.fingerprint == model.fingerprint
    assert set(saved.module.state_dict()) == set(model.module.state_dict())
    exported = load(f"open_clip:local-dir:{modalign.export(saved, tmp_path / 'out', 'open_clip')}")
    tokens = model.tokenize(CAPTIONS)
    with torch.no_grad():
        assert (exported.encode_image(pixels(model)) - model.encode_image(pixels(model))).abs().max() <= 1e-5
        assert (exported.encode_text(tokens) - model.encode_text(tokens)).abs().max() <= 1e-5
    for key, tensor in model.module.state_dict().items():  # a decoder too
        assert torch.equal(exported.module.state_dict()[key], tensor)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("rn50", "visual (ModifiedResNet)"), ("coca", "text_decoder"), ("eva", "visual.trunk (timm tiny_eva02)")],
)
def test_what_transformers_cannot_express_is_refused_by_name(
    family: dict[str, Path], name: str, layer: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        modalign.export(family[name], tmp_path / "out", "transformers")
    assert layer in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "out").exists()
