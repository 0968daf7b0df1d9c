"""SigLIP: transformers' `SiglipModel` with either tokenizer, and open_clip's with a timm trunk."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from transformers import SiglipModel, SiglipProcessor

import modalign
from modalign.encoders import Tower
from modalign.errors import ModelError, RecipeError
from modalign.models import DualEncoder, load
from tests import tiny
from tests.models.conftest import CAPTIONS
from tests.models.refining import assert_chunks_change_nothing
from tests.models.test_hugging_face import raw

AWKWARD = [*CAPTIONS, "A Red-and-GREEN cat, grey!"]


@pytest.fixture(scope="module")
def siglips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("siglips")
    tiny.tiny_hf_siglip(root / "hf")
    tiny.tiny_hf_siglip(root / "gemma", gemma=True)
    tiny.tiny_open_clip_siglip(root / "oc")
    return {path.name: path for path in root.iterdir()}


def noise(rows: int, size: int = 32) -> torch.Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm(dim=-1).max() / theirs.norm(dim=-1).min())


@pytest.mark.parametrize("kind", ["hf", "gemma"])
def test_features_are_the_librarys_own(siglips: dict[str, Path], kind: str) -> None:
    """On the library's own pixels and padded tokens: features, scale, bias, and so the library's own logits."""
    theirs = SiglipModel.from_pretrained(siglips[kind]).eval()
    processor = SiglipProcessor.from_pretrained(siglips[kind])
    ours = load(siglips[kind])
    image = Image.effect_noise((50, 40), 90).convert("RGB")
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours.preprocess(image), pixels[0])
    tokens = processor(text=AWKWARD, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    tokens = tokens["input_ids"]
    assert torch.equal(ours.tokenize(AWKWARD), tokens) and tokens.shape == (6, 16)
    with torch.no_grad():
        assert relative(ours.encode_image(pixels), raw(theirs.get_image_features(pixels))) < 1e-6
        assert relative(ours.encode_text(tokens), raw(theirs.get_text_features(input_ids=tokens))) < 1e-6
        logits = theirs(input_ids=tokens, pixel_values=pixels).logits_per_image
        x, t = (torch.nn.functional.normalize(f, dim=-1) for f in (ours.encode_image(pixels), ours.encode_text(tokens)))
    assert ours.logit_scale == pytest.approx(30.0) and ours.logit_bias == pytest.approx(-5.0)
    assert torch.allclose(ours.logit_scale * x @ t.T + ours.logit_bias, logits, atol=1e-5)


def test_open_clip_features_are_the_librarys_own(siglips: dict[str, Path]) -> None:
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{siglips['oc']}")
    theirs.eval()
    ours = load(siglips["oc"])
    tokens = open_clip.get_tokenizer(f"local-dir:{siglips['oc']}")(AWKWARD)
    assert torch.equal(ours.tokenize(AWKWARD), tokens) and tokens.shape == (6, 16)
    assert torch.equal(tokens[5], ours.tokenize(["a redandgreen cat grey"])[0])  # canonicalised, as in training
    image = Image.effect_noise((50, 40), 90)
    assert torch.equal(transform(image), ours.preprocess(image))
    with torch.no_grad():
        assert relative(ours.encode_image(noise(3, 160)), theirs.encode_image(noise(3, 160))) < 1e-6
        assert relative(ours.encode_text(tokens), theirs.encode_text(tokens)) < 1e-6
    assert ours.logit_scale == pytest.approx(theirs.logit_scale.exp().item())
    assert ours.logit_bias == theirs.logit_bias.item() == -10


@pytest.mark.parametrize("kind", ["hf", "oc"])
def test_captions_stay_padded_because_padding_is_seen(siglips: dict[str, Path], kind: str) -> None:
    model = load(siglips[kind])
    tokens = model.tokenize(["a red cat", "dog"])
    assert tokens.shape == (2, 16) and model.token_lengths(tokens).tolist() == [16, 16]
    other = tokens.clone()
    other[:, 12] = 5  # a padding column
    with torch.no_grad():
        assert relative(model.encode_text(other), model.encode_text(tokens)) > 1e-3
        alone = torch.cat([model.encode_text(row[None]) for row in tokens])
        assert relative(alone, model.encode_text(tokens)) < 2e-6


def test_siglips_own_tokenizer_drops_case_and_punctuation(siglips: dict[str, Path]) -> None:
    tokens = load(siglips["hf"]).tokenize(["A Red cat, grey!", "a red cat grey"])
    assert torch.equal(tokens[0], tokens[1])


def test_a_tokenizer_that_keeps_capitals_is_told_and_can_be_changed(
    siglips: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gemma's, as transformers reads it beside a SigLIP 2 of fixed resolution; the advice given is tried out."""
    kept = load(siglips["gemma"]).tokenize(["CAT", "cat"])
    assert not torch.equal(kept[0], kept[1])
    assert "keeps capitals" in caplog.text and "Siglip2Tokenizer" in caplog.text
    caplog.clear()
    shutil.copytree(siglips["gemma"], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "Siglip2Tokenizer"}))
    changed = load(tmp_path / "m")
    tokens = changed.tokenize(["CAT", "cat"])
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[1], kept[1]) and not caplog.text
    assert changed.fingerprint != load(siglips["gemma"]).fingerprint


