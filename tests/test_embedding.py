"""`modalign.embed` and its commands on real tiny models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import modalign
from modalign.cli import app
from modalign.data.images import decode
from modalign.errors import DataError, ModelError
from tests.tiny import tiny_open_clip, write_pairs

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_open_clip(tmp_path_factory.mktemp("model"), quick_gelu=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs", n=10, captions_per_image=3)


def test_all_captions_and_each_picture_are_stored_once_and_looked_up(clip: str, data: str, tmp_path: Path) -> None:
    model, pairs = modalign.load(clip), modalign.pairs(data)
    store = modalign.embed(model, pairs, out=tmp_path, silent=True, batch_size=4)
    assert (len(store), store.dim) == (30, 32) and store.text is not None and len(store.text) == 30
    assert store.passes["image"].computed == 10 and store.passes["text"].computed == 30  # 30 rows show 10 pictures
    pixels = torch.stack([model.preprocess(decode(path)) for path in pairs.paths[3:6]])
    expected = model.encode_image(pixels).detach()
    torch.testing.assert_close(store.rows(pairs.paths[3:6]), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(store.rows([3, 4, 5]), store.rows(pairs.paths[3:6]))
    said = model.encode_text(model.tokenize(pairs.captions[7:9])).detach()
    torch.testing.assert_close(store.rows(pairs.captions[7:9]), said, rtol=1e-5, atol=1e-5)
    with pytest.raises(KeyError, match="never said"):
        store.rows(["never said"])
    again = modalign.embed(clip, data, out=tmp_path, silent=True, batch_size=4, device="cpu")
    assert str(again) == "pictures: 10 read from the store, 0 computed; captions: 30 read from the store, 0 computed"
    assert again.image is not None and store.image is not None
    np.testing.assert_array_equal(again.image.numpy(), store.image.numpy())
    store.text.save_npy(tmp_path / "text.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "text.npy"), store.text.numpy())


def test_a_vision_encoder_is_embedded_like_a_tower(clip: str, data: str, tmp_path: Path) -> None:
    vision = modalign.load_vision(clip)
    store = modalign.embed(vision, data, out=tmp_path, silent=True)
    tower = modalign.embed(clip, data, out=tmp_path, towers=["image"], device="cpu", silent=True)
    assert store.text is None and store.image is not None and tower.image is not None
    assert len(store) == 10 and torch.equal(store.image[:], tower.image[:])  # without captions, each picture once
    with pytest.raises(ModelError, match="no projection"):
        modalign.embed(vision, data, out=tmp_path, part="trunk")


def test_evaluate_and_gap_read_what_is_stored_and_say_the_same(clip: str, data: str, tmp_path: Path) -> None:
    from modalign.diagnosing import measure_model

    model = modalign.load(clip)
    plain = modalign.evaluate(model, [f"retrieval:{data}"], resamples=100)
    modalign.embed(model, data, out=tmp_path, silent=True)
    calls: list[int] = []
    model.image_trunk = lambda pixels: calls.append(1)  # type: ignore[method-assign, assignment, return-value]
    stored = modalign.evaluate(model, [f"retrieval:{data}"], resamples=100, store=tmp_path)
    assert not calls
    assert {k: m.value for k, m in stored.metrics.items()} == {k: m.value for k, m in plain.metrics.items()}
    reports = [measure_model(clip, data, device="cpu", store=store)[0].to_dict() for store in (None, tmp_path)]
    measured = [report["measures"] for report in reports]
    values = [{name: told["value"] for name, told in report.items() if told["value"]} for report in measured]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_runs_that_name_one_store_share_it(clip: str, data: str, tmp_path: Path) -> None:
    import json

    settings = {"data__batch_size": 8, "evaluation__resamples": 100, "optimizer__lr": 1e-4, "silent": True}
    counts = []
    for name in ("first", "second"):
        modalign.refine(clip, data, out=tmp_path / name, store=str(tmp_path / "store"), device="cpu", **settings)
        counts.append(json.loads((tmp_path / name / "cost.json").read_text())["forward_passes"])
        assert not (tmp_path / name / "cache").exists()
    assert counts[0]["image"] - counts[1]["image"] == 10 and counts[0]["text"] - counts[1]["text"] == 30
    assert counts[1]["saved_image"] - counts[0]["saved_image"] == 10


def test_the_commands_embed_list_and_delete(clip: str, data: str, tmp_path: Path) -> None:
    run = CliRunner()
    place = ["--store", str(tmp_path)]
    given = ["embed", "--model", clip, "--data", data, "--device", "cpu", "--dtype", "fp16", *place]
    done = run.invoke(app, [*given, "--npy", str(tmp_path / "npy"), "--verify"], catch_exceptions=False)
    assert "image: 30 × 32 in" in done.stdout and "text: 30 × 32 in" in done.stdout
    assert np.load(tmp_path / "npy" / "image.npy").shape == (30, 32)
    judged = ["evaluate", "--model", clip, "--task", f"retrieval:{data}", "--device", "cpu", *place]
    assert "image_to_text_r1" in run.invoke(app, judged, catch_exceptions=False).stdout
    assert run.invoke(app, ["store", "rm", *place]).exit_code != 0  # nothing named
    listed = run.invoke(app, ["store", "ls", *place], catch_exceptions=False).stdout
    assert "(image features)" in listed and "(text features)" in listed and "idle" in listed
    key, _ = re.findall(r"^([0-9a-f]{20}) .*\(image features\)", listed, re.MULTILINE)
    gone = run.invoke(app, ["store", "rm", key[:8], *place], catch_exceptions=False).stdout
    assert gone.startswith(f"deleted: {key}")
    left = run.invoke(app, ["store", "rm", "--all", *place], catch_exceptions=False).stdout
    assert "(text features)" in left
    assert run.invoke(app, ["store", "ls", *place], catch_exceptions=False).stdout == f"no stores in {tmp_path}\n"


@pytest.mark.multiprocess
def test_one_two_and_four_processes_write_the_same_rows(clip: str, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", n=50, captions_per_image=2)
    (tmp_path / "pairs" / "0007.png").write_bytes(b"no picture")
    script = tmp_path / "embed.py"
    script.write_text(
        "import os, sys, torch, modalign\n"
        "from modalign import missing\n"
        "missing.BLOCK = 8\n"
        "s = modalign.embed(*sys.argv[1:3], out=sys.argv[3], batch_size=4, device='cpu', max_bad=1)\n"
        "found = s.image[:], s.text[:], s.kept, [str(b) for b in s.bad]\n"
        "torch.save(found, sys.argv[3] + os.environ['RANK'])\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    found = []
    for world in (1, 2, 4):
        out = tmp_path / f"store{world}"
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        for _ in range(2):  # the second time everything is read
            done = subprocess.run(
                [*start, str(script), clip, data, str(out)], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-3000:]
            ranks = [torch.load(f"{out}{rank}", weights_only=True) for rank in range(world)]
            found += ranks
        assert "98 read from the store, 0 computed" in done.stderr
        shards = {path.name: path.read_bytes() for path in out.glob("*/shard-*")}
        if world == 1:
            alone = shards
        assert shards == alone
    for image, text, kept, bad in found[1:]:
        assert torch.equal(image, found[0][0]) and torch.equal(text, found[0][1])
        assert torch.equal(kept, found[0][2]) and bad == found[0][3] and len(bad) == 1


def test_columns_reach_a_spec_and_are_refused_where_they_name_nothing(clip: str, tmp_path: Path) -> None:
    table = Path(write_pairs(tmp_path / "pairs", n=4)) / "metadata.csv"
    table.write_text(table.read_text().replace("file_name,text", "picture,words"))
    columns = {"image_column": "picture", "text_column": "words"}
    stored = modalign.embed(clip, str(tmp_path / "pairs"), out=tmp_path / "store", silent=True, **columns)
    assert stored.image is not None and len(stored.image) == 4 and len(stored.captions) == 4
    with pytest.raises(DataError, match="no captions are embedded"):
        modalign.embed(clip, str(tmp_path / "pairs"), out=tmp_path / "store", towers=["image"], silent=True, **columns)
    with pytest.raises(DataError, match="read already"):
        modalign.embed(clip, modalign.pairs(tmp_path / "pairs", **columns), out=tmp_path / "store", **columns)


def test_pictures_alone_are_named_as_refine_names_them(clip: str, data: str, tmp_path: Path) -> None:
    alone = modalign.embed(clip, f"images:{data}", out=tmp_path, towers=["image"], silent=True)
    assert len(alone) == 10 and alone.text is None
    with pytest.raises(DataError, match="reads pictures alone and captions are to be embedded"):
        modalign.embed(clip, f"images:{data}", out=tmp_path, silent=True)
    vision = modalign.load_vision(clip)
    assert len(modalign.embed(vision, f"images:{data}", out=tmp_path, silent=True)) == 10
    with pytest.raises(ModelError, match="has no text tower to embed"):
        modalign.embed(vision, data, out=tmp_path, towers=["text"], silent=True)
