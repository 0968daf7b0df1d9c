"""Patch tokens of an image tower, and how its layers are counted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from modalign.errors import ModelError


@dataclass(frozen=True)
class PatchTokens:
    """The hidden states of one layer of an image tower.

    Attributes:
        hidden: B×T×w, raw: class and register tokens, then patches row by row.
        prefix: how many tokens stand before the patches.
        grid: rows and columns of patches; T = prefix + rows · columns.
    """

    hidden: Tensor
    prefix: int
    grid: tuple[int, int]

    @property
    def patches(self) -> Tensor:
        """B×(rows·columns)×w: the patches alone."""
        return self.hidden[:, self.prefix :]


def depth_of(layer: int, blocks: int, spec: str, *, first: int = 0) -> int:
    """How many blocks have run where layer `layer` is read: 0 = the embeddings, `blocks` = the last block's output.

    Args:
        layer: as transformers counts `hidden_states`; negative from the end, -1 = after the last block, before the
            final norm.
        blocks: how many the tower has.
        spec: the model's, for the message.
        first: 1 for attention, which the embeddings have none of.

    Raises:
        ModelError: the tower has no such layer.
    """
    depth = layer + blocks + 1 if layer < 0 else layer
    if not first <= depth <= blocks:
        raise ModelError(
            f"the image tower of {spec} has no layer {layer}: it has {blocks} blocks, so use {first} to {blocks}, or "
            f"-1 to {first - blocks - 1} from the end"
        )
    return depth
