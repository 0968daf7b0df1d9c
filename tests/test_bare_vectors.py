"""Two files of vectors and no network: the same objective, through a linear map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modalign
from modalign import methods
from modalign.errors import DataError, ModelError, RecipeError
from modalign.objectives import feature_anchor, kernel_alignment
from modalign.objectives.kernels import PolynomialKernel


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
        ({"method": "clip-refine"}, "use kuea"),
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
