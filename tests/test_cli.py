from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from modalign import recipe
from modalign.cli import main
from modalign.cli.printing import laid_out
from tests.tiny import tiny_open_clip, write_pairs

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [
    "demo",
    "refine",
    "sweep",
    "gap",
    "evaluate",
    "compare",
    "contrast",
    "probe-batch",
    "export",
    "report",
    "doctor",
]
RECIPE_COMMANDS = ["recipe show", "recipe check", "recipe schema", "recipe list"]


ENVIRONMENT = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def modalign(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modalign", *map(str, arguments)]
    environment = os.environ | ENVIRONMENT | variables
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


def inside(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same in this process, where modalign is imported already."""
    command = ["modalign", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", command)
        try:
            main()
        except SystemExit as left:
            return subprocess.CompletedProcess(command, int(left.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("main() returned")


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
    for _ in range(3):  # processor time, which other jobs on the machine do not lengthen
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = modalign("--help")
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime)
    assert min(times) < 0.5
    assert all(command in done.stdout for command in [*COMMANDS, "recipe"])
    loaded = (
        "import sys; import modalign.cli; print({'torch', 'open_clip', 'transformers', 'pydantic'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert (
        subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, env=environment).stdout
        == "set()\n"
    )


@pytest.mark.parametrize("command", [*COMMANDS, *RECIPE_COMMANDS])
def test_the_command_line_is_what_the_documentation_says(command: str) -> None:
    """Freezes every command's options: a renamed flag breaks users' scripts."""
    done = modalign(*command.split(), "--help")
    assert f"Example: modalign {command}" in done.stdout
    options = set(re.findall(r"(--[a-z-]+)", re.sub(r"Example:.*", "", done.stdout, flags=re.S)))
    common = {"--device", "--batch-size", "--workers", "--seed", "--json"}
    expected = {
        "demo": {"--out", "--method", "--seed", "--train"},
        "refine": {
            *("--model", "--data", "--target", "--method", "--out", "--recipe", "--set", "--resume", "--train"),
            *("--epochs", "--batch-size", "--chunk", "--lr", "--seed", "--workers", "--device", "--precision"),
            *(
                "--fraction",
                "--limit",
                "--stratify",
                "--image-column",
                "--text-column",
                "--max-bad",
                "--store",
                "--track",
            ),
            *("--eval", "--protocol", "--templates", "--strict"),
        },
        "sweep": {
            *("--over", "--seeds", "--interpolate", "--pick", "--model", "--data", "--target", "--method", "--out"),
            *("--recipe", "--set", "--resume", "--eval", "--templates", "--transforms", "--no-transforms", "--jobs"),
            *("--protocol", "--device", "--store"),
        },
        "gap": {
            *("--model", "--data", "--embeddings", "--normalize", "--no-normalize", "--max-bad", "--shrinkage"),
            *("--image-column", "--text-column", "--store", *common),
        },
        "evaluate": {
            *("--model", "--llava", "--against", "--task", "--templates", "--max-bad", "--store"),
            *("--suite", "--data-root", "--protocol"),
            *("--image-column", "--text-column", "--label-column", *common),
        },
        "compare": {
            *("--llava", "--task", "--templates", "--tolerance", "--strict", "--max-bad", "--store"),
            *("--suite", "--data-root", "--protocol"),
            *("--image-column", "--text-column", "--label-column", *common),
        },
        "contrast": {
            *("--model", "--target", "--data", "--against", "--out", "--pairs", "--store", "--max-bad"),
            *("--image-column", *(common - {"--json"})),
        },
        "probe-batch": {
            *("--model", "--target", "--data", "--sizes", "--trials", "--max-bad", "--image-column", "--store"),
            *common,
        },
        "export": {"--to", "--out", "--llava"},
        "report": set(),
        "doctor": set(),
        "recipe show": {"--set"},
        "recipe check": {"--set"},
        "recipe schema": set(),
        "recipe list": set(),
    }
    assert options - {"--help", "--eval-", "--no-strict"} == expected[command]


def test_the_defaults_that_help_shows_are_the_recipes() -> None:
    default = recipe.load(None)
    options = {
        "--method": default.method["name"],
        "--store": "the run's own cache",
        "--fraction": 1 if default.data.fraction is None else default.data.fraction,
        "--stratify": "yes" if default.data.stratify else "no",
        "--max-bad": default.data.max_bad,
        "--train": default.train,
        "--epochs": default.epochs,
        "--batch-size": default.data.batch_size,
        "--chunk": "the whole batch" if default.chunk is None else default.chunk,
        "--lr": default.optimizer.lr,
        "--seed": default.seed,
        "--protocol": default.evaluation.protocol,
        "--templates": "the protocol's" if default.evaluation.templates is None else default.evaluation.templates,
        "--strict": "yes" if default.evaluation.strict else "no",
        "--workers": default.data.workers,
        "--device": default.device,
        "--precision": default.precision,
    }
    shown = modalign("refine", "--help", COLUMNS="200").stdout
    assert dict(re.findall(r"(--[a-z-]+) .*\[default: \((.*?)\)\]", shown)) == {k: str(v) for k, v in options.items()}


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

    refused(inside(*settings(made, out)), str(out), "not empty", "--resume")
    again = inside("refine", "--out", out, "--resume")
    assert again.returncode == done.returncode and "finished already" in again.stderr
    assert before == ((out / "recipe.yaml").read_bytes(), (out / "metrics.jsonl").read_bytes())
    refused(inside("refine", "--out", out, "--resume", "--lr", 1.0), "optimizer.lr", "1.0", "0.001")

    table = inside("compare", f"open_clip:local-dir:{made / 'clip'}", out, "--task", f"retrieval:{made / 'pairs'}")
    assert table.returncode in (0, 3) and "retrieval.image_to_text_r1" in table.stdout
    (out / "report.html").unlink()
    assert inside("report", out).returncode == 0 and (out / "report.html").is_file()

    shown = inside("recipe", "show", out)
    assert shown.returncode == 0 and "# line 1: model spec" in shown.stdout
    (made / "shown.yaml").write_text(shown.stdout)
    assert recipe.load(made / "shown.yaml") == recipe.load(out)
    assert inside("recipe", "check", out).stdout == f"ok: {out}\n"


def test_a_run_goes_on_from_another_folder_than_it_began_in(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    arguments = ("refine", "--model", "open_clip:local-dir:clip", "--data", "pairs", "--out", tmp_path / "run")
    assert inside(*arguments, "--batch-size", 8).returncode == 0
    for name in ("report.html", "evaluation.json"):  # as if it had been killed before its end
        (tmp_path / "run" / name).unlink()
    monkeypatch.chdir(tmp_path)
    done = inside("refine", "--out", "run", "--resume")
    assert done.returncode == 0 and f"working from {made}" in done.stderr, done.stderr
    assert (tmp_path / "run" / "report.html").is_file() and "resuming after step 6 of 6" in done.stderr
    described = tmp_path / "run" / "environment.json"
    described.write_text(described.read_text().replace(str(made), str(tmp_path / "gone")))
    (tmp_path / "run" / "report.html").unlink()
    monkeypatch.chdir(tmp_path)
    gone = inside("refine", "--out", "run", "--resume")
    refused(gone, "clip")
    assert f"began in {tmp_path / 'gone'}, which is gone" in gone.stderr


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["will write", "evaluating before"])
def test_ctrl_c_outside_training_says_how_to_go_on(made: Path, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "run"
    many = write_pairs(tmp_path / "many", n=1500)
    command = ["refine", "--model", f"open_clip:local-dir:{made / 'clip'}", "--data", many, "--out", out]
    command += ["--workers", "1", "--batch-size", "8", "--eval", f"retrieval:{many}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "modalign", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
        start_new_session=True,
    )
    assert process.stderr is not None
    before = []
    for line in process.stderr:
        before.append(line)
        if moment in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, workers included
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130, before
    assert "Traceback" not in rest and rest.splitlines()[-1] == f"stopped; go on with --out {out} --resume"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["refine"], "modalign refine: missing option '--out'; see modalign refine --help"),
        (["nonsense"], "modalign: no such command 'nonsense'; see modalign --help"),
        (["recipe", "check"], "modalign recipe check: missing argument 'SOURCE'; see modalign recipe check --help"),
        (["gap"], "modalign gap: give --model and --data, or --embeddings IMAGE.npy TEXT.npy; see modalign gap --help"),
    ],
)
def test_what_is_typed_wrongly_is_one_line(arguments: list[str], told: str) -> None:
    done = inside(*arguments)
    assert done.returncode == 2 and done.stderr.lower() == f"{told}\n".lower(), done.stderr


def test_two_files_are_compared_as_they_are(tmp_path: Path) -> None:
    done = inside("compare", "a.json", "b.json", "--text-column", "words")
    assert done.returncode == 2 and "two JSON files are compared as they are" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["will write", "evaluating before"])
def test_sigterm_outside_training_says_how_to_go_on_and_ends_with_143(made: Path, tmp_path: Path, moment: str) -> None:
    out, many = tmp_path / "run", write_pairs(tmp_path / "many", n=1500)
    command = ["refine", "--model", f"open_clip:local-dir:{made / 'clip'}", "--data", many, "--out", out]
    status, rest = stopped([*command, "--batch-size", "8", "--workers", "1", "--eval", f"retrieval:{many}"], moment)
    assert status == 143 and rest.splitlines()[-1] == f"stopped; go on with --out {out} --resume"
    status, rest = stopped(
        ["embed", "--model", f"open_clip:local-dir:{made / 'clip'}", "--data", many, "--store", tmp_path / "s"], "will"
    )
    assert status == 143 and rest.splitlines()[-1] == "stopped; what is stored stays: the same command goes on"


def stopped(command: list[object], moment: str) -> tuple[int, str]:
    """Exit status, and the lines after the one that says `moment`, at which SIGTERM was sent."""
    process = subprocess.Popen(
        [sys.executable, "-m", "modalign", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if moment in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[1]
    assert "Traceback" not in rest, rest
    return process.returncode, rest


def test_report_refuses_a_damaged_evaluation(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: x\n")
    (tmp_path / "evaluation.json").write_text('{"gate": ')
    refused(inside("report", tmp_path), "evaluation.json is damaged", "--resume")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_weights_that_do_not_fit_on_the_disk_end_in_one_line(made: Path, tmp_path: Path) -> None:
    """The kernel refuses to write past 64 KiB, as a full disk would; safetensors says so in an error of its own."""
    command = [sys.executable, "-m", "modalign", *map(str, settings(made, tmp_path / "run"))]
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); "
    limited += f"sys.argv = {command[2:]!r}; runpy.run_module('modalign', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", limited], capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=300
    )
    refused(done, "File too large", "free space")


def test_check_prints_a_line_for_every_problem_and_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("optimizer: {lrr: 1}\nseed: -1\n")
    done = inside("recipe", "check", tmp_path / "r.yaml")
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "" and len(lines) == 2
    assert all(line.startswith(f"error: {tmp_path / 'r.yaml'}:") for line in lines)
    assert json.loads(inside("recipe", "schema").stdout)["properties"]["seed"]["minimum"] == 0
    assert "modalign refine --recipe clip-refine-vit-b-32" in inside("recipe", "list").stdout


def test_a_table_never_breaks_a_name_however_narrow_the_terminal() -> None:
    names = ["retrieval.image_to_text_r1", "zero_shot.mean_per_class_recall"]
    row = ["12.34", "12.34", "+0.00 [-12.34, +12.34]", "1", "cannot tell", "5,000"]
    header = ["metric", "before %", "after %", "difference, 95 % interval", "tolerance", "verdict", "n"]
    table = [header, *([name, *row] for name in names)]
    widest = max(map(len, laid_out(table, None)))
    for width in (20, 40, 80, 100, 140, widest, widest - 1):
        lines = laid_out(table, width)
        text = "\n".join(lines)
        assert all(text.count(name) == 1 for name in names) and text.count("+0.00 [-12.34, +12.34]") == 2
        assert width < 45 or max(map(len, lines)) <= width
    assert [len(laid_out(table, width)) for width in (widest, widest - 1, 40)] == [4, 7, 14]


def test_gap_measures_stored_embeddings_without_a_model(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image, text = random.normal(size=(2, 50, 8))
    np.save(tmp_path / "a.npy", image)
    np.save(tmp_path / "b.npy", text + 1)
    done = inside("gap", "--embeddings", tmp_path / "a.npy", tmp_path / "b.npy", "--json", tmp_path / "gap.json")
    assert done.returncode == 0, done.stderr
    measures = json.loads((tmp_path / "gap.json").read_text())["gap"]["measures"]
    x, t = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, text + 1))
    assert measures["centroid_gap"]["value"] == pytest.approx(np.linalg.norm(x.mean(0) - t.mean(0)), rel=1e-10)
    assert "centroid gap" in done.stdout
    (tmp_path / "file").write_text("")
    stuck = ("gap", "--embeddings", tmp_path / "a.npy", tmp_path / "b.npy", "--json", tmp_path / "file" / "gap.json")
    refused(inside(*stuck), "file")


def test_a_path_for_numbers_is_looked_at_before_anything_is_computed(made: Path, tmp_path: Path) -> None:
    model, data = f"open_clip:local-dir:{made / 'clip'}", made / "pairs"
    (tmp_path / "file").write_text("")
    commands: list[tuple[object, ...]] = [
        ("evaluate", "--model", model, "--task", f"retrieval:{data}"),
        ("compare", model, model, "--task", f"retrieval:{data}"),
        ("gap", "--model", model, "--data", data),
        ("probe-batch", "--model", model, "--target", model, "--data", data),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modalign.models.load", lambda spec: pytest.fail(f"{spec} was loaded"))
        for command in commands:
            refused(inside(*command, "--json", tmp_path), f"--json {tmp_path} is a folder: name a file in it")
            below = tmp_path / "file" / "numbers.json"
            refused(inside(*command, "--json", below), f"--json {below}: {tmp_path / 'file'} is no folder")


def test_a_table_is_printed_though_its_numbers_cannot_be_written(made: Path, tmp_path: Path) -> None:
    task = ("--task", f"retrieval:{made / 'pairs'}")
    model, numbers = f"open_clip:local-dir:{made / 'clip'}", tmp_path / "numbers.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for command in (("evaluate", "--model", model), ("compare", model, model)):
            done = inside(*command, *task, "--json", numbers)
            assert "retrieval.text_to_image_r1" in done.stdout and "retrieval on " in done.stdout
            refused(done, f"{numbers}: No space left on device; check the path")


def test_the_protocol_and_the_spread_over_seeds_are_printed(made: Path, tmp_path: Path) -> None:
    for label in ("red", "blue"):
        (tmp_path / "test" / label).mkdir(parents=True)
    for number, file in enumerate(sorted((made / "pairs").glob("**/*.png"))[:16]):
        (tmp_path / "test" / ("red", "blue")[number % 2] / file.name).write_bytes(file.read_bytes())
    model, task = f"open_clip:local-dir:{made / 'clip'}", ("--task", f"clustering:{tmp_path / 'test'}")
    done = inside("evaluate", "--model", model, *task)
    assert re.search(r"clustering\.ari .* … .* ± .* score over \d+ seeds", done.stdout), done.stdout + done.stderr
    assert f"clustering on {tmp_path / 'test'}: protocol: default; " in done.stdout and "samples: 16" in done.stdout
    both = inside("compare", model, model, *task)
    assert both.stdout.count("samples: 16") == 1
    assert re.search(r"clustering\.ari: before ± .* seeds, after ± .* seeds", both.stdout), both.stdout


def test_a_data_root_that_nothing_reads_is_refused(made: Path, tmp_path: Path) -> None:
    model = f"open_clip:local-dir:{made / 'clip'}"
    refused(
        inside("evaluate", "--model", model, "--suite", "demo", "--data-root", tmp_path), "suite demo brings its own"
    )
    done = inside("compare", "a.json", "b.json", "--data-root", tmp_path)
    assert done.returncode == 2 and "two JSON files are compared as they are" in done.stderr


def test_every_mistake_is_one_clear_line_and_status_2(made: Path, tmp_path: Path) -> None:
    clip, pairs = f"open_clip:local-dir:{made / 'clip'}", made / "pairs"
    out = ("--out", tmp_path / "never")
    start = ("refine", "--method", "clip-refine", *out)
    refused(inside(*start, "--model", "open_clip:ViT-B-33/openai", "--data", pairs), "ViT-B-33", "ViT-B-32")
    refused(inside(*start, "--model", clip, "--data", tmp_path / "nowhere"), "nowhere")
    refused(inside(*start, "--model", clip), "data.train")
    refused(inside(*start, "--model", clip, "--data", pairs, "--set", "optimiser.lr=1"), "optimiser", "optimizer")
    refused(inside(*start, "--model", clip, "--data", pairs), "48", "512")  # the default batch does not fit
    refused(inside(*start, "--model", clip, "--data", pairs, "--recipe", "none.yaml"), "none.yaml")
    refused(
        inside(*start, "--model", clip, "--data", pairs, "--batch-size", 8, "--eval", "zeroshot:x"),
        "did you mean zero-shot:x?",
    )
    refused(inside("report", tmp_path), str(tmp_path), "recipe.yaml")
    refused(inside("gap", "--embeddings", tmp_path / "a.npy", tmp_path / "b.npy"), "a.npy")
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.tex").write_text("dear")
    assert not (tmp_path / "never").exists()
    arguments = ("refine", "--model", clip, "--data", pairs, "--out", occupied)
    refused(inside(*arguments), "occupied", "not empty")
    refused(inside(*arguments, "--resume"), "occupied", "no run")
    assert (occupied / "thesis.tex").read_text() == "dear"


def test_a_corrupt_picture_stops_training_and_is_named_with_its_row(made: Path, tmp_path: Path) -> None:
    spec = write_pairs(tmp_path / "pairs", n=20)
    (tmp_path / "pairs" / "0007.png").write_bytes((tmp_path / "pairs" / "0007.png").read_bytes()[:60])
    arguments = ("refine", "--model", f"open_clip:local-dir:{made / 'clip'}", "--data", spec, "--batch-size", 8)
    done = inside(*arguments, "--out", tmp_path / "run")
    refused(done, "0007.png", "metadata.csv", "--max-bad")
    tolerated = inside(*arguments, "--out", tmp_path / "run", "--max-bad", 1)  # nothing was lost: the folder serves
    assert tolerated.returncode == 0 and "left out: 0007.png" in tolerated.stderr
