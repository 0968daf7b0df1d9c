from __future__ import annotations

import io
import json
import logging
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from modalign.data.images import decode
from modalign.data.sources import images, labelled, pairs
from modalign.errors import DataError

from .packing import write_tar


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def read(spec: object, **options: object) -> list[tuple[str, tuple[str, ...], str]]:
    rows = pairs(spec, **options).rows  # type: ignore[arg-type]
    return [(row.path.name, row.captions, row.where) for row in rows]


def test_samples_are_grouped_by_name_wherever_their_files_lie(tmp_path: Path) -> None:
    files = {
        "./a/001.JPG": png(1),
        "a/001.txt": b"one\n",
        "a/002.png": png(2),
        "a/003.webp": png(3),
        "a/002.json": json.dumps({"caption": ["two", "zwei"], "width": 4}).encode(),
        "a/003.caption": b" three",
        "a/003.seg.png": png(9),
        "__meta__": b"{}",
    }
    tar = write_tar(tmp_path / "s.tar", files)
    assert read(tar) == [
        ("001.JPG", ("one",), "s.tar: a/001"),
        ("002.png", ("two", "zwei"), "s.tar: a/002"),
        ("003.webp", (" three",), "s.tar: a/003"),
    ]
    data = pairs(tar)
    assert [decode(path).getpixel((0, 0))[0] for path in data.paths] == [1, 2, 3]
    with tarfile.open(tar) as archive:  # the places are those that tarfile itself would read from
        assert data.paths[1].read() == archive.extractfile("a/002.png").read()  # type: ignore[union-attr]


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (*range(9, 12), 2):
        write_tar(tmp_path / f"s-{number}.tar", {f"{number}.png": png(number), f"{number}.txt": b"x"})
        write_tar(tmp_path / "sub" / f"{number:03d}.tar", {f"{number}.png": png(number), f"{number}.txt": b"x"})
    monkeypatch.chdir(tmp_path)

    def names(spec: str) -> list[str]:
        return [row.path.name for row in pairs(spec).rows]

    assert names("s-{9..11}.tar") == ["9.png", "10.png", "11.png"]
    assert names("sub/{009,002}.tar") == names("sub/009.tar::sub/002.tar") == ["9.png", "2.png"]
    assert names("wds:sub") == names("s-*.tar") == ["2.png", "9.png", "10.png", "11.png"]
    assert names("wds:.@sub") == names("wds:sub") and pairs("wds:.@sub").split == "sub"
    assert pairs("{s-2,sub/002}.tar").wheres == ["s-2.tar: 2", "sub/002.tar: 2"]
    for spec, named in [
        ("s-{7..9}.tar", r"no such file .*s-7\.tar"),
        ("t-*.tar", r"no file matches .*t-\*\.tar"),
        ("wds:.@nothing", "no such file"),
        ("wds:pipe:cat s-9.tar", r"pipe:cat s-9\.tar is not on this machine"),
        ("s3://bucket/s-{0..9}.tar", "is not on this machine"),
    ]:
        with pytest.raises(DataError, match=named):
            pairs(spec)


def test_bad_samples_are_named_and_limited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [
        ("0.png", png()),
        ("0.txt", b"good"),
        ("1.txt", b"no picture"),
        ("2.png", png()),
        ("3.png", png()),
        ("3.jpg", png()),
        ("3.txt", b"two pictures"),
        ("4.png", png()),
        ("4.txt", b"one"),
        ("4.txt", b"other"),
        ("5.png", png()),
        ("5.json", b"{"),
        ("6.png", png()),
        ("6.json", b'{"caption": ["kept", ""]}'),
        ("7.png", png()),
        ("7.txt", b"caf\xe9"),
        (".DS_Store", b""),
    ]
    write_tar(tmp_path / "s.tar", files)
    with pytest.raises(DataError) as caught:
        pairs(tmp_path / "s.tar")
    text = str(caught.value)
    assert text.startswith("7 of 8 rows of ")
    for part in [
        "s.tar: 1: no picture among txt;",
        "s.tar: 2: no caption among png;",
        "s.tar: 3: several pictures (png, jpg); name one ending with --image-column",
        "s.tar: 4: two files end in txt;",
        "s.tar: 5: its json cannot be read",
        "s.tar: 6: caption 2 of 2 is empty;",
        "s.tar: 7: the caption is not UTF-8;",
    ]:
        assert part in text.replace("; fix", ";; fix"), part
    with caplog.at_level(logging.WARNING, "modalign"):
        assert [row[1] for row in read(tmp_path / "s.tar", max_bad=7)] == [("good",), ("kept",)]
    assert "1 files that are named as no sample are left out: .DS_Store" in caplog.text


