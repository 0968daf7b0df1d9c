"""SigLIP between transformers and open_clip: exactly, or refused with the layer's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SiglipVisionConfig

from modalign.errors import ExportError
from modalign.exporting import export
from modalign.exporting.siglip import _timm_name, to_open_clip, to_transformers
from modalign.models import DualEncoder, load
from modalign.models.open_clip import OpenClip
from modalign.models.siglip import HuggingFaceSiglip
from tests import tiny

CAPTIONS = ["a red cat", "A Red-and-GREEN cat, grey_boat!", "", "dog 7 " * 20]


def equal(one: DualEncoder, other: DualEncoder, limit: float = 1e-5) -> None:
    """Features on the same pixels and tokens, scale and bias."""
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(one.dtype)
    tokens = one.tokenize(CAPTIONS)
    with torch.no_grad():
        assert (one.encode_image(pixels) - other.encode_image(pixels)).abs().max() <= limit
        assert (one.encode_text(tokens) - other.encode_text(tokens)).abs().max() <= limit
    assert abs(one.logit_scale - other.logit_scale) <= limit
    assert one.logit_bias is not None and abs(one.logit_bias - (other.logit_bias or 0.0)) <= limit


def open_clip_siglip(folder: Path, act_layer: str = "gelu_tanh") -> OpenClip:
    model = load(tiny.tiny_open_clip_siglip(folder, trunk=tiny.tiny_siglip_trunk(act_layer), image_size=32))
    assert isinstance(model, OpenClip)
    return model


def hugging_face_siglip(folder: Path) -> HuggingFaceSiglip:
    model = load(tiny.tiny_hf_siglip(folder))
    assert isinstance(model, HuggingFaceSiglip)
    return model


@pytest.mark.parametrize("act_layer", ["gelu", "gelu_tanh"])
def test_open_clip_to_transformers_and_back(tmp_path: Path, act_layer: str) -> None:
    source = open_clip_siglip(tmp_path / "oc", act_layer)
    source.to("cpu", torch.float64)
    theirs = to_transformers(source)
    equal(source, theirs, limit=1e-12)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for layer in (1, 2):
        assert torch.allclose(source.encode_tokens(pixels, layer).hidden, theirs.encode_tokens(pixels, layer).hidden)
        assert torch.allclose(source.attention(pixels, layer), theirs.attention(pixels, layer))
    assert theirs.config.vision_config.hidden_act == {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}[act_layer]
    assert theirs.config.text_config.hidden_act == "gelu" and theirs.config.text_config.layer_norm_eps == 1e-6
    again = to_open_clip(theirs)
    assert again.config["vision_cfg"] == source.config["vision_cfg"]
    ours = source.module.state_dict()
    assert ours.keys() == again.module.state_dict().keys()
    for name, tensor in again.module.state_dict().items():
        assert torch.equal(tensor, ours[name])


def test_canonical_captions_have_the_same_ids_in_transformers(tmp_path: Path) -> None:
    """open_clip cleans captions before its tokenizer, transformers' tokenizer does it itself, also once reloaded."""
    source = open_clip_siglip(tmp_path / "oc")
    theirs = to_transformers(source)
    theirs.save(tmp_path / "hf")
    for model in (theirs, load(tmp_path / "hf")):
        assert torch.equal(model.tokenize(CAPTIONS), source.tokenize(CAPTIONS))


def test_transformers_to_open_clip_and_back(tmp_path: Path) -> None:
    """Where timm has the tower: its own SigLIPs are looked through by size and activation."""
    tiny.tiny_siglip_trunk("gelu_tanh")
    source = hugging_face_siglip(tmp_path / "hf")
    theirs = to_open_clip(source)
    equal(source, theirs)
    assert torch.equal(theirs.tokenize(CAPTIONS), source.tokenize(CAPTIONS))
    theirs.save(tmp_path / "oc")
    equal(source, load(tmp_path / "oc"))
    equal(source, to_transformers(theirs))


def test_a_tower_that_timm_has_only_with_another_activation_is_refused(tmp_path: Path) -> None:
    """As timm's ViT-B/16 SigLIPs have: they compute the exact GELU, the released weights want the tanh one."""
    tiny.tiny_siglip_trunk("gelu")
    source = hugging_face_siglip(tmp_path / "hf")
    with pytest.raises(ExportError, match=r"vision_model \(hidden_act='gelu_pytorch_tanh'.*--to transformers") as told:
        to_open_clip(source)
    assert "vit_tiny_patch8_siglip_32" in str(told.value) and "\n" not in str(told.value)
    source.config.text_config.hidden_act = "relu"
    with pytest.raises(ExportError, match=r"text_model \(hidden_act='relu'\)"):
        to_open_clip(source)


