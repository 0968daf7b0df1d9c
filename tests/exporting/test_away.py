from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from modalign.exporting.away import SUFFIX, moved_away, restore, source_paths


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("kept")
    return tmp_path / "model"


def intact(source: Path) -> bool:
    return (source / "weights").read_text() == "kept" and [p.name for p in source.parent.iterdir()] == ["model"]


def test_away_inside_and_back_after(source: Path) -> None:
    with moved_away([source]) as told:
        assert not source.exists() and told == {source: "moved away"}
    assert intact(source)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_back_whatever_happens(source: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), moved_away([source]):
        raise error
    assert intact(source)


def test_back_when_terminated(source: Path) -> None:
    with pytest.raises(SystemExit), moved_away([source]):
        signal.raise_signal(signal.SIGTERM)
    assert intact(source) and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_back_after_a_power_cut(source: Path) -> None:
    source.rename(source.with_name("model" + SUFFIX))
    assert source_paths(str(source)) == [source]
    restore(source_paths(str(source)))
    assert intact(source)


def test_something_new_in_its_place_is_not_overwritten(source: Path) -> None:
    with moved_away([source]):
        source.mkdir()
    assert list(source.iterdir()) == [] and (source.with_name("model" + SUFFIX) / "weights").exists()


def test_what_cannot_be_renamed_stays(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with moved_away([source]) as told:
        assert source.exists() and told == {source: "left in place: Permission denied"}


def test_the_running_python_stays(tmp_path: Path) -> None:
    package = Path(os.__file__).parent
    places = [package, Path(sys.prefix), Path.cwd().anchor and Path(Path.cwd().anchor)]
    with moved_away([place for place in places if place]) as told:
        assert all(Path(place).exists() for place in told) and len(told) == 3
        assert all("this Python" in how for how in told.values())


def test_which_paths_a_spec_names(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "w.pt"
    file.write_text("")
    (tmp_path / "demo").mkdir()
    (tmp_path / "ViT" / "tag").mkdir(parents=True)
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model" / "modalign.json").write_text("{}")
    for spec, expected in (
        ("model", [source]),
        (f"open_clip:local-dir:{source}", [source]),
        (f"open_clip:ViT-B-32@{file}", [file]),
        ("open_clip:ViT/tag", []),
        ("hf:model", [source]),
        ("hf:someone/model@main", []),
        ("demo", []),
        ("demo:1", []),
        ("run", [run / "model"]),
        ("open_clip:ViT-B-32/openai", []),
    ):
        assert source_paths(spec) == expected, spec
    text = {"hf_model_name": str(tmp_path / "demo"), "hf_tokenizer_name": "."}
    assert source_paths("model", {"text_cfg": text}) == [tmp_path / "demo", source]
    assert source_paths("model", {"text_cfg": {"hf_model_name": str(source / "bert")}}) == [source]


def test_a_revision_is_no_path_and_a_tower_file_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("v1", "base"):
        (tmp_path / name).mkdir()
    for name in ("w.pt", "t.pt"):
        (tmp_path / name).touch()
    assert source_paths("open_clip:hf-hub:owner/name@v1") == []
    assert source_paths("open_clip:ViT-B-32@w.pt+visual@t.pt") == [tmp_path / "t.pt", tmp_path / "w.pt"]
    assert source_paths("open_clip:local-dir:base+visual@t.pt") == [tmp_path / "base", tmp_path / "t.pt"]
    assert source_paths("open_clip:ViT-B-32/openai+visual@t.pt") == [tmp_path / "t.pt"]
    assert source_paths("demo+visual@t.pt") == [tmp_path / "t.pt"]
