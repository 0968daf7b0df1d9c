from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

from modalign.errors import ModelError
from modalign.models import load
from modalign.models.open_clip import OpenClip
from tests import tiny
from tests.models.conftest import CAPTIONS


def pixels(rows: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm(dim=-1).max() / theirs.norm(dim=-1).min())


def open_clip_model(folder: Path) -> OpenClip:
    model = load(folder)
    assert isinstance(model, OpenClip)
    return model


@pytest.mark.parametrize("kind", ["clip", "quick", "custom"])
def test_features_are_the_librarys_own(folders: dict[str, Path], kind: str) -> None:
    """On the same pixels and the same padded tokens, against open_clip's own loader."""
    folder = folders[kind]
    text_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    override = {"text_cfg": text_cfg | {"hf_model_name": str(folder)}} if kind == "custom" else {}
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", **override)
    theirs.eval()
    ours = load(folder)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    assert torch.equal(tokens, ours.tokenize(CAPTIONS)) and tokens.shape[1] == 16
    image = Image.effect_noise((50, 40), 90).convert("P")
    assert torch.equal(transform(image), ours.preprocess(image))
    with torch.no_grad():
        assert relative(ours.encode_image(pixels()), theirs.encode_image(pixels())) < 1e-6
        assert relative(ours.encode_text(tokens), theirs.encode_text(tokens)) < 2e-6
        for row in tokens:  # a short caption alone is embedded at its own length
            assert relative(ours.encode_text(row[None]), theirs.encode_text(row[None])) < 2e-6
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item()) and ours.logit_bias is None


def test_true_lengths(folders: dict[str, Path]) -> None:
    """Start, words, end; a caption longer than the context fills it, its end token kept."""
    clip = load(folders["clip"])
    tokens = clip.tokenize(["a red cat", "", "red " * 40])
    assert clip.token_lengths(tokens).tolist() == [5, 2, 16]
    assert tokens[2, -1] == 49407
    custom = load(folders["custom"])
    assert custom.token_lengths(custom.tokenize(["a red cat", "", "red " * 40])).tolist() == [5, 2, 16]


def test_padding_is_not_computed(folders: dict[str, Path]) -> None:
    seen: list[int] = []
    for kind in ("clip", "custom"):
        model = load(folders[kind])
        layer = model.module.transformer if kind == "clip" else model.module.text.transformer.encoder
        layer.register_forward_hook(lambda _, args, output: seen.append(args[0].shape[1]))
        model.encode_text(model.tokenize(["dog", "a red cat"]))
    assert seen == [5, 5]


@pytest.mark.parametrize(
    ("change", "lengths"),
    [
        ({"pool_type": "eos", "eos_id": 49407}, [5, 2]),
        ({"pool_type": "argmax"}, [5, 2]),
        ({"pool_type": "first"}, [1, 1]),
        ({"pool_type": "last"}, [16, 16]),
        ({"no_causal_mask": True}, [16, 16]),
        ({"embed_cls": True, "context_length": 15}, [15, 15]),
        ({"proj_bias": True}, [5, 2]),
        ({"proj_type": "none", "width": 32}, [5, 2]),
    ],
)
def test_every_text_tower_agrees_with_the_library(change: dict[str, Any], lengths: list[int]) -> None:
    """Cut where it is exact, padded where the padding counts."""
    config = tiny.open_clip_config()
    config["text_cfg"] |= change
    torch.manual_seed(0)
    module = open_clip.CustomTextCLIP(**config).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    model = OpenClip(module, config, tokenizer, "here")
    tokens = model.tokenize(["a red cat", ""])
    assert model.token_lengths(tokens).tolist() == lengths
    with torch.no_grad():
        assert relative(model.encode_text(tokens), module.encode_text(tokens)) < 2e-6


@pytest.mark.parametrize("change", [{"pool_type": "eos", "eos_id": 49407}, {"no_causal_mask": True}])
def test_text_tower_of_plain_clip_agrees_with_the_library(change: dict[str, Any]) -> None:
    config = tiny.open_clip_config()
    config["text_cfg"] |= change
    module = open_clip.CLIP(**config).eval()
    model = OpenClip(module, config, open_clip.SimpleTokenizer(context_length=16), "here")
    tokens = model.tokenize(CAPTIONS)
    with torch.no_grad():
        assert relative(model.encode_text(tokens), module.encode_text(tokens)) < 2e-6


