"""Where the class token looks: its attention to the patches, over the pictures, before and after.

    m = mean over heads of A[class token, patches] of one layer, scaled so that the patches' weights sum to 1

The layer is the penultimate block's unless told otherwise: what a LLaVA reads.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.errors import DataError, ModelError
from modalign.models.dual_encoder import DualEncoder

PENULTIMATE = -2
ALPHA = 0.55


@dataclass(frozen=True)
class AttentionMap:
    """One picture as a model sees it, and where its class token looks.

    Attributes:
        seen: H×W×3, 0…1: the picture after the model's preprocessing.
        weights: rows×columns, summing to 1.
        on_itself: the share of attention that stays with the class and register tokens.
    """

    seen: NDArray[np.float64]
    weights: NDArray[np.float64]
    on_itself: float

    @property
    def spread(self) -> float:
        """exp(entropy) over the number of patches: 1 = all alike, 1/T = one patch alone."""
        weights = self.weights[self.weights > 0]
        return float(np.exp(-(weights * np.log(weights)).sum()) / self.weights.size)


@torch.no_grad()
def class_attention(model: DualEncoder, pixels: Tensor, layer: int = PENULTIMATE) -> tuple[Tensor, Tensor]:
    """The class token's attention to the patches, meaned over heads.

    Args:
        model: with a ViT that has a class token.
        pixels: B×3×H×W, as `preprocess` makes them.
        layer: as in `DualEncoder.attention`.

    Returns:
        B×rows×columns, each summing to 1, and B: the share that the class and register tokens got.

    Raises:
        ModelError: the tower is no ViT, has no such layer, or no class token.
    """
    tokens = model.encode_tokens(pixels[:1].to(model.device), layer)
    if not tokens.prefix:
        raise ModelError(f"the image tower of {model.spec} has no class token to look from: use a model with one")
    weights = model.attention(pixels.to(model.device), layer).mean(dim=1)[:, 0].float().cpu()
    patches = weights[:, tokens.prefix :]
    shared = patches.sum(dim=1, keepdim=True)
    return (patches / shared.clamp(min=1e-12)).unflatten(1, tokens.grid), 1 - shared[:, 0]


def attention_maps(model: DualEncoder, pictures: Sequence[Any], layer: int = PENULTIMATE) -> list[AttentionMap]:
    """The maps of some pictures.

    Args:
        model: with a ViT that has a class token.
        pictures: N PIL pictures.
        layer: as in `DualEncoder.attention`.

    Raises:
        ModelError: as in `class_attention`.
        DataError: no picture.
    """
    from PIL import Image

    if not pictures:
        raise DataError("no picture to show attention on; pass at least one")
    pixels = torch.stack([model.preprocess(picture) for picture in pictures])
    weights, rest = class_attention(model, pixels, layer)
    # The preprocessing's scaling of values, read off black and white, is taken back: what is left is the picture seen.
    black, white = (model.preprocess(Image.new("RGB", (64, 64), colour)) for colour in ("black", "white"))
    middle = tuple(edge // 2 for edge in black.shape[1:])
    low, high = (side[:, middle[0], middle[1]].view(1, 3, 1, 1) for side in (black, white))
    seen = ((pixels - low) / (high - low)).clamp(0, 1).permute(0, 2, 3, 1)
    return [
        AttentionMap(picture.double().numpy(), where.double().numpy(), float(share))
        for picture, where, share in zip(seen, weights, rest, strict=True)
    ]


def attention_figure(before: Sequence[AttentionMap], after: Sequence[AttentionMap] | None = None) -> bytes:
    """A PNG with a row a picture: as seen, with the attention before and, where there is one, after.

    Both maps of a row share one scale, from no attention to the larger of their peaks, so that they can be compared.

    Args:
        before: N maps.
        after: N maps of the same pictures by another model.

    Raises:
        DataError: the two are not of equally many pictures.
    """
    from matplotlib.figure import Figure

    if after is not None and len(after) != len(before):
        raise DataError(f"{len(before)} maps before and {len(after)} after: make both of the same pictures")
    sides = [before] if after is None else [before, after]
    titles = ["attention"] if after is None else ["before", "after"]
    figure = Figure(figsize=(2.5 * (1 + len(sides)) + 0.7, 2.75 * len(before)), layout="constrained", dpi=110)
    grid = figure.subplots(len(before), 1 + len(sides), squeeze=False)
    for row, axes in enumerate(grid):
        maps = [side[row] for side in sides]
        peak = max(float(found.weights.max()) for found in maps)
        axes[0].imshow(maps[0].seen)
        for place, found in zip(axes[1:], maps, strict=True):
            height, width = found.seen.shape[:2]
            place.imshow(found.seen.mean(axis=2), cmap="gray", vmin=0, vmax=1)
            drawn = place.imshow(
                found.weights,
                cmap="inferno",
                alpha=ALPHA,
                vmin=0,
                vmax=peak,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
            place.set_xlabel(f"spread {found.spread:.2f}, class token {100 * found.on_itself:.0f} %", fontsize=8)
        bar = figure.colorbar(drawn, ax=list(axes[1:]), shrink=0.8, pad=0.02)
        bar.ax.tick_params(labelsize=7)
        bar.ax.set_title("share", fontsize=7)
        for place in axes:
            place.set_xticks([])
            place.set_yticks([])
    for place, title in zip(grid[0], ["as seen", *titles], strict=True):
        place.set_title(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_attention(
    before: DualEncoder, after: DualEncoder | None, pictures: Sequence[Any], file: Path, layer: int = PENULTIMATE
) -> Path:
    """Draws some pictures with the attention of one model or two, and writes the PNG.

    Args:
        before: a model.
        after: another one, or None.
        pictures: PIL pictures.
        file: where; its folder is made.
        layer: as in `DualEncoder.attention`.

    Raises:
        ModelError: a model without patches, class token or such a layer.
    """
    maps = [attention_maps(model, pictures, layer) for model in (before, after) if model is not None]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(attention_figure(maps[0], maps[1] if len(maps) > 1 else None))
    return file
