"""`modalign probe-batch`: its errors against the function they are of, and what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import modalign
from modalign.batch_probing import BatchProbe, probe_batch
from modalign.console import Reporter
from modalign.embedder import Embedder
from modalign.errors import DataError, RecipeError
from modalign.models.vision import load_vision
from modalign.objectives.gradient_error import GradientError, gradient_error
from modalign.objectives.kernel_fit import fit_kernel
from modalign.objectives.kernels import PolynomialKernel
from tests import tiny, tiny_vision
from tests.test_cli import inside, refused


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("probe")
    tiny.write_pairs(root / "data", n=30)
    tiny.tiny_open_clip(root / "clip")
    tiny_vision.tiny_dinov2(root / "target")
    return root


def test_the_errors_are_those_of_the_stored_features(place: Path) -> None:
    model, target = modalign.load(place / "clip"), load_vision(f"hf:{place / 'target'}")
    images = modalign.images(place / "data")
    embedder = Embedder(place / "store", batch_size=8, reporter=Reporter(silent=True))
    found = probe_batch(model, target, images, sizes=[16, 4, 64, 30], trials=3, seed=5, embedder=embedder)
    from modalign.data.images import decode

    with torch.no_grad():
        x = torch.cat([model.encode_image(model.preprocess(decode(p))[None]) for p in images.paths])
        g = torch.cat([target.encode(target.preprocess(decode(p))[None]) for p in images.paths])
    kernels = fit_kernel(x, g), PolynomialKernel(1 / g.shape[1], 1.0)
    expected = gradient_error(x, g, *kernels, sizes=[4, 16], trials=3, seed=5)
    assert found.found.sizes == (4, 16) and found.sizes_left_out == (30, 64)
    assert found.found.errors == pytest.approx(expected.errors, rel=1e-2)
    assert found.found.spreads == pytest.approx(expected.spreads, rel=0.05)


def told(errors: tuple[float, ...]) -> BatchProbe:
    found = GradientError(1000, 8, (32, 128, 512), errors, (0.01,) * 3, 3.0)
    return BatchProbe(found, "m", "t", "d", 5000, 2, (4096,), 4.0, 0)


def test_the_sentence_names_the_smallest_size_that_will_do_or_what_the_law_asks_for() -> None:
    assert "N = 128 is the smallest size tried whose gradient is within 10 %" in told((0.3, 0.09, 0.04)).sentence
    assert "no size tried" in told((0.3, 0.2, 0.1)).sentence  # (3.0 / 0.1)² = 900
    assert "about N = 900" in told((0.3, 0.2, 0.1)).sentence
    remarks = " ".join(told((0.3, 0.2, 0.1)).remarks)
    assert "1,000 of 5,000 pictures were drawn" in remarks and "N = 4,096" in remarks and "2 pictures" in remarks
    assert "drawn to stand" not in " ".join(replace(told((0.3, 0.2, 0.1)), available=1002).remarks)


def test_the_command(place: Path) -> None:
    arguments = ("probe-batch", "--model", place / "clip", "--target", f"hf:{place / 'target'}")
    arguments = (*arguments, "--data", f"images:{place / 'data'}", "--store", place / "store", "--batch-size", 8)
    done = inside(*arguments, "--sizes", "4,8,4096", "--json", place / "probe.json")
    assert done.returncode == 0, done.stderr
    assert "1/√N law" in done.stdout and "not below the 30 pictures: N = 4,096" in done.stdout
    written = json.loads((place / "probe.json").read_text())
    assert written["sizes"] == [4, 8] and len(written["spreads"]) == 2 and written["sentence"] in done.stdout
    refused(inside(*arguments, "--sizes", "4,x"), "--sizes '4,x'", "write whole numbers")
    refused(inside(*arguments, "--sizes", "1,4"), "sizes 1, 4: a batch needs 2 pictures")
    refused(inside(*arguments, "--sizes", "64"), "has 30 picture(s)", "smaller --sizes")


def test_refusals_come_before_anything_is_embedded(place: Path, tmp_path: Path) -> None:
    model, target = modalign.load(place / "clip"), load_vision(f"hf:{place / 'target'}")
    embedder = Embedder(tmp_path / "store", reporter=Reporter(silent=True))
    for sizes, error in (([100], DataError), ([], RecipeError)):
        with pytest.raises(error):
            probe_batch(model, target, modalign.images(place / "data"), sizes=sizes, embedder=embedder)
    assert not (tmp_path / "store").exists()
