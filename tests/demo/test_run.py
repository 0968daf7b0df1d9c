from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import modalign
from modalign import methods
from modalign.console import Reporter
from modalign.demo import model
from modalign.demo.run import recipe, run, table
from modalign.errors import RecipeError


def test_the_full_scope_keeps_the_rate_of_the_projections() -> None:
    import re

    groups = recipe("clip-refine", 0, "full").optimizer.groups
    encoder = model.untrained(0)
    matched = {n for n, _ in encoder.module.named_parameters() if any(re.search(g.match, n) for g in groups)}
    assert matched == {*encoder.projection_names("image"), *encoder.projection_names("text")}


@pytest.mark.parametrize("method", ["kuea", "projection", "feature", "am-radio"])
def test_a_method_that_reads_a_target_is_shown_no_caption(method: str) -> None:
    aligned, captioned = recipe(method), recipe("contrastive")
    assert (aligned.data.train, aligned.target) == ("images:demo:refine", "demo")
    assert (captioned.data.train, captioned.target) == ("demo:refine", None)
    shared = ("epochs", "seed", "train")
    assert [getattr(aligned, key) for key in shared] == [getattr(captioned, key) for key in shared]
    assert aligned.optimizer.lr == captioned.optimizer.lr
    assert aligned.evaluation == captioned.evaluation


def test_the_demos_recipe_of_kuea_builds_the_method_it_names() -> None:
    built = methods.from_config(recipe("kuea").method)
    assert isinstance(built, methods.Kuea)
    assert (built.kernel_weight, built.fit_kernel, built.learn_kernel, built.anchor_weight) == (1000, True, True, 1)


def test_an_unknown_method_is_refused_with_its_neighbour() -> None:
    with pytest.raises(RecipeError, match="kuea"):
        recipe("kuae")


def test_the_table_tells_of_the_target_only_where_there_is_one() -> None:
    row = {"before": 0.5, "after": 0.25, "difference": -0.25, "interval": (-0.3, -0.2), "verdict": "worse"}
    metrics = [
        "zero_shot.acc1",
        *(f"retrieval.{way}_{rank}" for way in ("image_to_text", "text_to_image") for rank in ("r1", "r10")),
        "knn.acc1",
        "linear_probe.acc1",
        "clustering.ari",
    ]
    gap = {"measures": {"centroid_gap": {"value": 0.5}, "distribution_gap": {"value": 1.0}}}
    record = {
        "gate": {"rows": [{**row, "metric": metric} for metric in metrics]},
        "gap": {"before": gap, "after": gap},
        "controls": [],
    }
    assert not any("target" in line[0] for line in table(record, "contrastive"))
    agreement = {
        side: {"kernel_loss": loss, "cka": 0.5, "mutual_knn": 0.25}
        for side, loss in (("before", 0.003), ("after", 0.001))
    }
    rows = table({**record, "target_alignment": agreement}, "kuea")
    at = [line[0] for line in rows].index("kernel loss to the target")
    assert rows[at][1:3] == ["before", "0.0030"]
    assert rows[at + 1][1:4] == ["kuea", "0.0010", "-0.0020"]
    assert ["", "kuea", "25.0", "-25.0 [-30.0, -20.0]", "worse"] in rows


@pytest.mark.demo
def test_the_whole_story_runs_and_is_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path / "cache"))
    status = run(tmp_path / "runs", reporter=Reporter(silent=True))
    first = capsys.readouterr().out
    assert first.startswith("This is a small CLIP of illustrations")
    assert "not OpenAI's" in first.splitlines()[0]
    for told in (
        "CC BY-SA 4.0",
        "linear probe accuracy",
        "joint clustering, ARI",
        "mean-centring",
        "contrastive",
        "centroid gap",
        "Verdict on clip-refine",
        "report.html",
    ):
        assert told in first
    assert (tmp_path / "runs" / "clip-refine-seed0" / "report.html").is_file()

    assert run(tmp_path / "runs", reporter=Reporter(silent=True)) == status
    second = capsys.readouterr().out
    assert "reused" in second
    numbers = [text[text.index("zero-shot accuracy") : text.index("Report:")] for text in (first, second)]
    assert numbers[0] == numbers[1]


@pytest.mark.demo
def test_kuea_moves_towards_its_target_and_leaves_the_texts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(tmp_path / "runs", method="kuea", reporter=Reporter(silent=True))
    first = capsys.readouterr().out
    for told in (
        "no captions",
        "contrastive",
        "projection",
        "image k-NN accuracy",
        "kernel loss to the target",
        "cannot have changed",
        "Verdict on kuea",
    ):
        assert told in first
    assert "mean-centring" not in first
    folder = tmp_path / "runs" / "kuea-seed0"
    record = json.loads((folder / "evaluation.json").read_text())
    assert [control["name"] for control in record["controls"]] == ["contrastive", "projection"]
    agreement = record["target_alignment"]
    assert agreement["after"]["kernel_loss"] < agreement["before"]["kernel_loss"]
    assert agreement["after"]["cka"] > agreement["before"]["cka"]
    passes = json.loads((folder / "cost.json").read_text())["forward_passes"]
    assert (passes["image"], passes["target"], passes["text"]) == (406, 406, 0)
    base, after = model.base_model(0).module.state_dict(), modalign.load(str(folder)).module.state_dict()
    assert all(torch.equal(after[name], base[name]) for name in base if not name.startswith("visual.head"))
    assert any(not torch.equal(after[name], base[name]) for name in base if name.startswith("visual.head"))

    assert run(tmp_path / "runs", method="kuea", reporter=Reporter(silent=True)) == status
    second = capsys.readouterr().out
    numbers = [text[text.index("zero-shot accuracy") : text.index("Report:")] for text in (first, second)]
    assert numbers[0] == numbers[1]
