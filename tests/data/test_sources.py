from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modalign.data.sources import images, labelled, pairs
from modalign.errors import DataError

from .conftest import Draw


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def found(folder: Path, **options: object) -> list[tuple[str, tuple[str, ...], str]]:
    rows = pairs(folder, **options).rows  # type: ignore[arg-type]
    return [(row.path.relative_to(folder).as_posix(), row.captions, row.where) for row in rows]


def test_a_metadata_csv_as_spreadsheets_write_it(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", "sub/b.png", "c d.png")
    lines = [
        "tags,file_name,text",
        'x,a.png," two, ""parts""\r\non two lines "',
        "",
        ",sub/b.png,über 猫",
        "y,c d.png,last",
    ]
    write(tmp_path / "metadata.csv", b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert found(tmp_path) == [
        ("a.png", (' two, "parts"\r\non two lines ',), "metadata.csv:2"),
        ("sub/b.png", ("über 猫",), "metadata.csv:5"),
        ("c d.png", ("last",), "metadata.csv:6"),
    ]


def test_a_metadata_file_in_each_split_folder(tmp_path: Path, draw: Draw, caplog: pytest.LogCaptureFixture) -> None:
    draw("train/a.png", "train/deep/b.png", "test/a.png", ".hidden/a.png")
    write(tmp_path / "train" / "metadata.csv", "file_name,text\na.png,one\ndeep/b.png,two\n")
    write(tmp_path / "test" / "metadata.csv", "file_name,text\na.png,three\n")
    write(tmp_path / ".hidden" / "metadata.csv", "file_name,text\na.png,four\n")
    with caplog.at_level(logging.WARNING, "modalign"):
        assert found(tmp_path) == [
            ("test/a.png", ("three",), "test/metadata.csv:2"),
            ("train/a.png", ("one",), "train/metadata.csv:2"),
            ("train/deep/b.png", ("two",), "train/metadata.csv:3"),
        ]
    assert "2 metadata files as one" in caplog.text  # training on the test split would go unnoticed otherwise
    assert [row.where for row in pairs(tmp_path / "train").rows] == ["metadata.csv:2", "metadata.csv:3"]
    write(tmp_path / "more" / "metadata.jsonl", "")
    with pytest.raises(DataError, match="several kinds"):
        pairs(tmp_path)


def test_absolute_paths_upper_folders_and_backslashes(tmp_path: Path, draw: Draw) -> None:
    draw("pictures/a.png")
    names = [
        str(tmp_path / "pictures" / "a.png"),
        "../pictures/a.png",
        "..\\\\pictures\\\\a.png",
        "no/../../pictures/./a.png",
    ]
    write(tmp_path / "rows" / "metadata.jsonl", "\n".join(f'{{"file_name": "{name}", "text": "x"}}' for name in names))
    data = pairs(tmp_path / "rows")
    assert len(data) == 4
    assert data.image_ids.tolist() == [0, 0, 0, 0]


def test_several_captions_in_a_cell(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", "b.png", "c.png")
    rows = [["one", "two"], ["three"], ["four", "five", "six"]]
    names = ["a.png", "b.png", "c.png"]
    lines = [json.dumps({"file_name": name, "text": row}) for name, row in zip(names, rows, strict=True)]
    write(tmp_path / "metadata.jsonl", "\n".join(lines))
    write(
        tmp_path / "texts.jsonl",
        "\n".join(json.dumps({"image": n, "captions": json.dumps(r)}) for n, r in zip(names, rows, strict=True)),
    )
    pq.write_table(pa.table({"path": names, "caption": rows, "score": [1, 2, 3]}), tmp_path / "lists.parquet")
    for spec in (tmp_path, tmp_path / "texts.jsonl", tmp_path / "lists.parquet"):
        data = pairs(spec)
        assert data.captions == ["one", "two", "three", "four", "five", "six"]
        assert data.caption_counts.tolist() == [2, 1, 3]
    assert data.rows[2].where == "lists.parquet: row 3"


@pytest.mark.parametrize("column", ["file_name", "image", "image_path", "path", "filepath", "filename"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_tables_with_the_known_column_names(tmp_path: Path, draw: Draw, column: str, suffix: str) -> None:
    draw("pictures/a.png")
    table = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        write(table, f"title,{column}\nwords,pictures/a.png\n")
    elif suffix == "jsonl":
        write(table, json.dumps({"title": "words", column: "pictures/a.png"}))
    else:
        pq.write_table(pa.table({"title": ["words"], column: ["pictures/a.png"]}), table)
    assert found_in(table) == [("a.png", ("words",))]
    assert len(images(table)) == 1


def found_in(table: Path, **columns: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(row.path.name, row.captions) for row in pairs(table, **columns).rows]


def test_given_columns_and_the_nearer_of_two_folders(
    tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw("table/a.png", "here/a.png", "here/b.png")
    table = write(tmp_path / "table" / "rows.CSV", "text,img,alt\nno,a.png,first\nno,b.png,second\n")
    monkeypatch.chdir(tmp_path / "here")
    data = pairs(table, image_column="img", text_column="alt")
    assert data.captions == ["first", "second"]
    assert [path.parent.name for path in data.paths] == ["table", "here"]
    with pytest.raises(DataError, match=r"no column file_name or image or.*'text', 'img', 'alt'.*image_column"):
        pairs(table)
    with pytest.raises(DataError, match=r"no column words"):
        pairs(table, image_column="img", text_column="words")


BAD_CSV = """file_name,text
a.png,good
gone.png,words
a.png,
a.png,"  "
a.png,NaN
,words
a.png,words,and more
gone.png,
a.png
"""


def test_bad_rows_are_counted_named_and_limited(tmp_path: Path, draw: Draw, caplog: pytest.LogCaptureFixture) -> None:
    draw("a.png")
    write(tmp_path / "metadata.csv", BAD_CSV)
    with pytest.raises(DataError) as caught:
        pairs(tmp_path)
    text = str(caught.value)
    assert text.startswith("8 of 9 rows of ")
    for part in [
        "metadata.csv:3: no such file gone.png;",
        "metadata.csv:4: the caption is empty;",
        "metadata.csv:5: the caption is empty;",
        "metadata.csv:6: the caption is empty;",
        "metadata.csv:7: names no file;",
        "metadata.csv:8: 3 cells under 2 columns",
        "metadata.csv:9: no such file gone.png; the caption is empty;",
        "metadata.csv:10: the caption is empty;",
    ]:
        assert part in text.replace("; fix", ";; fix")
    with pytest.raises(DataError, match="limit --max-bad 7"):
        pairs(tmp_path, max_bad=7)
    for limit in (8, None):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "modalign"):
            assert [row[1] for row in found(tmp_path, max_bad=limit)] == [("good",)]
        assert len(caplog.records) == 8


def test_bad_lines_of_jsonl(tmp_path: Path, draw: Draw) -> None:
    draw("a.png")
    lines = [
        b'{"file_name": "a.png", "text": "good"}',
        b'{"file_name": "a.png", "text": ',
        b"",
        b'["a.png", "words"]',
        b'{"file_name": "a.png", "text": NaN}',
        b'{"file_name": "a.png", "text": null}',
        b'{"file_name": "a.png"}',
        b'{"file_name": "a.png", "text": 5}',
        b'{"file_name": "a.png", "text": "caf\xe9"}',
        b'{"file_name": {"bytes": ""}, "text": "words"}',
        b'{"file_name": "a.png", "text": []}',
        '{"file_name": "a.png", "text": "one\u2028line"}'.encode(),
        b'{"file_name": "a.png", "text": ["kept", "", "also"]}',
    ]
    write(tmp_path / "metadata.jsonl", b"\n".join(lines))
    with pytest.raises(DataError) as caught:
        pairs(tmp_path)
    text = str(caught.value)
    assert text.startswith("10 of 12 rows of ")
    for number, reason in [
        (2, "not JSON"),
        (4, "a JSON list"),
        (5, "the caption is empty"),
        (6, "the caption is empty"),
    ]:
        assert f"metadata.jsonl:{number}: {reason}" in text
    assert "metadata.jsonl:8: the caption is 5, not a text" in text
    assert "metadata.jsonl:9: the caption is not UTF-8" in text
    assert "metadata.jsonl:13: caption 2 of 3 is empty" in text
    assert pairs(tmp_path, max_bad=10).captions == ["good", "one\u2028line", "kept", "also"]


def test_a_quote_never_closed_does_not_swallow_the_rest(tmp_path: Path, draw: Draw) -> None:
    draw("a.png")
    write(tmp_path / "metadata.csv", 'file_name,text\na.png,one\na.png,"two\na.png,three\na.png,four\n')
    with pytest.raises(DataError, match=r"quote.*metadata\.csv:3 is never closed"):
        pairs(tmp_path, max_bad=None)
    write(tmp_path / "metadata.csv", 'file_name,"text\na.png,one\n')
    with pytest.raises(DataError, match="quote opened in the first line is never closed"):
        pairs(tmp_path)


def test_a_caption_longer_than_the_csv_modules_limit(tmp_path: Path, draw: Draw) -> None:
    draw("a.png")
    write(tmp_path / "metadata.csv", f"file_name,text\na.png,{'x' * 200_000}\n")
    assert len(pairs(tmp_path).captions[0]) == 200_000


def test_a_parquet_that_is_none(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", "no parquet")
    with pytest.raises(DataError, match=r"b\.parquet cannot be read as parquet"):
        pairs(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("coko:x@val2017", "coko:x@val2017: no such file or folder.*coco:<root>@<split>"),
        ("empty", "metadata.csv, metadata.jsonl, metadata.parquet"),
        ("notes.txt", r"notes\.txt.*\.csv, \.jsonl, \.parquet"),
        ("blank.csv", "blank.csv is empty"),
        ("header.csv", "holds no pair"),
        ("blank.jsonl", "it has no columns"),
        ("utf16.csv", r"utf16\.csv is not UTF-8"),
    ],
)
def test_specs_that_name_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, named: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "notes.txt", "x")
    write(tmp_path / "blank.csv", "\n\n")
    write(tmp_path / "header.csv", "file_name,text\n")
    write(tmp_path / "blank.jsonl", "")
    write(tmp_path / "utf16.csv", "file_name,text\n".encode("utf-16"))
    with pytest.raises(DataError, match=named) as caught:
        pairs(spec)
    assert "\n" not in str(caught.value)


# ---- images and labels --------------------------------------------------------------------------------------


def test_images_of_a_folder_and_of_pairs(tmp_path: Path, draw: Draw, caplog: pytest.LogCaptureFixture) -> None:
    draw("b/2.PNG", "b/1.jpg", "a/deep/3.webp", ".hidden/4.png", "a/._3.png")
    write(tmp_path / "a" / "notes.txt", "x")
    with caplog.at_level(logging.INFO, "modalign"):
        assert [row.where for row in images(tmp_path).rows] == ["a/deep/3.webp", "b/1.jpg", "b/2.PNG"]
    assert "2 files that are no pictures are left out (1 of them hidden): a/notes.txt" in caplog.text
    table = write(tmp_path / "rows.csv", "image\nb/1.jpg\nb/2.PNG\na/../b/1.jpg\n")
    data = images(table)  # no caption column is needed; a picture named twice is one picture
    assert [row.where for row in data.rows] == ["rows.csv:2", "rows.csv:3"]
    assert images(tmp_path / "a" / "deep").paths == [tmp_path / "a" / "deep" / "3.webp"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        images(tmp_path / "none")


def test_class_folders_are_numbered_as_torchvision_numbers_them(
    tmp_path: Path, draw: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    from torchvision.datasets import ImageFolder

    draw("sea_lion/1.png", "Zebra/2.JPG", "ape/x/3.webp", "ape/2.png", "ape/10.png")
    write(tmp_path / "ape" / "notes.txt", "x")
    write(tmp_path / "README.md", "x")
    reference = ImageFolder(str(tmp_path))
    draw("loose.png")
    with caplog.at_level(logging.INFO, "modalign"):
        data = labelled(tmp_path)
    assert data.class_names == ("Zebra", "ape", "sea lion")
    expected = {(Path(path), label) for path, label in reference.samples}
    assert {(row.path, row.label) for row in data.rows} == expected
    assert len(data) == 5
    assert [row.where for row in data.rows][:2] == ["Zebra/2.JPG", "ape/10.png"]
    assert "2 files that are no pictures" in caplog.text and "loose.png" in caplog.text


def test_an_empty_class_folder_would_shift_the_classes(tmp_path: Path, draw: Draw) -> None:
    draw("a/1.png")
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    with pytest.raises(DataError, match="no picture in class folder b;"):
        labelled(tmp_path)


def test_labels_of_a_table(tmp_path: Path, draw: Draw, caplog: pytest.LogCaptureFixture) -> None:
    draw("a.png", "b.png", "c.png")
    lines = [
        "file_name,text,label,kind",
        "a.png,x,red,2",
        "gone.png,x,,1",
        "b.png,x, blue ,1",
        "c.png,x,red,10",
        "c.png,,nan,",
    ]
    write(tmp_path / "metadata.csv", "\n".join(lines))
    with caplog.at_level(logging.INFO, "modalign"):
        data = labelled(tmp_path)
    assert data.class_names == ("blue", "red")
    assert data.labels.tolist() == [1, 0, 1]
    assert data.take([2, 1]).labels.tolist() == [1, 0]
    assert "2 rows carry no label" in caplog.text
    with pytest.raises(DataError, match=r"metadata\.csv:3: no such file gone\.png"):
        labelled(tmp_path, label_column="kind")
    assert labelled(tmp_path, label_column="kind", max_bad=1).class_names == ("1", "10", "2")
    with pytest.raises(
        DataError, match=r"no column category; it has 'file_name', 'text', 'label', 'kind'.*label_column"
    ):
        labelled(tmp_path, label_column="category")


def test_whole_number_labels_keep_their_digits_beside_empty_cells(tmp_path: Path, draw: Draw) -> None:
    draw("a.png")
    table = pa.table({"image": ["a.png"] * 3, "label": pa.array([3.0, None, float("nan")])})
    pq.write_table(table, tmp_path / "a.parquet")
    assert labelled(tmp_path / "a.parquet").class_names == ("3",)


def test_captions_are_no_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="flickr30k has captions, no class labels"):
        labelled(f"flickr30k:{tmp_path}@test")


@pytest.mark.parametrize(
    ("read", "option"),
    [
        (lambda spec: pairs(spec, image_column="x"), "--image-column"),
        (lambda spec: pairs(spec, text_column="x"), "--text-column"),
        (lambda spec: images(spec, image_column="x"), "--image-column"),
    ],
)
@pytest.mark.parametrize("spec", ["demo", "coco:{}@val2017", "flickr30k:{}@test"])
def test_a_column_of_a_source_without_columns_is_refused(
    tmp_path: Path, read: Callable[[str], object], option: str, spec: str
) -> None:
    with pytest.raises(DataError) as told:
        read(spec.format(tmp_path))
    assert str(told.value).startswith(f"{spec.format(tmp_path)} has no columns, so {option}")


def test_a_column_of_class_folders_is_refused_and_one_of_a_table_is_not(tmp_path: Path, draw: Draw) -> None:
    draw("cat/a.png", "dog/b.png")
    for options in ({"label_column": "kind"}, {"image_column": "file"}):
        with pytest.raises(DataError, match=f"{tmp_path} has no columns, so --{next(iter(options))[:5]}"):
            labelled(tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has no columns"):
        images(tmp_path, image_column="file")
    write(tmp_path / "t.csv", "file,kind\ncat/a.png,x\ndog/b.png,y\n")
    assert labelled(tmp_path / "t.csv", image_column="file", label_column="kind").class_names == ("x", "y")


def test_two_columns_of_one_name_are_refused_where_they_are_read(tmp_path: Path, draw: Draw) -> None:
    draw("a.png")
    write(tmp_path / "t.csv", "file_name,text,text,tag,tag\na.png,one,two,x,y\n")
    with pytest.raises(DataError, match=r"t\.csv has 2 columns 'text'; rename all but one"):
        pairs(tmp_path / "t.csv")
    assert len(images(tmp_path / "t.csv")) == 1


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_bad_rows_are_named_in_the_order_of_the_file(
    tmp_path: Path, draw: Draw, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    draw("a.png")
    if ending == "csv":
        text = "file_name,text\nmissing.png,one\na.png,two,three\na.png, \na.png,fine\na.png,x,y\n"
        lines = [2, 3, 4, 6]
    else:
        rows = [{"file_name": "missing.png", "text": "one"}, 5, {"file_name": "a.png", "text": ""}]
        rows += [{"file_name": "a.png", "text": "fine"}, 7]
        text, lines = "".join(json.dumps(row) + "\n" for row in rows), [1, 2, 3, 5]
    write(tmp_path / f"t.{ending}", text)
    assert len(pairs(tmp_path / f"t.{ending}", max_bad=None)) == 1
    told = [record.message.split(":")[2] for record in caplog.records if "left out" in record.message]
    assert told == list(map(str, lines))


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("", "the data spec is empty"),
        (" ", "the data spec is empty"),
        ("hf:", "write hf:<owner>/<name>"),
        ("hf:csv@train", "hf:csv is a way of reading files"),
        ("wds:", "names no tar file"),
        ("wds::", "names no tar file"),
    ],
)
def test_a_spec_that_names_nothing_is_refused_in_a_line(spec: str, part: str) -> None:
    for read in (pairs, images, labelled):
        with pytest.raises(DataError) as told:
            read(spec)
        assert part in str(told.value) and "\n" not in str(told.value)
