"""Additive-MoF: a second encoder's patch tokens added to those that a LLaVA reads.

    h = (1 − share)·h_own + share·h_second            patch by patch, before the projector; the class token stays

Nothing is trained in between, so both must have one width, and the second is shown the picture at the size that gives
it as many patches as the own tower has.

Source: Additive Mixture of Features, arXiv 2401.06209, section 4.2; a baseline of KUEA's tables (arXiv 2506.02557).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalign.errors import ModelError
from modalign.models.vision import VisionEncoder


class MixedTower(nn.Module):
    """A LLaVA's image tower whose tokens are mixed with a second encoder's, in the layers that the LLaVA reads.

    Args:
        tower: the LLaVA's own.
        second: a ViT with the tower's width.
        share: of the second, between 0 and 1.
        layers: those read, as transformers counts `hidden_states`.
        mean: of the LLaVA's image processor, which is taken back before the second's is applied.
        std: likewise.

    Raises:
        ModelError: widths that differ, or an encoder without patch tokens or of another grid.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, tower: Any, second: VisionEncoder, share: float, layers: list[int], mean: list[float], std: list[float]
    ) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise ModelError(f"share={share:g} of a mixture of features: use one between 0 and 1")
        self.tower, self.network, self.second = tower, second.module, second
        self.share, self.layers, self.config = share, layers, tower.config
        own = [torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std)]
        grey = second_statistics(second)
        self.register_buffer("scale", own[1] / grey[1], persistent=False)
        self.register_buffer("shift", (own[0] - grey[0]) / grey[1], persistent=False)
        self.grid = int(tower.config.image_size) // int(tower.config.patch_size)
        self.edge = self.grid * patch_size(second)
        parameter = next(tower.parameters())
        self.to(parameter.device, parameter.dtype)
        with torch.no_grad():
            size = int(tower.config.image_size)
            found = self._second(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
        wanted = (1, self.grid**2, int(tower.config.hidden_size))
        if tuple(found.shape) != wanted:
            raise ModelError(
                f"{second.spec} gives {'×'.join(map(str, found.shape[1:]))} tokens × width and the LLaVA's tower "
                f"{wanted[1]}×{wanted[2]}: mix in an encoder of that width and with square patches"
            )

    def forward(self, pixel_values: Tensor, **settings: Any) -> Any:
        """The tower's own output with mixed hidden states."""
        output = self.tower(pixel_values, **{**settings, "output_hidden_states": True, "return_dict": True})
        states, added = list(output.hidden_states), self._second(pixel_values)
        for layer in self.layers:
            own = states[layer]
            prefix = own.shape[1] - added.shape[1]
            mixed = (1 - self.share) * own[:, prefix:] + self.share * added.to(own.dtype)
            states[layer] = torch.cat([own[:, :prefix], mixed], dim=1)
        output.hidden_states = tuple(states)
        return output

    def _second(self, pixels: Tensor) -> Tensor:
        parameter = next(self.network.parameters())
        shown = F.interpolate(
            pixels.float(), size=(self.edge, self.edge), mode="bicubic", antialias=True, align_corners=False
        )
        shown = shown * self.scale.float() + self.shift.float()
        return patch_tokens(self.second, shown.to(parameter.dtype), self.grid)


def patch_tokens(encoder: VisionEncoder, pixels: Tensor, grid: int) -> Tensor:
    """B×grid²×w: the last layer's patch tokens, after the encoder's final norm, without class and register tokens.

    Raises:
        ModelError: the encoder has none, or takes no pictures of this size.
    """
    network: Any = encoder.module
    try:
        if hasattr(network, "forward_features"):
            hidden: Tensor = network.forward_features(pixels)
        else:
            hidden = network(pixel_values=pixels).last_hidden_state
    except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        size = "×".join(map(str, pixels.shape[-2:]))
        raise ModelError(f"{encoder.spec} does not take {size} pictures ({reason}): mix in another encoder") from error
    if hidden.ndim != 3 or hidden.shape[1] < grid**2:
        raise ModelError(f"{encoder.spec} gives no {grid}×{grid} patch tokens: mix in a ViT")
    return hidden[:, hidden.shape[1] - grid**2 :]


def patch_size(encoder: VisionEncoder) -> int:
    """The edge of the encoder's patches, in pixels.

    Raises:
        ModelError: it has none.
    """
    network: Any = encoder.module
    found = getattr(getattr(network, "config", None), "patch_size", None)
    if found is None:
        found = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if isinstance(found, tuple | list):
        found = found[0] if len(set(found)) == 1 else None
    if not isinstance(found, int):
        raise ModelError(f"{encoder.spec} has no square patches: mix in a ViT of transformers or timm")
    return found


def second_statistics(encoder: VisionEncoder) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the encoder's own preprocessing, read off black and white pictures."""
    from PIL import Image

    black, white = (encoder.preprocess(Image.new("RGB", (64, 64), colour)) for colour in ("black", "white"))
    middle = tuple(edge // 2 for edge in black.shape[1:])
    low, high = (side[:, middle[0], middle[1]].double() for side in (black, white))
    std = 1 / (high - low)
    return (-low * std).float().view(1, 3, 1, 1), std.float().view(1, 3, 1, 1)