def test_named_endings_and_fields(tmp_path: Path) -> None:
    files = {
        "0.png": png(1),
        "0.jpg": png(2),
        "0.txt": b"txt",
        "0.long.txt": b"long",
        "0.json": b'{"alt": "field", "caption": "json"}',
    }
    tar = write_tar(tmp_path / "s.tar", files)
    assert read(tar, image_column="jpg") == [("0.jpg", ("txt",), "s.tar: 0")]
    assert read(tar, image_column="png", text_column="alt")[0][:2] == ("0.png", ("field",))
    assert read(tar, image_column="png", text_column=["long.txt", "alt", "caption"])[0][1] == ("long", "field", "json")
    with pytest.raises(DataError, match=r"s\.tar: 0: no gone among png, jpg"):
        pairs(tar, image_column="png", text_column="gone")


def test_labels_with_and_without_listed_names(tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(3)} | {f"{i}.cls": label for i, label in enumerate([b"2", b"0", b"2\n"])}
    write_tar(tmp_path / "plain" / "0.tar", files)
    data = labelled(tmp_path / "plain" / "0.tar")
    assert data.class_names == ("0", "2") and data.labels.tolist() == [1, 0, 1]
    write_tar(tmp_path / "bench" / "test" / "0.tar", files)  # CLIP_benchmark's layout
    (tmp_path / "bench" / "test" / "nshards.txt").write_text("1")
    (tmp_path / "bench" / "classnames.txt").write_text("ant\nbee\nfur seal\n")
    data = labelled(f"wds:{tmp_path / 'bench'}@test")
    assert data.class_names == ("ant", "bee", "fur seal") and data.labels.tolist() == [2, 0, 2]
    (tmp_path / "bench" / "classnames.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match=r"0\.tar: 0: the label 2 is no number of one of the 2 classes"):
        labelled(f"wds:{tmp_path / 'bench'}@test")
    assert len(images(tmp_path / "plain" / "0.tar")) == 3  # no caption is needed


def test_clip_benchmark_writes_a_caption_a_line(tmp_path: Path) -> None:
    write_tar(tmp_path / "test" / "0.tar", {"0.webp": png(), "0.txt": b"one\ntwo"})
    assert pairs(f"wds:{tmp_path}@test").captions == ["one\ntwo"]
    (tmp_path / "test" / "nshards.txt").write_text("1")
    assert pairs(f"wds:{tmp_path}@test").captions == ["one", "two"]


@pytest.mark.parametrize("cut", [100, 512 + 30, 1024 + 200, 3 * 512, -10240, -10240 - 100])
def test_a_tar_cut_anywhere_is_refused(tmp_path: Path, cut: int) -> None:
    """Also between two members, where tarfile itself sees nothing wrong."""
    whole = write_tar(tmp_path / "whole.tar", {"0.txt": b"x" * 600, "0.png": png(), "1.png": png(), "1.txt": b"y"})
    content = whole.read_bytes().rstrip(b"\0")
    content += b"\0" * (-len(content) % 512 + 10240)
    (tmp_path / "cut.tar").write_bytes(content[:cut])
    with pytest.raises(DataError, match=r"cut\.tar is truncated, damaged or no tar, near") as caught:
        pairs(tmp_path / "cut.tar", max_bad=None)
    assert "\n" not in str(caught.value)
    (tmp_path / "cut.tar").write_bytes(content)
    assert len(pairs(tmp_path / "cut.tar")) == 2


def test_joined_and_compressed_tars_are_refused(tmp_path: Path) -> None:
    import gzip

    one = write_tar(tmp_path / "one.tar", {"0.png": png(), "0.txt": b"x"}).read_bytes()
    two = write_tar(tmp_path / "two.tar", {"1.png": png(), "1.txt": b"x"}).read_bytes()
    (tmp_path / "joined.tar").write_bytes(one + two)
    with pytest.raises(DataError, match="something follows it"):
        pairs(tmp_path / "joined.tar")
    for name in ("zipped.tar", "zipped.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(one))
        with pytest.raises(DataError, match=rf"{name} is compressed \(gzip\).*uncompress it"):
            pairs(tmp_path / name)
    (tmp_path / "text.tar").write_text("no tar at all" * 100)
    with pytest.raises(DataError, match=r"text\.tar is truncated, damaged or no tar"):
        pairs(tmp_path / "text.tar")


def test_a_link_inside_a_tar_is_named(tmp_path: Path) -> None:
    """A hard link has no bytes of its own: it would vanish from the data without a word."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"b\.png is a link to a\.png.*--hard-dereference"):
        pairs(tmp_path / "a.tar")
