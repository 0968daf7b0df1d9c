"""A LLaVA with another tower as a folder: loaded back by transformers alone, and refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import modalign
from modalign.errors import ExportError, OutputError
from modalign.exporting import llava as exporting
from tests import tiny


@pytest.mark.slow
def test_the_folder_is_the_llava_with_the_models_tower(tmp_path: Path) -> None:
    """All but the tower is bit for bit the base; what LLaVA reads are the model's tokens; the sources are back."""
    spec, base = tiny.tiny_hf_clip(tmp_path / "clip"), tiny.tiny_llava(tmp_path / "llava")
    folder = modalign.export(spec, tmp_path / "out", "llava", llava=base)
    made, before = (LlavaForConditionalGeneration.from_pretrained(place).eval() for place in (folder, base))
    for name, tensor in before.state_dict().items():
        assert ("vision_tower" in name) or torch.equal(tensor, made.state_dict()[name])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = modalign.load(spec)
    with torch.no_grad():
        read = made.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(read, model.encode_tokens(pixels, -2).hidden, rtol=0, atol=1e-5)
    AutoProcessor.from_pretrained(folder)
    told = json.loads((folder / "export.json").read_text())
    assert told["verification"]["hidden_states"] <= told["verification"]["limit"]
    assert told["preprocessing"]["largest"] == 0
    assert (tmp_path / "clip" / "config.json").is_file() and (tmp_path / "llava" / "config.json").is_file()
    with pytest.raises(OutputError, match="is not empty"):
        modalign.export(spec, folder, "llava", llava=base)


@pytest.mark.slow
def test_a_tower_in_half_precision_is_verified_as_stored(tmp_path: Path) -> None:
    base = tiny.tiny_llava(tmp_path / "llava")
    LlavaForConditionalGeneration.from_pretrained(base, torch_dtype=torch.bfloat16).save_pretrained(base)
    folder = modalign.export(tiny.tiny_hf_clip(tmp_path / "clip"), tmp_path / "out", "llava", llava=base)
    assert json.loads((folder / "export.json").read_text())["verification"]["hidden_states"] <= 1e-4


@pytest.mark.slow
def test_nothing_is_kept_of_what_does_not_load_back_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, base = tiny.tiny_hf_clip(tmp_path / "clip"), tiny.tiny_llava(tmp_path / "llava")
    monkeypatch.setattr(exporting, "swap_tower", lambda llava, model: None)  # the base's own tower stays
    with pytest.raises(ExportError, match="computes something else"):
        modalign.export(spec, tmp_path / "out", "llava", llava=base)
    assert not (tmp_path / "out").exists()


def test_format_and_base_go_together(tmp_path: Path) -> None:
    spec = tiny.tiny_hf_clip(tmp_path / "clip")
    for format, llava in (("llava", None), ("open_clip", tmp_path)):
        with pytest.raises(ExportError, match="go together"):
            modalign.export(spec, tmp_path / "out", format, llava=llava)
