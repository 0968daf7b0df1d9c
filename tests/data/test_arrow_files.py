from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modalign.data.images import decode
from modalign.data.sources import images, labelled, pairs
from modalign.errors import DataError

from .packing import dataset

datasets = pytest.importorskip("datasets", exc_type=ImportError)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count: int = 5) -> list[tuple[str, bytes, list[str]]]:
    return [(f"{i}.png", png(i), [f"caption {i}", f"other {i}"][: 1 + i % 2]) for i in range(count)]


def test_a_saved_folder_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    made = dataset(rows(50))
    made.save_to_disk(tmp_path / "d", num_shards=4)
    ours, theirs = pairs(tmp_path / "d"), datasets.load_from_disk(tmp_path / "d")
    assert [list(row.captions) for row in ours.rows] == theirs["caption"][:]
    plain = theirs.cast_column("image", datasets.Image(decode=False))
    assert [row.path.read() for row in ours.rows] == [row["bytes"] for row in plain["image"]]
    assert [row.path.name for row in ours.rows] == [row["path"] for row in plain["image"]]
    assert [decode(row.path).getpixel((0, 0))[0] for row in ours.rows] == list(range(50))
    assert ours.wheres[49] == "d: row 50"
    selected = made.select([30, 2, 17])  # saved through an index, which the library writes out
    selected.save_to_disk(tmp_path / "selected")
    assert [path.name for path in pairs(tmp_path / "selected").paths] == ["30.png", "2.png", "17.png"]


def test_splits(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": dataset(rows(4)), "test": dataset(rows(2))}).save_to_disk(tmp_path / "d")
    for spec in (f"{tmp_path}/d@test", f"datasets:{tmp_path}/d@test"):
        data = pairs(spec)
        assert len(data) == 2 and data.split == "test" and data.wheres[0] == "test: row 1"
    for spec, named in [
        (f"{tmp_path}/d", "has several splits; pass .*d@ and one of train, test"),
        (f"{tmp_path}/d@val", "has no split 'val'.*train, test"),
        (f"{tmp_path}/d/train@train", "one data set, no splits; leave @train out"),
        (f"datasets:{tmp_path}/nothing", "no such folder"),
    ]:
        with pytest.raises(DataError, match=named):
            pairs(spec)
    datasets.DatasetDict({"train": dataset(rows(4))}).save_to_disk(tmp_path / "one")
    assert len(pairs(tmp_path / "one")) == 4


def test_one_picture_in_two_rows_is_one_picture(tmp_path: Path) -> None:
    """As a table's two lines about one file: the rows share an image id. Equal names alone do not make them equal."""
    made = [("a.png", png(1), ["x"]), ("a.png", png(1), ["y"]), ("a.png", png(2), ["z"]), ("b.png", png(1), ["w"])]
    dataset(made).save_to_disk(tmp_path / "d", num_shards=2)
    data = pairs(tmp_path / "d")
    assert data.image_ids.tolist() == [0, 0, 1, 2]
    stay, held = data.split_off(0.3, 0)
    assert not set(stay.paths) & set(held.paths) and len(stay) + len(held) == 4
    assert len(images(tmp_path / "d")) == 3


def test_columns_and_kinds_of_captions(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "filename": datasets.Value("string"),
            "img": datasets.Image(),
            "sentences": datasets.List({"raw": datasets.Value("string"), "id": datasets.Value("int64")}),
            "caption_0": datasets.Value("string"),
            "caption_1": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["ant", "bee", "cat"]),
        }
    )
    content = {
        "filename": ["no such file", "nor this"],
        "img": [{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}],
        "sentences": [[{"raw": "one", "id": 1}, {"raw": "two", "id": 2}], [{"raw": "three", "id": 3}]],
        "caption_0": ["a", "b"],
        "caption_1": ["c", "d"],
        "label": [2, -1],
    }
    datasets.Dataset.from_dict(content, features=features).save_to_disk(tmp_path / "d")
    assert pairs(tmp_path / "d").captions == ["one", "two", "three"]
    data = pairs(tmp_path / "d", text_column=["caption_0", "caption_1"])
    assert [row.captions for row in data.rows] == [("a", "c"), ("b", "d")]
    assert data.image_ids.tolist() == [0, 1]
    judged = labelled(tmp_path / "d")
    assert judged.class_names == ("ant", "bee", "cat") and judged.labels.tolist() == [2]
    with pytest.raises(DataError, match=r"column 'filename' holds|no such file"):
        pairs(tmp_path / "d", image_column="filename")
    with pytest.raises(DataError, match=r"column 'caption_2'|no column caption_2; it has 'filename'.*--text-column"):
        pairs(tmp_path / "d", text_column=["caption_0", "caption_2"])
    with pytest.raises(DataError, match="column 'label' holds int64, not pictures or their paths"):
        pairs(tmp_path / "d", image_column="label")