@pytest.mark.parametrize("kind", ["hf", "oc"])
def test_trunk_and_projection(siglips: dict[str, Path], kind: str) -> None:
    """The image tower has no projection; the text head is one, and gets the whole tower's gradient."""
    model = load(siglips[kind])
    pixels, tokens = noise(2, 160 if kind == "oc" else 32), model.tokenize(AWKWARD)
    with torch.no_grad():
        trunk = model.image_trunk(pixels)
        assert torch.equal(model.project_image(trunk), trunk) and torch.equal(model.encode_image(pixels), trunk)
        assert torch.equal(model.project_text(model.text_trunk(tokens)), model.encode_text(tokens))
        assert not torch.equal(model.text_trunk(tokens), model.encode_text(tokens))
    with pytest.raises(ModelError, match=r"image tower of .* has no projection of its own to train: use train: image"):
        model.projection_names("image")
    parameters = dict(model.module.named_parameters())
    head = [parameters[name] for name in model.projection_names("text")]
    assert [p.shape for p in head] == [(model.embed_dim, model.embed_dim), (model.embed_dim,)]
    expected = torch.autograd.grad(model.encode_text(tokens).square().sum(), head)
    found = torch.autograd.grad(model.project_text(model.text_trunk(tokens).detach()).square().sum(), head)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["hf", "oc"])
def test_scale_and_bias_belong_to_no_tower(siglips: dict[str, Path], kind: str) -> None:
    model = load(siglips[kind])
    named = {name for tower in ("image", "text") for name, _ in model.named_parameters(tower)}  # type: ignore[arg-type]
    assert {name for name, _ in model.module.named_parameters()} - named == {"logit_scale", "logit_bias"}
    before = Tower(model, "text", "trunk").fingerprint, model.fingerprint
    with torch.no_grad():
        dict(model.module.named_parameters())["logit_bias"].sub_(1.0)
    assert model.logit_bias is not None and model.logit_bias in (-6.0, -11.0)
    assert Tower(model, "text", "trunk").fingerprint == before[0] and model.fingerprint != before[1]


def test_gemmas_tokenizer_is_saved_and_loaded(siglips: dict[str, Path], tmp_path: Path) -> None:
    """The contract's own test saves SigLIP's."""
    model = load(siglips["gemma"])
    model.save(tmp_path / "a" / "model")
    (tmp_path / "a").rename(tmp_path / "b")
    again = load(tmp_path / "b" / "model")
    assert again.fingerprint == model.fingerprint
    assert torch.equal(again.tokenize(AWKWARD), model.tokenize(AWKWARD))


def test_precision(siglips: dict[str, Path]) -> None:
    """float64 stays and is finer; half precision comes out as float32, its patch tokens and attention too."""

    def outputs(model: DualEncoder) -> list[torch.Tensor]:
        text = model.encode_text(model.tokenize(AWKWARD))
        return [model.encode_image(noise(2)), text, model.encode_tokens(noise(2)).hidden, model.attention(noise(2))]

    model = load(siglips["hf"])
    with torch.no_grad():
        single, double = outputs(model), outputs(model.to("cpu", torch.float64))
        half = outputs(model.to("cpu", torch.bfloat16))
    for s, d, h in zip(single, double, half, strict=True):
        assert (s.dtype, d.dtype, h.dtype) == (torch.float32, torch.float64, torch.float32)
        assert torch.allclose(s.double(), d, rtol=1e-4, atol=1e-5) and torch.allclose(h, s, rtol=0.2, atol=0.2)


