"""Parity with the `datasets` library, which is installed for this test only: nothing of ours imports it."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pandas as pd
import pytest

from modalign.data.sources import pairs

from .conftest import Draw

NAMES = ["a.png", "sub/b.png", "sub/deeper/c.jpg", "sub/./b.png", "a.png", "a.png", "ü.png"]
TEXTS = [
    'plain, with a comma and "quotes"',
    "two\nlines",
    "  spaces kept  ",
    "猫 🐈",
    "same line",
    "same line",
    "[not a list]",
]


def write(folder: Path, suffix: str) -> None:
    table = pd.DataFrame(
        {"extra": range(len(NAMES)), "file_name": NAMES, "text": TEXTS, "label": ["x", None] * 3 + ["y"]}
    )
    if suffix == "csv":
        table.to_csv(folder / "metadata.csv", index=False, encoding="utf-8-sig", lineterminator="\r\n")
    elif suffix == "jsonl":
        lines = [
            json.dumps({"file_name": name, "text": text, "n": 1}, ensure_ascii=False)
            for name, text in zip(NAMES, TEXTS, strict=True)
        ]
        (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    else:
        table.to_parquet(folder / "metadata.parquet")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("splits", [[""], ["train", "test"]])
def test_the_same_rows_as_datasets(tmp_path: Path, draw: Draw, suffix: str, splits: list[str]) -> None:
    root = tmp_path / "data"
    for split in splits:
        draw(*(f"data/{split}/{name}" for name in NAMES))
        write(root / split, suffix)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=str(tmp_path / "cache"))
    expected = []
    for part in loaded.values():
        part = part.cast_column("image", datasets.Image(decode=False))
        expected += [(Path(row["image"]["path"]).resolve(), row["text"]) for row in part]
    data = pairs(root)
    ours = [(row.path.resolve(), *row.captions) for row in data.rows]
    assert len(ours) == len(NAMES) * len(splits)
    if len(splits) == 1:
        assert ours == expected
    else:  # `datasets` keeps the splits apart; we read one after the other
        assert sorted(ours) == sorted(expected)


def test_what_datasets_reads_as_missing_is_an_empty_caption(tmp_path: Path, draw: Draw) -> None:
    from modalign.data.tables import CSV_MISSING

    draw("data/a.png")
    words = [*sorted(CSV_MISSING), "nothing", "None of these", "n.a.", "0"]
    lines = [f'a.png,"{word}"' for word in words]
    (tmp_path / "data" / "metadata.csv").write_text("file_name,text\n" + "\n".join(lines))
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    expected = [text for text in loaded["train"]["text"] if text is not None]
    assert pairs(tmp_path / "data", max_bad=None).captions == expected == words[-4:]
