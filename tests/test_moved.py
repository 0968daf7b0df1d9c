"""What a run says of its pictures: the certificate, and how near they came to the target."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modalign
from modalign import methods, models, recipe
from modalign.console import Reporter
from modalign.evaluation.suite import prepare
from modalign.evaluation.tasks import encode
from modalign.gap.representations import centred_kernel_alignment, mutual_knn
from modalign.moved import Moved
from modalign.objectives import kernel_alignment
from modalign.objectives.kernels import PolynomialKernel
from modalign.report import page
from modalign.running import run_recipe
from tests.test_cli import inside, refused
from tests.test_kuea_run import made, refine
from tests.tiny import write_pairs

__all__ = ["made"]  # a fixture


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures in three class folders, one with an awkward name."""
    folder, root = Path(write_pairs(tmp_path_factory.mktemp("flat"), n=30)), tmp_path_factory.mktemp("classes") / "test"
    names = ["red <b>boat", "blue cat", "green dog"]
    for number, path in enumerate(sorted(folder.glob("**/*.png"))):
        place = root / names[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / path.name).write_bytes(path.read_bytes())
    return root


@pytest.fixture(scope="module")
def run(made: dict[str, str], labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> modalign.Run:
    tasks = [f"zero-shot:{labelled}", f"knn:{labelled}", f"drift:images:{made['data']}"]
    settings = {"method": methods.Kuea(fit_kernel=True), "evaluation__tasks": tasks, "evaluation__resamples": 200}
    return refine(made, tmp_path_factory.mktemp("runs") / "kuea", epochs=2, optimizer__lr=3e-4, **settings)


def record(run: modalign.Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "evaluation.json").read_text())
    return found


def test_the_certificate_is_that_of_the_features_before_and_after(
    run: modalign.Run, made: dict[str, str], labelled: Path
) -> None:
    before, after = modalign.load(made["model"]), run.model
    suite = prepare([f"zero-shot:{labelled}", f"drift:images:{made['data']}"])
    f, x = (encode(model, suite).image.double().numpy() for model in (before, after))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, f)]
    tight = np.linalg.norm(unit[0] - unit[1], axis=1)
    told = record(run)["certificate"]
    assert told["protocol"]["pictures"] == len(tight) == 70
    np.testing.assert_allclose(told["quantiles"]["tight"], np.quantile(tight, told["quantiles"]["levels"]), rtol=1e-4)
    (labels,) = told["labels"]
    assert (labels["spec"], labels["pictures"], labels["classes"]) == (str(labelled), 30, 3)
    assert labels["certified_loosely"] <= labels["certified"] <= labels["unchanged"]
    assert run.certificate == told["sentence"]
    (drift,) = record(run)["after"]["drift"]
    assert drift["protocol"]["pictures"] == 40 and drift["labels"][0]["pictures"] == 40


def test_the_gate_judges_neighbours_and_leaves_drift_alone(run: modalign.Run) -> None:
    assert run.gate is not None
    names = [row.metric for row in run.gate.rows]
    assert names == ["zero_shot.acc1", "zero_shot.mean_per_class_recall", "knn.acc1", "knn.mean_per_class_recall"]


def test_agreement_with_the_target_is_that_of_the_functions(
    run: modalign.Run, made: dict[str, str], labelled: Path
) -> None:
    told = record(run)["target_alignment"]
    suite = prepare([f"zero-shot:{labelled}", f"drift:images:{made['data']}"])
    from modalign.data.images import decode

    target = models.load_vision(made["target"])
    with torch.no_grad():
        g = torch.stack([target.preprocess(decode(path)) for path in suite.paths])
        g = target.encode(g)
    scale = float(told["protocol"]["kernels"].split("r = c/γ = ")[1].split(")")[0])  # four digits of it
    kernels = PolynomialKernel(1.0, scale), PolynomialKernel(1 / g.shape[1], 1.0)
    for side, model in (("before", modalign.load(made["model"])), ("after", run.model)):
        x = encode(model, suite).image
        assert told[side]["kernel_loss"] == pytest.approx(float(kernel_alignment(x, g, *kernels, "u")), rel=5e-3)
        assert told[side]["cka"] == pytest.approx(float(centred_kernel_alignment(x, g)), rel=1e-4)
        assert told[side]["mutual_knn"] == pytest.approx(float(mutual_knn(x, g).mean()), abs=0.01)
    assert told["after"] != told["before"]
    assert told["protocol"]["pictures"] == 70


def test_the_report_shows_both_and_escapes_what_it_shows(run: modalign.Run) -> None:
    html = page.write(run.folder).read_text(encoding="utf-8")
    assert 'id="certificate"' in html and 'id="target"' in html
    assert "What cannot have changed" in html and "kernel loss" in html
    told = record(run)
    told["certificate"]["spec"] = told["certificate"]["labels"][0]["spec"] = "<script>alert(1)</script>"
    copy = run.folder.with_name("copy")
    copy.mkdir()
    (copy / "evaluation.json").write_text(json.dumps(told))
    html = page.write(copy).read_text(encoding="utf-8")
    assert "<script>" not in html and html.count("&lt;script&gt;alert(1)") == 2
    told["certificate"] = {"spec": "x"}
    (copy / "evaluation.json").write_text(json.dumps(told))
    html = page.write(copy).read_text(encoding="utf-8")
    assert 'id="certificate"' not in html and "does not hold what it should" in html


