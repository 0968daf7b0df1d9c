from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modalign.errors import DataError, OutputError
from modalign.evaluation.gate import judge
from modalign.evaluation.results import Metric, Results, TaskResult


def results(seed: int = 0, kinds: tuple[str, ...] = ("zero_shot",)) -> Results:
    rng = np.random.default_rng(seed)
    classes, pictures = np.arange(60) % 3, np.arange(100, 160)
    tasks = []
    for number, kind in enumerate(kinds):
        outcomes = rng.random(60) < 0.7
        metrics = [
            Metric.of("acc1", outcomes, clusters=pictures, resamples=200),
            Metric.of(
                "mean_per_class_recall", outcomes, clusters=pictures, strata=classes, average="strata", resamples=200
            ),
            Metric.of("loss", rng.random(60), higher_is_better=False, pictures=pictures, resamples=200),
        ]
        tasks.append(TaskResult(kind, f"data{number}", {"samples": 60}, {m.name: m for m in metrics}))  # type: ignore[arg-type]
    return Results({"spec": "m", "fingerprint": "f"}, tasks, None, {"seed": 0})


def test_names_carry_the_spec_only_where_a_kind_occurs_twice() -> None:
    assert next(iter(results().metrics)) == "zero_shot.acc1"
    twice = results(kinds=("zero_shot", "retrieval", "zero_shot"))
    assert list(twice.metrics)[::3] == ["zero_shot[data0].acc1", "retrieval.acc1", "zero_shot[data2].acc1"]


def test_two_saved_files_compare_as_the_live_results_do(tmp_path: Path) -> None:
    before, after = results(0), results(1)
    before.save(tmp_path / "deep" / "before.json")
    after.save(tmp_path / "after.json")
    kept = [Results.load(tmp_path / "deep" / "before.json"), Results.load(tmp_path / "after.json")]
    assert judge(*kept) == judge(before, after)
    assert kept[0].to_dict() == before.to_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after.json", "deep"]


def test_json_is_strict_and_keeps_what_every_example_contributed(tmp_path: Path) -> None:
    before = results()
    before.save(tmp_path / "r.json")
    stored = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    acc1 = stored["tasks"][0]["metrics"]["acc1"]
    assert set(acc1["outcomes"]) == {0, 1} and acc1["clusters"][0] == 100
    assert np.mean(acc1["outcomes"]) == pytest.approx(acc1["value"])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {}, "tasks": [{}], "gap": null, "environment": {}}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(DataError, match=r"r\.json does not hold evaluation results"):
        Results.load(tmp_path / "r.json")
    with pytest.raises(DataError, match=r"no\.json"):
        Results.load(tmp_path / "no.json")


def test_table_is_in_per_cent_with_intervals_and_counts() -> None:
    rows = results().to_table()
    assert rows[0] == ["metric", "value %", "95 % interval", "n"]
    metric = results().metrics["zero_shot.acc1"]
    assert rows[1][:2] == ["zero_shot.acc1", f"{100 * metric.value:.2f}"] and rows[1][3] == "60"


def test_a_metric_over_seeds_tells_their_spread_with_its_interval() -> None:
    found = results()
    note = {"over_seeds": [0.1, 0.2, 0.3], "deviation_over_seeds": 0.1}
    found.tasks[0].notes.update(acc1=note, loss={"over_draws": [0.5], "deviation_over_draws": 0.0})
    told = {row[0]: row[2] for row in found.to_table()}
    assert told["zero_shot.acc1"].endswith(", ± 10.00 over 3 seeds")
    assert "±" not in told["zero_shot.loss"] and "±" not in told["zero_shot.mean_per_class_recall"]  # one draw; none


def test_only_shares_are_widened_where_nothing_varies() -> None:
    assert Metric.of("acc1", np.zeros(8)).interval == (0, pytest.approx(0.3694, abs=1e-4))
    assert Metric.of("cider", np.zeros(8), unit="score").interval == (0, 0)


def test_a_place_that_cannot_be_written_is_named_as_it_was_given(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"^{tmp_path}: Is a directory; check the path"):
        results().save(tmp_path)