@pytest.mark.parametrize(
    "change",
    [
        {"pool_type": "avg"},
        {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 4},
        {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64},
        {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160},
        {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "none", "image_size": 160},
        {"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True},
        {"timm_model_name": "test_efficientnet", "timm_pool": "rot_attn", "timm_proj": "linear"},
        {"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": ""},
    ],
)
def test_every_image_tower_agrees_with_the_library(change: dict[str, Any]) -> None:
    config = tiny.open_clip_config()
    config["vision_cfg"] |= change
    module = open_clip.CLIP(**config).eval()
    model = OpenClip(module, config, open_clip.SimpleTokenizer(context_length=16), "here")
    x = pixels(size=config["vision_cfg"]["image_size"])
    with torch.no_grad():
        assert relative(model.encode_image(x), module.encode_image(x)) < 1e-6
    if change.get("timm_proj", "linear") == "linear":
        names = model.projection_names("image")
        projected = model.project_image(model.image_trunk(x).detach()).sum()
        gradients = torch.autograd.grad(projected, [module.get_parameter(name) for name in names])
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
    else:
        with pytest.raises(ModelError, match="use train: image or train: full"):
            model.projection_names("image")


def test_projection_names(folders: dict[str, Path]) -> None:
    clip, custom = load(folders["clip"]), load(folders["custom"])
    assert clip.projection_names("image") == ["visual.proj"]
    assert clip.projection_names("text") == ["text_projection"]
    assert custom.projection_names("image") == [
        f"visual.head.mlp.{n}" for n in ("fc1.weight", "fc1.bias", "fc2.weight")
    ]
    assert custom.projection_names("text") == ["text.proj.0.weight", "text.proj.2.weight"]


def test_a_text_tower_without_projection_is_named() -> None:
    config = tiny.open_clip_config()
    config["text_cfg"] |= {"proj_type": "none", "width": 32}
    model = OpenClip(open_clip.CustomTextCLIP(**config), config, open_clip.SimpleTokenizer(), "here")
    with pytest.raises(ModelError, match=r"text tower of here \(TextTransformer\)"):
        model.projection_names("text")


def test_towers_of_parameters(folders: dict[str, Path]) -> None:
    for kind in ("clip", "custom"):
        model = load(folders[kind])
        names = {tower: {n for n, _ in model.named_parameters(tower)} for tower in ("image", "text")}
        rest = {n for n, _ in model.module.named_parameters()} - names["image"] - names["text"]
        assert rest == {"logit_scale"} and not names["image"] & names["text"]
        assert all(n.startswith("visual.") for n in names["image"])


def test_preprocess_can_be_sent_to_workers(folders: dict[str, Path]) -> None:
    model = load(folders["clip"])
    image = Image.effect_noise((50, 40), 90)
    assert torch.equal(pickle.loads(pickle.dumps(model.preprocess))(image), model.preprocess(image))


def test_fingerprint_sees_preprocessing_tokenizer_and_activation(folders: dict[str, Path], tmp_path: Path) -> None:
    base = open_clip_model(folders["clip"])
    seen = {base.fingerprint}
    for change in ({"mean": [0.5, 0.5, 0.5]}, {"interpolation": "bilinear"}, {"resize_mode": "squash"}):
        config = base.preprocess_config | change
        seen.add(OpenClip(base.module, base.config, base.tokenizer, "x", preprocess_config=config).fingerprint)
    for tokenizer in (open_clip.SimpleTokenizer(context_length=15), open_clip.SimpleTokenizer(clean="whitespace")):
        seen.add(OpenClip(base.module, base.config, tokenizer, "x").fingerprint)
    seen.add(OpenClip(base.module, base.config | {"quick_gelu": True}, base.tokenizer, "x").fingerprint)
    assert len(seen) == 7
    # the same names and numbers, another word order: only the vocabulary differs
    tiny.tiny_custom_text(tmp_path / "m")
    before = load(tmp_path / "m").fingerprint
    text = (tmp_path / "m" / "tokenizer.json").read_text()
    (tmp_path / "m" / "tokenizer.json").write_text(text.replace('"cat"', '"xxx"').replace('"dog"', '"cat"'))
    assert load(tmp_path / "m").fingerprint != before


def test_hub_names_in_a_config_are_kept_and_places_are_not(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, written in (("someone/bert", "someone/bert"), (str(folders["custom"]), "."), (".", ".")):
        model = open_clip_model(folders["custom"])
        model.config["text_cfg"] |= {"hf_model_name": name, "hf_tokenizer_name": name}
        model.save(tmp_path / "m")
        config = json.loads((tmp_path / "m" / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
        assert config["hf_model_name"] == written and config["hf_tokenizer_name"] == written
        assert load(tmp_path / "m").fingerprint == open_clip_model(folders["custom"]).fingerprint


def test_shared_and_scattered_tensors_are_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load(folders["clip"])
    module = model.module
    module.text_projection.data = module.text_projection.data.t().contiguous().t()  # column-major
    module.ln_final.bias = module.visual.ln_post.bias  # one tensor under two names
    model.save(tmp_path / "m")
    again = load(tmp_path / "m")
    assert torch.equal(again.encode_image(pixels()), model.encode_image(pixels()))
    assert torch.equal(again.module.ln_final.bias, module.visual.ln_post.bias)