def test_pictures_that_are_only_named_are_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    image = [{"bytes": None, "path": str(tmp_path / "a.png")}, {"bytes": None, "path": "gone.png"}]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"image": image, "text": ["x", "y"]}, features=features)
    table = made.data.table
    (tmp_path / "d").mkdir()
    with pa.OSFile(str(tmp_path / "d" / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "d" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    with pytest.raises(DataError, match=r"d: row 2: no such file gone\.png"):
        pairs(tmp_path / "d")
    assert pairs(tmp_path / "d", max_bad=1).paths == [tmp_path / "a.png"]


def test_a_parquet_of_pictures_and_a_folder_of_them(tmp_path: Path) -> None:
    made = dataset(rows(6))
    (tmp_path / "repo").mkdir()
    made.to_parquet(tmp_path / "repo" / "train.parquet")
    plain = pa.table({"jpg": [png(1), png(2)], "txt": ["one", "two"]})
    pq.write_table(plain, tmp_path / "bytes.parquet")
    data = pairs(tmp_path / "repo" / "train.parquet")
    assert data.captions == [caption for *_, captions in rows(6) for caption in captions]
    assert data.wheres[5] == "train.parquet: row 6" and decode(data.paths[5]).getpixel((0, 0))[0] == 5
    assert pairs(tmp_path / "bytes.parquet", image_column="jpg").captions == ["one", "two"]
    hub = pairs(f"hf:{tmp_path / 'repo'}@train")  # what load_dataset takes is read the same way, Hub or folder
    assert hub.captions == data.captions and hub.split == "train"
    assert [path.read() for path in hub.paths] == [path.read() for path in data.paths]
    assert hub.fingerprint == data.fingerprint
    with pytest.raises(DataError, match=r"is a part of a split; name whole splits, and data\.limit"):
        pairs(f"hf:{tmp_path / 'repo'}@train[:3]")
    with pytest.raises(DataError, match=r"hf:no/such cannot be loaded \(.*\); check name, configuration"):
        pairs("hf:no/such")


def test_a_hub_name_with_configuration_and_split_reaches_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(rows(3)).to_parquet(tmp_path / "x.parquet")
    real, asked = datasets.load_dataset, []

    def load(name: str, config: str | None, split: str | None = None) -> Any:
        asked.append((name, config, split))
        return real("parquet", data_files={"train": str(tmp_path / "x.parquet")}, split=split)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(pairs("hf:owner/name:en@train")) == len(pairs("hf:owner/name")) == 3
    assert asked == [("owner/name", "en", "train"), ("owner/name", None, None)]


def test_without_the_library_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(rows(3)).save_to_disk(tmp_path / "d")
    dataset(rows(3)).to_parquet(tmp_path / "d.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for spec in ("hf:owner/name", tmp_path / "d.parquet"):
        with pytest.raises(DataError, match=r"pip install 'modalign\[datasets\]'"):
            pairs(spec)
    assert len(pairs(tmp_path / "d")) == 3  # a saved folder is read without it


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    dataset(rows(40)).save_to_disk(tmp_path / "d", num_shards=2)

    def broken(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "d", tmp_path / name))

    (broken("no_state") / "state.json").unlink()
    (broken("no_file") / "data-00001-of-00002.arrow").unlink()
    (broken("bad_state") / "state.json").write_text("{")
    (broken("other_state") / "state.json").write_text("{}")
    (broken("not_arrow") / "data-00000-of-00002.arrow").write_bytes(b"no arrow" * 99)
    cut = broken("cut") / "data-00001-of-00002.arrow"
    whole = cut.read_bytes()
    for name, named in [
        ("no_state", r"state\.json is missing"),
        ("no_file", r"data-00001-of-00002\.arrow is missing"),
        ("bad_state", r"state\.json cannot be read"),
        ("other_state", r"state\.json lists no data files"),
        ("not_arrow", r"data-00000-of-00002\.arrow is truncated"),
    ]:
        with pytest.raises(DataError, match=named) as caught:
            pairs(tmp_path / name)
        assert "\n" not in str(caught.value)
    for length in (0, 7, 500, len(whole) - 8, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow (is truncated|cannot be read)"):
            pairs(tmp_path / "cut")
