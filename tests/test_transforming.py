"""`modalign transform`: fitted, judged on a held-out half, applied."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from modalign import cli, held_out, transforming
from modalign.cli.transform import Kind, Role
from modalign.errors import ModalignError, OutputError, RecipeError
from modalign.gap.transforms import KINDS, ROLES, Procrustes, load
from tests import tiny


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli.app, ["transform", *map(str, arguments)])
    told = f"error: {done.exception}" if isinstance(done.exception, ModalignError) else done.stderr
    return done.exit_code, done.stdout, told


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    concept = rng.normal(size=(240, 16))
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    image = concept + 0.2 * rng.normal(size=(240, 16)) + 1
    text = concept @ turn + 0.2 * rng.normal(size=(240, 16)) - 1
    np.save(tmp_path / "image.npy", image.astype(np.float32))
    np.save(tmp_path / "text.npy", text.astype(np.float32))
    return tmp_path / "image.npy", tmp_path / "text.npy"


def test_the_choices_are_the_kinds_and_roles() -> None:
    assert [kind.value for kind in Kind] == list(KINDS)
    assert [role.value for role in Role] == list(ROLES)


def test_fit_shows_the_other_half_and_apply_maps(files: tuple[Path, Path], tmp_path: Path) -> None:
    out, numbers = tmp_path / "procrustes", tmp_path / "told.json"
    status, shown, _ = run("fit", "--kind", "procrustes", "--embeddings", *files, "--out", out, "--json", numbers)
    assert status == 0
    assert "Procrustes() fitted on 240 image and 240 text vectors" in shown
    assert "Fitted on 120 + 120 vectors (images + texts), measured on 120 + 120 held out" in shown
    assert "standard error of the image mean" in shown
    held_out = json.loads(numbers.read_text())["held_out"]["numbers"]
    before, after = held_out["text_to_image_r1"]
    assert before < 0.1 and after > 0.9
    assert held_out["centroid_gap"][1] < held_out["centroid_gap"][0] / 3

    mapped = tmp_path / "mapped.npy"
    apply = ("apply", "--transform", out, "--embeddings", files[1], "--role", "text", "--out", mapped)
    assert run(*apply)[0] == 0
    text = np.load(files[1])
    expected = Procrustes().fit(np.load(files[0]), text).transform(text, "text")
    np.testing.assert_array_equal(np.load(mapped), expected)
    assert np.load(mapped).dtype == np.float32
    assert "exists already: choose another file" in run(*apply)[2]
    again = run("fit", "--kind", "center", "--embeddings", *files, "--out", out)
    assert again[0] != 0 and "is not empty: choose a new folder" in again[2]


def test_parameters_are_read_as_they_are_typed(files: tuple[Path, Path], tmp_path: Path) -> None:
    options = ("--set", "k=4", "--set", "renormalize=true", "--set", "ridge=0.5")
    assert run("fit", "--kind", "cca", "--embeddings", *files, "--out", tmp_path / "cca", *options)[0] == 0
    assert repr(load(tmp_path / "cca")) == "CCA(k=4, ridge=0.5, renormalize=True)"
    for wrong, told in (("k", "write NAME=VALUE"), ("rigde=1", "did you mean ridge"), ("k=0", "k is 0")):
        status, _, error = run(
            "fit", "--kind", "cca", "--embeddings", *files, "--out", tmp_path / "new", "--set", wrong
        )
        assert status != 0 and told in error and not (tmp_path / "new").exists()


def test_nnn_is_judged_by_its_scores_and_center_takes_queries(files: tuple[Path, Path], tmp_path: Path) -> None:
    nnn = ("fit", "--kind", "nnn", "--set", "k=16", "--embeddings", *files, "--out", tmp_path / "nnn")
    status, shown, _ = run(*nnn)
    assert status == 0 and "text → image R@1" in shown and "centroid gap" not in shown
    query = ("--query", files[1])
    assert run("fit", "--kind", "center", "--embeddings", *files, *query, "--out", tmp_path / "c")[0] == 0
    assert load(tmp_path / "c").rows_ == {"image": 240, "text": 240, "query": 240}  # type: ignore[attr-defined]
    told = run("fit", "--kind", "shift", "--embeddings", *files, *query, "--out", tmp_path / "s")[2]
    assert "shift has no role for queries" in told


def test_rows_that_are_no_pairs_are_measured_without_any(files: tuple[Path, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.load(files[1])[:100])
    files = (files[0], tmp_path / "few.npy")
    status, shown, _ = run("fit", "--kind", "center", "--embeddings", *files, "--out", tmp_path / "center")
    assert status == 0
    assert "Fitted on 120 + 50 vectors (images + texts), measured on 120 + 50 held out" in shown
    assert "total variance text" in shown and "R@1" not in shown
    told = run("fit", "--kind", "ridge", "--embeddings", *files, "--out", tmp_path / "ridge")[2]
    assert "ridge needs pairs, and these rows are none" in told


def test_copies_of_a_picture_or_caption_are_never_in_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = np.repeat(rng.normal(size=(50, 8)), 4, axis=0)
    pictures, captions = held_out._ids(image), torch.arange(200)
    assert pictures.tolist() == np.repeat(np.arange(50), 4).tolist()
    first, second = held_out._halves(held_out.linked_captions(pictures, captions), seed=3)
    assert len(first) == len(second) == 100
    assert not set(pictures[first].tolist()) & set(pictures[second].tolist())


def test_modalities_of_different_width(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(200, 8)), rng.normal(size=(200, 5))
    found = transforming.fit("ridge", image, text, out=tmp_path / "ridge", resamples=50)
    assert found.held_out is not None
    assert found.held_out.numbers["centroid_gap"][0] is None
    assert found.held_out.numbers["text_to_image_r1"][1] is not None


def test_too_few_to_hold_half_out_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = transforming.fit("center", *rng.normal(size=(2, 4, 3)), out=tmp_path / "few")
    assert found.held_out is None and (tmp_path / "few" / "transform.json").is_file()
    with pytest.raises(OutputError, match=r"name a \.npy file"):
        transforming.apply(tmp_path / "few", "x.npy", "image", tmp_path / "x.txt")
    with pytest.raises(RecipeError, match="did you mean center"):
        transforming.fit("centre", np.ones((4, 3)), np.ones((4, 3)), out=tmp_path / "x")


def test_a_models_features_are_fitted(tmp_path: Path) -> None:
    tiny.tiny_open_clip(tmp_path / "clip")
    tiny.write_pairs(tmp_path / "pairs", n=16)
    status, shown, told = run(
        *("fit", "--kind", "center", "--model", tmp_path / "clip", "--data", tmp_path / "pairs"),
        *("--out", tmp_path / "centre", "--json", tmp_path / "told.json", "--device", "cpu"),
    )
    assert status == 0, told
    assert "fitted on 16 image and 16 text vectors" in shown
    assert json.loads((tmp_path / "told.json").read_text())["data"]["pairs"] == 16


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "fit",
            {
                *("--kind", "--out", "--embeddings", "--query", "--model", "--data", "--max-bad", "--image-column"),
                *("--text-column", "--set", "--json", "--device", "--batch-size", "--workers", "--store", "--seed"),
            },
        ),
        ("apply", {"--transform", "--embeddings", "--role", "--out"}),
    ],
)
def test_the_options_are_frozen_and_help_shows_an_example(command: str, options: set[str]) -> None:
    shown = CliRunner().invoke(cli.app, ["transform", command, "--help"], env={"COLUMNS": "200"}).stdout
    assert f"Example: modalign transform {command}" in shown
    found = set(re.findall(r"(--[a-z-]+)", re.sub(r"Example:.*", "", shown, flags=re.S)))
    assert found - {"--help"} == options
