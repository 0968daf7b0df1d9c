from __future__ import annotations

import os
from pathlib import Path

import pytest

from modalign.data.files import FileIndex, files_below

from .conftest import Draw


def test_an_index_answers_for_files_and_links_but_not_for_folders(tmp_path: Path, draw: Draw) -> None:
    draw("a.png", "folder.png/b.png")
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "dead.png").symlink_to("gone.png")
    index = FileIndex()
    names = ["a.png", "link.png", "folder.png/b.png", "folder.png", "dead.png", "gone.png", "no/folder.png"]
    assert [str(tmp_path / name) in index for name in names] == [True, True, True, False, False, False, False]


def test_a_listing_answers_for_a_whole_folder(tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(*(f"{i}.png" for i in range(20)))
    asked: list[str] = []
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path) or False)
    index = FileIndex()
    assert all(str(tmp_path / f"{i}.png") in index for i in range(20))
    assert asked == []


def test_a_walk_ends_where_a_link_leads_back_up(tmp_path: Path, draw: Draw) -> None:
    draw("b/2.png", "a/1.png", ".git/3.png", "__MACOSX/4.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    found = [(folder.relative_to(tmp_path).as_posix(), names) for folder, names in files_below(tmp_path)]
    assert found == [(".", []), ("a", ["1.png"]), ("b", ["2.png"])]
