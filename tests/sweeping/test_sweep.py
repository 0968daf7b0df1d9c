"""Sweeps of a real tiny model: what runs, what is shared, what is resumed, what fails."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import modalign
from modalign.console import Reporter
from modalign.errors import DataError, InterruptedRunError, OutputError, RecipeError
from modalign.evaluation.results import Results
from modalign.evaluation.tasks import evaluate
from modalign.features import TrunkMemo
from modalign.sweeping import Sweep, curve, model_at
from modalign.sweeping.point import Shared, read_memos, write_memos
from tests.tiny import tiny_open_clip, write_pairs

RULE = "max retrieval.r5 where gap.raw_gap <= before + 10"
Settings = dict[str, Any]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("sweep")
    return {
        "model": tiny_open_clip(folder / "clip", quick_gelu=True),
        "data": write_pairs(folder / "pairs", n=24),
        "method": "contrastive",
        "data__batch_size": 8,
        "evaluation__tasks": [f"retrieval:{write_pairs(folder / 'test', n=20, seed=1)}"],
        "evaluation__resamples": 100,
        "silent": True,
        "transforms": False,
    }


@pytest.fixture(scope="module")
def whole(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.sweeping.training_free.MAPS", ("center", "ridge"))
        return modalign.sweep(
            {"optimizer.lr": [1e-3, 1e-2]},
            out=out,
            interpolate=[0, 0.5, 1],
            pick=RULE,
            **{**settings, "train": "projection", "transforms": True},
        )


def numbers(folder: Path) -> Any:
    """results.json without the folder's own name."""
    return json.loads((folder / "results.json").read_text().replace(str(folder), "OUT"))


def weights(run: Path) -> bytes:
    (path,) = (run / "model").glob("*.safetensors")
    return path.read_bytes()


def test_each_point_is_a_run_folder_and_frozen_networks_ran_once(whole: Sweep) -> None:
    names = ["lr=0.001,seed=0", "lr=0.01,seed=0"]
    assert [path.name for path in sorted(whole.folder.glob("lr=*"))] == names and whole.exit_code == 0
    rates = [yaml.safe_load((whole.folder / name / "recipe.yaml").read_text())["optimizer"]["lr"] for name in names]
    assert rates == [1e-3, 1e-2]
    passes = [json.loads((whole.folder / name / "cost.json").read_text())["forward_passes"] for name in names]
    assert passes[0]["image"] == 24 and passes[1]["image"] == 0 == passes[1]["text"]
    before = [(whole.folder / name / "evaluation" / "before.json").read_bytes() for name in names]
    assert before[0] == before[1]
    assert [(c.run.name, c.weight) for c in whole.checkpoints] == [(n, w) for n in names for w in (0.0, 0.5, 1.0)]


def test_the_ends_of_the_line_are_before_and_after_and_its_middle_is_judged(whole: Sweep, settings: Settings) -> None:
    run = whole.folder / "lr=0.01,seed=0"
    ends = [model_at(run, weight).module.state_dict() for weight in (0.0, 1.0)]
    for model, spec in zip(ends, (settings["model"], str(run)), strict=True):
        assert all(torch.equal(model[name], t) for name, t in modalign.load(spec).module.state_dict().items())
    start, middle, end = curve(run, [0.5])
    record = json.loads((run / "evaluation.json").read_text())
    for checkpoint, side in ((start, "before"), (end, "after")):
        assert checkpoint.results.to_dict()["tasks"] == Results.from_dict(record[side]).to_dict()["tasks"]
    told = evaluate(model_at(run, 0.5), settings["evaluation__tasks"], resamples=100)
    assert {n: m.outcomes.tolist() for n, m in told.metrics.items()} == {
        n: m.outcomes.tolist() for n, m in middle.results.metrics.items()
    }
    assert all(float(ratio) == pytest.approx(1) for ratio in start.ratios.values())
    assert all(change.interval == (0.0, 0.0) for change in start.changes.values())
    raw = [record["gap"][side]["measures"]["raw_gap"]["value"] for side in ("before", "after")]
    assert float(end.ratios["raw_gap"]) == pytest.approx(raw[1] / raw[0])
    low, high = end.ratios["raw_gap"].interval or (0, 0)
    assert low < raw[1] / raw[0] < high


