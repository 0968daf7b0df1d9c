from __future__ import annotations

import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file, save_file

from modalign.errors import ModelError
from modalign.models import load
from modalign.models.hub import asking_hub, commit_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "f" * 40


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


@pytest.mark.parametrize("kind", ["hf", "siglip"])
def test_every_file_comes_from_the_commit_that_was_asked_for(
    cache: Path, folders: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    """Two commits with other weights, another tokenizer and other picture settings; the tag v1 is the older."""
    root = cache.parents[1]
    shutil.rmtree(cache)
    shutil.copytree(folders[kind], root / "snapshots" / COMMIT)
    older = shutil.copytree(folders[kind], root / "snapshots" / OLDER)
    weights = load_file(older / "model.safetensors")
    save_file(weights | {"logit_scale": weights["logit_scale"] + 1}, older / "model.safetensors", {"format": "pt"})
    changes = {"preprocessor_config.json": {"image_mean": [0.1] * 3}, "tokenizer_config.json": {"model_max_length": 7}}
    for file, change in changes.items():
        content = json.loads((older / file).read_text())
        (older / file).write_text(json.dumps(content | change))
    (root / "refs" / "v1").write_text(OLDER)
    for spec, commit in (("someone/clip", COMMIT), ("someone/clip@v1", OLDER), (f"someone/clip@{OLDER}", OLDER)):
        model = load(f"hf:{spec}")
        local = load(root / "snapshots" / commit)
        assert model.revision == commit and model.fingerprint == local.fingerprint
        assert model.tokenize(["dog"]).shape == (1, 7 if commit == OLDER else 16)
        model.save(tmp_path / "saved")
        again = load(tmp_path / "saved")
        assert again.revision == commit and again.fingerprint == model.fingerprint
    assert len({load(root / "snapshots" / commit).fingerprint for commit in (COMMIT, OLDER)}) == 2


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
