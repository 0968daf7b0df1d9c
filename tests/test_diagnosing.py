from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from modalign import diagnosing, gap
from modalign.cli import app
from modalign.errors import DataError
from tests.report.made_run import Side, results


def features(rows: int = 120, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    concept = rng.normal(size=(rows, width))
    return tuple(np.float32(concept + 0.5 * rng.normal(size=(rows, width)) + 1 + s) for s in (0.3, -0.3))  # type: ignore[return-value]


def saved(folder: Path, image: np.ndarray, text: np.ndarray) -> tuple[Path, Path]:
    np.save(folder / "image.npy", image)
    np.save(folder / "text.npy", text)
    return folder / "image.npy", folder / "text.npy"


def test_large_files_are_streamed_and_small_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = saved(tmp_path, *features())
    small, _ = diagnosing.measure_files(*files)
    assert not small.streamed and small.measures == gap.measure(*features()).measures
    monkeypatch.setattr(diagnosing, "STREAMED", 100)
    large, told = diagnosing.measure_files(*files, shrinkage=0.1)
    assert large.streamed and "in one pass" in large.protocol and large.shrinkage == (0.1, 0.1)
    assert large.centroid_gap == pytest.approx(small.centroid_gap, abs=1e-12)
    assert told["embeddings"] == [str(file) for file in files]


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3)), "0 pairs are too few"),
        (np.ones((5, 3)), np.ones((4, 3)), "must both be N×d"),
        (np.ones(5), np.ones(5), "must both be N×d"),
        (np.ones((5, 3), dtype=complex), np.ones((5, 3)), "image.npy does not hold one array of numbers"),
        (np.array(["a"]), np.ones((5, 3)), "image.npy does not hold one array of numbers"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, image: np.ndarray, text: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        diagnosing.measure_files(*saved(tmp_path, image, text))


def test_the_command_shrinks_as_asked_and_refuses_what_is_no_shrinkage(tmp_path: Path) -> None:
    command = ["gap", "--embeddings", *map(str, saved(tmp_path, *features(6, 8)))]
    assert "6 pairs are fewer than 8 dimensions" in CliRunner().invoke(app, command).stdout
    assert "covariances shrunk by" in CliRunner().invoke(app, [*command, "--shrinkage", "ledoit-wolf"]).stdout
    refused = CliRunner().invoke(app, [*command, "--shrinkage", "much"])
    assert "shrinkage is 'much': pass a number" in str(refused.exception)


def test_compare_warns_of_a_collapse(tmp_path: Path) -> None:
    image, text = features()
    mean = image.mean(0) + text.mean(0)
    mean /= np.linalg.norm(mean)
    sides = {"before": (image, text), "after": (0.2 * image + 3 * mean, 0.2 * text + 3 * mean)}
    captions = [f"caption {row}" for row in range(len(image))]
    for name, side in sides.items():
        results(Side(*side), captions, name).save(tmp_path / f"{name}.json")
    files = [str(tmp_path / f"{name}.json") for name in sides]
    command = ["compare", *files, "--json", str(tmp_path / "told.json")]
    done = CliRunner().invoke(app, command)
    assert "warning: collapse: the raw gap fell by" in done.stdout
    assert json.loads((tmp_path / "told.json").read_text())["collapse"].startswith("collapse: ")
    same = CliRunner().invoke(app, ["compare", files[0], files[0]])
    assert "collapse" not in same.stdout
