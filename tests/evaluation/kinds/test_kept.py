"""A kept result is met again by the same files only: whatever decides a score, or is told beside it, is in its key."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modalign.evaluation.kept import Kept, KeptResults
from modalign.evaluation.kinds import KINDS
from modalign.evaluation.results import TaskResult
from modalign.evaluation.suite import Suite, prepare
from tests.tiny import tiny_open_clip

COCO = "coco-panoptic:coco@val2017"
PROBED = "[train=train]:test"
LLAVA = "[llava=llava,adapter=adapter]"


def _table(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _picture(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(file)


def _labelled(folder: Path, names: Sequence[str], seed: int) -> None:
    rows = [
        {"file_name": f"{i}.png", "text": f"view {i}", "more": f"look {i}", "label": names[i % len(names)]}
        for i in range(12)
    ]
    for i in range(12):
        _picture(folder / f"{i}.png", seed + i)
    _table(folder / "metadata.csv", rows)


def _coco(root: Path, split: str, seed: int) -> None:
    annotations = []
    for i in range(5):
        _picture(root / split / f"{split}{i}.png", seed + i)
        name = f"panoptic_{split}"
        (root / "annotations" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (1 + i % 2, 0, 0)).save(root / "annotations" / name / f"{i}.png")
        segments = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 8}]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    content = {
        "images": [{"id": i, "file_name": f"{split}{i}.png"} for i in range(5)],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "sky"}, {"id": 8, "name": "sea"}],
    }
    (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of every kind of task."""
    root = tmp_path_factory.mktemp("kept") / "data"
    _labelled(root / "test", ["cat", "dog"], 0)
    _labelled(root / "train", ["cat", "dog", "eel"], 100)
    _labelled(root / "other", ["oak", "elm"], 200)
    (root / "corpus.txt").write_text("a red boat\na blue cat\n")
    (root / "memory.txt").write_text("a boat\na cat\n")
    (root / "templates.txt").write_text("a photo of {}\n")
    (root / "called.txt").write_text("a photo of {}\n")
    names = ("image_0", "image_1", "caption_0", "caption_1", "tag")
    pairs = [dict(zip(names, ("0.png", "1.png", "dog bites man", "man bites dog", "Object"), strict=True))]
    (root / "test" / "examples.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    crepe = {"0": {"filename": "0.png", "caption": "a dog", "negative_caption": "a cat"}}
    (root / "test" / "swap.json").write_text(json.dumps(crepe))
    vlm = [{"Question ID": i, "Type": "Colour", "Statement": f"statement {i}"} for i in (1, 2)]
    _table(root / "MMVP_VLM" / "Questions.csv", vlm)
    options = "(a) Open (b) Closed"
    asked = [
        {"Index": i, "Question": f"question {i}?", "Options": options, "Correct Answer": f"({'ab'[i % 2]})"}
        for i in (1, 2)
    ]
    _table(root / "MMVP" / "Questions.csv", asked)
    for i in (1, 2):
        _picture(root / "MMVP_VLM" / "MLLM_VLM Images" / "Colour" / f"{i}.jpg", i)
        _picture(root / "MMVP" / "MMVP Images" / f"{i}.jpg", i)
    said = [{"question_id": i, "options": options, "answer": "(a)", "response": "Open"} for i in (1, 2)]
    _table(root / "answers.csv", said)
    question = {"question_id": "first", "image": "0.png", "question": "What?", "answers": ["cup"]}
    (root / "test" / "questions.jsonl").write_text(json.dumps(question))
    for folder in ("llava", "adapter"):
        (root / folder).mkdir()
        (root / folder / "model.safetensors").write_text("weights")
    _coco(root / "coco", "val2017", 0)
    _coco(root / "coco", "train2017", 50)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to be changed, which is the working folder: no path of a task changes."""
    folder = tmp_path / "data"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(folder)
    return folder


def _told(task: str, templates: str | None = None) -> Suite:
    return prepare([task], templates=templates)


# task, file, what is replaced in it by what; without these its pixels or bytes are others
CASES: list[tuple[str, ...]] = [
    ("zero-shot:test", "test/3.png"),
    ("zero-shot:test", "test/metadata.csv", "dog", "wolf"),
    ("zero-shot:test", "test/metadata.csv", "look 3,dog", "look 3,cat"),
    ("retrieval:test", "test/3.png"),
    ("retrieval:test", "test/metadata.csv", "view 3", "sight 3"),
    ("mixed-retrieval:test", "test/3.png"),
    ("mixed-retrieval:test", "test/metadata.csv", "view 3", "sight 3"),
    *(
        (f"{kind}{PROBED}", *change)
        for kind in ("knn", "linear-probe", "few-shot", "finetune")
        for change in (
            ("test/3.png",),
            ("train/3.png",),
            ("test/metadata.csv", "look 3,dog", "look 3,cat"),
            ("test/metadata.csv", "dog", "eel"),  # the numbers of the data's own labels stay
            ("train/metadata.csv", "look 3,cat", "look 3,dog"),
            ("train/metadata.csv", "eel", "emu"),
        )
    ),
    ("finetune[other=other]:test", "other/3.png"),
    ("finetune[other=other]:test", "other/metadata.csv", "look 3,elm", "look 3,oak"),
    ("finetune[other=other]:test", "other/metadata.csv", "oak", "palm"),
    *(
        (f"{kind}[text={text}]:test", *change)
        for kind in ("cross-modal", "clustering")
        for text in ("captions", "prompts")
        for change in (
            ("test/3.png",),
            ("test/metadata.csv", "look 3,dog", "look 3,cat"),
            ("test/metadata.csv", "dog", "wolf"),
            *([("test/metadata.csv", "view 3", "sight 3")] if text == "captions" else []),
        )
    ),
    ("image-clustering:test", "test/3.png"),
    ("image-clustering:test", "test/metadata.csv", "look 3,dog", "look 3,cat"),
    ("image-clustering:test", "test/metadata.csv", "dog", "wolf"),
    *(
        ("captioning[corpus=corpus.txt,memory=memory.txt]:test", *change)
        for change in (
            ("test/3.png",),
            ("test/metadata.csv", "view 3", "sight 3"),
            ("corpus.txt", "boat", "ship"),
            ("memory.txt", "boat", "ship"),
        )
    ),
    ("winoground[group=tag]:test", "test/1.png"),
    ("winoground[group=tag]:test", "test/examples.jsonl", '"dog bites man"', '"a dog bites a man"'),
    ("winoground[group=tag]:test", "test/examples.jsonl", "Object", "Relation"),
    ("sugarcrepe:test/swap.json", "test/0.png"),
    ("sugarcrepe:test/swap.json", "test/swap.json", "a cat", "no dog"),
    ("mmvp-vlm:MMVP_VLM", "MMVP_VLM/MLLM_VLM Images/Colour/2.jpg"),
    ("mmvp-vlm:MMVP_VLM", "MMVP_VLM/Questions.csv", "statement 2", "another"),
    ("mmvp:answers.csv", "answers.csv", "(a),Open", "(a),Closed"),
    ("mmvp:answers.csv", "answers.csv", "(a),Open", "(b),Open"),
    ("mmvp:answers.csv", "answers.csv", "(a) Open (b) Closed", "(a) Closed (b) Open"),
    (f"mmvp{LLAVA}:MMVP", "MMVP/MMVP Images/2.jpg"),
    (f"mmvp{LLAVA}:MMVP", "MMVP/Questions.csv", "question 2", "another"),
    (f"mmvp{LLAVA}:MMVP", "MMVP/Questions.csv", ",(a)", ",(b)"),
    (f"mmvp{LLAVA}:MMVP", "llava/model.safetensors"),
    *(
        (f"vqa{LLAVA}:test/questions.jsonl", *change)
        for change in (
            ("test/0.png",),
            ("test/questions.jsonl", "What?", "Where?"),
            ("test/questions.jsonl", "cup", "mug"),
            ("test/questions.jsonl", "first", "second"),
            ("llava/model.safetensors",),
            ("adapter/model.safetensors",),
        )
    ),
    *(
        (f"localization[train=train2017]:{COCO}", *change)
        for split in ("val2017", "train2017")
        for change in (
            (f"coco/{split}/{split}1.png",),
            (f"coco/annotations/panoptic_{split}/1.png",),
            (f"coco/annotations/panoptic_{split}.json", '"category_id": 7', '"category_id": 8'),
            (f"coco/annotations/panoptic_{split}.json", "sea", "lake"),
        )
    ),
]


def _keep(suite: Suite, folder: Path) -> KeptResults:
    kept = KeptResults(folder, {})
    kept.write(suite.key(0, {}, suite._gap_position == 0), Kept(TaskResult("x", "x", {}, {})))
    assert suite.pending(kept, True) == []
    return kept


def test_every_kind_is_tried() -> None:
    assert {re.split(r"[\[:]", case[0])[0] for case in CASES} == KINDS.keys() - {"drift"}  # which is never kept


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_changed_file_never_meets_a_kept_result(root: Path, tmp_path: Path, case: tuple[str, ...]) -> None:
    task, name, *change = case
    kept = _keep(_told(task), tmp_path / "kept")
    assert _told(task).pending(kept, True) == []
    file = root / name
    if change:
        before = file.read_text()
        old, new = change
        file.write_text(before.replace(old, new))
        assert file.read_text() != before
    elif file.suffix == ".safetensors":
        file.write_text("other weights")
    else:
        with Image.open(file) as picture:
            flipped = Image.eval(picture, lambda value: 3 - value if "panoptic" in name else 255 - value)
        flipped.save(file)
    assert _told(task).pending(kept, True) == [0]


@pytest.mark.parametrize("task", ["zero-shot:test", "cross-modal:test", "clustering:test", "finetune:test"])
def test_what_the_templates_are_called_is_told_anew(root: Path, tmp_path: Path, task: str) -> None:
    kept = _keep(_told(task, templates="templates.txt"), tmp_path / "kept")
    assert _told(task, templates="called.txt").pending(kept, True) == [0]


def test_the_second_encoder_s_weights_count(root: Path, tmp_path: Path) -> None:
    spec = tiny_open_clip(root / "second")
    task = f"vqa[llava=llava,mix={spec}]:test/questions.jsonl"
    kept = _keep(_told(task), tmp_path / "kept")
    assert _told(task).pending(kept, True) == []
    shutil.rmtree(root / "second")
    assert tiny_open_clip(root / "second", seed=1) == spec
    assert _told(task).pending(kept, True) == [0]
