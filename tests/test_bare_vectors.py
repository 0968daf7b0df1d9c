"""Two files of vectors and no network: the same objective, through a linear map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import modalign
from modalign import methods
from modalign.cli import app
from modalign.errors import DataError, ModelError, RecipeError
from modalign.objectives import feature_anchor, kernel_alignment
from modalign.objectives.kernels import PolynomialKernel
from modalign.training import bare
from tests.tiny import tiny_open_clip, write_pairs


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    random = np.random.default_rng(0)
    meaning = random.normal(size=(60, 4))
    for name, width in (("student", 6), ("target", 9)):
        rows = meaning @ random.normal(size=(4, width)) + 0.3 * random.normal(size=(60, width))
        np.save(tmp_path / f"{name}.npy", rows)
    return f"vectors:{tmp_path / 'student.npy'}", f"vectors:{tmp_path / 'target.npy'}"


def refine(files: tuple[str, str], out: Path, **settings: Any) -> modalign.Run:
    given: dict[str, Any] = {
        "method": methods.Kuea(learn_kernel=False, gamma=0.1, coef0=1.0),
        "train": "projection",
        "target": files[1],
        "data__batch_size": 60,
        "epochs": 30,
        "optimizer__lr": 1e-3,
        "optimizer__weight_decay": 0.0,
        **settings,
    }
    return modalign.refine(files[0], files[0], given.pop("method"), out=out, silent=True, **given)


def test_the_map_follows_an_independent_gradient_descent(files: tuple[str, str], tmp_path: Path) -> None:
    run = refine(files, tmp_path / "run")
    x, g = (torch.from_numpy(np.load(name.removeprefix("vectors:"))) for name in files)
    weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
    kernels = PolynomialKernel(0.1, 1.0), PolynomialKernel(1 / 9, 1.0)
    steps = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(30):
        steps.zero_grad()
        mapped = x @ weight.T
        loss = feature_anchor(mapped, x) + 0.5 * kernel_alignment(mapped, g, *kernels, estimator="u")
        loss.backward()
        steps.step()
        losses.append(loss.item())
    told = [json.loads(line)["loss"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert told == pytest.approx(losses, rel=1e-10)
    assert told[-1] < told[0]
    torch.testing.assert_close(run.model.project_image(x), x @ weight.T, rtol=0, atol=1e-10)


def test_the_map_is_resumed_and_held_out_rows_are_validated(files: tuple[str, str], tmp_path: Path) -> None:
    run = refine(files, tmp_path / "run", data__batch_size=10, data__validation=0.2, epochs=3)
    last = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation"]["rows"] == 12
    assert modalign.load(run.folder).fingerprint == run.model.fingerprint
    with pytest.raises(ModelError, match="no network"):
        run.model.encode_image(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"train": "full"}, "train: projection"),
        ({"method": "clip-refine"}, "use .*kuea"),
        ({"method": methods.Kuea(tower="text")}, "does not train an image tower on a target's"),
        ({"target": "demo"}, "vectors are aligned with vectors"),
        ({"evaluation__tasks": ["retrieval:demo"]}, "leave them out"),
    ],
)
def test_what_vectors_cannot_do_is_refused(
    files: tuple[str, str], tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        refine(files, tmp_path / "run", **settings)


def test_files_that_do_not_fit_are_named(files: tuple[str, str], tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros((3, 2)))
    (tmp_path / "text.npy").write_text("no numbers")
    rows = np.zeros((60, 2))
    rows[7, 1] = np.nan
    np.save(tmp_path / "nan.npy", rows)
    for name, told in (("short", "3; row i"), ("text", "no .npy file"), ("nan", "row 7"), ("gone", "no file")):
        with pytest.raises((RecipeError, DataError), match=told) as caught:
            refine((files[0], f"vectors:{tmp_path / name}.npy"), tmp_path / f"run-{name}")
        assert "\n" not in str(caught.value)


def test_the_methods_that_are_named_are_those_that_work() -> None:
    def works(name: str) -> bool:
        try:
            bare.refuse_method(methods.from_config({"name": name}))
        except RecipeError:
            return False
        return True

    assert {name for name in methods.METHODS if works(name)} == set(bare.WORKS)


@pytest.mark.parametrize("method", bare.WORKS)
def test_every_named_method_runs(files: tuple[str, str], tmp_path: Path, method: str) -> None:
    assert refine(files, tmp_path / "run", method=method, epochs=1).model.embed_dim == 6


def test_two_stores_are_aligned_row_by_row_whatever_their_order(place: Path, tmp_path: Path) -> None:
    """A run on stores and one on the .npy files of the same rows give one map."""
    write_pairs(tmp_path / "other", n=10, seed=1)
    student = modalign.embed(f"{place / 'clip'}", f"{place / 'pairs'}", out=tmp_path / "s", towers=["image"])
    vision = modalign.load_vision(tiny_open_clip(tmp_path / "vision", seed=3))
    turned = modalign.images(place / "pairs")
    turned = modalign.data.sources.Images(turned.spec, turned.rows[::-1])
    target = modalign.embed(vision, turned, out=tmp_path / "t", batch_size=4)
    assert student.image is not None and target.image is not None
    student.image.save_npy(tmp_path / "s.npy")
    np.save(tmp_path / "t.npy", target.image.numpy()[::-1])
    names = {name: f"vectors:{tmp_path / name}" for name in ("s", "t", "s.npy", "t.npy")}
    given = {"data__batch_size": 5, "epochs": 2}
    expected = refine((names["s.npy"], names["t.npy"]), tmp_path / "files", **given).model.fingerprint
    settings = {"method": methods.Kuea(learn_kernel=False, gamma=0.1, coef0=1.0), "train": "projection", **given}
    settings |= {"optimizer__lr": 1e-3, "optimizer__weight_decay": 0.0, "silent": True}
    run = modalign.refine(student, "", out=tmp_path / "python", target=target, **settings)  # type: ignore[arg-type]
    assert run.model.fingerprint == expected
    assert refine((names["s"], names["t"]), tmp_path / "specs", **given).model.fingerprint == expected
    modalign.embed(f"{place / 'clip'}", f"{tmp_path / 'other'}", out=tmp_path / "o", towers=["image"])
    for pair, told in (
        ((names["s"], names["t.npy"]), "name two stores, or two files"),
        ((names["s"], f"vectors:{tmp_path / 'o'}"), "rows of different inputs"),
        ((names["s"], f"vectors:{tmp_path}"), "holds no store of modalign embed"),
    ):
        with pytest.raises(DataError, match=told):
            refine(pair, tmp_path / "refused", **given)
    modalign.embed(f"{place / 'clip'}", f"{tmp_path / 'other'}", out=tmp_path / "s", towers=["image"])
    with pytest.raises(DataError, match="rows of 2 data sets, not of one"):
        modalign.load(names["s"])
    modalign.embed(f"{place / 'clip'}", f"{tmp_path / 'other'}", out=tmp_path / "o", towers=["text"])
    with pytest.raises(DataError, match="holds 2 stores; name one"):
        modalign.load(f"vectors:{tmp_path / 'o'}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, as clip, and pairs."""
    root = tmp_path_factory.mktemp("place")
    tiny_open_clip(root / "clip")
    write_pairs(root / "pairs", n=10)
    return root


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --model VECTORS --task retrieval:pairs",
        "evaluate --model clip --against VECTORS --task drift:pairs",
        "gap --model VECTORS --data pairs",
        "embed --model VECTORS --data pairs --store store",
        "embed --model VECTORS --data pairs --towers text --store store",
        "contrast --model VECTORS --target clip --data images:pairs",
        "probe-batch --model VECTORS --target clip --data images:pairs --sizes 4",
        "export VECTORS --to open_clip --out exported",
        "export VECTORS --to transformers --out exported",
    ],
)
def test_a_command_that_needs_a_network_says_that_there_is_none(
    files: tuple[str, str], place: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    told = CliRunner().invoke(app, command.replace("VECTORS", files[0]).split()).exception
    assert isinstance(told, ModelError), told
    assert "holds vectors and no network" in str(told) and "\n" not in str(told)
