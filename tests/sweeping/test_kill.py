"""Sweeps killed at random moments, one run at a time or two: the resumed sweep has the same numbers and weights."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.sweeping.test_sweep import numbers, weights
from tests.test_cli import ROOT, inside, modalign
from tests.tiny import tiny_open_clip, write_pairs

pytestmark = pytest.mark.slow
NAMES = [f"lr={rate},seed={seed}" for rate in ("0.001", "0.01") for seed in (0, 1)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    tiny_open_clip(folder / "clip", quick_gelu=True)
    write_pairs(folder / "pairs", n=24)
    write_pairs(folder / "test", n=20, seed=1)
    return folder


def arguments(made: Path, out: Path, jobs: int) -> list[object]:
    return [
        *("sweep", "--model", f"open_clip:local-dir:{made / 'clip'}", "--data", made / "pairs", "--out", out),
        *("--method", "contrastive", "--over", "optimizer.lr=0.001,0.01", "--seeds", 2, "--interpolate", "0:1:0.5"),
        *("--eval", f"retrieval:{made / 'test'}", "--set", "data.batch_size=8", "--set", "epochs=3", "--jobs", jobs),
        *("--set", "evaluation.resamples=100", "--set", "checkpoint.every=2", "--pick", "max retrieval.r5"),
    ]


def start(arguments: list[object]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "modalign", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("whole") / "out"
    begin = time.perf_counter()
    assert modalign(*arguments(made, out, 1)).returncode == 0
    return out, time.perf_counter() - begin


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_anywhere_and_resumed_equals_undisturbed(
    made: Path, whole: tuple[Path, float], tmp_path: Path, jobs: int
) -> None:
    undisturbed, duration = whole
    moments = random.Random(jobs)
    out = tmp_path / "out"
    killed = 0
    for _ in range(4):
        resume = ["--resume"] if out.is_dir() else []
        process = start([*arguments(made, out, jobs), *resume])
        time.sleep(moments.uniform(0.15, 0.6) * duration)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        time.sleep(1)  # workers end with the sweep, and give up their runs' locks
    done = modalign(*arguments(made, out, jobs), "--resume")
    assert done.returncode == 0, done.stderr
    assert killed >= 2 and "Traceback" not in done.stderr
    assert numbers(out) == numbers(undisturbed)
    assert [weights(out / name) for name in NAMES] == [weights(undisturbed / name) for name in NAMES]


def test_ctrl_c_stops_the_workers_too_and_says_how_to_go_on(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    long: list[Any] = [*arguments(made, out, 2), "--set", "epochs=3000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "modalign", *map(str, long), "--over", "steps=2,9000"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    running = [out / f"lr=0.001,steps=9000,seed={seed}" / "metrics.jsonl" for seed in (0, 1)]
    while not all(path.is_file() and len(path.read_text().splitlines()) > 3 for path in running):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130 and "go on with the same command and --resume" in told and "Traceback" not in told
    for path in running:  # each worker finished its step and saved it
        assert list((path.parent / "checkpoints").glob("step-*/manifest.json"))
    lengths = [len(path.read_text()) for path in running]
    time.sleep(1)
    assert [len(path.read_text()) for path in running] == lengths


def test_the_command_line_tells_a_typo_in_one_line(made: Path, tmp_path: Path) -> None:
    done = inside(*arguments(made, tmp_path / "out", 1), "--over", "optimizer.lrr=1")
    assert done.returncode == 2 and "optimizer.lrr" in done.stderr and "did you mean" in done.stderr
