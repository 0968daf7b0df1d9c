"""Damaged and foreign open_clip models and tower files, through the command line: one line, exit status 2."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modalign.cli import main
from tests import tiny

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    tiny.tiny_open_clip(root / "clip")
    tiny.tiny_custom_text(root / "custom")
    tiny.write_pairs(root / "pairs", n=4)
    return {name: root / name for name in ("clip", "custom", "pairs")}


@pytest.fixture
def refused(whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `modalign gap` on a model and returns the one line it says."""
    logger = logging.getLogger("modalign")
    level = logger.level

    def run(model: object) -> str:
        argv = ["modalign", "gap", "--model", str(model), "--data", str(whole["pairs"])]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            main()
        lines = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0].removeprefix("error: ")

    yield run
    logger.setLevel(level)


def change(**keys: Any) -> Damage:
    """Changes keys of the configuration: "text_cfg.width" and the like, None removes."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        for path, value in keys.items():
            *parents, last = path.split(".")
            place = content["model_cfg"]
            for parent in parents:
                place = place[parent]
            if value is None:
                place.pop(last)
            else:
                place[last] = value
        (folder / CONFIG).write_text(json.dumps(content))

    return damage


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


def as_pickle(*, keep: float = 1.0, code: bool = False) -> Damage:
    """The weights as open_clip's old .bin, cut short or with code in it."""

    def damage(folder: Path) -> None:
        content: dict[str, Any] = dict(load_file(folder / WEIGHTS))
        if code:
            content["extra"] = Surprise(folder / "ran")
        file = folder / "open_clip_pytorch_model.bin"
        torch.save(content, file)
        whole = file.read_bytes()
        file.write_bytes(whole[: int(keep * len(whole))])
        (folder / WEIGHTS).unlink()

    return damage


class Surprise:
    """Makes a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def cut(file: str, keep: float) -> Damage:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[: int(keep * 1_000_000)])


def put(file: str, text: str) -> Damage:
    return lambda folder: (folder / file).write_text(text)


FOLDERS: dict[str, tuple[str, Damage, list[str]]] = {
    "no weights": ("clip", lambda folder: (folder / WEIGHTS).unlink(), ["no weights", f"copy {WEIGHTS} into it"]),
    "configuration is no JSON": (
        "clip",
        put(CONFIG, "model_cfg:"),
        [CONFIG, "cannot be read as JSON", "copy the model"],
    ),
    "configuration is a list": ("clip", put(CONFIG, "[]"), [CONFIG, "no JSON object", "copy the model"]),
    "no model_cfg": ("clip", put(CONFIG, '{"embed_dim": 32}'), [CONFIG, "no model_cfg"]),
    "no text tower": ("clip", change(text_cfg=None), [CONFIG, "no model_cfg.text_cfg", "copy the whole configuration"]),
    "an unknown key": ("clip", change(**{"vision_cfg.depth": 3}), [CONFIG, "cannot be built by open_clip", "depth"]),
    "an unknown timm tower": (
        "custom",
        change(**{"vision_cfg.timm_model_name": "resnet_9999"}),
        [CONFIG, "cannot be built by open_clip", "resnet_9999"],
    ),
    "another architecture": (
        "clip",
        change(**{"vision_cfg.layers": 3, "vision_cfg.width": 128}),
        [
            WEIGHTS,
            "12 missing (visual.transformer.resblocks.2.ln_1.weight",
            "of another shape",
            "Name the architecture",
        ],
    ),
    "a missing weight": (
        "clip",
        weights(lambda w: w.pop("ln_final.bias")),
        [WEIGHTS, "1 missing (ln_final.bias)", "Name the architecture"],
    ),
    "a weight of another shape": (
        "clip",
        weights(lambda w: w.update({"visual.proj": torch.zeros(64, 48)})),
        [WEIGHTS, "visual.proj: 64×48 in the file, 64×32 in the architecture"],
    ),
    "weights cut short": ("clip", cut(WEIGHTS, 1.0), [WEIGHTS, "damaged or cut short", "copy it again"]),
    "empty weights": ("clip", cut(WEIGHTS, 0), [WEIGHTS, "damaged or cut short", "copy it again"]),
    "a pickle cut short": ("clip", as_pickle(keep=0.5), ["open_clip_pytorch_model.bin", "damaged", "copy it again"]),
    "a pickle with code": (
        "clip",
        as_pickle(code=True),
        ["open_clip_pytorch_model.bin", "can run code", "safetensors"],
    ),
    "remote code": (
        "custom",
        lambda folder: put("config.json", '{"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}}')(folder),
        ["config.json", "auto_map", "never run", "remove the key"],
    ),
    "remote code for the tokenizer": (
        "custom",
        change(**{"text_cfg.tokenizer_kwargs": {"trust_remote_code": True}}),
        [CONFIG, "remote code", "remove the key"],
    ),
    "no tokenizer": (
        "custom",
        lambda folder: (folder / "tokenizer.json").unlink(),
        ["no tokenizer", "copy", "tokenizer.json"],
    ),
    "a record of a newer format": (
        "clip",
        put("modalign.json", '{"format": 99, "family": "open_clip"}'),
        ["modalign.json", "format 99 is unknown", "install a newer modalign"],
    ),
    "a wrapped model": (
        "clip",
        put("modalign.json", '{"format": 1, "family": "wrapped", "spec": "wrapped:mine"}'),
        ["wrapped model", "modalign.wrap(…).load_weights"],
    ),
}


@pytest.mark.parametrize(("kind", "damage", "told"), FOLDERS.values(), ids=FOLDERS)
def test_a_damaged_folder(
    whole: dict[str, Path], refused: Any, tmp_path: Path, kind: str, damage: Damage, told: list[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole[kind], folder)
    damage(folder)
    line = refused(folder)
    assert str(folder) in line and all(part in line for part in told), line
    assert not (folder / "ran").exists()


def tower(edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path, Path], None]:
    """A tower file made from the base's own weights."""
    return lambda base, file: torch.save(edit(load_file(base / WEIGHTS)), file)


