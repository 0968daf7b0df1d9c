"""Parameter names of SigLIP in open_clip (timm image tower) and in transformers, both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

Rule = tuple[tuple[str, ...], tuple[str, ...]]
"""open_clip's names, transformers' names: strung together, either side holds the same numbers in the same order."""

REST = {
    "visual.trunk.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "visual.trunk.attn_pool.latent": "vision_model.head.probe",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
}

LAYERS = {
    "visual.trunk.patch_embed.proj": "vision_model.embeddings.patch_embedding",
    "visual.trunk.norm": "vision_model.post_layernorm",
    "visual.trunk.attn_pool.proj": "vision_model.head.attention.out_proj",
    "visual.trunk.attn_pool.norm": "vision_model.head.layernorm",
    "visual.trunk.attn_pool.mlp.fc1": "vision_model.head.mlp.fc1",
    "visual.trunk.attn_pool.mlp.fc2": "vision_model.head.mlp.fc2",
    "text.ln_final": "text_model.final_layer_norm",
    "text.text_projection": "text_model.head",
}
"""With a weight and a bias each."""

IMAGE_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}

TEXT_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def rules(image_blocks: int, text_blocks: int) -> list[Rule]:
    """Which parameters hold the same numbers, for towers of so many blocks."""
    found: list[Rule] = [((ours,), (theirs,)) for ours, theirs in REST.items()]
    for kind in ("weight", "bias"):
        found += [((f"{ours}.{kind}",), (f"{theirs}.{kind}",)) for ours, theirs in LAYERS.items()]
        pool = "visual.trunk.attn_pool"
        found.append(((f"{pool}.q.{kind}", f"{pool}.kv.{kind}"), (f"vision_model.head.attention.in_proj_{kind}",)))
        found += _blocks("visual.trunk.blocks", "vision_model", image_blocks, IMAGE_BLOCK, f"attn.qkv.{kind}", kind)
        found += _blocks(
            "text.transformer.resblocks", "text_model", text_blocks, TEXT_BLOCK, f"attn.in_proj_{kind}", kind
        )
    return found


def _blocks(ours: str, tower: str, count: int, layers: Mapping[str, str], inputs: str, kind: str) -> Iterator[Rule]:
    for index in range(count):
        here, there = f"{ours}.{index}", f"{tower}.encoder.layers.{index}"
        yield (f"{here}.{inputs}",), tuple(f"{there}.self_attn.{part}_proj.{kind}" for part in "qkv")
        for layer, their_layer in layers.items():
            yield (f"{here}.{layer}.{kind}",), (f"{there}.{their_layer}.{kind}",)


def convert(state: Mapping[str, Tensor], target: Mapping[str, Tensor], pairs: list[Rule]) -> dict[str, Tensor]:
    """One library's state_dict under the other's names.

    Args:
        state: the weights.
        target: the other network's state_dict, for its shapes.
        pairs: (names in `state`, names in `target`).
    """
    result: dict[str, Tensor] = {}
    for source, wanted in pairs:
        numbers = torch.cat([state[name].reshape(-1) for name in source])
        parts = numbers.split([target[name].numel() for name in wanted])
        result |= {name: part.reshape(target[name].shape) for name, part in zip(wanted, parts, strict=True)}
    return result