def test_timms_towers_are_found_by_size_and_activation() -> None:
    """SigLIP 2's ViT-B/32 has a twin in timm 1.0; SigLIP's ViT-B/16 only one of the exact GELU."""
    assert _timm_name(SiglipVisionConfig(patch_size=32, image_size=256)) == "vit_base_patch32_siglip_256"
    assert _timm_name(SiglipVisionConfig(hidden_act="gelu")) == "vit_base_patch16_siglip_224"
    with pytest.raises(ExportError, match=r"gelu_pytorch_tanh.*vit_base_patch16_siglip_224"):
        _timm_name(SiglipVisionConfig())
    with pytest.raises(ExportError, match="patch 8, image 224: none"):
        _timm_name(SiglipVisionConfig(patch_size=8))


def changed(model: OpenClip, **change: Any) -> OpenClip:
    for path, value in change.items():
        owner, _, name = path.replace("__", ".").rpartition(".")
        setattr(model.module.get_submodule(owner), name, value)
    return model


@pytest.mark.parametrize(
    ("change", "layer"),
    [
        ({"visual__trunk__attn_pool": None}, r"visual\.trunk \(VisionTransformer\)"),
        ({"visual__trunk__cls_token": torch.nn.Parameter(torch.zeros(1, 1, 64))}, r"visual\.trunk\.cls_token"),
        ({"visual__trunk__blocks__1__mlp__act": torch.nn.ReLU()}, r"visual\.trunk\.blocks\.1\.mlp\.act \(ReLU\)"),
        ({"visual__trunk__norm": torch.nn.Identity()}, r"a Identity in visual\.trunk"),
        ({"text__attn_mask": torch.zeros(16, 16)}, r"text\.attn_mask"),
        ({"text__pool_type": "argmax"}, r"text_cfg\.pool_type='argmax'"),
        ({"text__text_projection": torch.nn.Linear(64, 64, bias=False)}, r"text\.text_projection\.bias"),
        (
            {"text__transformer__resblocks__0__mlp__gelu": torch.nn.ReLU()},
            r"text\.transformer\.resblocks\.0\.mlp\.gelu",
        ),
    ],
)
def test_what_siglip_model_cannot_express_is_named(tmp_path: Path, change: dict[str, Any], layer: str) -> None:
    with pytest.raises(ExportError, match=rf"SiglipModel cannot express.*{layer}.*--to open_clip") as told:
        to_transformers(changed(open_clip_siglip(tmp_path / "oc"), **change))
    assert "\n" not in str(told.value)


def test_timms_own_test_tower_is_refused_by_its_extra_layers(tmp_path: Path) -> None:
    spec = tiny.tiny_open_clip_siglip(tmp_path / "oc")
    with pytest.raises(ExportError, match=r"SiglipModel cannot express visual\.trunk\.(reg_token|blocks\.\d\.ls)"):
        export(spec, tmp_path / "out", "transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["oc"]


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("hf", "transformers"),
        pytest.param("oc", "open_clip", marks=pytest.mark.slow),
        pytest.param("oc", "transformers", marks=pytest.mark.slow),
    ],
)
def test_written_and_loaded_back_by_the_library_alone(tmp_path: Path, kind: str, target: str) -> None:
    """From a run's model; the logit bias is compared too."""
    if kind == "hf":
        model: DualEncoder = hugging_face_siglip(tmp_path / "s")
    elif target == "open_clip":  # a fresh process knows timm's own towers only
        model = load(tiny.tiny_open_clip_siglip(tmp_path / "s"))
    else:
        model = open_clip_siglip(tmp_path / "s")
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(1.01)
    model.save(tmp_path / "run" / "model")
    folder = export(str(tmp_path / "run"), tmp_path / "out", target)
    told = json.loads((folder / "export.json").read_text())
    assert told["verification"]["logit_bias"] <= 1e-5 == told["verification"]["limits"]["logit_bias"]
    assert told["preprocessing"]["captions_with_other_ids"] <= 1  # of an HTML entity, which transformers leaves alone
    assert told["verification"]["sources"] == {str(tmp_path / "run" / "model"): "moved away"}
    again = load(folder)
    assert again.family == target
    size = 32 if kind == "hf" or target == "transformers" else 160
    pixels, tokens = torch.randn(2, 3, size, size), model.tokenize(CAPTIONS)
    with torch.no_grad():
        assert (again.encode_image(pixels) - model.encode_image(pixels)).abs().max() <= 1e-5
        assert (again.encode_text(tokens) - model.encode_text(tokens)).abs().max() <= 1e-5
    if target == "transformers":
        readme = (folder / "README.md").read_text()
        assert "SiglipModel.from_pretrained" in readme and "max_length=16" in readme