def test_the_sentence_pieces_are_part_of_the_fingerprint(siglips: dict[str, Path], tmp_path: Path) -> None:
    """Equal pieces with other scores, or another setting, split captions otherwise."""
    from sentencepiece import sentencepiece_model_pb2

    shutil.copytree(siglips["hf"], tmp_path / "scores")
    pieces = sentencepiece_model_pb2.ModelProto.FromString((siglips["hf"] / "spiece.model").read_bytes())
    pieces.pieces[40].score -= 1
    (tmp_path / "scores" / "spiece.model").write_bytes(pieces.SerializeToString())
    shutil.copytree(siglips["hf"], tmp_path / "case")
    config = json.loads((tmp_path / "case" / "tokenizer_config.json").read_text())
    (tmp_path / "case" / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    logging.disable(logging.WARNING)
    try:
        seen = {load(folder).fingerprint for folder in (siglips["hf"], tmp_path / "scores", tmp_path / "case")}
    finally:
        logging.disable(logging.NOTSET)
    assert len(seen) == 3


def test_preprocess_can_be_sent_to_workers(siglips: dict[str, Path]) -> None:
    model = load(siglips["hf"])
    image = Image.effect_noise((50, 40), 90).convert("RGB")
    assert torch.equal(pickle.loads(pickle.dumps(model.preprocess))(image), model.preprocess(image))


def test_loading_is_silent(siglips: dict[str, Path], capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    load(siglips["hf"]).save(tmp_path / "m")
    load(tmp_path / "m")
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def eager(folder: Path) -> Any:
    return SiglipModel.from_pretrained(folder, attn_implementation="eager").eval().vision_model


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -2, -3])
def test_patch_tokens_are_the_librarys_hidden_states(siglips: dict[str, Path], layer: int) -> None:
    model, theirs = load(siglips["hf"]), eager(siglips["hf"])
    with torch.no_grad():
        tokens = model.encode_tokens(noise(2), layer)
        hidden = theirs(pixel_values=noise(2), output_hidden_states=True).hidden_states
    assert (tokens.prefix, tokens.grid) == (0, (4, 4)) and tokens.patches.shape == (2, 16, 64)
    assert relative(tokens.hidden.flatten(1), hidden[layer].flatten(1)) < 1e-6


@pytest.mark.parametrize("layer", [1, 2, -1, -2])
def test_attention_is_the_librarys_own(siglips: dict[str, Path], layer: int) -> None:
    """The k-th block's; transformers counts blocks from 0 in `attentions`."""
    model, theirs = load(siglips["hf"]), eager(siglips["hf"])
    assert model.module.config._attn_implementation != "eager"  # type: ignore[union-attr]
    with torch.no_grad():
        weights = model.attention(noise(2), layer)
        expected = theirs(pixel_values=noise(2), output_attentions=True).attentions
    assert weights.shape == (2, 2, 16, 16)
    assert torch.allclose(weights, expected[layer - 1 if layer > 0 else layer], rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", [3, -4])
def test_layers_that_do_not_exist(siglips: dict[str, Path], layer: int) -> None:
    model = load(siglips["hf"])
    with pytest.raises(ModelError, match=f"no layer {layer}"):
        model.encode_tokens(noise(1), layer)
    with pytest.raises(ModelError, match="no layer"):
        model.attention(noise(1), 0)


@pytest.mark.parametrize("kind", ["hf", "oc"])
@pytest.mark.parametrize("method", [{"name": "clip-refine", "features": "unit"}, {"name": "sigmoid"}])
def test_chunks_change_nothing(kind: str, method: dict[str, Any], tmp_path: Path) -> None:
    """Ten steps; the models of 32 px, the bias read by one method and cancelled in the other."""
    if kind == "hf":
        spec = tiny.tiny_hf_siglip(tmp_path / "m")
    else:
        spec = tiny.tiny_open_clip_siglip(tmp_path / "m", trunk=tiny.tiny_siglip_trunk(), image_size=32)
    assert_chunks_change_nothing(spec, tmp_path, method)


def test_the_sigmoid_loss_on_a_model_without_a_bias_is_refused_at_once(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    data = tiny.write_pairs(tmp_path / "pairs", n=8)
    with pytest.raises(RecipeError, match=r"method 'sigmoid' needs .*logit bias") as told:
        modalign.refine(str(folders["hf"]), data, "sigmoid", out=tmp_path / "run", data__batch_size=4, silent=True)
    assert "contrastive" in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("kind", ["hf", "gemma"])
def test_a_tokenizer_with_an_attention_mask_is_refused_since_it_would_give_other_features(
    siglips: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    """The library masks padding where it is given the mask; the released checkpoints' tokenizers return none."""
    shutil.copytree(siglips[kind], tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(
        json.dumps({**json.loads(settings.read_text()), "model_input_names": ["input_ids", "attention_mask"]})
    )
    library, processor = (
        SiglipModel.from_pretrained(tmp_path / "model"),
        SiglipProcessor.from_pretrained(tmp_path / "model"),
    )
    batch = processor.tokenizer(["a cat"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        masked, plain = (
            library.text_model(**inputs).pooler_output for inputs in (batch, {"input_ids": batch["input_ids"]})
        )
    assert float((masked - plain).norm() / plain.norm()) > 1e-3
    with pytest.raises(ModelError, match="returns an attention mask") as told:
        load(tmp_path / "model")
    assert "model_input_names" in str(told.value) and "\n" not in str(told.value)
