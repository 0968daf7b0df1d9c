"""Hidden states and attention weights of the ViTs that open_clip and timm build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from modalign.errors import ModelError
from modalign.models.tokens import PatchTokens, depth_of


class _Reached(Exception):  # noqa: N818 — no error
    """Ends a forward pass where everything asked for has been computed."""


def hidden_at(blocks: Sequence[nn.Module], depth: int, forward: Callable[[], Any]) -> Tensor:
    """The hidden state after `depth` blocks, from a forward pass that stops there.

    Args:
        blocks: the tower's blocks, each called with the hidden state first.
        depth: 0 = what enters the first block.
        forward: runs the tower.
    """
    found: list[Tensor] = []

    def keep(state: Tensor) -> None:
        found.append(state)
        raise _Reached

    hook = (
        blocks[depth].register_forward_pre_hook(lambda _, args: keep(args[0]))
        if depth < len(blocks)
        else blocks[-1].register_forward_hook(lambda _, args, output: keep(output))
    )
    try:
        forward()
    except _Reached:
        pass
    finally:
        hook.remove()
    return found[0]


def is_vit(tower: nn.Module) -> bool:
    """Whether a tower is open_clip's own ViT, or a ViT or EVA of timm: blocks over class, register and patch tokens."""
    return isinstance(tower, VisionTransformer | TimmVisionTransformer | Eva)


def tokens(tower: nn.Module, pixels: Tensor, layer: int, spec: str) -> PatchTokens:
    """The tokens of one layer; `layer` as in `DualEncoder.encode_tokens`.

    Args:
        tower: one that `is_vit`.
        pixels: B×3×H×W in the tower's type.
        layer: which.
        spec: the model's, for the message.

    Raises:
        ModelError: the tower has no such layer.
    """
    return _tokens(tower, pixels, depth_of(layer, len(_blocks(tower)), spec))


def attention(tower: nn.Module, pixels: Tensor, layer: int, spec: str) -> Tensor:
    """B×H×T×T, the attention weights of one layer; `layer` as in `DualEncoder.attention`.

    Raises:
        ModelError: the tower has no such layer, or the layer computes no single matrix of weights.
    """
    depth = depth_of(layer, len(_blocks(tower)), spec, first=1)
    weights = (_open_clip_attention if isinstance(tower, VisionTransformer) else _timm_attention)(tower, pixels, depth)
    if weights is None:
        block = type(_blocks(tower)[depth - 1]).__name__
        raise ModelError(f"layer {layer} of {spec} ({block}) shows no attention weights: use a model with plain blocks")
    return weights


def _blocks(tower: Any) -> list[nn.Module]:
    return list(tower.transformer.resblocks if isinstance(tower, VisionTransformer) else tower.blocks)


def _tokens(tower: Any, pixels: Tensor, depth: int) -> PatchTokens:
    if isinstance(tower, VisionTransformer):
        height, width = tower.grid_size
        return PatchTokens(hidden_at(_blocks(tower), depth, lambda: tower(pixels)), 1, (int(height), int(width)))
    hidden = hidden_at(_blocks(tower), depth, lambda: tower.forward_features(pixels))
    height, width = tower.patch_embed.dynamic_feat_size(pixels.shape[-2:])
    return PatchTokens(hidden, int(tower.num_prefix_tokens), (int(height), int(width)))


def _open_clip_attention(tower: nn.Module, pixels: Tensor, depth: int) -> Tensor:
    """Computed again from the block's input: the block itself runs fused attention, which keeps no weights."""
    block: Any = _blocks(tower)[depth - 1]
    hidden = block.ln_1(_tokens(tower, pixels, depth - 1).hidden)
    if isinstance(block, ResidualAttentionBlock):
        weights: Tensor = block.attn(hidden, hidden, hidden, need_weights=True, average_attn_weights=False)[1]
        return weights
    attn = block.attn
    query, key, _ = F.linear(hidden, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    query, key = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in (query, key))
    return torch.softmax(attn.ln_q(query) * attn.scale @ attn.ln_k(key).transpose(-2, -1), dim=-1)


def _timm_attention(tower: nn.Module, pixels: Tensor, depth: int) -> Tensor | None:
    """What enters the dropout on the weights of one block, which runs unfused for once."""
    attn: Any = getattr(_blocks(tower)[depth - 1], "attn", None)
    dropout = getattr(attn, "attn_drop", None)
    if not isinstance(dropout, nn.Module):
        return None
    found: list[Tensor] = []
    hook = dropout.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    fused, attn.fused_attn = attn.fused_attn, False
    try:
        _tokens(tower, pixels, depth)
    finally:
        attn.fused_attn = fused
        hook.remove()
    return found[0] if found and found[0].ndim == 4 else None
