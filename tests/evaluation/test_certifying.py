"""The certificate through real models: one before, one whose image tower moved a little, one with other texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import modalign
from modalign.errors import RecipeError
from modalign.evaluation.results import Results
from modalign.evaluation.suite import prepare
from modalign.evaluation.tasks import evaluate, evaluate_both
from modalign.features import image_features, text_features
from modalign.models.dual_encoder import DualEncoder
from tests.tiny import tiny_open_clip, write_pairs

NAMES = ["blue cat", "green dog", "red boat"]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return modalign.load(tiny_open_clip(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def after(before: DualEncoder) -> DualEncoder:
    moved = before.frozen_copy()
    source = torch.Generator().manual_seed(0)
    for _, parameter in moved.named_parameters("image"):
        parameter.add_(1.7e-3 * torch.randn(parameter.shape, generator=source))
    return moved


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures with captions, 18 of them with a class."""
    folder = Path(write_pairs(tmp_path_factory.mktemp("data") / "test", n=24))
    files = [str(path.relative_to(folder)) for path in sorted(folder.glob("**/*.png"))]
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "label"])
        for number, name in enumerate(files):
            writer.writerow([name, f"picture {number}", NAMES[number % 3] if number < 18 else ""])
    return folder


def features(model: DualEncoder, data: Path) -> np.ndarray:
    paths = sorted(data.glob("**/*.png"))
    return image_features(model, paths, ["" for _ in paths]).features.double().numpy()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_drift_of_labelled_data_equals_what_is_taken_by_hand(
    before: DualEncoder, after: DualEncoder, data: Path, tmp_path: Path
) -> None:
    results = evaluate(after, [f"drift:{data}"], against=before)
    f, x = features(before, data), features(after, data)
    tight = np.linalg.norm(unit(x) - unit(f), axis=1)
    loose = 2 * np.linalg.norm(x - f, axis=1) / np.maximum(np.linalg.norm(x, axis=1), np.linalg.norm(f, axis=1))
    (found,) = results.drift
    np.testing.assert_allclose(found.tight, np.quantile(tight, found.levels), rtol=1e-5)
    np.testing.assert_allclose(found.loose, np.quantile(loose, found.levels), rtol=1e-5)
    weights = unit(text_features(before, [f"a photo of {name}" for name in NAMES]).double().numpy())
    scores, now = unit(f[:18]) @ weights.T, unit(x[:18]) @ weights.T
    lead = np.sort(scores, axis=1)[:, -1] - np.sort(scores, axis=1)[:, -2]
    (labels,) = found.labels
    assert labels.certified == pytest.approx(np.mean(lead > 2 * tight[:18]))
    assert labels.certified_loosely == pytest.approx(np.mean(lead > 2 * loose[:18]))
    assert labels.unchanged == pytest.approx(np.mean(scores.argmax(1) == now.argmax(1)))
    assert (
        0 < labels.certified < 1
        and labels.certified <= labels.unchanged
        and labels.certified_loosely <= labels.certified
    )
    protocol = found.protocol
    assert (protocol["pictures"], protocol["left_out"], protocol["split"]) == (24, 0, "test")
    assert protocol["before"] == before.spec
    assert "3 classes of" in protocol["labels"] and "on 18 pictures, prompts single" in protocol["labels"]
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").drift == results.drift
    json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_pictures_without_classes_are_asked_about_those_of_the_tasks_beside_them(
    before: DualEncoder, after: DualEncoder, data: Path
) -> None:
    alone, beside = (
        evaluate(after, [f"drift:images:{data}", *others], against=before, resamples=50, gap=False)
        for others in ([], [f"zero-shot:{data}", f"knn:{data}"])
    )
    assert alone.drift[0].labels == () and "none: the spec says images" in alone.drift[0].protocol["labels"]
    assert [(found.spec, found.pictures) for found in beside.drift[0].labels] == [(str(data), 24)]
    assert alone.drift[0].tight == beside.drift[0].tight
    assert set(beside.metrics) == {
        "zero_shot.acc1",
        "zero_shot.mean_per_class_recall",
        "knn.acc1",
        "knn.mean_per_class_recall",
    }


@pytest.mark.parametrize("stored", [False, True])
def test_each_picture_passes_once_through_each_model(
    before: DualEncoder,
    after: DualEncoder,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: bool,
) -> None:
    passed = {"before": 0, "after": 0}
    for name, model in (("before", before), ("after", after)):

        def counted(pixels: torch.Tensor, name: str = name, real: object = model.encode_image) -> torch.Tensor:
            passed[name] += len(pixels)
            return real(pixels)  # type: ignore[operator, no-any-return]

        monkeypatch.setattr(model, "encode_image", counted)
    tasks = [f"knn:{data}", f"drift:{data}", f"retrieval:{data}", f"zero-shot:{data}"]
    results = evaluate(after, tasks, against=before, resamples=50, gap=False, store=tmp_path if stored else None)
    assert passed == {"before": 24, "after": 24}
    assert results.drift[0].labels[0].unchanged > 0


def test_where_the_text_towers_differ_the_bounds_stand_and_no_label_is_certain(
    before: DualEncoder, after: DualEncoder, data: Path
) -> None:
    other = after.frozen_copy()
    next(iter(other.named_parameters("text")))[1].mul_(1.5)
    results = evaluate(other, [f"drift:{data}"], against=before)
    same = evaluate(after, [f"drift:{data}"], against=before)
    assert results.drift[0].labels == () and "text towers differ" in results.drift[0].protocol["labels"]
    assert results.drift[0].tight == same.drift[0].tight
    *_, certain = evaluate_both(before, other, [f"knn:{data}"])
    assert certain is None


def test_two_models_are_compared_with_a_certificate_over_all_pictures(
    before: DualEncoder, after: DualEncoder, data: Path
) -> None:
    first, second, certain = evaluate_both(before, after, [f"zero-shot:{data}", f"retrieval:{data}", f"drift:{data}"])
    assert certain is not None and certain.protocol["pictures"] == 24
    assert [found.pictures for found in certain.labels] == [18]
    assert first.drift == [] and second.drift[0].tight == certain.tight
    assert "24" in certain.sentence and "cannot have changed" in certain.sentence
    assert set(first.metrics) == set(second.metrics)


def test_what_cannot_be_compared_is_refused(before: DualEncoder, data: Path) -> None:
    with pytest.raises(RecipeError, match=r"drift:.* compares with a model before: name it with --against"):
        evaluate(before, [f"drift:{data}"])
    with pytest.raises(RecipeError, match="only drift tasks compare"):
        evaluate(before, [f"knn:{data}"], against=before)
    with pytest.raises(RecipeError, match="nothing to judge"):
        evaluate_both(before, before, [f"drift:{data}"])


def test_the_identity_of_a_suite_tells_kinds_and_classes_apart(data: Path) -> None:
    found = {
        prepare([task]).identity
        for task in (f"zero-shot:{data}", f"knn:{data}", f"drift:{data}", f"drift:images:{data}", f"retrieval:{data}")
    }
    assert len(found) == 5
