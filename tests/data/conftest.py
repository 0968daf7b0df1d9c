from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Draw = Callable[..., None]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Writes small distinct pictures at paths below `tmp_path`, making their folders."""
    drawn = 0

    def draw(*names: str) -> None:
        nonlocal drawn
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn += 1
            Image.new("RGB", (4, 4), (drawn, 0, 0)).save(path)

    return draw
