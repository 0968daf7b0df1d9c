from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modalign.evaluation.linear_probe import RULES
from modalign.evaluation.published import AVERAGES
from modalign.gap import measure
from modalign.report import page
from modalign.report.published import published_beside
from tests.report.made_run import make_run

SPEC = "coco:/data@karpathy-test"


def results(value: float) -> dict[str, Any]:
    metrics = {"image_to_text_r1": {"value": value}, "image_to_text_r5": {"value": value}}
    task = {"task": "retrieval", "spec": SPEC, "protocol": {"captions_per_image": "5"}, "metrics": metrics}
    return {"tasks": [task, {**task, "spec": "/data/mine"}]}


def test_only_what_was_published_on_the_data_set_stands_beside_ours() -> None:
    evaluation = {"before": results(0.5), "after": results(0.25)}
    (found,) = published_beside(evaluation, "open_clip:ViT-B-32-quickgelu/openai")
    assert (found.task, found.spec, found.metric) == ("retrieval", SPEC, "image → text R@1")
    assert (found.before, found.after) == (0.5, 0.25)
    assert [line.partition(" (")[0] for line in found.lines] == [
        "published: 33.26 %",
        "published: 31.86 %",
        "published: 38.78 %",
    ]
    assert all("captions per image 1 there, 5 here" in line for line in found.lines)
    assert published_beside({}, "x") == []


def test_a_report_shows_them_and_one_on_other_data_does_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "What was published" not in page.write(run).read_text(encoding="utf-8")
    file = run / "evaluation.json"
    file.write_text(file.read_text(encoding="utf-8").replace("./pairs/test", SPEC), encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8"))["after"]["tasks"][0]["spec"] == SPEC
    html = page.write(run).read_text(encoding="utf-8")
    assert "What was published on the same data sets" in html
    assert "published: 38.78 % (CLIP-Refine, ViT-B/32; clip-refine, retrieval" in html


def test_two_tasks_of_one_set_keep_their_own_numbers() -> None:
    """They differ in an option alone."""

    def side(*values: float) -> dict[str, Any]:
        tasks = [
            {
                "task": "linear_probe",
                "spec": "torchvision:svhn:/data@test",
                "options": {"rule": rule},
                "protocol": {"probe": RULES[rule]},
                "metrics": {"acc1": {"value": value}},
            }
            for rule, value in zip(RULES, values, strict=True)
        ]
        return {"tasks": tasks}

    first, second = published_beside({"before": side(0.5, 0.25), "after": side(0.75, 0.125)}, "ViT-L-14")
    assert (first.task, first.before, first.after) == ("linear probe (rule=logistic)", 0.5, 0.75)
    assert (second.task, second.before, second.after) == ("linear probe (rule=adamw)", 0.25, 0.125)
    assert ["differs" in found.lines[0] for found in (first, second)] == [True, False]


def test_a_gap_on_coco_and_a_whole_average_stand_beside_the_papers() -> None:
    def side(value: float, sets: set[str], spec: str = SPEC) -> dict[str, Any]:
        tasks = [
            {
                "task": "zero_shot",
                "spec": f"/data/{name}/test",
                "options": {},
                "protocol": {"prompts": "clip-benchmark"},
                "metrics": {"acc1": {"value": value + number / 100}},
            }
            for number, name in enumerate(sorted(sets))
        ]
        rows = torch.eye(6)
        moved = torch.cat([rows, torch.full((6, 1), value)], dim=1), torch.cat([rows, torch.zeros(6, 1)], dim=1)
        return {"tasks": tasks, "gap": {**measure(*moved, normalize=False, resamples=0).to_dict(), "spec": spec}}

    whole = set(AVERAGES["clip-refine-12"])
    found = published_beside({"before": side(0.5, whole), "after": side(0.25, whole)}, "ViT-B-32")
    by_spec = {beside.spec: beside for beside in found}
    mean = by_spec["mean over 12 data sets"]
    assert (mean.before, mean.after) == (pytest.approx(0.555), pytest.approx(0.305))
    assert mean.lines[0].startswith("published: 52.74 % (pre-trained, ViT-B/32")
    assert mean.lines[0].endswith("prompts single there, clip-benchmark here")
    gaps = {beside.metric: beside for beside in found if beside.task == "gap"}
    assert len(gaps) == 3 and all(len(beside.lines) == 2 for beside in gaps.values())
    assert gaps["alignment"].told == "0.2500 before, 0.06250 after"  # the mean of ‖x − t‖²
    part = whole - {"ucf101"}
    less = published_beside({"before": side(0.5, part, "/x"), "after": side(0.25, part, "/x")}, "ViT-B-32")
    assert {beside.spec for beside in less} == {"/data/imagenet1k/test"}
