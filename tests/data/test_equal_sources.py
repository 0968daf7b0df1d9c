"""A folder of pictures, WebDataset shards and a folder of `datasets` that hold the same pairs are the same data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import modalign
from modalign.data.pictures import to_json
from modalign.exporting.probes import probe_pictures
from modalign.recipe import load as load_recipe
from modalign.training.distributed import Processes
from modalign.training.inputs import TrainingSet, batches
from tests.tiny import tiny_open_clip, write_pairs

from .packing import dataset, write_shards

KINDS = ["tar", "datasets", "members"]


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Forty pairs, every third picture with two captions: in each form, and as rows that name members of the tars."""
    root = tmp_path_factory.mktemp("equal")
    folder = Path(write_pairs(root / "folder", n=40))
    lines = []
    rows = []
    for i, row in enumerate(modalign.pairs(folder).rows):
        captions = [*row.captions, f"another {i}"] if i % 3 == 0 else list(row.captions)
        rows.append((row.path.name, Path(str(row.path)).read_bytes(), captions))
        lines.append(json.dumps({"file_name": row.path.name, "text": captions}))
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    dataset(rows).save_to_disk(root / "saved", num_shards=3)
    tars = write_shards(root / "tars", rows, per_shard=15)
    listed = [{"image": to_json(row.path), "text": row.captions} for row in modalign.pairs(tars).rows]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, listed)))
    return {
        "folder": str(folder),
        "tar": tars,
        "datasets": str(root / "saved"),
        "members": str(root / "rows.jsonl"),
    }


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_open_clip(tmp_path_factory.mktemp("model"), quick_gelu=True)


def stream(spec: str, clip: str, workers: int = 0) -> list[tuple[Any, ...]]:
    """Two epochs of batches: rows, captions, pixels."""
    settings = {"data__batch_size": 8, "data__workers": workers, "data__drop_last": False}
    data = TrainingSet(modalign.pairs(spec))
    model, recipe = modalign.load(clip), load_recipe(None, **settings)
    found = batches(data, model, recipe, Processes(), 0, 10, pixels=True)
    return [(b.rows, [data.captions[i] for i in b.captions.tolist()], b.pixels) for b in found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_two_epochs_of_batches_are_equal(specs: dict[str, str], clip: str, kind: str, workers: int) -> None:
    expected, found = stream(specs["folder"], clip), stream(specs[kind], clip, workers)
    assert len(expected) == len(found) == 10
    for (rows, captions, pixels), (other_rows, other_captions, other_pixels) in zip(expected, found, strict=True):
        assert torch.equal(rows, other_rows) and captions == other_captions and torch.equal(pixels, other_pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_do_not_depend_on_what_the_pairs_are_packed_into(specs: dict[str, str], kind: str) -> None:
    expected, found = modalign.pairs(specs["folder"]), modalign.pairs(specs[kind])
    assert expected.fingerprint == found.fingerprint

    for seed in range(3):
        for ours, theirs in zip(expected.split_off(0.2, seed), found.split_off(0.2, seed), strict=True):
            assert ours.captions == theirs.captions
        part, same = (data.subset(fraction=0.3, seed=seed) for data in (expected, found))
        assert part.captions == same.captions and len(part) == 12


def test_refining_on_each_gives_the_same_weights_bit_for_bit(specs: dict[str, str], clip: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data__batch_size": 6,
        "data__validation": 0.2,
        "data__fraction": 0.8,
        "optimizer__lr": 1e-3,
        "evaluation__resamples": 100,
        "silent": True,
    }
    weights, listed = {}, {}
    for kind in ("folder", "tar", "datasets"):
        run = modalign.refine(clip, specs[kind], out=tmp_path / kind, **settings)
        weights[kind] = dict(run.model.module.state_dict())
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        listed[kind] = [(line.get("loss"), line.get("validation")) for line in lines]
    initial = modalign.load(clip).module.state_dict()
    assert any(not torch.equal(tensor, initial[name]) for name, tensor in weights["folder"].items())
    for kind in ("tar", "datasets"):
        assert listed[kind] == listed["folder"]
        assert all(torch.equal(tensor, weights[kind][name]) for name, tensor in weights["folder"].items())


def test_a_run_on_members_is_judged_reported_and_resumed(specs: dict[str, str], clip: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data__batch_size": 8, "data__validation": 0.5, "evaluation__resamples": 100}
    run = modalign.refine(clip, specs["tar"], out=tmp_path / "run", silent=True, **settings)
    assert run.gate is not None
    listed = modalign.pairs(run.folder / "validation.jsonl")
    assert len(listed) == 20 and {row.path.name[-4:] for row in listed.rows} == {".png"}
    assert "data:image/jpeg;base64" in run.report.read_text()
    assert probe_pictures(run.folder)[0].size == (32, 32)  # the run's own pictures, not the built-in ones
