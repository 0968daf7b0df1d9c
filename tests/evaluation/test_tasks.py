from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modalign
from modalign import gap
from modalign.errors import DataError, RecipeError
from modalign.evaluation.gate import judge
from modalign.evaluation.suite import Encoded, parse_task, prepare
from modalign.evaluation.tasks import Results, encode, evaluate, evaluate_both
from modalign.features import image_features, text_features
from modalign.models import load
from modalign.models.dual_encoder import DualEncoder
from tests.tiny import tiny_open_clip, write_pairs

NAMES = ["red boat", "blue cat", "green dog"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return load(tiny_open_clip(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures with two captions each; picture 1 repeats a caption of picture 0; labels on 18 of them."""
    folder = Path(write_pairs(tmp_path_factory.mktemp("data") / "test", n=24))
    files = [str(path.relative_to(folder)) for path in sorted(folder.glob("**/*.png"))]
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "label"])
        for number, name in enumerate(files):
            label = NAMES[number % 3] if number < 18 else ""
            writer.writerow([name, f"picture {number}", label])
            writer.writerow([name, "the first two" if number < 2 else f"view of {number}", ""])
    return folder


@pytest.mark.parametrize("text", ["zero-shot", "zero-shot:", "knn[k=3:coco", "retrieval", ""])
def test_a_task_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(RecipeError, match=r"write KIND:SPEC, such as .* kinds are zero-shot, retrieval, "):
        parse_task(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("painting:coco", "there is no kind 'painting'; kinds are zero-shot, retrieval, "),
        ("Zero_Shot:coco", "there is no kind 'Zero_Shot'; did you mean zero-shot:coco?"),
        ("linearprobe[seed=1]:coco@a", "there is no kind 'linearprobe'; did you mean linear-probe[seed=1]:coco@a?"),
    ],
)
def test_an_unknown_kind_is_told_the_nearest(text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(told)):
        parse_task(text)


def test_everything_after_the_first_colon_is_the_spec() -> None:
    assert parse_task("retrieval:coco:/data@val2017").spec == "coco:/data@val2017"


def test_each_distinct_picture_and_string_is_embedded_once_over_all_tasks(
    model: DualEncoder, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, strings = 0, 0
    encode_image, encode_text = model.encode_image, model.encode_text

    def image(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal pictures
        pictures += len(pixels)
        return encode_image(pixels)

    def text(tokens: torch.Tensor) -> torch.Tensor:
        nonlocal strings
        strings += len(tokens)
        return encode_text(tokens)

    monkeypatch.setattr(model, "encode_image", image)
    monkeypatch.setattr(model, "encode_text", text)
    linked = data.parent / "linked"  # the same pictures by another path
    linked.symlink_to(data)
    evaluate(model, [f"zero-shot:{data}", f"retrieval:{data}", f"retrieval:{linked}"], resamples=50, batch_size=5)
    assert pictures == 24
    assert strings == 24 + 23 + len(NAMES)  # "the first two" once


def test_metrics_equal_those_of_features_taken_by_hand(model: DualEncoder, data: Path) -> None:
    results = evaluate(model, [f"retrieval:{data}", f"zero-shot:{data}"], resamples=50)
    paths = sorted(data.glob("**/*.png"))
    image = torch.nn.functional.normalize(image_features(model, paths, ["" for _ in paths]).features, dim=1).numpy()
    captions = [c for n in range(24) for c in (f"picture {n}", "the first two" if n < 2 else f"view of {n}")]
    text = torch.nn.functional.normalize(text_features(model, captions), dim=1).numpy()
    scores = image @ text.T
    right = np.arange(24)[:, None] == np.arange(48) // 2
    right[0, 3] = right[1, 1] = True
    for k in (1, 5, 10):
        found = np.take_along_axis(right, np.argsort(-scores, 1)[:, :k], 1).any(1)
        assert results.metrics[f"retrieval.image_to_text_r{k}"].value == found.mean()
        found = np.take_along_axis(right.T, np.argsort(-scores.T, 1)[:, :k], 1).any(1)
        assert results.metrics[f"retrieval.text_to_image_r{k}"].value == found.mean()
    names = sorted(NAMES)
    prompts = torch.nn.functional.normalize(text_features(model, [f"a photo of {n}" for n in names]), dim=1).numpy()
    labels = [names.index(NAMES[n % 3]) for n in range(18)]
    assert results.metrics["zero_shot.acc1"].value == np.mean((image[:18] @ prompts.T).argmax(1) == labels)
    assert "zero_shot.acc5" not in results.metrics  # three classes

    expected = gap.measure(image, text[::2], resamples=50)
    assert results.gap is not None and results.gap["spec"] == str(data)
    told = gap.GapReport.from_dict(results.gap)
    assert told.centroid_gap == pytest.approx(expected.centroid_gap, abs=1e-6)
    assert results.features is not None and results.features.image.shape == (24, model.embed_dim)
    assert results.features.captions == captions and results.features.image_of_text.tolist() == [
        i // 2 for i in range(48)
    ]
    assert results.features.paths == [path.resolve() for path in paths] or results.features.paths == paths


def test_protocols_tell_what_was_judged(model: DualEncoder, data: Path) -> None:
    results = evaluate(model, [f"retrieval:{data}", f"zero-shot:{data}"], resamples=50, gap=False)
    retrieval, zero_shot = (result.protocol for result in results.tasks)
    assert (retrieval["samples"], retrieval["captions"], retrieval["captions_per_image"]) == (24, 48, "2")
    assert (retrieval["captions_not_unique"], retrieval["split"]) == (2, "test")
    assert (zero_shot["samples"], zero_shot["classes"], zero_shot["prompts"]) == (18, 3, "single")
    assert zero_shot["templates"] == ["a photo of {class}"]
    assert results.gap is None and results.model["fingerprint"] == model.fingerprint
    assert "versions" in results.environment
    assert "samples: 24" in results.tasks[0].summary


def test_clusters_hold_together_what_one_picture_or_one_string_decides(model: DualEncoder, data: Path) -> None:
    metrics = evaluate(model, [f"zero-shot:{data}", f"retrieval:{data}"], resamples=50, gap=False).metrics
    clusters = metrics["retrieval.text_to_image_r1"].clusters
    owners = metrics["retrieval.text_to_image_r1"].owners
    assert clusters is not None and len(set(clusters[:4].tolist())) == 1  # pictures 0 and 1 share a caption
    assert len(set(clusters.tolist())) == 23 and len(set(owners.tolist())) == 24
    # The same picture has the same id in every task.
    assert set(metrics["zero_shot.acc1"].owners.tolist()) <= set(owners.tolist())


def test_results_on_disk_carry_the_comparison_and_not_the_features(
    model: DualEncoder, data: Path, tmp_path: Path
) -> None:
    before = evaluate(model, [f"retrieval:{data}"], resamples=50)
    before.save(tmp_path / "before.json")
    kept = Results.load(tmp_path / "before.json")
    assert judge(before, kept).worst == "not worse" and kept.features is None
    json.loads((tmp_path / "before.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    other = evaluate(model, [f"retrieval:{data}"], resamples=50, templates="openai80")
    judge(kept, other)  # prompts are no part of retrieval
    with pytest.raises(DataError, match="zero_shot: prompts differs, single before and openai80 after"):
        judge(
            evaluate(model, [f"zero-shot:{data}"], resamples=50),
            evaluate(model, [f"zero-shot:{data}"], resamples=50, templates="openai80"),
        )


def test_unreadable_pictures_are_left_out_everywhere_and_counted(model: DualEncoder, tmp_path: Path) -> None:
    folder = Path(write_pairs(tmp_path / "data", n=12))
    broken = sorted(folder.glob("**/*.png"))[3]
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=broken.name):
        evaluate(model, [f"retrieval:{folder}"], resamples=50)
    results = evaluate(model, [f"retrieval:{folder}"], resamples=50, max_bad=1)
    protocol = results.tasks[0].protocol
    assert (protocol["samples"], protocol["left_out"], protocol["captions"]) == (11, 1, 11)
    assert results.features is not None and broken not in results.features.paths


def test_transformed_features_are_scored_by_the_same_suite(model: DualEncoder, data: Path) -> None:
    suite = prepare([f"retrieval:{data}"])
    encoded = encode(model, suite)
    centred = Encoded(encoded.image - encoded.image.mean(0), encoded.kept, encoded.text - encoded.text.mean(0))
    plain = suite.score(encoded, model={}, resamples=50)
    moved = suite.score(centred, model={}, resamples=50)
    assert plain.gap is not None and moved.gap is not None
    assert moved.gap["measures"]["centroid_gap"]["value"] < plain.gap["measures"]["centroid_gap"]["value"]
    judge(plain, moved, resamples=50)


def test_the_same_task_twice_and_no_task_are_refused(data: Path) -> None:
    with pytest.raises(RecipeError, match="is named twice"):
        prepare([f"retrieval:{data}", f"retrieval:{data}"])
    with pytest.raises(RecipeError, match="no task to evaluate"):
        prepare([])


def test_classes_that_no_prompt_can_tell_apart_are_refused(data: Path, tmp_path: Path) -> None:
    source = next(data.glob("**/*.png"))
    for name in ("sea_lion", "sea lion"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(source.read_bytes())
    with pytest.raises(DataError, match="both called 'sea lion'"):
        prepare([f"zero-shot:{tmp_path}"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"batch_size": 0}, "batch_size=0: pass a whole number ≥ 1"),
        ({"seed": -1}, "seed=-1: pass a whole number ≥ 0"),
        ({"max_bad": -1}, "max_bad=-1: pass a whole number ≥ 0"),
        ({"workers": -2}, "workers=-2: pass a whole number ≥ 0"),
        ({"tasks": "zero-shot:x"}, "tasks are a list, and 'zero-shot:x' is one string: write ['zero-shot:x']"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused_at_once(
    model: DualEncoder, given: dict[str, Any], told: str
) -> None:
    arguments = {"tasks": ["retrieval:nowhere"], **given}
    for refused in (lambda: evaluate(model, **arguments), lambda: evaluate_both(model, model, **arguments)):
        with pytest.raises(RecipeError, match=re.escape(told)):
            refused()


def test_a_store_may_be_named_by_a_string(model: DualEncoder, data: Path, tmp_path: Path) -> None:
    first = evaluate(model, [f"retrieval:{data}"], store=str(tmp_path / "store"), resamples=50)
    assert len(list((tmp_path / "store" / "results").iterdir())) == 1
    both = evaluate_both(model, model, [f"retrieval:{data}"], store=str(tmp_path / "store"))
    assert both[0].metrics.keys() == first.metrics.keys()
    named = evaluate(model.spec, [f"retrieval:{data}"], resamples=50)
    assert {n: m.value for n, m in named.metrics.items()} == {n: m.value for n, m in first.metrics.items()}


def test_a_file_of_answers_is_not_compared_with_itself(model: DualEncoder, tmp_path: Path) -> None:
    said = [{"question_id": n, "prompt": "? (a) Yes (b) No", "answer": "(a)", "response": "(a)"} for n in (1, 2)]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, said)))
    with pytest.raises(RecipeError, match="reads a file of answers, which is the same for both models"):
        evaluate_both(model, model, [f"mmvp:{tmp_path}/answers.jsonl"])
    with pytest.raises(RecipeError, match="reads a file of answers"):
        modalign.refine(
            model.spec,
            write_pairs(tmp_path / "pairs"),
            out=tmp_path / "run",
            data__batch_size=8,
            evaluation__tasks=[f"mmvp:{tmp_path}/answers.jsonl"],
        )
