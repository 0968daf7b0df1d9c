"""Exports that are written, loaded back in a fresh process, and kept or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modalign.errors import ExportError, OutputError
from modalign.exporting import card, export
from modalign.exporting.probes import CAPTIONS, probe_captions, probe_pictures
from modalign.models import DualEncoder, load
from modalign.models.open_clip import OpenClip
from tests import tiny


def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def equal(one: DualEncoder, other: DualEncoder) -> None:
    tokens = one.tokenize(["a red cat", "dog", "a photo of the small green boat"])
    with torch.no_grad():
        assert (one.encode_image(pixels()) - other.encode_image(pixels())).abs().max() <= 1e-5
        assert (one.encode_text(tokens) - other.encode_text(tokens)).abs().max() <= 1e-5
    assert abs(one.logit_scale - other.logit_scale) <= 1e-5


def test_standard_clip_to_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tiny.tiny_open_clip(tmp_path / "source", quick_gelu=True)
    capsys.readouterr()
    folder = export(spec, tmp_path / "out", "transformers")
    assert "told only" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]  # back, and nothing temporary
    equal(load(spec), load(f"hf:{folder}"))
    told = json.loads((folder / "export.json").read_text())
    assert told["verification"]["sources"] == {str(tmp_path / "source"): "moved away"}
    assert told["verification"]["image_features"] <= 1e-5 and told["verification"]["text_features"] <= 1e-5
    assert told["preprocessing"]["captions"] == len(CAPTIONS) and told["preprocessing"]["pictures"] >= 2
    assert told["preprocessing"]["examples"] == ["fish &amp; chips"]  # transformers reads no HTML
    assert told["preprocessing"]["pixels_max_abs"] > 0
    assert told["fingerprint"] == load(f"hf:{folder}").fingerprint
    assert "CLIPModel.from_pretrained" in (folder / "README.md").read_text()


def test_custom_text_to_open_clip(tmp_path: Path) -> None:
    """From a configuration that names its text tower by an absolute place, half trained on in memory."""
    tiny.tiny_custom_text(tmp_path / "source")
    config = json.loads((tmp_path / "source" / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = str(tmp_path / "bert")
    (tmp_path / "source" / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "bert").mkdir()
    (tmp_path / "source" / "config.json").rename(tmp_path / "bert" / "config.json")
    model = load(tmp_path / "source")
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(1.01)
    model.module.train()
    folder = export(model, tmp_path / "out", "open_clip")
    equal(model, load(folder))
    told = json.loads((folder / "export.json").read_text())
    assert told["verification"]["sources"] == {str(tmp_path / name): "moved away" for name in ("bert", "source")}
    assert told["preprocessing"]["captions_with_other_ids"] == 0 and told["preprocessing"]["pixels_max_abs"] == 0
    text = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert text["hf_model_name"] == "." and (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()
    assert str(tmp_path) not in (folder / "open_clip_config.json").read_text()
    moved = folder.rename(tmp_path / "elsewhere")
    (tmp_path / "bert" / "config.json").unlink()
    equal(model, load(moved))


def test_an_export_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that gets one weight a little wrong."""
    write = OpenClip.write

    def wrong(self: OpenClip, folder: Path) -> None:
        write(self, folder)
        weights = load_file(folder / "open_clip_model.safetensors")
        save_file(
            weights | {"text_projection": weights["text_projection"] + 1e-4}, folder / "open_clip_model.safetensors"
        )

    spec = tiny.tiny_open_clip(tmp_path / "source")
    fingerprint = load(spec).fingerprint
    monkeypatch.setattr(OpenClip, "write", wrong)
    with pytest.raises(ExportError, match="text_features differs by"):
        export(spec, tmp_path / "out", "open_clip")
    assert [path.name for path in tmp_path.iterdir()] == ["source"] and load(spec).fingerprint == fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "target"),
    [("gelu", "transformers"), ("gelu", "open_clip"), ("hf", "open_clip"), ("hf", "transformers")],
)
def test_every_other_way(tmp_path: Path, kind: str, target: str) -> None:
    spec = tiny.tiny_hf_clip(tmp_path / "s") if kind == "hf" else tiny.tiny_open_clip(tmp_path / "s")
    model = load(spec)
    model.save(tmp_path / "run" / "model")
    folder = export(str(tmp_path / "run"), tmp_path / "out", target)
    equal(model, load(folder))
    told = json.loads((folder / "export.json").read_text())
    assert told["verification"]["sources"] == {str(tmp_path / "run" / "model"): "moved away"}


@pytest.mark.slow
@pytest.mark.parametrize("renamable", [True, False])
def test_an_export_that_still_reads_its_source_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamable: bool
) -> None:
    """Caught by the rename, and where that is not possible by the process that may not open it."""
    spec = tiny.tiny_open_clip(tmp_path / "source")
    if not renamable:
        monkeypatch.setattr("modalign.exporting.away._needed_by_python", lambda path: True)
    monkeypatch.setattr(card, "OPEN_CLIP", card.OPEN_CLIP.replace("path/to/this/folder", str(tmp_path / "source")))
    with pytest.raises(ExportError, match="cannot be loaded back"):
        export(spec, tmp_path / "out", "open_clip")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_custom_text_to_transformers_is_refused(tmp_path: Path) -> None:
    spec = tiny.tiny_custom_text(tmp_path / "source")
    with pytest.raises(ExportError, match=r"visual\.trunk \(timm test_efficientnet\).*--to open_clip"):
        export(spec, tmp_path / "out", "transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_occupied_and_unknown_targets(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(OutputError, match="not empty"):
        export("no-such-model", tmp_path / "out", "open_clip")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    with pytest.raises(ExportError, match="open_clip, transformers or llava"):
        export("no-such-model", tmp_path / "new", "onnx")


def test_probes_of_a_run_are_its_own_pictures_and_captions(tmp_path: Path) -> None:
    pairs = Path(tiny.write_pairs(tmp_path / "pairs", n=3))
    (tmp_path / "run" / "features").mkdir(parents=True)
    rows = {"paths": [str(pairs / f"{i:04d}.png") for i in (0, 1, 1, 9)], "captions": ["one", "two", "one"]}
    (tmp_path / "run" / "features" / "rows.json").write_text(json.dumps(rows))
    assert probe_captions(tmp_path / "run") == ["one", "two"]
    assert [picture.size for picture in probe_pictures(tmp_path / "run")] == [(32, 32)] * 2
    assert probe_captions(tmp_path / "pairs") == list(CAPTIONS) and len(probe_pictures(tmp_path / "pairs")) == 6