TOWERS: dict[str, tuple[Callable[[Path, Path], object], list[str]]] = {
    "of another width": (
        tower(
            lambda w: {n: torch.zeros([2 * size for size in t.shape]) for n, t in w.items() if n.startswith("visual.")}
        ),
        ["32 of another shape (visual.class_embedding: 128 in the file, 64", "Name the model that it was made from"],
    ),
    "of text keys only": (
        tower(lambda w: {n: t for n, t in w.items() if not n.startswith("visual.")}),
        [
            "holds no image tower, only ln_final.bias, ln_final.weight, logit_scale and 27 more",
            "pass the file that has the visual.* weights",
        ],
    ),
    "of a layer too few": (
        tower(lambda w: {n: t for n, t in w.items() if n.startswith("visual.") and "resblocks.1" not in n}),
        ["12 missing (visual.transformer.resblocks.1.ln_1.weight", "Name the model that it was made from"],
    ),
    "of something else": (
        lambda base, file: torch.save({"layer1.0.weight": torch.zeros(3)}, file),
        ["32 missing", "1 unexpected (visual.layer1.0.weight)", "Name the model that it was made from"],
    ),
    "that is no state_dict": (
        lambda base, file: torch.save(torch.zeros(3), file),
        ["holds a Tensor, not a state_dict", "save `model.state_dict()`"],
    ),
    "that is empty": (lambda base, file: file.write_bytes(b""), ["damaged or no PyTorch file", "copy it again"]),
    "that is not there": (lambda base, file: None, ["there is no file", "check the path after @"]),
}


@pytest.mark.parametrize(("make", "told"), TOWERS.values(), ids=TOWERS)
def test_a_tower_file(
    whole: dict[str, Path], refused: Any, tmp_path: Path, make: Callable[[Path, Path], object], told: list[str]
) -> None:
    make(whole["clip"], tmp_path / "tower.pt")
    line = refused(f"{whole['clip']}+visual@{tmp_path / 'tower.pt'}")
    assert str(tmp_path / "tower.pt") in line and all(part in line for part in told), line


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("open_clip:ViT-B-99/openai", ["'ViT-B-99'", "did you mean"]),
        ("open_clip:ViT-B-32/dfn2b", ["no pretrained tag 'dfn2b'", "its tags are", "open_clip:ViT-B-32@<file>"]),
        ("open_clip:ViT-B-16/dfn2b", ["trained with QuickGELU", "use open_clip:ViT-B-16-quickgelu/dfn2b"]),
        ("openclip:ViT-B-32/openai", ["did you mean open_clip:ViT-B-32/openai?"]),
        ("demo+visual@", ["no file after it", "write <base>+visual@<file>"]),
        ("wrapped:mine", ["wrapped:mine", "modalign.wrap(…).load_weights"]),
    ],
)
def test_a_wrong_name(refused: Any, spec: str, told: list[str]) -> None:
    line = refused(spec)
    assert all(part in line for part in told), line
