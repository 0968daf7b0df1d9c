"""The record that towers and objectives meet at.

Everything left of it is somebody's network; everything right of it is pure maths on these tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Embeddings:
    """One global batch of B pairs at the embedding boundary.

    Args:
        image: B×d, raw (not normalised), carries the gradient; None for a method that reads no images.
        text: B×d, raw, carries the gradient; None for a method that reads no captions.
        frozen_image: B×d, raw, features of the initial model, no gradient.
        frozen_text: B×d, raw, features of the initial model, no gradient.
        target: B×d_t, raw, features of another (vision-only) encoder, no gradient.
        image_ids: B integers; equal numbers mean the same picture.
        caption_ids: B integers; equal numbers mean the same caption string.
        logit_scale: the factor in front of cosine similarities (100.0 for OpenAI's CLIP), not its logarithm.
        logit_bias: what SigLIP-like models add to the logits.
        draws: the method's own random numbers of this step, from `Method.draw`.
        strength: α of a method on a curriculum at this step; None = what its phases say without any conflict.
    """

    image: Tensor | None = None
    text: Tensor | None = None
    frozen_image: Tensor | None = None
    frozen_text: Tensor | None = None
    target: Tensor | None = None
    image_ids: Tensor | None = None
    caption_ids: Tensor | None = None
    logit_scale: float | Tensor = 100.0
    logit_bias: float | Tensor | None = None
    draws: Mapping[str, Tensor] = field(default_factory=dict)
    strength: float | None = None

    @property
    def reference(self) -> Tensor | None:
        """B×d, the random vectors RaFA pulls both modalities to (drawn under the name "reference")."""
        return self.draws.get("reference")

    @property
    def positives(self) -> Tensor | None:
        """B×B, boolean: row i's picture and row j's caption occur together as a pair somewhere in the batch.

        So a picture that repeats is a positive of each of its captions, and a caption that repeats of each of its
        pictures; not symmetric where chains of both occur. None when only the diagonal is set.
        """
        if self.image_ids is None and self.caption_ids is None:
            return None
        some = self.image_ids if self.image_ids is not None else self.caption_ids
        assert some is not None
        own = torch.eye(len(some), dtype=torch.bool, device=some.device)
        same_image = own if self.image_ids is None else self.image_ids[:, None] == self.image_ids
        same_caption = own if self.caption_ids is None else self.caption_ids[:, None] == self.caption_ids
        if int(same_image.sum()) == int(same_caption.sum()) == len(some):
            return None
        return (same_image.float() @ same_caption.float()) > 0

    def __len__(self) -> int:
        for value in (self.image, self.text, self.frozen_image, self.frozen_text, self.target):
            if value is not None:
                return value.shape[0]
        return 0


def unit(features: Tensor) -> Tensor:
    """L2-normalises rows: x / max(‖x‖, ε), finite (with a finite gradient) for zero rows.

    Args:
        features: N×d, raw.

    Returns:
        N×d, unit.
    """
    return torch.nn.functional.normalize(features, dim=-1)
