from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from modalign.report.run_folder import read, read_features, read_metrics
from tests.report.made_run import features, metrics_lines, write_features, write_pictures


def log(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_last_line_cut_by_a_kill_is_no_damage(tmp_path: Path) -> None:
    path = log(tmp_path, '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    steps, validations, unreadable = read_metrics(path)
    assert [entry["step"] for entry in steps] == [1, 2]
    assert (validations, unreadable) == ([], 0)


def test_damaged_lines_in_the_middle_are_left_out_and_counted(tmp_path: Path) -> None:
    path = log(tmp_path, '{"step": 1}\nnonsense\n[1, 2]\n{"loss": 1}\n7\n\n{"step": 2}\n')
    steps, _, unreadable = read_metrics(path)
    assert [entry["step"] for entry in steps] == [1, 2]
    assert unreadable == 4


def test_a_step_logged_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    path = log(tmp_path, '{"step": 1, "loss": 9}\n{"step": 2, "loss": 8}\n{"step": 2, "loss": 7}\n')
    assert [entry["loss"] for entry in read_metrics(path)[0]] == [9, 7]


def test_a_validation_does_not_replace_the_step_it_follows(tmp_path: Path) -> None:
    path = log(tmp_path, "".join(line + "\n" for line in metrics_lines(20)))
    steps, validations, _ = read_metrics(path)
    assert [entry["step"] for entry in steps] == list(range(1, 21))
    assert [entry["step"] for entry in validations] == [0, 20]


def test_an_empty_folder_names_every_file_and_a_command_for_each(tmp_path: Path) -> None:
    run = read(tmp_path)
    names = {"recipe.yaml", "environment.json", "evaluation.json", "cost.json", "metrics.jsonl", "features/"}
    assert set(run.absent) == names
    for name, absent in run.absent.items():
        assert absent.sentence.startswith(name)
        assert absent.command.startswith("modalign refine --model SPEC --data SPEC --out ")
        assert ("--eval" in absent.command) == (name in ("evaluation.json", "features/"))


def test_an_unfinished_run_is_resumed_and_a_finished_one_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("model: x\n")
    assert read(folder).absent["features/"].command == f"modalign refine --out '{folder}' --resume"
    (folder / "evaluation.json").write_text("{}")
    again = f"modalign refine --recipe '{folder}/recipe.yaml' --out '{folder}-again'"
    assert read(folder).absent["cost.json"].command == again
    assert read(folder).absent["features/"].command == f"{again} --eval retrieval:SPEC"


@pytest.mark.parametrize("text", ["{", "[]", "3", "", "\x00"])
def test_damaged_json_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "cost.json").write_text(text)
    run = read(tmp_path)
    assert run.cost == {}
    assert run.absent["cost.json"].sentence.startswith("cost.json is damaged")


def test_files_that_are_no_text_are_a_sentence(tmp_path: Path) -> None:
    for name in ("recipe.yaml", "evaluation.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00\xd8")
    run = read(tmp_path)
    assert "not UTF-8" in run.absent["recipe.yaml"].sentence
    assert "damaged" in run.absent["evaluation.json"].sentence
    assert "no step" in run.absent["metrics.jsonl"].sentence


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    paths, captions = write_pictures(folder / "pictures", 8)
    write_features(folder / "features", features(8, 1, 1, 0), features(8, 1, 1, 1), paths, captions)
    return folder / "features"


def test_features_come_back_as_written(whole: Path) -> None:
    found = read_features(whole)
    assert np.array_equal(found.image_after, features(8, 1, 1, 1).image)
    assert found.captions[3] == "a green circle number 0"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ({"captions": ["one"]}, "8×32 text features"),
        ({"paths": ["one.png"]}, "8×32 image features"),
        ({"image_of_text": [9] * 8}, "image_of_text"),
        ({"image_of_text": [0]}, "image_of_text"),
        ({"captions": None}, "no list 'captions'"),
    ],
)
def test_rows_that_do_not_fit_the_features_are_refused(
    whole: Path, tmp_path: Path, rows: dict[str, object], problem: str
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "features"))
    stored = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    (folder / "rows.json").write_text(json.dumps({**stored, **rows}), encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        read_features(folder)


def test_a_truncated_feature_file_is_named(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "features"))
    (folder / "after.safetensors").write_bytes((folder / "after.safetensors").read_bytes()[:100])
    assert "after.safetensors" in read(tmp_path).absent["features/"].sentence
    (folder / "after.safetensors").unlink()
    assert read(tmp_path).absent["features/"].sentence == "features/ holds no after.safetensors."
