"""Gradient checkpointing of a tower's blocks: each keeps only its input and is run again in the backward pass.

The libraries' own switches differ (transformers' does nothing in `eval()`, where towers train; open_clip's does nothing
on a ModifiedResNet), so a run checkpoints the blocks itself, the same way in every family. The recomputed block is the
same function of the same input, dropout's random stream included, so the gradient keeps its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Checkpoints these modules for the length of the block; a copy of the model must not be made meanwhile."""
    changed = list(blocks)
    for block in changed:
        block.forward = _recomputing(block.forward)
    try:
        yield
    finally:
        for block in changed:
            del block.forward  # the class's own again


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recompute(*inputs: Any, **settings: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **settings)
        return checkpoint(forward, *inputs, use_reentrant=False, **settings)

    return recompute
