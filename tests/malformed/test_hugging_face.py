"""Damaged and foreign transformers folders: one line each that names the file and says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import modalign
from modalign.errors import ModelError
from tests import tiny

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    tiny.tiny_hf_clip(root / "clip")
    tiny.tiny_hf_siglip(root / "siglip")
    return {name: root / name for name in ("clip", "siglip")}


def remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def edit(file: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return damage


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def text(file: str, content: str) -> Damage:
    return lambda folder: (folder / file).write_text(content) and None


def cut(file: str, keep: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(keep * len(content))])

    return damage


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages] and None


HEAD = "vision_model.head.probe"
WORDS = "text_model.embeddings.token_embedding.weight"
NORM = "vision_model.post_layernorm.weight"

CASES: dict[str, tuple[str, Damage, str]] = {
    "no configuration": ("clip", remove("config.json"), r"(holds no model: .*config\.json)"),
    "configuration is no JSON": ("clip", text("config.json", "{"), r"config\.json cannot be read as JSON.*copy"),
    "configuration is a list": ("siglip", text("config.json", "[]"), r"config\.json holds no JSON object: copy"),
    "no model_type": ("clip", edit("config.json", lambda c: c.pop("model_type")), r"config\.json names no model_type"),
    "model_type of another kind": (
        "clip",
        edit("config.json", lambda c: c.update(model_type="blip")),
        r"config\.json has model_type 'blip', and only 'clip' .* and 'siglip' .* are read: use",
    ),
    "SigLIP 2 that reads patches": (
        "siglip",
        edit("config.json", lambda c: c.update(model_type="siglip2")),
        r"config\.json has model_type 'siglip2' \(NaFlex\).*fixed resolution.*hf:google/siglip2-base-patch16-256",
    ),
    "a size that is no number": (
        "siglip",
        edit("config.json", lambda c: c["vision_config"].update(hidden_size="wide")),
        r"siglip cannot be loaded by transformers \(.*hidden_size.*\): ",
    ),
    "heads that do not divide the width": (
        "siglip",
        edit("config.json", lambda c: c["text_config"].update(num_attention_heads=3)),
        r"siglip cannot be loaded by transformers \(.*3.*\): ",
    ),
    "no pooling head": (
        "siglip",
        edit("config.json", lambda c: c["vision_config"].update(vision_use_head=False)),
        r"(vision_use_head is false|do not fit its config\.json: \d+ unexpected \(vision_model\.head)",
    ),
    "text head of another width": (
        "siglip",
        edit("config.json", lambda c: c["text_config"].update(projection_size=32)),
        r"do not fit its config\.json: 2 of another shape \(text_model\.head\.bias, text_model\.head\.weight\)",
    ),
    "weights of another width": (
        "clip",
        edit("config.json", lambda c: c["text_config"].update(vocab_size=4000)),
        r"do not fit its config\.json: 1 of another shape \(text_model\.embeddings\.token_embedding\.weight\)",
    ),
    "no weights": ("clip", remove("model.safetensors"), r"has a configuration but no weights: copy model\.safetensors"),
    "weights cut short": (
        "siglip",
        cut("model.safetensors", 0.6),
        r"model\.safetensors is damaged or cut short .*: copy",
    ),
    "weights cut in the header": (
        "clip",
        cut("model.safetensors", 0.002),
        r"model\.safetensors is damaged or cut short .*: copy",
    ),
    "weights that are no safetensors": (
        "siglip",
        text("model.safetensors", "<html>404</html>" * 9),
        r"model\.safetensors is damaged or cut short .*: copy",
    ),
    "a missing weight": (
        "siglip",
        weights(lambda w: w.pop(HEAD)),
        r"do not fit its config\.json: 1 missing \(vision_model\.head\.probe\)\. Copy the model again",
    ),
    "an unknown weight": (
        "clip",
        weights(lambda w: w.update({"vision_model.extra": torch.zeros(2)})),
        r"do not fit its config\.json: 1 unexpected \(vision_model\.extra\)",
    ),
    "a weight of another shape": (
        "clip",
        weights(lambda w: w.update({NORM: torch.zeros(7)})),
        rf"do not fit its config\.json: 1 of another shape \({NORM}\)".replace("_model.", r"_model\."),
    ),
    "no tokenizer": (
        "siglip",
        remove("spiece.model"),
        r"siglip has no tokenizer: copy the model's own into it, one of .*spiece\.model",
    ),
    "no tokenizer of CLIP": (
        "clip",
        remove("tokenizer.json"),
        r"clip has no tokenizer: copy the model's own into it, one of tokenizer\.json",
    ),
    "a tokenizer cut short": ("siglip", cut("spiece.model", 0.5), r"siglip cannot be loaded by transformers .*: copy"),
    "a shard that was not copied": (
        "clip",
        text("model.safetensors.index.json", '{"weight_map": {"logit_scale": "model-00002-of-00002.safetensors"}}'),
        r"model-00002-of-00002\.safetensors is missing, and model\.safetensors\.index\.json names it: copy",
    ),
    "a tokenizer of more ids than the model has": (
        "clip",
        both(
            edit("config.json", lambda c: c["text_config"].update(vocab_size=1000)),
            weights(lambda w: w.update({WORDS: w[WORDS][:1000].clone()})),
        ),
        r"ends or pads captions with id 2013, and its text_config\.vocab_size is 1000: copy",
    ),
    "no image processor": (
        "clip",
        remove("preprocessor_config.json"),
        r"does not say how pictures are prepared: copy preprocessor_config\.json",
    ),
    "an image processor that is no JSON": (
        "siglip",
        text("preprocessor_config.json", "size: 32"),
        r"siglip.*preprocessor_config\.json.*: copy",
    ),
    "code of its own": (
        "clip",
        edit("config.json", lambda c: c.update(auto_map={"AutoModel": "evil.Model"})),
        r"config\.json asks for code of its own \(auto_map\), which is never run",
    ),
}


@pytest.mark.parametrize(("kind", "damage", "message"), CASES.values(), ids=CASES.keys())
def test_one_line_that_names_the_file_and_what_to_do(
    whole: dict[str, Path], tmp_path: Path, kind: str, damage: Damage, message: str
) -> None:
    shutil.copytree(whole[kind], tmp_path / kind)
    damage(tmp_path / kind)
    with pytest.raises(ModelError, match=message) as told:
        modalign.load(tmp_path / kind)
    assert "\n" not in str(told.value) and str(tmp_path / kind) in str(told.value)
    assert any(word in str(told.value).lower() for word in ("copy", "use ", "a run has", "remove", "correct"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:", r"hf: names no model: write hf:<owner>/<name>"),
        ("hf:./nowhere", r"there is no folder \./nowhere: check the path after hf:"),
        ("hf:a/b/c", r"there is no folder a/b/c"),
        ("hff:a/b", r"did you mean hf:a/b\?"),
    ],
)
def test_specs_that_name_nothing(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as told:
        modalign.load(spec)
    assert "\n" not in str(told.value)


def test_a_tokenizer_package_that_is_not_installed(whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import SiglipProcessor

    def needs(*args: object, **kwargs: object) -> None:
        raise ImportError("\nSiglipTokenizer requires the SentencePiece library but it was not found.\nMore lines.")

    monkeypatch.setattr(SiglipProcessor, "from_pretrained", needs)
    with pytest.raises(ModelError, match=r"not installed: pip install sentencepiece protobuf") as told:
        modalign.load(whole["siglip"])
    assert "\n" not in str(told.value) and str(whole["siglip"]) in str(told.value)
