"""`modalign contrast`: its numbers against the functions they are named after, its page, its command."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import modalign
from modalign.cli import app
from modalign.console import Reporter
from modalign.contrasting import Contrast, contrast
from modalign.embedder import Embedder
from modalign.errors import DataError, OutputError
from modalign.gap.representations import centred_kernel_alignment, mutual_knn
from modalign.models.vision import load_vision
from modalign.objectives.kernel_fit import fit_kernel
from modalign.objectives.kernel_match import kernel_alignment
from modalign.objectives.kernels import PolynomialKernel
from modalign.report import contrast as page
from tests import tiny, tiny_vision


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("contrast")
    tiny.write_pairs(root / "data", n=30)
    (root / "data" / "metadata.csv").unlink()
    tiny.tiny_open_clip(root / "before")
    tiny.tiny_open_clip(root / "after", seed=1)
    tiny_vision.tiny_dinov2(root / "target")
    return root


def _embedder(place: Path) -> Embedder:
    return Embedder(place / "store", batch_size=8, reporter=Reporter(silent=True))


@pytest.fixture(scope="module")
def found(place: Path) -> Contrast:
    return contrast(
        modalign.load(place / "before"),
        load_vision(f"hf:{place / 'target'}"),
        modalign.images(place / "data"),
        against=modalign.load(place / "after"),
        pairs=6,
        embedder=_embedder(place),
    )


def test_the_numbers_are_those_of_the_functions(found: Contrast, place: Path) -> None:
    images = modalign.images(place / "data")
    before, after, target = (
        modalign.load(place / "before"),
        modalign.load(place / "after"),
        load_vision(f"hf:{place / 'target'}"),
    )
    from modalign.data.images import decode

    with torch.no_grad():
        x, y = (
            torch.cat([model.encode_image(model.preprocess(decode(path))[None]) for path in images.paths])
            for model in (before, after)
        )
        g = torch.cat([target.encode(target.preprocess(decode(path))[None]) for path in images.paths])
    of_target = PolynomialKernel(1 / g.shape[1], 1.0)
    kernel = fit_kernel(x, g)
    assert isinstance(kernel, PolynomialKernel)
    side, second = found.student, found.against
    assert second is not None
    assert side.coef0 / side.gamma == pytest.approx(float(kernel.coef0) / float(kernel.gamma), rel=1e-3)
    assert side.kernel_loss == pytest.approx(float(kernel_alignment(x, g, kernel, of_target, "u")), rel=1e-4)
    assert side.kernel_loss_at_first == side.kernel_loss
    assert second.kernel_loss_at_first == pytest.approx(float(kernel_alignment(y, g, kernel, of_target, "u")), rel=1e-3)
    assert second.kernel_loss <= second.kernel_loss_at_first
    assert side.cka == pytest.approx(float(centred_kernel_alignment(x, g)), rel=1e-5)
    assert side.mutual_knn == pytest.approx(float(mutual_knn(x, g, 10).mean()), abs=0.01)
    assert second.mutual_knn == pytest.approx(float(mutual_knn(y, g, 10).mean()), abs=0.01)
    assert found.pictures == 30 and found.neighbours == 10
    for pair in found.pairs:
        i, j = images.paths.index(pair.first), images.paths.index(pair.second)
        cosines = [float(torch.cosine_similarity(rows[i], rows[j], dim=0)) for rows in (x, g, y)]
        assert pair.against is not None
        assert [pair.student.cosine, pair.target.cosine, pair.against.cosine] == pytest.approx(cosines, abs=1e-5)
        assert pair.student.rank > 0.5 > pair.target.rank
    assert found.pairs


def test_a_second_look_runs_no_network(found: Contrast, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_vision(f"hf:{place / 'target'}")
    monkeypatch.setattr(target, "encode", lambda pixels: pytest.fail("the target ran again"))
    again = contrast(
        modalign.load(place / "before"),
        target,
        modalign.images(place / "data"),
        pairs=6,
        embedder=_embedder(place),
    )
    assert again.student == found.student and again.against is None
    assert [(pair.first, pair.second) for pair in again.pairs] == [(pair.first, pair.second) for pair in found.pairs]


def test_unreadable_pictures_are_left_out_or_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    (tmp_path / "data" / "0003.png").write_bytes(b"no picture")
    arguments: Any = (
        modalign.load(place / "before"),
        load_vision(f"hf:{place / 'target'}"),
        modalign.images(tmp_path / "data"),
    )
    with pytest.raises(DataError, match=r"0003\.png"):
        contrast(*arguments, embedder=_embedder(tmp_path))
    tolerant = _embedder(tmp_path)
    tolerant.max_bad = 1
    found = contrast(*arguments, embedder=tolerant)
    assert (found.pictures, found.left_out) == (29, 1)


def test_three_pictures_are_too_few(place: Path, tmp_path: Path) -> None:
    for name in ("0000.png", "0001.png", "0002.png"):
        shutil.copy(place / "data" / name, tmp_path)
    with pytest.raises(DataError, match=r"3 picture.*pass 4 or more"):
        contrast(
            modalign.load(place / "before"),
            load_vision(f"hf:{place / 'target'}"),
            modalign.images(tmp_path),
            embedder=_embedder(tmp_path / "store"),
        )


# ---- the page -----------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_and_escapes_names(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted((place / "data").iterdir())[:8]:
        shutil.copy(path, data / f"<img src=x onerror=alert({path.stem})>&.png")
    found = contrast(
        modalign.load(place / "before"),
        load_vision(f"hf:{place / 'target'}"),
        modalign.images(data),
        embedder=_embedder(tmp_path),
    )
    assert found.pairs
    html = page.render(found)
    assert "<img src=x" not in html and "&lt;img src=x onerror=alert(" in html
    assert "default-src 'none'" in html
    assert re.findall(r'<img[^>]*src="(?!data:)', html) == [] and "<script" not in html and "://" not in html
    assert html.count("data:image/jpeg") == 2 * len(found.pairs)


def test_a_picture_that_is_gone_is_named(found: Contrast, place: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    gone = replace(found, pairs=(replace(found.pairs[0], first=tmp_path / "gone.png"),))
    assert "gone.png cannot be read" in page.render(gone)
    assert "No pair is alike" in page.render(replace(found, pairs=()))


# ---- the command --------------------------------------------------------------------------------------------


def test_the_command_writes_page_and_numbers(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "before.html"
    arguments = ["contrast", "--model", str(place / "before"), "--target", f"hf:{place / 'target'}"]
    arguments += ["--data", f"images:{place / 'data'}", "--against", str(place / "after"), "--out", str(out)]
    arguments += ["--pairs", "5", "--batch-size", "8", "--store", str(place / "store")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "mutual 10-NN" in result.output and f"page: {out}" in result.output
    numbers = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert 0 < len(numbers["blind_pairs"]) <= 5
    assert numbers["data"] == {"spec": str(place / "data"), "pictures": 30, "left_out": 0}
    assert numbers["protocol"]["chance_of_a_neighbour"] == 10 / 29
    assert set(numbers["blind_pairs"][0]) == {"first", "second", "model", "target", "against"}
    assert numbers["environment"]["versions"]["timm"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["before.html", "before.json"]


def test_a_place_that_is_no_page_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    arguments = ["contrast", "--model", "hf:nowhere/x", "--target", "demo", "--data", "images:x", "--out"]
    for place in (tmp_path, tmp_path / "page.txt"):
        result = CliRunner().invoke(app, [*arguments, str(place)])
        assert isinstance(result.exception, OutputError) and "ends in .html" in str(result.exception)
