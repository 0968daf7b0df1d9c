"""Equality with CLIP_benchmark (PyPI `clip-benchmark`): from the same features, and from the same files.

pytest -m parity tests/evaluation/test_parity.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from modalign.evaluation.retrieval import retrieval_outcomes
from modalign.evaluation.tasks import evaluate
from modalign.evaluation.zero_shot import class_weights, zero_shot_outcomes
from modalign.models import load
from tests.tiny import tiny_open_clip, write_pairs

pytestmark = pytest.mark.parity

classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")

TEMPLATES = ["a photo of a {c}.", "a drawing of a {c}.", "{c}"]


@pytest.fixture(autouse=True)
def numbers_of_one_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """clip-benchmark 1.6.2 writes float(array of one element), which NumPy 2.5 refuses."""
    monkeypatch.setattr(classification, "float", lambda value: float(np.asarray(value).reshape(-1)[0]), raising=False)


class Stored:
    """A model in CLIP_benchmark's sense whose inputs are features already."""

    def encode_image(self, rows: Tensor) -> Tensor:
        return rows

    def encode_text(self, rows: Tensor) -> Tensor:
        return rows


class Listed(list[Any]):
    """Batches, and the `dataset.classes` that CLIP_benchmark looks at."""

    def __init__(self, batches: Sequence[Any], classes: Sequence[str] = ()) -> None:
        super().__init__(batches)
        self.dataset = type("Classes", (), {"classes": list(classes)})()


@pytest.mark.parametrize("classes", [3, 12])
@pytest.mark.parametrize("seed", range(3))
def test_zero_shot_from_the_same_features(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(311, 24, generator=generator)
    prompts = torch.randn(classes, len(TEMPLATES), 24, generator=generator)
    labels = torch.randint(0, classes, (311,), generator=generator)
    names = [f"class {number}" for number in range(classes)]
    features = {t.format(c=name): prompts[n, k] for n, name in enumerate(names) for k, t in enumerate(TEMPLATES)}

    def tokenize(texts: list[str]) -> Tensor:
        return torch.stack([features[text] for text in texts])

    loader = Listed(list(zip(image.split(64), labels.split(64), strict=True)), names)
    theirs = classification.evaluate(Stored(), loader, tokenize, names, TEMPLATES, "cpu", amp=False)
    ours = zero_shot_outcomes(image, class_weights(prompts), labels)
    assert ours["acc1"].mean() == pytest.approx(theirs["acc1"], abs=1e-6)
    if classes > 5:
        assert ours["acc5"].mean() == pytest.approx(theirs["acc5"], abs=1e-6)
    recall = np.mean([ours["acc1"][labels.numpy() == label].mean() for label in labels.unique().tolist()])
    assert recall == pytest.approx(theirs["mean_per_class_recall"], abs=1e-6)


@pytest.mark.parametrize("captions", [1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_retrieval_from_the_same_features(captions: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(97, 24, generator=generator), torch.randn(97 * captions, 24, generator=generator)
    image, text = image + 2, text + 2 + image.repeat_interleave(captions, 0)
    said = [[f"{n} {k}" for k in range(captions)] for n in range(97)]
    place = {caption: row for row, caption in enumerate(caption for group in said for caption in group)}

    def tokenize(texts: list[str]) -> Tensor:
        return text[[place[caption] for caption in texts]]

    loader = Listed([(image[i : i + 32], said[i : i + 32]) for i in range(0, 97, 32)])
    theirs = retrieval.evaluate(Stored(), loader, tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])
    ours = retrieval_outcomes(image, text, torch.arange(97 * captions) // captions)
    for k in (1, 5, 10):
        assert ours[f"text_to_image_r{k}"].mean() == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
        assert ours[f"image_to_text_r{k}"].mean() == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)


def test_end_to_end_differs_by_one_item_at_most(tmp_path: Path) -> None:
    import open_clip
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    (tmp_path / "model").mkdir()
    spec = tiny_open_clip(tmp_path / "model")
    network, _, preprocess = open_clip.create_model_and_transforms(spec.removeprefix("open_clip:"))
    network.eval()
    tokenize = open_clip.get_tokenizer(spec.removeprefix("open_clip:"))
    rng = np.random.default_rng(0)
    names = [f"kind {number}" for number in range(7)]
    for number, name in enumerate(names):
        (tmp_path / "test" / name).mkdir(parents=True)
        for picture in range(11):
            pixels = (rng.random((40, 30, 3)) * 128 + 16 * number).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "test" / name / f"{picture}.png")
    loader = DataLoader(ImageFolder(str(tmp_path / "test"), transform=preprocess), batch_size=16)
    theirs = classification.evaluate(network, loader, tokenize, names, ["a photo of {c}"], "cpu", amp=False)
    model = load(spec)
    ours = evaluate(model, [f"zero-shot:{tmp_path / 'test'}"], resamples=50).metrics
    for metric in ("acc1", "acc5", "mean_per_class_recall"):
        assert ours[f"zero_shot.{metric}"].value == pytest.approx(theirs[metric], abs=1 / 77 + 1e-9)

    folder = Path(write_pairs(tmp_path / "pairs", n=40))
    from modalign.data import sources

    pairs = sources.pairs(str(folder))
    with torch.no_grad():
        pixels = [preprocess(Image.open(row.path).convert("RGB")) for row in pairs.rows]
    batches = Listed([(torch.stack(pixels), [list(row.captions) for row in pairs.rows])])
    theirs = retrieval.evaluate(network, batches, tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])
    ours = evaluate(model, [f"retrieval:{folder}"], resamples=50, gap=False).metrics
    for k in (1, 5, 10):
        way = ours[f"retrieval.text_to_image_r{k}"].value, ours[f"retrieval.image_to_text_r{k}"].value
        assert way[0] == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1 / 40 + 1e-9)
        assert way[1] == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1 / 40 + 1e-9)