def test_pictures_without_captions_and_without_a_task_are_certified_on_the_held_out_ones(
    made: dict[str, str], tmp_path: Path
) -> None:
    run = refine(made, tmp_path / "run", epochs=1, data__validation=0.5)
    told = record(run)
    assert run.gate is None and told["certificate"]["protocol"]["pictures"] == 20
    assert told["certificate"]["labels"] == [] and told["target_alignment"]["protocol"]["pictures"] == 20


def test_a_run_that_moves_the_texts_certifies_nothing_and_a_text_run_has_no_target_to_near(
    made: dict[str, str], labelled: Path, tmp_path: Path
) -> None:
    tasks = [f"knn:{labelled}"]
    both = refine(
        made,
        tmp_path / "both",
        method="contrastive",
        target=None,
        data=made["data"],
        epochs=1,
        evaluation__tasks=tasks,
        evaluation__resamples=100,
    )
    assert record(both)["certificate"] is None and record(both)["target_alignment"] is None and not both.certificate
    image = refine(
        made,
        tmp_path / "image",
        method="contrastive",
        target=None,
        data=made["data"],
        epochs=1,
        train="image",
        evaluation__tasks=tasks,
        evaluation__resamples=100,
    )
    assert image.certificate and record(image)["target_alignment"] is None


def test_a_map_that_stands_in_is_certified_like_a_tower(made: dict[str, str], labelled: Path, tmp_path: Path) -> None:
    settings = {"evaluation__tasks": [f"zero-shot:{labelled}"], "evaluation__resamples": 100}
    told = record(refine(made, tmp_path / "run", method="projection", **settings))
    assert told["certificate"]["quantiles"]["tight"][-1] > 0
    assert "fitted to the features before" in told["target_alignment"]["protocol"]["kernels"]


@pytest.mark.parametrize("lost", [False, True])
def test_a_resumed_run_reads_the_features_before_and_says_the_same(
    run: modalign.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    out = tmp_path / "killed"  # as it is when killed once the model was judged
    shutil.copytree(run.folder, out)
    for name in ("evaluation.json", "report.html", "cost.json", "evaluation/after.json"):
        (out / name).unlink()
    if lost:
        (out / "evaluation" / "before.safetensors").write_bytes(b"cut")
    passes: list[str] = []
    encode = Moved.keep
    monkeypatch.setattr(Moved, "keep", lambda self, name, found: (passes.append(name), encode(self, name, found)))
    resumed = run_recipe(recipe.load(out / "recipe.yaml"), out, resume=True, reporter=Reporter(silent=True))
    assert passes == (["before", "after"] if lost else ["after"])
    for key in ("certificate", "target_alignment"):
        assert record(resumed)[key] == record(run)[key]


def test_evaluate_compares_a_run_with_the_model_it_began_with(
    run: modalign.Run, made: dict[str, str], labelled: Path, tmp_path: Path
) -> None:
    done = inside("evaluate", "--model", run.folder, "--task", f"drift:{labelled}", "--json", tmp_path / "d.json")
    assert done.returncode == 0, done.stderr
    assert "no cosine changes by more than (tight)" in done.stdout and "cannot have changed" in done.stdout
    assert f"before: {made['model']}" in done.stdout and "prompts single" in done.stdout
    told = json.loads((tmp_path / "d.json").read_text())["drift"][0]
    assert told["labels"] == record(run)["certificate"]["labels"]
    refused(inside("evaluate", "--model", made["model"], "--task", f"drift:{labelled}"), "name it with --against SPEC")
    refused(
        inside("evaluate", "--model", made["model"], "--against", made["model"], "--task", f"knn:{labelled}"),
        "only drift tasks compare",
    )
    other = run.folder.with_name("moved-on")
    other.mkdir()
    for name in ("recipe.yaml", "environment.json"):
        (other / name).write_bytes((run.folder / name).read_bytes())
    (other / "model").symlink_to(run.folder / "model")
    changed = json.loads((other / "environment.json").read_text())
    changed["identity"]["model"] = "0" * 64
    (other / "environment.json").write_text(json.dumps(changed))
    refused(inside("evaluate", "--model", other, "--task", f"drift:{labelled}"), "is no longer the model")


def test_compare_says_what_is_certain_where_the_texts_are_the_same(
    run: modalign.Run, made: dict[str, str], labelled: Path, tmp_path: Path
) -> None:
    tasks = ["--task", f"zero-shot:{labelled}", "--tolerance", 1]
    done = inside("compare", made["model"], run.folder, *tasks, "--json", tmp_path / "c.json")
    assert done.returncode == 0, done.stderr
    assert "certificate: no text can see" in done.stdout
    told = json.loads((tmp_path / "c.json").read_text())
    assert told["certificate"]["labels"] == record(run)["certificate"]["labels"]
