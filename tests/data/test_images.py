from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from modalign.data.bad_rows import BadRow
from modalign.data.images import ImageBatch, decode, image_batches
from modalign.errors import DataError


def to_pixels(picture: Image.Image) -> Tensor:
    small = picture.resize((8, 8), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def noise(mode: str, size: tuple[int, int] = (40, 30), seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(values.squeeze(), mode) if bands == 1 else Image.frombytes(mode, size, values.tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good pictures of every kind, and every kind of file that is none."""
    noise("RGB").save(tmp_path / "good.png")
    noise("L").save(tmp_path / "grey.jpg")
    noise("LA").save(tmp_path / "grey_alpha.png")
    noise("RGBA").save(tmp_path / "alpha.webp", lossless=True)
    noise("CMYK").save(tmp_path / "cmyk.jpg")
    noise("RGB").convert("1").save(tmp_path / "bits.png")
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(tmp_path / "sixteen.png")
    palette = noise("RGB").quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(0, 160, 10)))
    frames = [noise("RGB", seed=seed) for seed in range(3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:], lossless=True)

    buffer = io.BytesIO()
    noise("RGB", (200, 200)).save(buffer, "JPEG")
    (tmp_path / "truncated.jpg").write_bytes(buffer.getvalue()[:-2000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


GOOD = [
    *("good.png", "grey.jpg", "grey_alpha.png", "alpha.webp", "cmyk.jpg", "bits.png", "sixteen.png"),
    *("palette.png", "film.gif", "film.webp"),
]
BAD = {
    "truncated.jpg": "truncated",
    "empty.png": "empty file",
    "text.png": "not a picture",
    "folder.jpg": "a folder",
    "missing.jpg": "no such file",
}


@pytest.mark.parametrize("name", GOOD)
def test_every_mode_becomes_the_rgb_that_open_clip_sees(folder: Path, name: str) -> None:
    with Image.open(folder / name) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about transparent palettes
        expected = image.convert("RGB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = decode(folder / name)
    assert picture.mode == "RGB"
    assert picture.tobytes() == expected.tobytes()


def test_the_first_frame_of_a_film(folder: Path) -> None:
    assert decode(folder / "film.webp").tobytes() == noise("RGB", seed=0).tobytes()


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90°
    noise("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert decode(tmp_path / "turned.jpg").size == (40, 30)


@pytest.mark.parametrize("name", BAD)
def test_decode_names_the_file_and_the_reason_in_one_line(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match=BAD[name]) as caught:
        decode(folder / name)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_decoded_picture_outlives_its_file(folder: Path) -> None:
    picture = decode(folder / "good.png")
    (folder / "good.png").unlink()
    assert picture.getpixel((39, 29)) is not None


def collect(paths: list[Path], batches: list[list[int]], workers: int) -> list[ImageBatch]:
    wheres = [f"metadata.csv:{line}" for line in range(2, 2 + len(paths))]
    return list(image_batches(paths, wheres, to_pixels, map(torch.tensor, batches), workers=workers))


def test_order_and_bytes_do_not_depend_on_workers(folder: Path) -> None:
    paths = [folder / name for name in [*GOOD, *BAD]]
    batches = [[4, 10, 0], [11, 12], [1, 2, 3, 14], [0], [9, 8, 7, 13, 6, 5]]
    alone, shared = collect(paths, batches, 0), collect(paths, batches, 2)
    assert [batch.index.tolist() for batch in alone] == [[4, 0], [], [1, 2, 3], [0], [9, 8, 7, 6, 5]]
    for one, two in zip(alone, shared, strict=True):
        assert torch.equal(one.index, two.index)
        assert torch.equal(one.pixels, two.pixels)
        assert one.bad == two.bad
        assert len(one.pixels) == len(one.index)
    assert torch.equal(alone[0].pixels[1], to_pixels(decode(paths[0])))


def test_what_cannot_be_read_comes_back_as_data(folder: Path) -> None:
    paths = [folder / name for name in BAD]
    (batch,) = collect(paths, [list(range(len(paths)))], 0)
    assert batch.index.tolist() == []
    assert batch.index.dtype == torch.long
    for line, (bad, name) in enumerate(zip(batch.bad, BAD, strict=True), start=2):
        assert (bad.where, bad.path) == (f"metadata.csv:{line}", folder / name)
        assert BAD[name] in bad.reason


def test_a_huge_picture_is_a_bad_row_and_a_large_one_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # good.png has 1,200: more than twice as many
    (batch,) = collect([folder / "good.png"], [[0]], 0)
    assert "too many pixels" in batch.bad[0].reason and "1200" in batch.bad[0].reason
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    with pytest.warns(Image.DecompressionBombWarning):
        (batch,) = collect([folder / "good.png"], [[0]], 0)
    assert batch.bad == ()


def test_a_picture_the_transform_refuses_is_a_bad_row(folder: Path) -> None:
    def refuse(picture: Image.Image) -> Tensor:
        raise ValueError("too thin\nand more")

    (batch,) = image_batches([folder / "good.png"], ["a:1"], refuse, [torch.tensor([0])])
    assert batch.bad == (BadRow("a:1", folder / "good.png", "cannot be preprocessed (too thin)"),)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(folder: Path, workers: int) -> None:
    state = torch.random.get_rng_state()
    collect([folder / "good.png"], [[0]], workers)
    assert torch.equal(state, torch.random.get_rng_state())


def test_batches_are_drawn_lazily(folder: Path) -> None:
    drawn = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            drawn.append(1)
            yield torch.tensor([0])

    loader = image_batches([folder / "good.png"], ["a:1"], to_pixels, endless())
    next(loader)
    loader.close()  # type: ignore[attr-defined]
    assert len(drawn) == 1


def die(picture: Image.Image) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_killed_worker_is_one_clear_line(folder: Path) -> None:
    with pytest.raises(DataError, match="fewer workers"):
        list(image_batches([folder / "good.png"], ["a:1"], die, [torch.tensor([0])], workers=1))


@pytest.mark.slow
def test_interrupting_prints_no_workers_traceback(folder: Path) -> None:
    code = f"""
import time, torch
from pathlib import Path
from modalign.data.images import image_batches
def slow(picture):
    time.sleep(0.05)
    return torch.zeros(3, 2, 2)
batches = (torch.tensor([0]) for _ in range(10_000))
try:
    for batch in image_batches([Path({str(folder / "good.png")!r})], ["a:1"], slow, batches, workers=2):
        print("batch", flush=True)
except KeyboardInterrupt:
    print("stopped")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "batch\n"
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C: the whole group
    out, err = process.communicate(timeout=60)
    assert out.endswith("stopped\n")
    assert "Traceback" not in err
