"""`modalign.refine` from Python, on a real tiny model: what is kept, refused, and told early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import modalign
from modalign.errors import DataError, OutputError, RecipeError
from tests.tiny import tiny_open_clip, write_pairs

SMALL: dict[str, Any] = {
    "data__batch_size": 8,
    "optimizer__lr": 1e-3,
    "evaluation__resamples": 200,
    "data__validation": 0.5,
    "silent": True,
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_open_clip(tmp_path_factory.mktemp("model"), quick_gelu=True)


def test_a_loaded_model_is_not_changed_and_the_run_gives_the_refined_one(clip: str, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", n=48)
    model = modalign.load(clip)
    before = model.fingerprint
    run = modalign.refine(
        model, modalign.pairs(data), modalign.methods.ClipRefine(alpha=0.3), out=tmp_path / "run", **SMALL
    )
    assert model.fingerprint == before != run.model.fingerprint
    assert run.gate is not None and run.exit_code in (0, 3)
    assert "alpha: 0.3" in (run.folder / "recipe.yaml").read_text()
    cost = json.loads((run.folder / "cost.json").read_text())
    assert cost["forward_passes"]["image"] == 48 + 24 and cost["samples_seen"] == 24  # frozen passes, then one epoch
    assert cost["wall_seconds"]["total"] == pytest.approx(
        sum(v for k, v in cost["wall_seconds"].items() if k != "total"), abs=0.01
    )


def test_the_recipes_method_is_kept_unless_another_is_named(clip: str, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", n=48)
    (tmp_path / "r.yaml").write_text("method: {name: hycd, alpha: 0.1}\n")
    modalign.refine(clip, data, out=tmp_path / "run", recipe=tmp_path / "r.yaml", **SMALL)
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert set(record["terms"]) == {"hycd"} and "alpha: 0.1" in (tmp_path / "run" / "recipe.yaml").read_text()
    modalign.refine(clip, data, "contrastive", out=tmp_path / "other", recipe=tmp_path / "r.yaml", **SMALL)
    record = json.loads((tmp_path / "other" / "metrics.jsonl").read_text().splitlines()[1])
    assert set(record["terms"]) == {"contrastive"}


def test_what_cannot_be_concluded_is_refused_before_training_and_may_be_corrected(clip: str, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", n=48)
    wrong = {"evaluation__tolerance": {"retrieval.recal*": 0.02}}
    with pytest.raises(RecipeError, match=r"retrieval.recal\*"):
        modalign.refine(clip, data, out=tmp_path / "run", **SMALL, **wrong)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    corrected = {"evaluation__tolerance": {"retrieval.*": 0.02}}
    run = modalign.refine(clip, data, out=tmp_path / "run", resume=True, **SMALL, **corrected)
    assert run.gate is not None and {row.tolerance for row in run.gate.rows} == {0.02}


def test_broken_held_out_pictures_are_named_and_left_out_of_what_is_judged(
    clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "pairs", n=48)
    _, held = modalign.pairs(data).split_off(0.5, 0)
    held.paths[0].write_bytes(b"")
    settings = SMALL | {"silent": False}
    with pytest.raises(DataError, match=held.paths[0].name):
        modalign.refine(clip, data, out=tmp_path / "run", **settings)
    capsys.readouterr()
    modalign.refine(clip, data, out=tmp_path / "run", data__max_bad=1, **settings)
    assert f"left out: {held.paths[0].name}" in capsys.readouterr().err
    listed = (tmp_path / "run" / "validation.jsonl").read_text()
    assert held.paths[0].name not in listed and len(listed.splitlines()) == len(held) - 1
    with pytest.raises(DataError, match="max-bad 0"):  # the stored features do not let a bad row through
        modalign.refine(clip, data, out=tmp_path / "run2", **settings)


def test_pictures_replaced_since_the_run_began_are_noticed_on_resume(clip: str, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", n=48)
    run = modalign.refine(clip, data, out=tmp_path / "run", **SMALL)
    run.report.unlink()
    write_pairs(tmp_path / "pairs", n=48, seed=1, size=40)
    with pytest.raises(OutputError, match=r"(pictures|data) changed since"):
        modalign.refine(clip, data, out=tmp_path / "run", resume=True, **SMALL)


def test_two_runs_cannot_share_a_folder(clip: str, tmp_path: Path) -> None:
    from modalign import run_folder

    data = write_pairs(tmp_path / "pairs", n=48)
    with run_folder.lock(tmp_path / "run"), pytest.raises(OutputError, match="another process is running"):
        modalign.refine(clip, data, out=tmp_path / "run", **SMALL)
    assert modalign.refine(clip, data, out=tmp_path / "run", **SMALL).report.is_file()


@pytest.mark.slow
def test_a_model_made_worse_is_called_worse_and_weights_that_are_not_are_named(clip: str, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", n=64)
    learn = SMALL | {
        "optimizer__lr": 5e-4,
        "data__batch_size": 32,
        "epochs": 30,
        "data__validation": 0.0,
        "evaluation__tasks": [f"retrieval:{data}"],
    }
    good = modalign.refine(clip, data, "contrastive", out=tmp_path / "good", **learn)
    assert good.gate is not None and good.gate.worst == "not worse"
    ruin = learn | {"optimizer__lr": 0.3, "epochs": 2}
    run = modalign.refine(str(good.folder), data, "contrastive", out=tmp_path / "bad", **ruin)
    assert run.gate is not None and run.gate.worst == "worse" and run.exit_code == 3
    record = json.loads((run.folder / "evaluation.json").read_text())
    assert set(record["gap"]) == {"before", "after", "change", "collapse"}
    tried = [entry["weight"] for entry in record["interpolation"]["tried"]]
    assert tried == sorted(tried, reverse=True) and run.interpolation == record["interpolation"]["sentence"]
    final = run.model.module.state_dict()
    from modalign.training.checkpoint import newest

    kept = newest(run.folder / "checkpoints")
    assert kept is not None  # looking for weights left the refined model as it was
    assert all(
        torch.equal(final[k.removeprefix("model.")], v) for k, v in kept.tensors().items() if k.startswith("model.")
    )


@pytest.mark.slow
def test_adapters_that_made_it_worse_are_scaled_between_before_and_after(clip: str, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", n=64)
    learn = SMALL | {"data__batch_size": 32, "data__validation": 0.0, "evaluation__tasks": [f"retrieval:{data}"]}
    good = modalign.refine(
        clip, data, "contrastive", out=tmp_path / "good", **learn | {"epochs": 30, "optimizer__lr": 5e-4}
    )
    ruin = learn | {"epochs": 6, "optimizer__lr": 0.3, "train": "lora", "lora__rank": 2}
    run = modalign.refine(str(good.folder), data, "contrastive", out=tmp_path / "bad", **ruin)
    assert run.gate is not None and run.gate.worst == "worse"
    record = json.loads((run.folder / "evaluation.json").read_text())
    values = {entry["weight"]: entry for entry in record["interpolation"]["tried"]}
    assert 0.0 < min(values) < 1.0 and run.interpolation
    from safetensors.torch import load_file

    before, after = good.model.module.state_dict(), run.model.module.state_dict()
    adapters = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    name = "visual.transformer.resblocks.0.attn.out_proj"
    a, b = (adapters[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + 16 * b @ a)  # 32 / 2


def test_bfloat16_trains_near_float32_and_is_judged_in_float32(clip: str, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", n=48)
    losses = {}
    for precision in ("fp32", "bf16"):
        run = modalign.refine(clip, data, out=tmp_path / precision, precision=precision, epochs=3, **SMALL)
        lines = (run.folder / "metrics.jsonl").read_text().splitlines()
        losses[precision] = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-2) and losses["bf16"] != losses["fp32"]
    first, second = (json.loads((tmp_path / p / "evaluation.json").read_text())["before"]["tasks"] for p in losses)
    assert first[0]["metrics"] == second[0]["metrics"]
    with pytest.raises(RecipeError, match="tf32"):
        modalign.refine(clip, data, out=tmp_path / "tf32", precision="tf32", device="cpu", **SMALL)


def test_the_tasks_of_a_run_have_columns_of_their_own(clip: str, tmp_path: Path) -> None:
    data, judged = write_pairs(tmp_path / "pairs", n=24), Path(write_pairs(tmp_path / "judged", n=24, seed=1))
    table = judged / "metadata.csv"
    table.write_text(table.read_text().replace("file_name,text", "picture,words"))
    settings = SMALL | {"data__validation": 0.0, "evaluation__tasks": [f"retrieval:{judged}"]}
    with pytest.raises(DataError, match="has no column file_name"):
        modalign.refine(clip, data, out=tmp_path / "run", **settings)
    columns = {"evaluation__image_column": "picture", "evaluation__text_column": "words"}
    with pytest.raises(DataError, match=r"--label-column .*evaluation\.label_column\) 'kind' names nothing"):
        modalign.refine(clip, data, out=tmp_path / "run", **settings, **columns, evaluation__label_column="kind")
    with pytest.raises(RecipeError, match=r"evaluation\.text_column: the recipe names no evaluation\.tasks"):
        modalign.refine(clip, data, out=tmp_path / "run", **SMALL, evaluation__text_column="words")
    run = modalign.refine(clip, data, out=tmp_path / "run", **settings, **columns)
    assert run.gate is not None and {row.metric for row in run.gate.rows} >= {"retrieval.text_to_image_r1"}


def test_a_stratified_subset_trains_on_each_class_in_proportion(clip: str, tmp_path: Path) -> None:
    data = Path(write_pairs(tmp_path / "pairs", n=40))
    header, *lines = (data / "metadata.csv").read_text().splitlines()
    told = [f"{line},{'rare' if number % 10 == 0 else 'common'}" for number, line in enumerate(lines)]
    (data / "metadata.csv").write_text("\n".join([f"{header},label", *told]) + "\n")
    settings = SMALL | {"data__validation": 0.0, "data__batch_size": 10, "data__limit": 10, "data__stratify": True}
    modalign.refine(clip, str(data), out=tmp_path / "run", **settings)
    told = json.loads((tmp_path / "run" / "environment.json").read_text())["identity"]
    pairs = modalign.pairs(data)
    classes = [int(number % 10 == 0) for number in range(40)]
    assert told["data"] == pairs.subset(limit=10, classes=classes).fingerprint != pairs.subset(limit=10).fingerprint
    with pytest.raises(RecipeError, match="pass their spec"):
        modalign.refine(clip, pairs, out=tmp_path / "other", **settings)


def test_a_damaged_evaluation_of_a_finished_run_is_named(clip: str, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", n=48)
    modalign.refine(clip, data, out=tmp_path / "run", **SMALL)
    (tmp_path / "run" / "evaluation.json").write_text("{")
    with pytest.raises(OutputError, match=r"evaluation\.json is damaged .* remove it and go on with --resume"):
        modalign.refine(clip, data, out=tmp_path / "run", resume=True, **SMALL)
    (tmp_path / "run" / "evaluation.json").unlink()
    assert modalign.refine(clip, data, out=tmp_path / "run", resume=True, **SMALL).gate is not None
