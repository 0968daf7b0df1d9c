from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modalign.data import torchvision_sets
from modalign.data.images import decode, image_batches
from modalign.data.pictures import Member, from_json, to_json
from modalign.data.sources import images, labelled, pairs
from modalign.data.store_lookup import picture_content
from modalign.errors import DataError
from modalign.evaluation.class_names import class_names

from .published_layouts import LAYOUTS

# Sets that torchvision itself would number or list otherwise; each has a test of its own below.
OTHERWISE = {"fer2013", "imagenet1k", "caltech101", "sun397"}
ARRAYS = ("cifar10", "cifar100", "mnist", "svhn", "stl10", "pcam", "fer2013")


@pytest.fixture(autouse=True)
def _nothing_open() -> None:
    torchvision_sets._opened.cache_clear()


def spec_of(name: str, root: Path, split: str | None = None) -> str:
    splits = torchvision_sets.SETS[name].splits
    return f"torchvision:{name}:{root}" + (f"@{split or splits[-1]}" if splits else "")


def opened(name: str, root: Path, split: str) -> Any:
    return torchvision_sets.SETS[name].read(root, split)


def test_every_set_has_a_layout_to_test() -> None:
    assert set(LAYOUTS) == set(torchvision_sets.SETS)


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - OTHERWISE))
def test_pixels_and_labels_are_torchvisions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS[name](tmp_path / "root", monkeypatch)
    for split in torchvision_sets.SETS[name].splits or ("",):
        if name == "country211" and split != "test":
            continue
        data = labelled(spec_of(name, tmp_path / "root", split))
        peer = opened(name, tmp_path / "root", split)
        assert len(data) == len(peer) > 1
        for row, (picture, label) in zip(data.rows, peer, strict=True):
            assert row.label == label
            assert decode(row.path).tobytes() == picture.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("cifar10", class_names("cifar10")),
        ("cifar100", class_names("cifar100")),  # "aquarium_fish": CLIP_benchmark leaves the line in
        ("mnist", class_names("mnist")),
        ("svhn", class_names("svhn")),
        ("flowers", class_names("flowers")),
        ("pets", class_names("pets")),
        ("gtsrb", class_names("gtsrb")),
        ("food101", ("apple pie", "waffles")),
        ("cars", ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012")),
        ("dtd", ("banded", "polka-dotted")),
        ("fgvc_aircraft", ("707-320", "F-16A/B", "Cessna 172")),
        ("eurosat", ("annual crop land", "brushland or shrubland", "lake or sea")),
        ("sun397", ("abbey", "apartment building outdoor", "youth hostel")),
        ("caltech101", ("background", "off-center face", "centered face", "airplane", "yin and yang symbol")),
        ("imagenet1k", ("tench", "goldfish", "missile")),
    ],
)
def test_class_names_are_clip_benchmarks(
    name: str, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS[name](tmp_path / "root", monkeypatch)
    assert labelled(spec_of(name, tmp_path / "root")).class_names == names


def test_the_pets_names_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["pets"](tmp_path, monkeypatch)
    data = labelled(spec_of("pets", tmp_path))
    told = [data.class_names[row.label] for row in data.rows]
    assert told == ["Abyssinian", "American Bulldog", "American Pit Bull Terrier"]
    assert opened("pets", tmp_path, "test").classes == told


def test_svhns_ten_is_a_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["svhn"](tmp_path / "svhn", monkeypatch)
    data = labelled(spec_of("svhn", tmp_path / "svhn", "train"))
    assert [data.class_names[row.label] for row in data.rows] == ["zero", "one", "nine", "two"]


def test_fer2013_is_numbered_as_its_folders_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["fer2013"](tmp_path, monkeypatch)
    data = labelled(spec_of("fer2013", tmp_path, "test"))
    # The csv's emotions 2, 3, 4, 5, 6, 0, 1, 2: fear, happy, sad, surprise, neutral, angry, disgust, fear.
    told = [data.class_names[row.label] for row in data.rows]
    assert told == ["fearful", "happy", "sad", "surprised", "neutral", "angry", "disgusted", "fearful"]
    peer = opened("fer2013", tmp_path, "test")
    assert [decode(p).tobytes() for p in data.paths] == [picture.convert("RGB").tobytes() for picture, _ in peer]


def test_caltechs_background_is_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["caltech101"](tmp_path, monkeypatch)
    data = labelled(spec_of("caltech101", tmp_path))
    assert [(row.path.parent.name, row.label) for row in data.rows if isinstance(row.path, Path)] == [
        ("BACKGROUND_Google", 0),
        ("Faces", 1),
        ("Faces_easy", 2),
        ("airplanes", 3),
        ("yin_yang", 4),
    ]


def test_sun397_comes_in_an_order_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["sun397"](tmp_path, monkeypatch)
    data = labelled(spec_of("sun397", tmp_path))
    assert [(row.path.name, data.class_names[row.label]) for row in data.rows] == [
        ("sun_1.jpg", "abbey"),
        ("sun_2.jpg", "apartment building outdoor"),
        ("sun_0.jpg", "youth hostel"),
    ]


@pytest.mark.parametrize("name", ARRAYS)
def test_a_row_of_an_array_is_a_picture_like_any_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LAYOUTS[name](tmp_path / "root", monkeypatch)
    data = labelled(spec_of(name, tmp_path / "root"))
    first, second = data.rows[0].path, data.rows[1].path
    assert isinstance(first, Member) and first != second and len(set(data.paths)) == len(data)
    assert [image.path for image in images(data.spec).rows] == data.paths
    # What names it in JSON and what is sent to another process read back as the same pixels.
    for back in (from_json(json.loads(json.dumps(to_json(first)))), pickle.loads(pickle.dumps(first))):
        assert back == first and decode(back).tobytes() == decode(first).tobytes()
    assert picture_content(first) == picture_content(first) != picture_content(second)


def test_workers_decode_rows_of_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["cifar10"](tmp_path, monkeypatch)
    data = labelled(spec_of("cifar10", tmp_path, "train"))
    assert len(data) == 15

    def passed(workers: int) -> torch.Tensor:
        batches = torch.arange(len(data)).split(4)
        read = image_batches(data.paths, data.wheres, _as_tensor, batches, workers=workers)
        return torch.cat([batch.pixels for batch in read])

    assert torch.equal(passed(0), passed(1))


def _as_tensor(picture: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def test_a_changed_array_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["mnist"](tmp_path, monkeypatch)
    data = labelled(spec_of("mnist", tmp_path, "test"))
    torchvision_sets._opened.cache_clear()
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(DataError, match="was changed since its content was listed"):
        data.rows[0].path.read()  # type: ignore[union-attr]


def test_a_listed_file_that_is_missing_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["dtd"](tmp_path, monkeypatch)
    gone = tmp_path / "dtd" / "dtd" / "images" / "banded" / "b_1.jpg"
    gone.unlink()
    with pytest.raises(DataError, match=f"row 1: no such file {gone}"):
        labelled(spec_of("dtd", tmp_path))
    assert len(labelled(spec_of("dtd", tmp_path), max_bad=1)) == 1


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("cifar10:{root}@test", r"no .*/cifar-10-batches-py, where torchvision's CIFAR10 keeps it"),
        ("svhn:{root}@test", r"no .*/test_32x32.mat, where torchvision's SVHN keeps it"),
        ("cifar10:{root}@val", r"write torchvision:cifar10:<root>@train\|test"),
        ("cifar10:{root}", r"write torchvision:cifar10:<root>@train\|test"),
        ("cifar10", r"write torchvision:cifar10:<root>@train\|test"),
        ("cifra10:{root}@test", r"no data set 'cifra10' of torchvision: did you mean cifar10\?"),
        ("eurosat:{root}@test", r"no .*@test/eurosat/2750.*\(it has no splits\)"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(rest: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        labelled("torchvision:" + rest.format(root=tmp_path))
    assert "\n" not in str(caught.value)


def test_files_other_than_the_published_are_not_opened(tmp_path: Path) -> None:
    """CIFAR's files are pickles: none is read whose checksum is not the published one."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps({"data": [], "labels": []}))
    with pytest.raises(DataError, match="cannot be read by torchvision's CIFAR10"):
        labelled(f"torchvision:cifar10:{tmp_path}@test")


def test_captions_are_not_asked_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["dtd"](tmp_path, monkeypatch)
    with pytest.raises(DataError, match="has class labels, no captions"):
        pairs(spec_of("dtd", tmp_path))


def test_a_foreign_class_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["eurosat"](tmp_path, monkeypatch)
    (tmp_path / "eurosat" / "2750" / "SeaLake").rename(tmp_path / "eurosat" / "2750" / "Sky")
    with pytest.raises(DataError, match="folder Sky is none of its classes"):
        labelled(spec_of("eurosat", tmp_path))
