"""Pictures resized as tensors, as some published scripts do, instead of as pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL.Image import Image


def as_tensor(picture: Image, preprocess: Callable[[Any], Tensor]) -> Tensor:
    """Resizes numbers between 0 and 1, which are neither rounded nor clamped, and scales them as the model does.

    The size, mean and deviation are read off what `preprocess` makes of a black and of a white picture.

    Args:
        picture: RGB.
        preprocess: the model's transform: RGB picture → 3×H×W, ending in an affine map of each channel.

    Returns:
        3×H×W: bicubic, antialiased where it shrinks, as torchvision's `Resize` of a tensor.
    """
    from PIL import Image

    black, white = (preprocess(Image.new("RGB", picture.size, (level,) * 3)) for level in (0, 255))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(black.dtype) / 255
    size = (black.shape[-2], black.shape[-1])
    if pixels.shape[-2:] != size:
        pixels = F.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
    return black + (white - black) * pixels
