from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modalign.data.sources import images, pairs
from modalign.errors import DataError

from .conftest import Draw


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


CAPTIONS = {
    "images": [{"id": 9, "file_name": "000000000009.jpg"}, {"id": 4, "file_name": "000000000004.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 4, "caption": "A dog.\n"},
        {"id": 2, "image_id": 9, "caption": "A cat."},
        {"id": 3, "image_id": 4, "caption": "Some dog."},
    ],
}


@pytest.mark.parametrize("pictures", ["val2017", "images/val2017"])
@pytest.mark.parametrize("annotations", ["annotations/", ""])
def test_coco_captions_keep_the_files_order(tmp_path: Path, draw: Draw, pictures: str, annotations: str) -> None:
    draw(f"{pictures}/000000000009.jpg", f"{pictures}/000000000004.jpg")
    write(tmp_path / f"{annotations}captions_val2017.json", CAPTIONS)
    data = pairs(f"coco:{tmp_path}@val2017")
    assert data.split == "val2017"
    assert [row.captions for row in data.rows] == [("A cat.",), ("A dog.\n", "Some dog.")]
    assert [row.where for row in data.rows] == ["captions_val2017.json: image 9", "captions_val2017.json: image 4"]
    assert [path.name for path in data.paths] == ["000000000009.jpg", "000000000004.jpg"]
    assert all(path.is_file() for path in data.paths)
    assert len(images(f"coco:{tmp_path}@val2017")) == 2


def test_coco_names_what_is_bad(tmp_path: Path, draw: Draw) -> None:
    draw("train2017/000000000009.jpg", "train2017/7.jpg")
    content = {
        "images": [*CAPTIONS["images"], {"id": 7, "file_name": "7.jpg"}, {"id": 8}],
        "annotations": [*CAPTIONS["annotations"], {"image_id": 9, "caption": " "}, {"image_id": 5, "caption": "lost"}],
    }
    write(tmp_path / "annotations" / "captions_train2017.json", content)
    with pytest.raises(DataError) as caught:
        pairs(f"coco:{tmp_path}@train2017")
    text = str(caught.value)
    assert text.startswith("5 of 5 rows of coco:")  # image 9 has a good caption besides the empty one
    for part in [
        "image 9: caption 2 of 2 is empty",
        "image 4: no such file 000000000004.jpg",
        "image 7: the list of captions is empty",
        "image 8: names no file",
        "image 5: has captions but is not listed",
    ]:
        assert part in text
    assert pairs(f"coco:{tmp_path}@train2017", max_bad=5).captions == ["A cat."]


def karpathy(name: str, split: str, captions: list[str], **more: Any) -> dict[str, Any]:
    return {"filename": name, "split": split, "sentences": [{"raw": text, "tokens": []} for text in captions], **more}


FIVE = [f"caption {i}" for i in range(5)]
KARPATHY_COCO = {
    "dataset": "coco",
    "images": [
        karpathy("COCO_val2014_000000000030.jpg", "test", FIVE, filepath="val2014", cocoid=30),
        karpathy("COCO_val2014_000000000031.jpg", "restval", ["restval"], filepath="val2014", cocoid=31),
        karpathy("COCO_train2014_000000000032.jpg", "train", ["train"], filepath="train2014", cocoid=32),
        karpathy("COCO_val2014_000000000029.jpg", "test", [*FIVE, "a sixth"], filepath="val2014", cocoid=29),
    ],
}


@pytest.mark.parametrize("base", ["", "images/"])
def test_karpathys_coco_on_the_pictures_of_2014(tmp_path: Path, draw: Draw, base: str) -> None:
    for entry in KARPATHY_COCO["images"]:
        draw(f"{base}{entry['filepath']}/{entry['filename']}")  # type: ignore[index]
    write(tmp_path / "annotations" / "dataset_coco.json", KARPATHY_COCO)
    data = pairs(f"coco:{tmp_path}@karpathy-test")
    assert [row.captions for row in data.rows] == [tuple(FIVE), (*FIVE, "a sixth")]
    assert [row.where for row in data.rows] == ["dataset_coco.json: image 30", "dataset_coco.json: image 29"]
    assert pairs(f"coco:{tmp_path}@karpathy-train").captions == ["restval", "train"]


def test_karpathys_coco_on_the_pictures_of_2017(tmp_path: Path, draw: Draw) -> None:
    draw("val2017/000000000030.jpg", "train2017/000000000029.jpg")
    write(tmp_path / "dataset_coco.json", KARPATHY_COCO)
    paths = pairs(f"coco:{tmp_path}@karpathy-test").paths
    assert [f"{path.parent.name}/{path.name}" for path in paths] == [
        "val2017/000000000030.jpg",
        "train2017/000000000029.jpg",
    ]


@pytest.mark.parametrize("folder", ["flickr30k-images", "flickr30k_images", "images", "."])
def test_karpathys_flickr30k(tmp_path: Path, draw: Draw, folder: str) -> None:
    draw(f"{folder}/10.jpg", f"{folder}/11.jpg")
    entries = [karpathy("11.jpg", "test", FIVE, imgid=3), karpathy("10.jpg", "train", FIVE, imgid=4)]
    write(tmp_path / "dataset_flickr30k.json", {"images": entries, "dataset": "flickr30k"})
    data = pairs(f"flickr30k:{tmp_path}@test")
    assert [(row.path.name, row.captions, row.where) for row in data.rows] == [
        ("11.jpg", tuple(FIVE), "dataset_flickr30k.json: image 3")
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results_20130124.token", "10.jpg#0\tA man | dog .\n10.jpg#1\tTwo men .\n11.jpg#0\tOther ."),
        (
            "results.csv",  # the last line as it is in circulation, without its second "|"
            "image_name| comment_number| comment\n10.jpg| 0| A man | dog .\n10.jpg| 1| Two men .\n11.jpg| 4   Other .",
        ),
    ],
)
def test_flickr30k_as_published_with_a_list_of_the_split(tmp_path: Path, draw: Draw, name: str, content: str) -> None:
    draw("flickr30k-images/10.jpg", "flickr30k-images/11.jpg", "flickr30k-images/12.jpg")
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=r"looked for .*test\.txt"):
        pairs(f"flickr30k:{tmp_path}@test")
    write(tmp_path / "test.txt", "11\n10.jpg\n")
    data = pairs(f"flickr30k:{tmp_path}@test")
    assert [row.captions for row in data.rows] == [("Other .",), ("A man | dog .", "Two men .")]
    write(tmp_path / "test.txt", "11\n12\n13\n")
    with pytest.raises(
        DataError, match=r"test\.txt:2: the list of captions is empty; test\.txt:3: no such file 13\.jpg"
    ):
        pairs(f"flickr30k:{tmp_path}@test")


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("coco:{}", "names no split.*@val2017"),
        ("coco:{}@test2017", "no split 'test2017'.*train2017, val2017, .*karpathy-test"),
        ("coco:{}/gone@val2017", "no such folder .*gone"),
        ("coco:{}@train2017", r"looked for .*annotations/captions_train2017\.json"),
        ("coco:{}@val2017", "no folder of pictures: looked for .*val2017, .*images/val2017"),
        ("coco:{}@karpathy-test", r"dataset_coco\.json cannot be read as JSON"),
        ("flickr30k:{}@dev", "no split 'dev'.*train, val, test"),
        ("flickr30k:{}@test", r"looked for .*dataset_flickr30k\.json.*results_20130124\.token.*results\.csv"),
        ("coco:{}/other@val2017", "captions_val2017.json holds no list 'annotations'"),
    ],
)
def test_one_line_says_what_was_looked_for(tmp_path: Path, spec: str, named: str) -> None:
    write(tmp_path / "annotations" / "captions_val2017.json", CAPTIONS)
    write(tmp_path / "dataset_coco.json", "{broken")
    (tmp_path / "val2014").mkdir()
    (tmp_path / "other" / "val2017").mkdir(parents=True)
    write(tmp_path / "other" / "captions_val2017.json", {"images": []})
    with pytest.raises(DataError, match=named) as caught:
        pairs(spec.format(tmp_path))
    assert "\n" not in str(caught.value)
