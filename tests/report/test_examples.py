from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from modalign.report.examples import thumbnail


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "I;16"])
def test_any_kind_of_picture_becomes_a_small_jpeg(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.tiff" if mode in ("CMYK", "I;16") else "picture.png")
    Image.new(mode, (900, 300)).save(path)
    uri = thumbnail(path)
    assert decoded(uri).size == (176, 59)
    assert len(uri) < 10_000


def test_a_small_picture_is_not_blown_up(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "small.png")
    assert decoded(thumbnail(tmp_path / "small.png")).size == (20, 10)


def test_transparency_is_dropped_as_the_model_sees_it(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (200, 30, 30, 0)).save(tmp_path / "clear.png")
    red, green, _ = decoded(thumbnail(tmp_path / "clear.png")).getpixel((32, 32))  # type: ignore[misc]
    assert red > 180 and green < 60


def test_a_missing_or_damaged_picture_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGB", (300, 300), "red").save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:400])
    for name in ("text.png", "cut.jpg", "gone.png", ""):
        assert thumbnail(tmp_path / name) == ""
