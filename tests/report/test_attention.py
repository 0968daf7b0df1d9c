"""Attention maps: against the library's own weights, and a figure that holds what it says."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModel

import modalign
from modalign.errors import DataError, ModelError
from modalign.report.attention import AttentionMap, attention_figure, attention_maps, class_attention, write_attention
from tests import tiny


def test_maps_are_the_librarys_weights(tmp_path: Path) -> None:
    """transformers' eager attention of the penultimate block, class token to patches, mean over heads."""
    spec = tiny.tiny_hf_clip(tmp_path / "clip")
    model = modalign.load(spec)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    eager: Any = CLIPVisionModel.from_pretrained(spec.removeprefix("hf:"), attn_implementation="eager").eval()
    with torch.no_grad():
        weights = eager(pixels, output_attentions=True).attentions[0].mean(1)[:, 0]  # two blocks: the first is -2
    maps, rest = class_attention(model, pixels)
    expected = weights[:, 1:] / weights[:, 1:].sum(1, keepdim=True)
    torch.testing.assert_close(maps, expected.view(2, 4, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(rest, weights[:, 0], rtol=0, atol=1e-6)


def test_the_picture_seen_is_the_picture(tmp_path: Path) -> None:
    model = modalign.load(tiny.tiny_open_clip(tmp_path / "clip"))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (found,) = attention_maps(model, [Image.fromarray(pixels)])
    np.testing.assert_allclose(found.seen, pixels / 255, atol=1e-6)
    assert found.weights.shape == (4, 4) and found.weights.sum() == pytest.approx(1)


def test_spread_by_hand() -> None:
    seen = np.zeros((4, 4, 3))
    assert AttentionMap(seen, np.full((2, 2), 0.25), 0.1).spread == pytest.approx(1)
    assert AttentionMap(seen, np.array([[1.0, 0], [0, 0]]), 0.1).spread == pytest.approx(0.25)


def test_the_figure_shows_both_on_one_scale(tmp_path: Path) -> None:
    models = [modalign.load(tiny.tiny_hf_clip(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    pictures = [Image.new("RGB", (48, 32), colour) for colour in ("red", "blue")]
    file = write_attention(models[0], models[1], pictures, tmp_path / "deep" / "attention.png")
    both = Image.open(io.BytesIO(file.read_bytes()))
    alone = Image.open(write_attention(models[0], None, pictures, tmp_path / "one.png"))
    assert both.format == "PNG" and both.width > alone.width and both.height == alone.height
    assert file.read_bytes() == attention_figure(*(attention_maps(model, pictures) for model in models))


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    siglip = modalign.load(tiny.tiny_hf_siglip(tmp_path / "siglip"))
    with pytest.raises(ModelError, match="no class token"):
        attention_maps(siglip, [Image.new("RGB", (32, 32))])
    maps = attention_maps(modalign.load(tiny.tiny_hf_clip(tmp_path / "clip")), [Image.new("RGB", (32, 32))])
    with pytest.raises(DataError, match="1 maps before and 2 after"):
        attention_figure(maps, maps * 2)
