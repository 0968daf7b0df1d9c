"""A model under a transform: what evaluations see of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import modalign
from modalign.errors import ModelError
from modalign.features import TrunkMemo, image_features, text_features
from modalign.gap.features import FeatureError
from modalign.gap.transforms import CCA, NNN, Center, DropDimensions, NotFittedError, Ridge, applied
from modalign.models import DualEncoder, load
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("applying")
    tiny.tiny_open_clip(root / "clip")
    tiny.write_pairs(root / "pairs", n=12)
    return root


@pytest.fixture(scope="module")
def features(folder: Path) -> tuple[DualEncoder, modalign.data.records.Pairs, torch.Tensor, torch.Tensor]:
    model, pairs = load(folder / "clip"), modalign.pairs(str(folder / "pairs"))
    image = image_features(model, pairs.paths, pairs.wheres).features
    return model, pairs, image, text_features(model, pairs.captions)


def test_features_are_mapped_and_the_model_is_left_alone(features: tuple) -> None:
    model, pairs, image, text = features
    before = model.fingerprint
    centre = Center().fit(image, text)
    twin = applied(model, centre)
    memo = TrunkMemo()
    image_features(model, pairs.paths, pairs.wheres, memo=memo)
    for known in (None, memo):
        seen = image_features(twin, pairs.paths, pairs.wheres, memo=known).features
        torch.testing.assert_close(seen, centre.transform(image, "image"), atol=1e-6, rtol=1e-5)
    said = text_features(twin, pairs.captions)
    torch.testing.assert_close(said, centre.transform(text, "text"), atol=1e-6, rtol=1e-5)
    assert said.dtype == torch.float32 and said.mean(0).norm() < 1e-6
    assert model.fingerprint == before != twin.fingerprint
    assert twin.fingerprint != applied(model, Ridge().fit(image, text)).fingerprint
    assert twin.logit_scale == model.logit_scale and "Center()" in twin.spec


def test_a_narrower_output_is_the_width_and_evaluates(features: tuple, folder: Path) -> None:
    model, _, image, text = features
    assert applied(model, CCA(k=5).fit(image, text)).embed_dim == 5
    narrow = applied(model, DropDimensions(k=2).fit(image, text))
    assert narrow.embed_dim == model.embed_dim - 2
    results = modalign.evaluate(narrow, [f"retrieval:{folder / 'pairs'}"])
    assert 0 <= results.metrics["retrieval.text_to_image_r1"].value <= 1
    twin = narrow.frozen_copy()
    assert twin.fingerprint == narrow.fingerprint and twin.module is not model.module


def test_float64_stays(folder: Path) -> None:
    model = load(folder / "clip").to("cpu", torch.float64)
    rows = np.random.default_rng(0).normal(size=(20, model.embed_dim))
    twin = applied(model, Center().fit(rows, rows + 1))
    assert twin.encode_text(twin.tokenize(["a cat"])).dtype == torch.float64 == twin.dtype


def test_what_cannot_be_applied(features: tuple, tmp_path: Path) -> None:
    model, _, image, text = features
    with pytest.raises(ModelError, match="nnn corrects scores"):
        applied(model, NNN(k=3).fit(image, text))
    with pytest.raises(NotFittedError, match="not fitted"):
        applied(model, Center())
    with pytest.raises(FeatureError, match="was fitted on 4"):
        applied(model, Center().fit(image[:, :4], text[:, :4]))
    with pytest.raises(ModelError, match="is no checkpoint: save the model and"):
        applied(model, Center().fit(image, text)).save(tmp_path / "x")
