from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
