"""The pictures and captions an export is compared on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from modalign.data.images import decode
from modalign.data.pictures import from_json
from modalign.errors import DataError

CAPTIONS = (
    "a photo of a cat",
    "two dogs run across a green field",
    "A red-and-white boat, anchored near the harbour!",
    "the temple's roof at sunset",
    "3 people on 12 bicycles",
    "café crème & naïve façades",
    "fish &amp; chips",
    "a close up of a pink flower with a dark background",
    "東京の夜景",
    "",
    "a very long caption that tells of a street, a tram, the people waiting for it, their bags, their dogs, the shops "
    "behind them, the signs over the shops, the birds on the signs, the clouds over the birds, and of the person who "
    "stands in the rain, holds an umbrella, a camera and a sandwich, and wonders whether all of this will ever fit",
)
PICTURES = 6


def probe_captions(folder: Path) -> list[str]:
    """Captions of a run's evaluation where `folder` is one, else a few built-in ones, some of them awkward."""
    return list(dict.fromkeys(_rows(folder).get("captions", [])))[:256] or list(CAPTIONS)


def probe_pictures(folder: Path) -> list[Any]:
    """PIL pictures of a run's evaluation where `folder` is one, else the two photographs scikit-learn ships, cut up."""
    pictures = []
    for picture in dict.fromkeys(map(from_json, _rows(folder).get("paths", []))):
        with contextlib.suppress(DataError):  # moved or changed since
            pictures.append(decode(picture))
        if len(pictures) == PICTURES:
            break
    return pictures or _photographs()


def _photographs() -> list[Any]:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    whole = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    cuts = [picture.crop(box) for picture in whole for box in ((0, 0, 400, 400), (200, 20, 500, 420))]
    return whole + cuts


def _rows(folder: Path) -> dict[str, list[Any]]:
    try:
        rows: dict[str, list[Any]] = json.loads((folder / "features" / "rows.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return rows
