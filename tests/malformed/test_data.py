"""Data that cannot be used, through the command line: one line that names the file, row or key, and no traceback.

`modalign` is run in this process, which is what `python -m modalign` runs, because torch takes seconds to import.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import modalign
from modalign.cli import main
from tests.data.packing import dataset, write_shards, write_tar
from tests.tiny import tiny_open_clip, write_pairs


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_open_clip(tmp_path_factory.mktemp("model"), quick_gelu=True)


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count: int = 6) -> list[tuple[str, bytes, list[str]]]:
    return [(f"{i}.png", png(i), [f"caption {i}"]) for i in range(count)]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The one line that the command line ends with."""
    monkeypatch.setattr(sys, "argv", ["modalign", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(lines) == 1 and "Traceback" not in told, told
    return lines[0]


# ---- what `gap` is given: each writes something below a folder and returns its spec -------------------------


def truncated_tar(folder: Path) -> str:
    files = {name: content for i in range(4) for name, content in ((f"{i}.png", png(i)), (f"{i}.txt", b"x"))}
    tar = write_tar(folder / "s-000.tar", files)
    tar.write_bytes(tar.read_bytes()[: 5 * 512])
    return str(tar)


def tar_without_pictures(folder: Path) -> str:
    return str(write_tar(folder / "s-000.tar", {"0.txt": b"x", "1.txt": b"y"}))


def sample_without_caption(folder: Path) -> str:
    return str(write_tar(folder / "s-000.tar", {"0.png": png(), "0.txt": b"x", "1.png": png()}))


def sample_twice(folder: Path) -> str:
    return str(write_tar(folder / "s-000.tar", [("0.png", png()), ("0.png", png(1)), ("0.txt", b"x")]))


def missing_shard(folder: Path) -> str:
    write_shards(folder, rows(), per_shard=3)
    (folder / "001.tar").unlink()
    return f"{folder}/{{000..001}}.tar"


def compressed_tar(folder: Path) -> str:
    import gzip

    tar = write_tar(folder / "s.tar", {"0.png": png(), "0.txt": b"x"})
    (folder / "s.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    return str(folder / "s.tar.gz")


def broken_picture_in_a_tar(folder: Path) -> str:
    return str(write_tar(folder / "s-000.tar", {"a/7.png": png()[:40], "a/7.txt": b"x", "b.png": png(), "b.txt": b"y"}))


def mixed_column_types(folder: Path) -> str:
    (folder / "0.png").write_bytes(png())
    lines = [{"image": "0.png", "text": "words"}, {"image": "0.png", "text": 5}, {"image": 7, "text": ["a", "b"]}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder / "rows.jsonl")


def missing_columns(folder: Path) -> str:
    (folder / "rows.csv").write_text("url,alt\nhttps://x/1.png,words\n")
    return str(folder / "rows.csv")


def nul_bytes(folder: Path) -> str:
    (folder / "0.png").write_bytes(png())
    (folder / "rows.csv").write_bytes(b"image,text\n0.png,good\n0.png,wo\x00rds\n0\x00.png,words\n")
    return str(folder / "rows.csv")


def list_with_an_empty_caption(folder: Path) -> str:
    (folder / "0.png").write_bytes(png())
    table = pa.table({"image": ["0.png", "0.png"], "captions": [["one", "two"], ["three", " "]]})
    pq.write_table(table, folder / "rows.parquet")
    return str(folder / "rows.parquet")


def dataset_without_state(folder: Path) -> str:
    dataset(rows()).save_to_disk(folder / "d")
    (folder / "d" / "state.json").unlink()
    return str(folder / "d")


def broken_arrow_file(folder: Path) -> str:
    dataset(rows(40)).save_to_disk(folder / "d", num_shards=2)
    path = folder / "d" / "data-00001-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:700])
    return str(folder / "d")


def picture_column_of_numbers(folder: Path) -> str:
    made = dataset(rows()).remove_columns("image").rename_column("id", "image")
    made.save_to_disk(folder / "d")
    return str(folder / "d")


def bytes_that_are_no_picture(folder: Path) -> str:
    dataset([*rows(2), ("odd.png", b"GIF89b no", ["x"])]).save_to_disk(folder / "d")
    return str(folder / "d")


def unknown_split(folder: Path) -> str:
    import datasets

    datasets.DatasetDict({"train": dataset(rows())}).save_to_disk(folder / "d")
    return f"{folder / 'd'}@test"


def dangling_link(folder: Path) -> str:
    write_pairs(folder / "d", n=3)
    (folder / "d" / "0001.png").unlink()
    (folder / "d" / "0001.png").symlink_to(folder / "gone.png")
    return str(folder / "d")


def repeated_yaml_of_pairs(folder: Path) -> str:
    (folder / "rows.yaml").write_text("- image: 0.png\n- image: 0.png\n")
    return str(folder / "rows.yaml")


def hub_name_that_is_none(folder: Path) -> str:
    return "hf:nobody/no-such-data-set"


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (truncated_tar, "s-000.tar is truncated, damaged or no tar, near 1.png"),
        (tar_without_pictures, "s-000.tar: 0: no picture among txt"),
        (sample_without_caption, "s-000.tar: 1: no caption among png"),
        (sample_twice, "s-000.tar: 0: two files end in png"),
        (missing_shard, "001.tar; check the pattern"),
        (compressed_tar, "s.tar.gz is compressed (gzip)"),
        (broken_picture_in_a_tar, "7.png (s-000.tar: a/7): "),
        (mixed_column_types, "rows.jsonl:2: the caption is 5, not a text; rows.jsonl:3: 7 is not a path"),
        (missing_columns, "it has 'url', 'alt'; pass --image-column"),
        (nul_bytes, "rows.csv:3: the caption holds a NUL character; rows.csv:4: no such file"),
        (list_with_an_empty_caption, "rows.parquet: row 2: caption 2 of 2 is empty"),
        (dataset_without_state, "d/state.json is missing"),
        (broken_arrow_file, "data-00001-of-00002.arrow is truncated"),
        (picture_column_of_numbers, "column 'image' holds int64, not pictures or their paths"),
        (bytes_that_are_no_picture, "odd.png (d: row 3): not a picture Pillow can read"),
        (unknown_split, "has no split 'test'; pass "),
        (dangling_link, "metadata.csv:3: no such file 0001.png"),
        (repeated_yaml_of_pairs, "a table is one of .csv, .jsonl, .parquet"),
        (hub_name_that_is_none, "hf:nobody/no-such-data-set cannot be loaded ("),
    ],
)
def test_pairs_that_cannot_be_read(
    make: Callable[[Path], str],
    named: str,
    clip: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    line = refused(["gap", "--model", clip, "--data", make(tmp_path)], capsys, monkeypatch)
    assert named in line


def test_a_folder_that_cannot_be_listed_does_not_shorten_the_data(
    clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions mean nothing to root, so the system call itself is made to refuse, as it would for others."""
    for name in ("cat", "dog"):
        write_pairs(tmp_path / "classes" / name / "deep", n=3)
        (tmp_path / "classes" / name / "deep" / "metadata.csv").unlink()
    shutil.copytree(tmp_path / "classes" / "cat", tmp_path / "classes" / "cat" / "shut")
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    line = refused(["evaluate", "--model", clip, "--task", f"zero-shot:{tmp_path / 'classes'}"], capsys, monkeypatch)
    assert f"{tmp_path}/classes/cat/shut cannot be listed (Permission denied)" in line


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["data.fraction=1.5"], "data.fraction = 1.5"),
        (["data.fraction=0"], "data.fraction = 0"),
        (["data.limit=0"], "data.limit = 0"),
        (["data.train=[{spec: PAIRS, weight: 0}]"], "weight = 0"),
        (["data.train=[{spec: PAIRS, weight: 1}, {spec: PAIRS}]"], "has no weight while others have"),
        (["data.train=[{spec: PAIRS, wieght: 1}]"], "wieght"),
        (["data.train=[]"], "the recipe names no data.train"),
        (["data.limit=4"], "4 rows do not fill one batch of 8"),
        (["data.text_column=[text, second]"], "metadata.csv has no column second; it has 'file_name', 'text'"),
    ],
)
def test_settings_of_the_data_that_cannot_be(
    overrides: list[str],
    named: str,
    clip: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = write_pairs(tmp_path / "pairs", n=12)
    sets = [part for text in overrides for part in ("--set", text.replace("PAIRS", pairs))]
    given = ["--data", pairs] if "data.train" not in overrides[0] else []
    start = ["refine", "--model", clip, "--out", str(tmp_path / "run"), "--batch-size", "8", *given]
    assert named in refused([*start, *sets], capsys, monkeypatch)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_bad_rows_of_evaluation_data_count_against_the_same_limit(
    clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_pairs(tmp_path / "pairs", n=16)
    judged = write_tar(
        tmp_path / "judged.tar",
        {**{f"{i}.{end}": png(i) if end == "png" else b"word %d" % i for i in range(9) for end in ("png", "txt")}}
        | {"bad.png": b"no picture", "bad.txt": b"x", "alone.png": png()},
    )
    start = ["refine", "--model", clip, "--data", pairs, "--batch-size", "8", "--eval", f"retrieval:{judged}"]
    start += ["--set", "evaluation.resamples=200"]
    line = refused([*start, "--out", str(tmp_path / "run")], capsys, monkeypatch)
    assert "judged.tar: alone: no caption among png" in line
    monkeypatch.setattr(sys, "argv", ["modalign", *start, "--out", str(tmp_path / "ok"), "--max-bad", "1"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, 3), capsys.readouterr().err
    record = json.loads((tmp_path / "ok" / "evaluation.json").read_text())
    assert record["before"]["tasks"][0]["protocol"]["left_out"] == 1


def test_other_pictures_under_the_same_names_are_noticed_on_a_resume(
    clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, judged = write_pairs(tmp_path / "pairs", n=20), write_pairs(tmp_path / "judged", n=8)
    start = ["refine", "--model", clip, "--data", pairs, "--batch-size", "8", "--eval", f"retrieval:{judged}"]
    start += ["--set", "evaluation.resamples=200", "--set", "data.validation=0.3", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["modalign", *start])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (0, 3), capsys.readouterr().err
    (tmp_path / "run" / "report.html").unlink()  # as a kill just before the end leaves it
    changed = tmp_path / "judged" / "0003.png"
    kept, stat = changed.read_bytes(), changed.stat()
    changed.write_bytes(png(7))
    assert "the evaluation data changed since" in refused([*start, "--resume"], capsys, monkeypatch)
    changed.write_bytes(kept)
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    held = modalign.pairs(pairs).split_off(0.3, 0)[1].paths[0]
    Path(str(held)).write_bytes(png(7))
    assert "the held-out pictures changed since" in refused([*start, "--resume"], capsys, monkeypatch)
