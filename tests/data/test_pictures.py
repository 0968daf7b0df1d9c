from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from modalign.data.images import decode
from modalign.data.pictures import (
    OPEN_CONTAINERS,
    Container,
    Member,
    files_identity,
    from_json,
    real_paths,
    relative_names,
    to_json,
)
from modalign.errors import DataError

SRC = Path(__file__).resolve().parents[2] / "src"


def held(path: Path, *parts: bytes) -> list[Member]:
    """A container of these parts, end to end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts))
    container, offset, members = Container.of(path), 0, []
    for number, part in enumerate(parts):
        members.append(Member(container, f"in/{number}.png", offset, len(part)))
        offset += len(part)
    return members


def test_a_member_is_its_stretch_of_bytes_in_any_process(tmp_path: Path) -> None:
    members = held(tmp_path / "a.bin", b"one", b"", b"three")
    assert [member.read() for member in members] == [b"one", b"", b"three"]
    assert (members[0].name, str(members[0])) == ("0.png", f"{tmp_path}/a.bin/in/0.png")
    assert members[2].open().read(2) == b"th"
    read = "import pickle, sys; print([m.read() for m in pickle.load(sys.stdin.buffer)])"
    done = subprocess.run(
        [sys.executable, "-c", read],
        input=pickle.dumps(members),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(SRC)},
        check=True,
    )
    assert done.stdout.decode().strip() == "[b'one', b'', b'three']"


def test_a_changed_container_is_noticed_and_never_misread(tmp_path: Path) -> None:
    first, second = held(tmp_path / "a.bin", b"one", b"two")
    assert first.read() == b"one"
    again = held(tmp_path / "a.bin", b"other", b"bytes")
    assert [member.read() for member in again] == [b"other", b"bytes"]
    fresh = Member(Container(second.container.path, 6, 1), second.inner, 3, 3)
    with pytest.raises(DataError, match=r"a\.bin was changed since"):
        fresh.read()
    with pytest.raises(DataError, match=r"in/1\.png: cannot be read \(.*was changed since"):
        decode(fresh)


def test_open_files_stay_few(tmp_path: Path) -> None:
    containers = [held(tmp_path / f"{i}.bin", b"x")[0] for i in range(3 * OPEN_CONTAINERS)]
    opened = Path("/proc/self/fd")
    if not opened.is_dir():
        pytest.skip("needs /proc")
    before = len(list(opened.iterdir()))
    assert all(member.read() == b"x" for member in containers)
    assert len(list(opened.iterdir())) - before <= OPEN_CONTAINERS


def test_names_ignore_the_place_and_the_packing(tmp_path: Path) -> None:
    files = [tmp_path / "data" / name for name in ("more/1.png", "2.png")]
    container = Container(tmp_path / "elsewhere" / "x.tar", 1, 1)
    members = [Member(container, name, i, 1) for i, name in enumerate(("more/1.png", "2.png"))]
    for pictures in (files, members):
        assert relative_names(pictures, real_paths(pictures)) == ["more/1.png", "2.png"]


def test_one_name_in_two_containers_is_two_pictures(tmp_path: Path) -> None:
    members = [
        Member(Container(tmp_path / shard, 1, 1), name, 5, 1)
        for shard, name in (("a.tar", "1.png"), ("b.tar", "1.png"), ("b.tar", "2.png"))
    ]
    names = relative_names(members, real_paths(members))
    assert len(set(names)) == 3 and names[2] == "2.png"
    assert len(set(real_paths([*members, members[0]]))) == 3


def test_identity_changes_with_a_file_and_with_a_container(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    members = held(tmp_path / "a.bin", b"one", b"two")
    pictures = [tmp_path / "a.png", *members]
    first = files_identity(pictures)
    assert files_identity(pictures) == first
    os.utime(tmp_path / "a.png", ns=(1, 1))
    second = files_identity(pictures)
    (tmp_path / "a.bin").write_bytes(b"onetwo!")
    third = files_identity([tmp_path / "a.png", *held(tmp_path / "a.bin", b"one", b"two")])
    assert len({first, second, third}) == 3


def test_json_and_back(tmp_path: Path) -> None:
    for picture in (tmp_path / "a.png", held(tmp_path / "a.bin", b"one")[0]):
        assert from_json(to_json(picture)) == picture
    for wrong in ({"name": "x"}, 5):
        with pytest.raises(ValueError, match="names no picture"):
            from_json(wrong)  # type: ignore[arg-type]
