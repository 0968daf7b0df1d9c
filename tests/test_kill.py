"""`kill -9` at random moments of a real run, from its first file to its report: the resumed run is the same bits."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_cli import ROOT, made, modalign, settings  # noqa: F401 - a fixture
from tests.test_cli import os as operating_system

pytestmark = pytest.mark.slow
ROUNDS = 12


def start(*arguments: object) -> subprocess.Popen[bytes]:
    environment = operating_system.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "modalign", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def weights(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "model").glob("*.safetensors")}


def outcomes(run: Path) -> object:
    record = json.loads((run / "evaluation.json").read_text())
    return {side: [task["metrics"] for task in record[side]["tasks"]] for side in ("before", "after")}


def test_killed_at_random_moments_and_resumed_equals_undisturbed(made: Path, tmp_path: Path) -> None:  # noqa: F811
    whole = tmp_path / "whole"
    begin = time.perf_counter()
    assert modalign(*settings(made, whole)).returncode in (0, 3)
    duration = time.perf_counter() - begin
    moments = random.Random(0)
    killed = 0
    for number in range(ROUNDS):
        run = tmp_path / f"run{number}"
        process = start(*settings(made, run))
        time.sleep(moments.uniform(0.25, 1.0) * duration)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        resume = ("--resume",) if (run / "recipe.yaml").is_file() else ()
        done = modalign(*settings(made, run), *resume)
        assert done.returncode in (0, 3), done.stderr
        assert weights(run) == weights(whole)
        assert (run / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
        assert outcomes(run) == outcomes(whole)
        assert (run / "report.html").is_file()
    assert killed >= ROUNDS // 2  # the moments did fall into the run


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(made: Path, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "run"
    slow = (*settings(made, run), "--set", "epochs=400", "--set", "checkpoint.every=1000")
    process = start(*slow)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").is_file() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    (kept,) = (run / "checkpoints").glob("step-*")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert int(kept.name.removeprefix("step-")) == steps[-1]
