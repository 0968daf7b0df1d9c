"""Image features put where text features are, by a memory of text features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from modalign.errors import DataError

SCALE = 100.0
CELLS_AT_ONCE = 16_000_000


def project_on_memory(image: Tensor, memory: Tensor, scale: float = SCALE) -> Tensor:
    """Replaces each image feature by a mean of text features, weighted by how near they are.

        p = softmax(scale · x Mᵀ) M,    then p/‖p‖              x and the rows of M made unit first

    Args:
        image: N×d, raw or unit.
        memory: M×d, raw or unit, text features of a corpus.
        scale: of the cosines: 100 is one over DeCap's temperature, 0.01.

    Returns:
        N×d, unit.

    Raises:
        DataError: an empty memory, features of another width, or numbers that are not finite.

    Source: Li et al., "DeCap", arXiv 2303.03032, equation 3.
    """
    if image.ndim != 2 or memory.ndim != 2 or image.shape[1] != memory.shape[1] or not len(memory):
        raise DataError(
            f"image features {tuple(image.shape)} and a memory {tuple(memory.shape)} do not fit: pass N×d and M×d"
        )
    if not bool(image.isfinite().all()) or not bool(memory.isfinite().all()):
        raise DataError("features hold NaN or infinity: check the model's weights and precision")
    support = normalize(memory, dim=-1)
    step = max(1, CELLS_AT_ONCE // len(support))
    parts = [
        torch.softmax(scale * (rows @ support.T), dim=-1) @ support for rows in normalize(image, dim=-1).split(step)
    ]
    return normalize(torch.cat(parts), dim=-1)
