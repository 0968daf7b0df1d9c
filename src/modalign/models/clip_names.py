"""The names of one standard CLIP's tensors in open_clip and in transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Layers of one transformer block; the attention's input projection is one tensor there and three here."""

REST = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}

TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
"""open_clip multiplies by these from the right, transformers holds them in a linear layer."""

TOWERS = {
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
}


def transformers_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's state_dict of a standard CLIP → that of a `CLIPModel`.

    Args:
        state: names as in `open_clip.CLIP`, or in a `CustomTextCLIP` of the same layers ("text." before some).
    """
    result = {}
    for name, tensor in state.items():
        name = name.removeprefix("text.")
        block = re.fullmatch(
            r"(visual\.transformer\.resblocks|transformer\.resblocks)\.(\d+)\.(.+)\.(weight|bias)", name
        )
        if name in REST:
            result[REST[name]] = tensor.reshape(()) if name == "logit_scale" else tensor
        elif name in TRANSPOSED:
            result[TRANSPOSED[name]] = tensor.t()
        elif name == "text_projection.weight":
            result[name] = tensor
        elif block:
            tower, index, layer, kind = block.groups()
            result[f"{TOWERS[tower]}.{index}.{BLOCK[layer]}.{kind}"] = tensor
        else:
            tower, index, kind = _input_projection(name)
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                result[f"{TOWERS[tower]}.{index}.self_attn.{part}_proj.{kind}"] = piece
    return result


def open_clip_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of a `CLIPModel` → that of `open_clip.CLIP`."""
    rest, transposed = ({theirs: ours for ours, theirs in names.items()} for names in (REST, TRANSPOSED))
    towers, layers = ({theirs: ours for ours, theirs in names.items()} for names in (TOWERS, BLOCK))
    result = {}
    for name, tensor in state.items():
        if name in rest:
            result[rest[name]] = tensor
        elif name in transposed:
            result[transposed[name]] = tensor.t()
        else:
            tower, index, layer, kind = _parts(name)
            ours = f"{towers[tower]}.{index}"
            if layer in layers:
                result[f"{ours}.{layers[layer]}.{kind}"] = tensor
            elif layer == "self_attn.q_proj":
                three = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                result[f"{ours}.attn.in_proj_{kind}"] = torch.cat(three)
    return result


def _input_projection(name: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"(.+)\.(\d+)\.attn\.in_proj_(weight|bias)", name)
    assert found, name
    return found[1], found[2], found[3]


def _parts(name: str) -> tuple[str, str, str, str]:
    found = re.fullmatch(r"(.+\.encoder\.layers)\.(\d+)\.(.+)\.(weight|bias)", name)
    assert found, name
    return found[1], found[2], found[3], found[4]
