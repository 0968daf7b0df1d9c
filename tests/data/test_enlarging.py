"""Pictures resized as tensors: as torchvision does it, where a protocol asks for it, and kept apart in stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as peer

import modalign
from modalign.data.enlarging import as_tensor
from modalign.data.pictures import from_json, resized_as_tensor, to_json
from modalign.data.sources import labelled
from modalign.data.store_lookup import picture_content, picture_names
from modalign.evaluation.suite import prepare
from modalign.evaluation.tasks import encode, evaluate
from tests.tiny import tiny_hf_clip, tiny_open_clip, tiny_open_clip_siglip

from .published_layouts import LAYOUTS

OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALVES = ((0.5,) * 3, (0.5,) * 3)  # SigLIP's


def drawn(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def torchvisions(picture: Image.Image, side: int, scale: tuple[Sequence[float], ...] = OPENAI) -> torch.Tensor:
    resized = peer.resize(peer.to_tensor(picture), [side, side], InterpolationMode.BICUBIC, antialias=True)
    return peer.normalize(resized, *scale)


@pytest.mark.parametrize("make", [tiny_open_clip, tiny_hf_clip])
@pytest.mark.parametrize("size", [(20, 20), (32, 32), (96, 96)])
def test_pixels_are_torchvisions_of_a_tensor(make: object, size: tuple[int, int], tmp_path: Path) -> None:
    model = modalign.load(make(tmp_path / "clip"))  # type: ignore[operator]
    picture = drawn(1, size)
    found = as_tensor(picture, model.preprocess)
    assert torch.allclose(found, torchvisions(picture, found.shape[-1]), atol=2e-6)
    if size != tuple(found.shape[-2:]):
        assert (found - model.preprocess(picture)).abs().max() > 1e-3  # as a picture it is rounded and clamped


def test_one_protocol_resizes_cifar_so_and_a_store_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["cifar10"](tmp_path / "cifar", monkeypatch)
    spec = f"torchvision:cifar10:{tmp_path / 'cifar'}@test"
    model, store = modalign.load(tiny_open_clip_siglip(tmp_path / "clip")), tmp_path / "store"
    seen = {}
    for protocol in ("default", "kuea"):
        suite = prepare([f"zero-shot:{spec}"], protocol=protocol)
        seen[protocol] = encode(model, suite, store=store).image
        assert torch.equal(seen[protocol], encode(model, suite, store=store).image)
    side = model.preprocess(drawn(0)).shape[-1]
    pictures = [Image.open(row.path.open()) for row in labelled(spec).rows]  # type: ignore[union-attr]
    expected = model.encode_image(torch.stack([torchvisions(picture, side, HALVES) for picture in pictures]))
    assert torch.allclose(seen["kuea"], expected, atol=2e-6)
    assert (seen["default"] - expected).abs().max() > 1e-4
    told = evaluate(model, [f"zero-shot:{spec}"], protocol="kuea", resamples=50).tasks[0].protocol
    assert "resized as tensors" in told["not_met"]


def test_the_same_file_resized_otherwise_has_another_name_and_content(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    drawn(0).save(path)
    once = resized_as_tensor(path)
    assert resized_as_tensor(once) == once and from_json(to_json(once)) == once
    assert len({picture_content(path), picture_content(once)}) == len(set(picture_names([path, once]))) == 2
    assert resized_as_tensor(tmp_path / "gone.png") == tmp_path / "gone.png"