def test_numbers_are_written_with_a_row_for_every_checkpoint_and_transform(whole: Sweep) -> None:
    with (whole.folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 + 2 and {"center", "ridge"} <= {row["run"] for row in rows}
    centred = next(c for c in whole.transforms if c.run.name == "center")
    assert float(centred.ratios["centroid_gap"]) < 0.6  # fitted on other pairs than it is judged on
    assert numbers(whole.folder)["picked"]["rule"] == RULE
    page = whole.report.read_text()
    assert "validation half" in page and "test half" in page and whole.model in page


def test_the_picked_model_is_there(whole: Sweep) -> None:
    assert whole.picked is not None and whole.picked.checkpoint is not None
    chosen = whole.picked.checkpoint
    loaded = modalign.load(whole.model)
    expected = model_at(chosen.run, chosen.weight)
    assert all(torch.equal(loaded.module.state_dict()[n], t) for n, t in expected.module.state_dict().items())


def test_columns_and_protocol_reach_every_judgement(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modalign.sweeping.training_free.MAPS", ("center",))
    judged = Path(write_pairs(tmp_path / "judged", n=20, seed=1))
    table = judged / "metadata.csv"
    table.write_text(table.read_text().replace("file_name,text", "picture,words"))
    asked = {"tasks": [f"retrieval:{judged}"], "image_column": "picture", "text_column": "words"}
    found = modalign.sweep(
        {"optimizer.lr": [1e-3]},
        out=tmp_path / "out",
        interpolate=[0.5],
        **{
            **settings,
            **{f"evaluation__{key}": value for key, value in asked.items()},
            "evaluation__protocol": "clip-refine",
            "train": "projection",
            "transforms": True,
        },
    )
    told = [each.results.tasks[0].protocol["protocol"] for each in (*found.checkpoints, *found.transforms)]
    assert told == ["clip-refine"] * 4


@pytest.mark.slow
def test_what_is_missing_is_done_again_and_gives_the_same_numbers(
    whole: Sweep, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modalign.sweeping.training_free.MAPS", ("center", "ridge"))
    out = tmp_path / "out"
    shutil.copytree(whole.folder, out)
    first, second = out / "lr=0.001,seed=0", out / "lr=0.01,seed=0"
    (first / "between" / "0.5.json").unlink()
    for name in ("report.html", "evaluation.json"):  # as a kill in the last stage leaves it
        (second / name).unlink()
    shutil.rmtree(second / "between")
    shutil.rmtree(second / "model")
    for name in ("pareto.html", "results.json"):
        (out / name).unlink()
    again = modalign.sweep(
        {"optimizer.lr": [1e-3, 1e-2]},
        out=out,
        interpolate=[0, 0.5, 1],
        pick=RULE,
        resume=True,
        **{**settings, "train": "projection", "transforms": True},
    )
    assert numbers(out) == numbers(whole.folder) and again.report.is_file()
    assert weights(second) == weights(whole.folder / second.name)


def test_a_finished_run_without_its_model_is_told_by_name_and_not_as_one_run_too_many(
    whole: Sweep, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole.folder, out)
    shutil.rmtree(out / "lr=0.001,seed=0" / "model")
    shutil.rmtree(out / "lr=0.001,seed=0" / "between")
    again = modalign.sweep(
        {"optimizer.lr": [1e-3, 1e-2]},
        out=out,
        interpolate=[0, 0.5, 1],
        resume=True,
        **{**settings, "train": "projection", "silent": False},
    )
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "FAILED" in line]
    assert told.startswith("what is missing of a finished run FAILED: lr=0.001,seed=0")
    assert again.exit_code == 1 and list(again.failed) == ["lr=0.001,seed=0"]


def test_a_failing_point_is_told_in_one_line_and_the_others_go_on(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = modalign.sweep(
        {"train": ["match:no_such_parameter", "projection"]},
        out=tmp_path / "out",
        **{**settings, "silent": False},
    )
    assert done.exit_code == 1
    (problem,) = done.failed.values()
    told = [line for line in capsys.readouterr().err.splitlines() if "FAILED" in line]
    assert len(told) == 1 and problem in told[0] and "\n" not in problem
    assert {c.run.name for c in done.checkpoints} == {"train=projection,seed=0"}
    assert "matches none of the" in problem and "matches none of the" in done.report.read_text()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_fails_its_point_alone(settings: Settings, tmp_path: Path) -> None:
    done = modalign.sweep(
        {"optimizer.lr": [1e-3, 1e6]},
        out=tmp_path / "out",
        **{**settings, "method": "clip-refine", "epochs": 3},
    )
    assert list(done.failed) == ["lr=1000000.0,seed=0"] and "lr=0.001,seed=0" in {c.run.name for c in done.checkpoints}
    assert "finite" in done.failed["lr=1000000.0,seed=0"] or "NaN" in done.failed["lr=1000000.0,seed=0"]


def test_refusals_come_before_anything_runs(settings: Settings, tmp_path: Path, whole: Sweep) -> None:
    out = tmp_path / "out"

    def refused(error: type[Exception], told: str, over: Any = (), **more: Any) -> None:
        with pytest.raises(error, match=told) as caught:
            modalign.sweep(over, out=more.pop("out", out), **{**settings, **more})
        assert "\n" not in str(caught.value) and not out.exists()

    refused(RecipeError, "add --eval retrieval", evaluation__tasks=None)
    refused(DataError, "no-such-folder", evaluation__tasks=["retrieval:no-such-folder"])
    refused(RecipeError, r"optimizer\.lrr", {"optimizer.lrr": [1]})
    refused(RecipeError, "--pick", pick="best retrieval.r1")
    refused(RecipeError, "outside 0", interpolate=[2])
    refused(RecipeError, "at least 1", jobs=0)
    refused(OutputError, "add --resume", out=whole.folder)
    other = {"optimizer.lr": [1e-3]}
    refused(RecipeError, "began with", other, out=whole.folder, resume=True, train="projection", epochs=7)


def test_a_metric_that_is_not_there_is_told_after_the_first_run(settings: Settings, tmp_path: Path) -> None:
    over = {"optimizer.lr": [1e-4, 1e-3]}
    with pytest.raises(RecipeError, match="text_to_image_r1"):
        modalign.sweep(over, out=tmp_path / "out", pick="max retrieval.text_to_imag_r1", **settings)
    assert [path.name for path in (tmp_path / "out").glob("lr=*")] == ["lr=0.0001,seed=0"]


@pytest.mark.slow
def test_the_initial_model_is_judged_once_where_towers_train(settings: Settings, tmp_path: Path) -> None:
    class Told(Reporter):
        def __init__(self) -> None:
            super().__init__(silent=True)
            self.titles: list[str] = []

        def progress(self, title: str, *args: Any, **more: Any) -> Any:
            self.titles.append(title)
            return super().progress(title, *args, **more)

    reporter = Told()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.sweeping.running.Reporter", lambda silent: reporter)
        done = modalign.sweep({"optimizer.lr": [1e-4, 1e-3]}, out=tmp_path / "out", **settings)
    assert reporter.titles.count("evaluating before") == 1 and reporter.titles.count("evaluating after") == 2
    assert len(done.checkpoints) == 4


@pytest.mark.slow
def test_an_interrupted_sweep_says_how_to_go_on(settings: Settings, tmp_path: Path) -> None:
    seen = []

    def stopped(*args: Any, **more: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return run_recipe(*args, **more)

    from modalign.running import run_recipe

    over = {"optimizer.lr": [1e-4, 1e-3]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.sweeping.point.run_recipe", stopped)
        with pytest.raises(InterruptedRunError, match="1 of 2 runs finished; go on with the same command and --resume"):
            modalign.sweep(over, out=tmp_path / "out", **settings)
    assert len(modalign.sweep(over, out=tmp_path / "out", resume=True, **settings).checkpoints) == 4


def test_trunk_outputs_reach_another_process(settings: Settings, tmp_path: Path) -> None:
    model = modalign.load(settings["model"])
    shared = Shared(tmp_path)
    told = evaluate(model, settings["evaluation__tasks"], memo=shared.memo("m"), resamples=100)
    write_memos(tmp_path / "memos", shared.memos | {"empty": TrunkMemo()})
    known = read_memos(tmp_path / "memos")
    assert set(known) == {"m"}
    model.preprocess = None  # type: ignore[assignment] - no picture is decoded again
    again = evaluate(model, settings["evaluation__tasks"], memo=known["m"], resamples=100)
    assert {n: m.value for n, m in again.metrics.items()} == {n: m.value for n, m in told.metrics.items()}
