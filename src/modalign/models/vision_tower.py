"""The image tower of a dual encoder as a `VisionEncoder`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from modalign.models.dual_encoder import DualEncoder
from modalign.models.loading import load
from modalign.models.vision import VisionEncoder


class ImageTower(VisionEncoder):
    """What `encode_image` of a dual encoder gives: the projected image feature.

    Attributes:
        model: the dual encoder; its text tower is loaded with it and never run.
    """

    def __init__(self, model: DualEncoder) -> None:
        self.model = model
        super().__init__(model.module, model.spec, model.preprocess, model.input_identity, revision=model.revision)

    def _pooled(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    @property
    def architecture(self) -> str:
        """The dual encoder's."""
        return self.model.architecture

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Moves the network; returns self."""
        self.model.to(device, dtype)
        return self

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in super()._weights():
            if self.model.tower_of(name) != "text":
                yield name, tensor


def load_tower(spec: str | Path) -> ImageTower:
    """Loads the image tower of what `modalign.load` takes."""
    return ImageTower(load(spec))
