"""Small global batches for the methods' tests."""

from __future__ import annotations

from dataclasses import replace

import torch

from modalign.embeddings import Embeddings
from modalign.methods import Method


def batch(rows: int = 6, dim: int = 8, seed: int = 0) -> Embeddings:
    """Distinct pairs, float64, a student a little away from the frozen model, norms near √20."""
    source = torch.Generator().manual_seed(seed)

    def features() -> torch.Tensor:
        return 1.5 * torch.randn(rows, dim, dtype=torch.float64, generator=source)

    frozen_image, frozen_text = features(), features()
    return Embeddings(
        image=(frozen_image + 0.1 * features()).requires_grad_(),
        text=(frozen_text + 0.1 * features()).requires_grad_(),
        frozen_image=frozen_image,
        frozen_text=frozen_text,
        image_ids=torch.arange(rows),
        caption_ids=torch.arange(rows),
        logit_scale=20.0,
    )


def drawn(method: Method, embeddings: Embeddings, seed: int = 0, step: int = 0) -> Embeddings:
    """The batch with the method's draws, as the loop makes them."""
    assert embeddings.image is not None
    return replace(embeddings, draws=method.draw(seed, step, *embeddings.image.shape))
