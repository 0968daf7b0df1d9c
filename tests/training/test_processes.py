from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).resolve().parents[2]


def train(out: Path, world: int, *overrides: str) -> tuple[list[dict], list[dict[str, torch.Tensor]]]:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command += ["-m", "tests.training.process_worker", str(out), str(out / "pictures"), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return records, [load_file(out / f"weights-{rank}.safetensors") for rank in range(world)]


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.prior=fitted"],
        ["train=projection", "data.drop_last=false", "method.name=hycd"],
        ["frozen=live", "chunk=2", "method.name=m2-mix", "optimizer.clip_norm=0.1"],
        ["frozen=live", "data.validation=0.3"],
        ["train=lora", "lora.target=hidden|proj", "lora.rank=2", "ema=0.8", "chunk=2", "data.validation=0.3"],
    ],
    ids=["full", "projection", "live-chunked", "live-validation", "lora-averaged"],
)
def test_one_two_and_four_processes_see_the_same_batches_losses_and_weights(
    tmp_path: Path, overrides: list[str]
) -> None:
    alone, (expected,) = train(tmp_path / "1", 1, *overrides)
    for world in (2, 4):
        records, every_rank = train(tmp_path / str(world), world, *overrides)
        assert [record["step"] for record in records] == [record["step"] for record in alone]
        for mine, theirs in zip(records, alone, strict=True):
            if "validation" in theirs:
                assert mine["validation"]["terms"] == pytest.approx(theirs["validation"]["terms"], rel=1e-6)
            if "terms" not in theirs:
                continue
            assert mine["terms"] == pytest.approx(theirs["terms"], rel=1e-6)
            assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-6)
        for weights in every_rank:
            for name, value in expected.items():
                torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-9)
                assert torch.equal(weights[name], every_rank[0][name])


def test_a_run_begun_alone_goes_on_with_two_processes(tmp_path: Path) -> None:
    _, (expected,) = train(tmp_path / "whole", 1)
    train(tmp_path / "part", 1, "checkpoint.every=2", "steps=5")
    # the learning rate is constant, so stopping early and going on with more steps is the same run
    (tmp_path / "part" / "cache").rename(tmp_path / "part" / "old-cache")
    _, (first, second) = train(tmp_path / "part", 2, "checkpoint.every=2")
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-9)
        assert torch.equal(first[name], second[name])


def test_the_whole_command_runs_under_torchrun(tmp_path: Path) -> None:
    from tests.tiny import tiny_open_clip, write_pairs

    spec = tiny_open_clip(tmp_path / "clip", quick_gelu=True)
    write_pairs(tmp_path / "pairs", n=40)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    arguments = ["-m", "modalign", "refine", "--model", spec, "--data", str(tmp_path / "pairs"), "--batch-size", "8"]
    arguments += [
        "--lr",
        "1e-4",
        "--set",
        "data.validation=0.5",
        "--set",
        "evaluation.resamples=200",
        "--device",
        "cpu",
    ]
    losses = []
    for world in (1, 2):
        out = tmp_path / f"run{world}"
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        done = subprocess.run([*start, *arguments, "--out", str(out)], env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr[-2000:]  # torchrun turns the gate's 3 into 1
        assert (out / "report.html").is_file(), done.stderr[-2000:]
        assert json.loads((out / "environment.json").read_text())["processes"] == world
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["loss"] for record in steps if "loss" in record])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
