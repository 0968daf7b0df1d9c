"""Every kind says which picture an example belongs to, in one numbering over all tasks, so that halves share none."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from modalign.evaluation.kinds import KINDS
from modalign.evaluation.pairing import halves
from modalign.evaluation.suite import parse_task
from modalign.evaluation.tasks import Results, evaluate
from modalign.models import load
from tests.tiny import tiny_hf_clip, tiny_llava

COUNT = 24


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One set of pictures, judged by every kind at once, twice with one store: as judged, and as kept."""
    root = tmp_path_factory.mktemp("owners")
    data = root / "coco" / "val2017"
    maps = root / "coco" / "annotations" / "panoptic_val2017"
    for folder in (data, maps):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(data / f"{i:02d}.png")
        Image.new("RGB", (32, 32), (1 + i % 2, 0, 0)).save(maps / f"{i:02d}.png")
    with (data / "metadata.csv").open("w", newline="") as file:
        lines = [[f"{i:02d}.png", text, ["cat", "dog"][i % 2]] for i in range(COUNT) for text in (f"a {i}", f"b {i}")]
        csv.writer(file).writerows([["file_name", "text", "label"], *lines])
    segments = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 8}]
    numbers = range(COUNT)[::-1]  # the JSON's order is another than the table's
    content = {
        "images": [{"id": i, "file_name": f"{i:02d}.png"} for i in numbers],
        "annotations": [{"image_id": i, "file_name": f"{i:02d}.png", "segments_info": segments} for i in numbers],
        "categories": [{"id": 7, "name": "sky"}, {"id": 8, "name": "sea"}],
    }
    maps.with_suffix(".json").write_text(json.dumps(content))
    train = root / "coco" / "train2017"
    train.mkdir()
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(train / f"{i:02d}.png")
        (maps.parent / "panoptic_train2017").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (1 + i % 2, 0, 0)).save(maps.parent / "panoptic_train2017" / f"{i:02d}.png")
    few = {key: value if key == "categories" else value[-4:] for key, value in content.items()}
    (maps.parent / "panoptic_train2017.json").write_text(json.dumps(few))
    asked = [{"image": f"{i // 2:02d}.png", "question": f"What {i}?", "answers": ["cup"]} for i in range(2 * COUNT)]
    (data / "questions.jsonl").write_text("\n".join(map(json.dumps, asked[::-1])))
    said = [{"question_id": i, "answer": "(a)", "response": "(a)"} for i in range(1, 13)]
    (root / "answers.jsonl").write_text("\n".join(map(json.dumps, said)))
    names = ("image_0", "image_1", "caption_0", "caption_1")
    two = [
        dict(zip(names, (f"{i:02d}.png", f"{i + 1:02d}.png", "dog bites man", "man bites dog"), strict=True))
        for i in range(0, COUNT, 2)
    ]
    (data / "examples.jsonl").write_text("\n".join(map(json.dumps, two)))
    crepe = {str(i): {"filename": f"{i:02d}.png", "caption": "a", "negative_caption": "b"} for i in range(COUNT)}
    (data / "swap.json").write_text(json.dumps(crepe))
    (root / "MMVP_VLM" / "images").mkdir(parents=True)
    (root / "MMVP_VLM" / "images" / "Colour").symlink_to(data)
    with (root / "MMVP_VLM" / "Questions.csv").open("w", newline="") as file:
        rows = [[i, "Colour", f"statement {i}"] for i in range(10, COUNT)]
        csv.writer(file).writerows([["Question ID", "Type", "Statement"], *rows])
    (root / "corpus.txt").write_text("a red boat\na blue cat\n")
    kinds = ("zero-shot", "retrieval", "mixed-retrieval", "knn", "linear-probe", "few-shot[shots=1,seeds=2]")
    more = ("cross-modal", "clustering", "image-clustering", "finetune[epochs=1,seeds=1,scope=head]", "winoground")
    tasks = [f"{kind}:{data}" for kind in (*kinds, *more, f"captioning[corpus={root}/corpus.txt,epochs=1]")]
    tasks += [f"sugarcrepe:{data}/swap.json", f"mmvp:{root}/answers.jsonl", f"mmvp-vlm:{root}/MMVP_VLM"]
    tasks += [f"localization[train=train2017,steps=2]:coco-panoptic:{root}/coco@val2017"]
    llava = tiny_llava(root / "llava")
    tasks += [f"vqa[llava={llava},max_new_tokens=1,answers={root}/answers]:{data}/questions.jsonl"]
    assert {parse_task(task).kind for task in tasks} == KINDS.keys() - {"drift"}
    model = load(tiny_hf_clip(root / "model"))
    first, again = (evaluate(model, tasks, resamples=20, store=root / "store") for _ in range(2))
    assert json.dumps(again.to_dict(), allow_nan=False) == json.dumps(first.to_dict(), allow_nan=False)
    return first


def test_every_example_belongs_to_its_picture(results: Results) -> None:
    """Pictures are numbered as the first task, the table, has them: picture i is i."""
    everything = set(range(COUNT))
    for name, metric in results.metrics.items():
        owners = metric.owners
        assert len(owners) == len(metric.outcomes)
        if name.startswith("mmvp."):
            assert not set(owners.tolist()) & everything
        else:
            assert set(owners.tolist()) <= everything, name
    metrics = results.metrics
    assert metrics["vqa.exact_match"].owners.tolist() == [i // 2 for i in range(2 * COUNT)][::-1]
    assert set(metrics["localization.global_macro_recall"].owners.tolist()) == everything
    assert metrics["sugarcrepe.acc"].owners.tolist() == list(range(COUNT))
    assert metrics["winoground.text_score"].owners.tolist() == list(range(0, COUNT, 2))
    assert metrics["mmvp_vlm.pair_accuracy"].owners.tolist() == list(range(10, COUNT, 2))
    pairs = metrics["mmvp.pair_accuracy"].owners
    assert len(set(pairs.tolist())) == 6
    assert metrics["mmvp.answer_accuracy"].owners.tolist() == pairs.repeat(2).tolist()


def test_the_map_s_picture_is_the_one_it_is_of(results: Results) -> None:
    """Maps of even pictures hold class 0 alone, those of odd ones class 1: the stratum tells the owner's parity."""
    metric = results.metrics["localization.local_macro_recall"]
    assert metric.strata is not None and (metric.owners % 2 == metric.strata).all()


def test_halves_share_no_picture(results: Results) -> None:
    sides = [set(np.concatenate([m.owners for m in half.metrics.values()]).tolist()) for half in halves(results)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] >= set(range(COUNT))
