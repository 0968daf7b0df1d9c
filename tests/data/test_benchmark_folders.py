from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from modalign.data import benchmark_folders
from modalign.data.images import decode
from modalign.data.sources import labelled, pairs
from modalign.errors import DataError

from .packing import write_tar


def encoded(shade: int, form: str) -> bytes:
    buffer = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """As `clip_benchmark_export_wds` writes a classification set: keys s0000000…, webp and cls, several tars."""
    root = tmp_path / "wds_vtab-clevr_closest_object_distance"
    (root / "test").mkdir(parents=True)
    for shard, labels in enumerate(([5, 3], [0])):
        files: dict[str, bytes] = {}
        for number, label in enumerate(labels, start=2 * shard):
            files[f"s{number:07d}.cls"] = str(label).encode()
            files[f"s{number:07d}.webp"] = encoded(10 * label, "WEBP")
        write_tar(root / "test" / f"{shard}.tar", files)
    (root / "test" / "nshards.txt").write_text("2\n")
    (root / "classnames.txt").write_text("very nearby\nnearby\nnear\n\ndistant\nvery distant\n")
    (root / "zeroshot_classification_templates.txt").write_text("{c} shapes.\n")
    return root


def test_classes_are_numbered_as_written_with_a_nameless_one_among_them(classes: Path) -> None:
    data = labelled(f"wds:{classes}@test")
    assert data.class_names == ("very nearby", "nearby", "near", "", "distant", "very distant")
    assert data.labels.tolist() == [5, 3, 0]
    assert [decode(path).getpixel((0, 0))[0] for path in data.paths] == [50, 30, 0]


def test_a_missing_tar_is_told(classes: Path) -> None:
    (classes / "test" / "0.tar").unlink()
    with pytest.raises(
        DataError, match=r"nshards.txt counts 2 tar files, and 0.tar is missing; fetch the rest"
    ) as told:
        labelled(f"wds:{classes}@test")
    assert "\n" not in str(told.value)
    # A pattern is taken at its word.
    assert len(labelled(f"wds:{classes}/test/1.tar")) == 1


def test_a_count_that_is_none_is_told(classes: Path) -> None:
    (classes / "test" / "nshards.txt").write_text("<html>")
    with pytest.raises(DataError, match=r"nshards.txt holds '<html>', no number of tar files"):
        labelled(f"wds:{classes}@test")


@pytest.mark.parametrize(("kind", "message"), [("multilabel", "several classes"), ("retrieval", "retrieval:wds:")])
def test_a_set_of_another_kind_has_no_class_labels(classes: Path, kind: str, message: str) -> None:
    (classes / "dataset_type.txt").write_text(f"{kind}\n")
    with pytest.raises(DataError, match=f"dataset_type.txt says {kind}.*{message}"):
        labelled(f"wds:{classes}@test")


def test_templates_come_with_class_names_or_not_at_all(classes: Path) -> None:
    spec = f"wds:{classes}@test"
    path = classes / "zeroshot_classification_templates.txt"
    assert benchmark_folders.templates_of(spec) == [(f"{path}:1", "{c} shapes.")]
    assert benchmark_folders.templates_of(f"{classes}/test/0.tar") == [(f"{path}:1", "{c} shapes.")]
    (classes / "classnames.txt").unlink()
    assert benchmark_folders.templates_of(spec) is None
    assert benchmark_folders.templates_of(str(classes)) is None


def test_retrieval_has_a_caption_a_line(tmp_path: Path) -> None:
    files = {
        "s0000000.jpg": encoded(1, "JPEG"),
        "s0000000.txt": b"A dog.\nTwo dogs\\nrun.",  # a line break inside a caption is written as \n
        "s0000001.jpg": encoded(2, "JPEG"),
        "s0000001.txt": b"A cat.",
    }
    write_tar(tmp_path / "test" / "0.tar", files)
    (tmp_path / "test" / "nshards.txt").write_text("1")
    (tmp_path / "dataset_type.txt").write_text("retrieval")
    data = pairs(f"wds:{tmp_path}@test")
    assert [row.captions for row in data.rows] == [("A dog.", "Two dogs\\nrun."), ("A cat.",)]
    assert data.split == "test"
