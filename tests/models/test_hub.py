from __future__ import annotations

import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path

import huggingface_hub.constants
import pytest

from modalign.errors import ModelError
from modalign.models import load
from modalign.models.hub import asking_hub, commit_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds one transformers CLIP, and no network."""
    root = tmp_path / "hub" / "models--someone--clip"
    shutil.copytree(folders["hf"], root / "snapshots" / COMMIT)
    for name in ("main", "v1"):
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / name).write_text(COMMIT)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr("modalign.models.hub._reachable", lambda endpoint: False)
    return root / "snapshots" / COMMIT


@pytest.mark.parametrize("spec", ["hf:someone/clip", "hf:someone/clip@v1", f"hf:someone/clip@{COMMIT}"])
def test_a_cached_model_loads_without_a_network(
    cache: Path, folders: dict[str, Path], spec: str, tmp_path: Path
) -> None:
    model = load(spec)
    assert model.fingerprint == load(folders["hf"]).fingerprint
    assert model.revision == COMMIT
    model.save(tmp_path / "saved")
    record = json.loads((tmp_path / "saved" / "modalign.json").read_text())
    assert record["revision"] == COMMIT and record["spec"] == spec


def test_an_unknown_revision_is_refused(cache: Path) -> None:
    with pytest.raises(ModelError, match="someone/clip@v2"):
        load("hf:someone/clip@v2")


def test_code_in_a_repository_is_never_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even after a question on the terminal."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    config = json.loads((cache / "tokenizer_config.json").read_text())
    odd = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
    (cache / "tokenizer_config.json").write_text(json.dumps(config | odd))
    (cache / "evil.py").write_text("raise SystemExit('ran')")
    with suppress(ModelError):  # transformers may also know a class of its own that will do
        load("hf:someone/clip")


def test_library_settings_are_put_back() -> None:
    before = huggingface_hub.constants.HF_HUB_OFFLINE, logging.root.level, list(logging.root.handlers)
    told = "cannot fetch a thing: no; check the name and the network, or go"
    with pytest.raises(ModelError, match=told), asking_hub("a thing", "go"):
        raise ValueError("no.\nmore")
    assert (huggingface_hub.constants.HF_HUB_OFFLINE, logging.root.level, list(logging.root.handlers)) == before


def test_commit_of_a_cache_path() -> None:
    assert commit_of(f"cache/hub/models--x--y/snapshots/{COMMIT}/config.json") == COMMIT
    assert commit_of("cache/snapshots/latest/config.json") is None
