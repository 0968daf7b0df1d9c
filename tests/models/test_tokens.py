"""Patch tokens and attention of one layer, against transformers, timm's own intermediates, and the layers' outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from modalign.errors import ModelError
from modalign.exporting import siglip
from modalign.exporting.hugging_face import to_transformers
from modalign.models import load
from modalign.models.open_clip import OpenClip
from tests import tiny


def pixels(size: int = 32, rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))


def side(model: OpenClip) -> int:
    return int(model.module.visual.image_size[0])


def built(change: dict[str, Any]) -> OpenClip:
    """A model with another image tower; nothing in it is at its initial zero or one."""
    config = tiny.open_clip_config()
    config["vision_cfg"] |= change
    torch.manual_seed(0)
    module = open_clip.CustomTextCLIP(**config).eval()
    with torch.no_grad():
        for parameter in module.visual.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return OpenClip(module, config, open_clip.SimpleTokenizer(context_length=16), "here")


def timm(name: str) -> OpenClip:
    tiny.register_tiny_eva()
    size = {"test_vit": 160, "tiny_eva02": 32}[name]
    return built({"timm_model_name": name, "timm_pool": "token", "timm_proj": None, "image_size": size})


@pytest.mark.parametrize(("kind", "prefix"), [("clip", 1), ("quick", 1), ("open_clip_siglip", 0)])
def test_every_layer_is_transformers_own(folders: dict[str, Path], kind: str, prefix: int) -> None:
    """open_clip's ViT as a `CLIPModel`, timm's (no class token) as a `SiglipModel`."""
    model = load(folders[kind])
    assert isinstance(model, OpenClip)
    theirs: Any = (to_transformers if prefix else siglip.to_transformers)(model).module
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        told = theirs.vision_model(pixel_values=pixels(), output_hidden_states=True, output_attentions=True)
        for layer, hidden in enumerate(told.hidden_states):
            tokens = model.encode_tokens(pixels(), layer)
            assert tokens.prefix == prefix and tokens.hidden.shape[1] == prefix + tokens.grid[0] * tokens.grid[1]
            assert (tokens.hidden - hidden).abs().max() < 1e-5
            again = model.encode_tokens(pixels(), layer - len(told.hidden_states))
            assert torch.equal(again.hidden, tokens.hidden)
        for block, weights in enumerate(told.attentions):
            assert (model.attention(pixels(), block + 1) - weights).abs().max() < 1e-5
            again_weights = model.attention(pixels(), block - len(told.attentions))
            assert torch.equal(again_weights, model.attention(pixels(), block + 1))


@pytest.mark.parametrize("name", ["test_vit", "tiny_eva02"])
def test_timms_layers_are_its_own_intermediates(name: str) -> None:
    model = timm(name)
    trunk: Any = model.module.visual.trunk
    x = pixels(side(model))
    with torch.no_grad():
        patches = trunk.forward_intermediates(x, norm=False, output_fmt="NLC", intermediates_only=True)
        for layer, expected in enumerate(patches, 1):
            assert torch.equal(model.encode_tokens(x, layer).patches, expected)
        assert torch.equal(trunk.norm(model.encode_tokens(x).hidden), trunk.forward_features(x))


class Seen(nn.Module):
    """Keeps what a layer was given and gave."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        layer.register_forward_hook(self.keep, with_kwargs=True)
        self.given: Any = None
        self.gave: Any = None

    def keep(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.given, self.gave = args[0], output


def timm_values(attn: Any, x: Tensor) -> Tensor:
    rows, tokens, _ = x.shape
    if attn.qkv is not None:
        return attn.qkv(x).reshape(rows, tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)[2]
    return attn.v_proj(x).reshape(rows, tokens, attn.num_heads, -1).transpose(1, 2)


@pytest.mark.parametrize("name", ["test_vit", "tiny_eva02"])
def test_timms_weights_over_its_values_are_its_layers_output(name: str) -> None:
    model = timm(name)
    trunk: Any = model.module.visual.trunk
    x = pixels(side(model))
    for layer, block in enumerate(trunk.blocks, 1):
        attn = block.attn
        seen, fused = Seen(attn), attn.fused_attn
        with torch.no_grad():
            weights = model.attention(x, layer)
            assert attn.fused_attn == fused
            trunk.forward_features(x)
            mixed = (weights @ timm_values(attn, seen.given)).transpose(1, 2).flatten(2)
            assert (attn.proj(attn.norm(mixed)) - seen.gave).abs().max() < 1e-5
        assert (weights.sum(-1) - 1).abs().max() < 1e-5 and weights.std() > 1e-3


def test_open_clips_blocks_with_normed_queries() -> None:
    model = built({"qk_norm": True})
    visual: Any = model.module.visual
    attn = visual.transformer.resblocks[1].attn
    seen = Seen(attn)
    with torch.no_grad():
        weights = model.attention(pixels(), 2)
        visual(pixels())
        values = nn.functional.linear(seen.given, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)[2]
        mixed = weights @ values.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        assert (attn.out_proj(mixed.transpose(1, 2).flatten(2)) - seen.gave).abs().max() < 1e-5


@pytest.mark.parametrize("model", [lambda: built({}), lambda: timm("test_vit"), lambda: timm("tiny_eva02")])
def test_a_patch_stands_at_its_row_and_column(model: Any) -> None:
    encoder = model()
    size = side(encoder)
    x = pixels(size, 1)
    before = encoder.encode_tokens(x, 0)
    rows, columns = before.grid
    patch = size // rows
    changed = x.clone()
    changed[..., patch : 2 * patch, 2 * patch : 3 * patch] += 1
    after = encoder.encode_tokens(changed, 0)
    differs = (after.patches - before.patches).abs().amax(-1)[0].nonzero().flatten().tolist()
    assert differs == [columns + 2]
    assert before.hidden.shape[1] == before.prefix + rows * columns


def test_gradients_and_precision(folders: dict[str, Path]) -> None:
    model = load(folders["clip"])
    model.encode_tokens(pixels(), 1).hidden.square().sum().backward()
    reached = {name for name, p in model.module.named_parameters() if p.grad is not None}
    assert "visual.conv1.weight" in reached and not any("resblocks.1" in name for name in reached)
    model.to("cpu", torch.bfloat16)
    assert model.encode_tokens(pixels()).hidden.dtype == model.attention(pixels()).dtype == torch.float32
    model.to("cpu", torch.float64)
    assert model.encode_tokens(pixels()).hidden.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "tower"),
    [
        ({"layers": [1, 1, 1, 1], "width": 16}, "ModifiedResNet"),
        ({"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "linear"}, "timm EfficientNet"),
    ],
)
def test_a_tower_without_patches_is_named(change: dict[str, Any], tower: str) -> None:
    model = built(change)
    for ask in (model.encode_tokens, model.attention):
        with pytest.raises(ModelError) as caught:
            ask(pixels())
        assert f"here ({tower}) gives no patch tokens" in str(caught.value) and "\n" not in str(caught.value)


def test_a_layer_that_is_not_there_is_named(folders: dict[str, Path]) -> None:
    model = load(folders["clip"])
    for layer in (3, -4):
        with pytest.raises(ModelError, match=rf"no layer {layer}: it has 2 blocks, so use 0 to 2, or -1 to -3"):
            model.encode_tokens(pixels(), layer)
    for layer in (0, 3, -3):
        with pytest.raises(ModelError, match=rf"no layer {layer}: it has 2 blocks, so use 1 to 2, or -1 to -2"):
            model.attention(pixels(), layer)
