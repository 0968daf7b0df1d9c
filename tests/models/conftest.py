from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modalign.models import DualEncoder, load
from tests import tiny

CAPTIONS = [
    "a red cat",
    "",
    "a photo of the small green boat and a large square tree with 12 round dogs, grey grey grey",
    "dog",
    "blue 7",
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per kind of tiny model; read only."""
    root = tmp_path_factory.mktemp("models")
    tiny.tiny_open_clip(root / "clip")
    tiny.tiny_open_clip(root / "quick", quick_gelu=True)
    tiny.tiny_custom_text(root / "custom")
    tiny.tiny_hf_clip(root / "hf")
    tiny.tiny_hf_siglip(root / "siglip")
    tiny.tiny_open_clip_siglip(root / "open_clip_siglip", trunk=tiny.tiny_siglip_trunk(), image_size=32)
    return {name: root / name for name in ("clip", "quick", "custom", "hf", "siglip", "open_clip_siglip")}


@pytest.fixture(params=["clip", "custom", "hf", "siglip", "open_clip_siglip"])
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> DualEncoder:
    """A fresh model of each family."""
    return load(folders[request.param])


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny architecture among open_clip's built-in ones, with and without QuickGELU, and tags for both."""
    import open_clip.factory
    import open_clip.pretrained

    def register(name: str, quick_gelu: bool, tags: dict[str, Any]) -> None:
        config = tiny.open_clip_config(quick_gelu=quick_gelu)
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)

    openai = {"quick_gelu": True, "hf_hub": "someone/openai/"}
    laion = {"hf_hub": "someone/laion/", "interpolation": "bilinear"}
    register("Tiny-8", False, {"openai": openai, "laion": laion})
    register("Tiny-8-quickgelu", True, {"openai": openai})
