from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from modalign.errors import ModelError
from modalign.models import load
from tests import tiny
from tests.models.conftest import CAPTIONS
from tests.models.refining import assert_chunks_change_nothing


def raw(output: Any) -> torch.Tensor:
    """transformers 4 returns the tensor, 5 an object."""
    feature: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return feature


def test_features_are_the_librarys_own(folders: dict[str, Path]) -> None:
    """Against get_*_features on the library's own, padded and masked, inputs."""
    theirs, processor = CLIPModel.from_pretrained(folders["hf"]).eval(), CLIPProcessor.from_pretrained(folders["hf"])
    ours = load(folders["hf"])
    image = Image.effect_noise((50, 40), 90)
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours.preprocess(image), pixels[0])
    padded = processor(text=CAPTIONS, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    tokens = ours.tokenize(CAPTIONS)
    assert torch.equal(tokens, padded["input_ids"]) and tokens.shape == (5, 16)
    with torch.no_grad():
        image_features, text_features = raw(theirs.get_image_features(pixels)), raw(theirs.get_text_features(**padded))
        assert torch.allclose(ours.encode_image(pixels), image_features, rtol=0, atol=1e-6 * image_features.norm())
        error = (ours.encode_text(tokens) - text_features).norm(dim=1) / text_features.norm(dim=1)
    assert float(error.max()) < 2e-6
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item())


def test_true_length_ends_with_the_first_end_token(folders: dict[str, Path]) -> None:
    """The padding has the end token's id too."""
    model = load(folders["hf"])
    tokens = model.tokenize(["a a a", "", "a " * 40])
    assert (tokens[0, 4:] == model.module.config.text_config.eos_token_id).all()
    assert model.token_lengths(tokens).tolist() == [5, 2, 16]


def test_legacy_configuration_reads_the_highest_id(folders: dict[str, Path], tmp_path: Path) -> None:
    """eos_token_id 2, as openai/clip-vit-base-patch32 still says: transformers pools at the highest id."""
    shutil.copytree(folders["hf"], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    model, theirs = load(tmp_path / "m"), CLIPModel.from_pretrained(tmp_path / "m").eval()
    tokens = model.tokenize(CAPTIONS)
    end = model.processor.tokenizer.eos_token_id  # type: ignore[attr-defined]
    assert torch.equal(model.token_lengths(tokens), (tokens != end).sum(dim=1) + 1)
    with torch.no_grad():
        expected = raw(theirs.get_text_features(input_ids=tokens))
        assert float((model.encode_text(tokens) - expected).norm(dim=1).max() / expected.norm(dim=1).min()) < 2e-6


def test_half_precision_weights_train_in_float32(folders: dict[str, Path], tmp_path: Path) -> None:
    module = CLIPModel.from_pretrained(folders["hf"]).half()
    shutil.copytree(folders["hf"], tmp_path / "m")
    module.save_pretrained(tmp_path / "m")
    assert {p.dtype for p in load(tmp_path / "m").module.parameters()} == {torch.float32}


def test_activation_changes_the_fingerprint(folders: dict[str, Path], tmp_path: Path) -> None:
    tiny.tiny_hf_clip(tmp_path / "gelu", hidden_act="gelu")
    gelu, quick = load(tmp_path / "gelu"), load(folders["hf"])
    assert torch.equal(gelu.module.visual_projection.weight, quick.module.visual_projection.weight)
    assert gelu.fingerprint != quick.fingerprint


@pytest.mark.parametrize("change", [{"do_center_crop": False}, {"image_mean": [0.5, 0.5, 0.5]}, {"resample": 2}])
def test_preprocessing_changes_the_fingerprint(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    shutil.copytree(folders["hf"], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps(config | change))
    assert load(tmp_path / "m").fingerprint != load(folders["hf"]).fingerprint


def test_preprocess_can_be_sent_to_workers(folders: dict[str, Path]) -> None:
    model = load(folders["hf"])
    image = Image.effect_noise((50, 40), 90)
    assert torch.equal(pickle.loads(pickle.dumps(model.preprocess))(image), model.preprocess(image))


def test_towers_of_parameters(folders: dict[str, Path]) -> None:
    model = load(folders["hf"])
    names = {tower: {n for n, _ in model.named_parameters(tower)} for tower in ("image", "text")}  # type: ignore[arg-type]
    assert {n for n, _ in model.module.named_parameters()} - names["image"] - names["text"] == {"logit_scale"}


def test_loading_is_silent(folders: dict[str, Path], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    load(folders["hf"]).save(tmp_path / "m")
    load(tmp_path / "m")
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def vision(folder: Path) -> Any:
    """The library's tower with the attention implementation that returns weights."""
    return CLIPModel.from_pretrained(folder, attn_implementation="eager").eval().vision_model


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -2, -3])
def test_patch_tokens_are_the_librarys_hidden_states(folders: dict[str, Path], layer: int) -> None:
    """The class token first; -2 is the layer LLaVA reads."""
    model, theirs = load(folders["hf"]), vision(folders["hf"])
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = model.encode_tokens(pixels, layer)
        hidden = theirs(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
    assert (tokens.prefix, tokens.grid) == (1, (4, 4))
    assert torch.allclose(tokens.hidden, hidden, rtol=0, atol=1e-6 * float(hidden.abs().max()))
    assert torch.equal(tokens.patches, tokens.hidden[:, 1:])


@pytest.mark.parametrize("layer", [1, 2, -1, -2])
def test_attention_is_the_librarys_own(folders: dict[str, Path], layer: int) -> None:
    """Although the model runs with fused attention; the k-th block's, counted from 1."""
    model, theirs = load(folders["hf"]), vision(folders["hf"])
    assert model.module.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        weights = model.attention(pixels, layer)
        expected = theirs(pixel_values=pixels, output_attentions=True).attentions
    assert weights.shape == (2, 2, 17, 17) and torch.allclose(weights.sum(-1), torch.ones(2, 2, 17))
    assert torch.allclose(weights, expected[layer - 1 if layer > 0 else layer], rtol=0, atol=1e-6)


def test_the_embeddings_have_no_attention(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="no layer 0: it has 2 blocks, so use 1 to 2"):
        load(folders["hf"]).attention(torch.zeros(1, 3, 32, 32), 0)


def test_chunks_change_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    assert_chunks_change_nothing(folders["hf"], tmp_path, {"name": "clip-refine"})
