from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import tiny_open_clip, write_pairs

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["demo", "refine", "gap", "evaluate", "compare", "export", "report", "doctor"]


def modalign(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "modalign", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit status 2 and exactly one line that holds every part; never a traceback."""
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    for part in parts:
        assert part in errors[0], errors[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    tiny_open_clip(folder / "clip", quick_gelu=True)
    write_pairs(folder / "pairs", n=48)
    return folder


def settings(made: Path, out: Path) -> list[object]:
    return [
        *("refine", "--model", f"open_clip:local-dir:{made / 'clip'}", "--data", made / "pairs", "--out", out),
        *("--method", "clip-refine", "--batch-size", 8, "--lr", 1e-3, "--epochs", 2),
        *("--set", "data.validation=0.5", "--set", "checkpoint.every=2", "--set", "evaluation.resamples=500"),
    ]


def test_help_answers_at_once_and_every_command_shows_an_example() -> None:
    modalign("--help")
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        done = modalign("--help")
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.5
    assert all(command in done.stdout for command in COMMANDS)
    loaded = (
        "import sys; import modalign.cli; print({'torch', 'open_clip', 'transformers', 'pydantic'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert (
        subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, env=environment).stdout
        == "set()\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_is_what_the_documentation_says(command: str) -> None:
    """Freezes every command's options: a renamed flag breaks users' scripts."""
    done = modalign(command, "--help")
    assert f"Example: modalign {command}" in done.stdout
    options = set(re.findall(r"(--[a-z-]+)", re.sub(r"Example:.*", "", done.stdout, flags=re.S)))
    common = {"--device", "--batch-size", "--workers", "--seed", "--json"}
    expected = {
        "demo": {"--out", "--method", "--seed", "--train"},
        "refine": {
            *("--model", "--data", "--method", "--out", "--recipe", "--set", "--resume", "--train", "--epochs"),
            *("--batch-size", "--chunk", "--lr", "--seed", "--max-bad", "--workers", "--device", "--precision"),
            *("--eval", "--templates", "--strict"),
        },
        "gap": {"--model", "--data", "--embeddings", "--normalize", "--no-normalize", "--max-bad", *common},
        "evaluate": {"--model", "--task", "--templates", *common},
        "compare": {"--task", "--templates", "--tolerance", "--strict", *common},
        "export": {"--to", "--out"},
        "report": set(),
        "doctor": set(),
    }
    assert options - {"--help", "--eval-", "--no-strict"} == expected[command]


def test_refine_leaves_a_complete_run_and_a_second_one_needs_resume(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = modalign(*settings(made, out))
    assert done.returncode in (0, 3), done.stderr
    assert (
        "Traceback" not in done.stderr and "verdict" in done.stdout and f"report: {out / 'report.html'}" in done.stdout
    )
    present = {path.name for path in out.iterdir()}
    assert {"recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints", "evaluation.json"} <= present
    assert {"model", "features", "cost.json", "report.html"} <= present
    described = json.loads((out / "environment.json").read_text())
    assert described["seed"] == 0 and described["versions"]["torch"] and "commit" in described
    before = (out / "recipe.yaml").read_bytes(), (out / "metrics.jsonl").read_bytes()

    refused(modalign(*settings(made, out)), str(out), "not empty", "--resume")
    again = modalign("refine", "--out", out, "--resume")
    assert again.returncode == done.returncode and "finished already" in again.stderr
    assert before == ((out / "recipe.yaml").read_bytes(), (out / "metrics.jsonl").read_bytes())
    refused(modalign("refine", "--out", out, "--resume", "--lr", 1.0), "optimizer.lr", "1.0", "0.001")

    table = modalign("compare", f"open_clip:local-dir:{made / 'clip'}", out, "--task", f"retrieval:{made / 'pairs'}")
    assert table.returncode in (0, 3) and "retrieval.image_to_text_r1" in table.stdout
    (out / "report.html").unlink()
    assert modalign("report", out).returncode == 0 and (out / "report.html").is_file()


def test_gap_measures_stored_embeddings_without_a_model(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image, text = random.normal(size=(2, 50, 8))
    np.save(tmp_path / "a.npy", image)
    np.save(tmp_path / "b.npy", text + 1)
    done = modalign("gap", "--embeddings", tmp_path / "a.npy", tmp_path / "b.npy", "--json", tmp_path / "gap.json")
    assert done.returncode == 0, done.stderr
    measures = json.loads((tmp_path / "gap.json").read_text())["gap"]["measures"]
    x, t = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, text + 1))
    assert measures["centroid_gap"]["value"] == pytest.approx(np.linalg.norm(x.mean(0) - t.mean(0)), rel=1e-10)
    assert "centroid gap" in done.stdout
    (tmp_path / "file").write_text("")
    stuck = ("gap", "--embeddings", tmp_path / "a.npy", tmp_path / "b.npy", "--json", tmp_path / "file" / "gap.json")
    refused(modalign(*stuck), "file")


def test_every_mistake_is_one_clear_line_and_status_2(made: Path, tmp_path: Path) -> None:
    clip, pairs = f"open_clip:local-dir:{made / 'clip'}", made / "pairs"
    out = ("--out", tmp_path / "never")
    start = ("refine", "--method", "clip-refine", *out)
    refused(modalign(*start, "--model", "open_clip:ViT-B-33/openai", "--data", pairs), "ViT-B-33", "ViT-B-32")
    refused(modalign(*start, "--model", clip, "--data", tmp_path / "nowhere"), "nowhere")
    refused(modalign(*start, "--model", clip), "data.train")
    refused(modalign(*start, "--model", clip, "--data", pairs, "--set", "optimiser.lr=1"), "optimiser", "optimizer")
    refused(modalign(*start, "--model", clip, "--data", pairs), "48", "512")  # the default batch does not fit
    refused(modalign(*start, "--model", clip, "--data", pairs, "--recipe", "none.yaml"), "none.yaml")
    refused(
        modalign(*start, "--model", clip, "--data", pairs, "--batch-size", 8, "--eval", "zeroshot:x"), "zero-shot:SPEC"
    )
    refused(modalign("report", tmp_path), str(tmp_path), "recipe.yaml")
    refused(modalign("gap", "--embeddings", tmp_path / "a.npy", tmp_path / "b.npy"), "a.npy")
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.tex").write_text("dear")
    assert not (tmp_path / "never").exists()
    arguments = ("refine", "--model", clip, "--data", pairs, "--out", occupied)
    refused(modalign(*arguments), "occupied", "not empty")
    refused(modalign(*arguments, "--resume"), "occupied", "no run")
    assert (occupied / "thesis.tex").read_text() == "dear"


def test_a_corrupt_picture_stops_training_and_is_named_with_its_row(made: Path, tmp_path: Path) -> None:
    spec = write_pairs(tmp_path / "pairs", n=20)
    (tmp_path / "pairs" / "0007.png").write_bytes((tmp_path / "pairs" / "0007.png").read_bytes()[:60])
    arguments = ("refine", "--model", f"open_clip:local-dir:{made / 'clip'}", "--data", spec, "--batch-size", 8)
    done = modalign(*arguments, "--out", tmp_path / "run")
    refused(done, "0007.png", "metadata.csv", "--max-bad")
    tolerated = modalign(*arguments, "--out", tmp_path / "run", "--max-bad", 1)  # nothing was lost: the folder serves
    assert tolerated.returncode == 0 and "left out: 0007.png" in tolerated.stderr
