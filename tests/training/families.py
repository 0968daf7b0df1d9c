"""One tiny real model of each kind that scopes, adapters and checkpointing tell apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import modalign
from modalign.models import DualEncoder
from tests import tiny

MAKERS: dict[str, Callable[[Path], str]] = {
    "open_clip": tiny.tiny_open_clip,
    "rn50": tiny.tiny_rn50,
    "timm+bert": tiny.tiny_custom_text,
    "siglip": tiny.tiny_open_clip_siglip,
    "eva": tiny.tiny_eva,
    "eva01": lambda folder: tiny.tiny_eva(folder, "tiny_eva01"),
    "coca": tiny.tiny_coca,
    "hf_clip": tiny.tiny_hf_clip,
    "hf_siglip": tiny.tiny_hf_siglip,
}


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DualEncoder]:
    """Name → a copy of its own of that model."""
    known: dict[str, DualEncoder] = {}

    def get(name: str) -> DualEncoder:
        if name not in known:
            known[name] = modalign.load(MAKERS[name](tmp_path_factory.mktemp(name)))
        twin = copy.copy(known[name])
        twin.module = copy.deepcopy(known[name].module)
        return twin

    return get


def inputs(model: DualEncoder, rows: int = 6) -> tuple[Tensor, Tensor]:
    """Pictures of noise and captions of several lengths."""
    from PIL import Image

    shape = model.preprocess(Image.new("RGB", (40, 40))).shape
    pixels = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(3)).to(model.dtype)
    return pixels, model.tokenize(["a photo of a cat " * (1 + i % 3) for i in range(rows)])
