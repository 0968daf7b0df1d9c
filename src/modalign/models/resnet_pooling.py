"""The attention pooling of open_clip's ModifiedResNet, parted from the projection that ends it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_pooled(features: Tensor, pool: Any) -> Tensor:
    """ModifiedResNet's attention pooling of a B×C×h×w map, without its output layer: B×C.

    The library computes every query and keeps the first, the mean over the map; here that one alone is asked.
    """
    tokens = features.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + pool.positional_embedding.to(tokens.dtype)
    query, key, value = (
        layer(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for layer, x in ((pool.q_proj, tokens[:, :1]), (pool.k_proj, tokens), (pool.v_proj, tokens))
    )
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(1)
