"""The text towers of open_clip at their captions' true length, parted from the projection that ends them.

`CustomTextCLIP` has the text tower as a module of its own; `CLIP` has it spread over itself. Either is `text` below.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import Tensor, nn


def is_causal(text: Any) -> bool:
    """Whether no token sees a later one and nothing is appended: then what follows the pooled token is idle."""
    return getattr(text, "attn_mask", None) is not None and getattr(text, "cls_emb", None) is None


def token_lengths(text: Any, tokens: Tensor) -> Tensor:
    """B×L → B integers: how many leading columns of each row can change its feature (L where padding counts)."""
    width = tokens.shape[1]
    if isinstance(text, HFTextEncoder):
        columns = torch.arange(1, width + 1, device=tokens.device)
        return torch.amax(columns * tokens.ne(text.config.pad_token_id), dim=1).clamp(min=1)
    if is_causal(text):
        pool, eos = _pooling(text)
        if pool == "argmax":
            return tokens.argmax(dim=1) + 1
        if pool == "eos":
            return torch.eq(tokens, eos).int().argmax(dim=1) + 1
        if pool == "first":
            return torch.ones_like(tokens[:, 0])
    return torch.full_like(tokens[:, 0], width)


def trunk(text: Any, tokens: Tensor) -> Tensor:
    """B×L → B×w: the text tower up to, and without, its projection."""
    lengths = token_lengths(text, tokens)
    if isinstance(text, HFTextEncoder):
        with without(text, "proj", nn.Identity()):
            return pooled(text(tokens[:, : int(lengths.max())]))
    if is_causal(text):
        return _causal_trunk(text, tokens, lengths)
    with without(text, "text_projection"):
        return pooled(text(tokens) if isinstance(text, TextTransformer) else text.encode_text(tokens))


def _causal_trunk(text: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """The library's own forward pass, which insists on full-length input, on a slice of the positions.

    A causal tower pools one token, the last that can change the feature.
    """
    length = int(lengths.max())
    dtype = text.transformer.get_cast_dtype()
    hidden = text.token_embedding(tokens[:, :length]).to(dtype) + text.positional_embedding[:length].to(dtype)
    hidden = text.ln_final(text.transformer(hidden, attn_mask=text.attn_mask[:length, :length]))
    last: Tensor = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
    return last


def _pooling(text: Any) -> tuple[str, Any]:
    """How a causal text tower pools, and its end-of-sentence id; `CLIP` keeps both under longer names."""
    pool: str = getattr(text, "text_pool_type", None) or text.pool_type
    return pool, getattr(text, "text_eos_id", getattr(text, "eos_id", None))


@contextmanager
def without(module: nn.Module, name: str, stand_in: nn.Module | None = None) -> Iterator[None]:
    """Takes one layer or parameter out of a module for a forward pass."""
    kept = getattr(module, name)
    setattr(module, name, stand_in)
    try:
        yield
    finally:
        setattr(module, name, kept)


def pooled(output: Any) -> Tensor:
    """The feature, of a tower that may return its tokens beside it."""
    feature: Tensor = output[0] if isinstance(output, tuple) else output
    return feature
