"""KUEA and its baselines as whole runs: a real student, a real target, pictures without captions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import modalign
from modalign import methods, models
from modalign.errors import DataError, ModelError, RecipeError
from tests.tiny import tiny_open_clip, write_pairs
from tests.tiny_vision import tiny_dinov2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("made")
    return {
        "model": tiny_open_clip(folder / "clip", quick_gelu=True),
        "target": tiny_dinov2(folder / "dino", registers=True),
        "data": write_pairs(folder / "pairs", n=40),
    }


def refine(made: dict[str, str], out: Path, model: Any = None, method: Any = "kuea", **settings: Any) -> modalign.Run:
    settings = {
        "data__batch_size": 8,
        "epochs": 4,
        "optimizer__lr": 1e-3,
        "optimizer__weight_decay": 1e-4,
        "schedule__name": "cosine",
        "schedule__warmup_steps": 3,
        "target": made["target"],
        **settings,
    }
    data = settings.pop("data", f"images:{made['data']}")
    return modalign.refine(model or made["model"], data, method, out=out, silent=True, **settings)


def lines(run: modalign.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def losses(run: modalign.Run) -> list[float]:
    return [line["loss"] for line in lines(run) if "loss" in line]


def test_text_tower_and_logit_scale_stay_bit_identical_and_the_kernel_learns(
    made: dict[str, str], tmp_path: Path
) -> None:
    run = refine(made, tmp_path / "run", evaluation__tasks=[f"retrieval:{made['data']}"], evaluation__resamples=200)
    before, after = modalign.load(made["model"]), run.model
    state = after.module.state_dict()
    for name, tensor in before.module.state_dict().items():
        if before.tower_of(name) == "image":
            continue
        assert torch.equal(state[name], tensor), name
    moved = [n for n, p in before.named_parameters("image") if not torch.equal(p, state[n])]
    assert len(moved) == len(list(before.named_parameters("image")))
    first, last = lines(run)[0], lines(run)[-1]
    assert set(first["terms"]) == {"anchor", "kernel"}
    assert first["terms"]["anchor"] == pytest.approx(0, abs=1e-9)  # the student begins where it is held
    assert last["terms"]["kernel"] < first["terms"]["kernel"]
    told = {"student_kernel_std", "target_kernel_std", "kernel_gradient_norm"}
    assert told <= set(first)  # how much the kernels vary and how strongly they pull, logged once
    assert not told & set(last)
    assert run.gate is not None


@pytest.mark.parametrize("chunk", [None, 3])
def test_stored_and_live_frozen_networks_give_the_same_training(
    made: dict[str, str], tmp_path: Path, chunk: int | None
) -> None:
    student = modalign.load(made["model"]).to("cpu", torch.float64)
    target = models.load_vision(made["target"]).to("cpu", torch.float64)
    runs = [
        refine(
            made,
            tmp_path / kind,
            model=student,
            target=target,
            frozen=kind,
            chunk=chunk,
            epochs=10,
            evaluation__batch_size=8,  # the store's batches are as large as the training's
        )
        for kind in ("stored", "live")
    ]
    assert len(losses(runs[0])) == 50
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-6)
    stored, live = (run.model.module.state_dict() for run in runs)
    for name, tensor in stored.items():
        torch.testing.assert_close(live[name], tensor, rtol=0, atol=1e-9)
    cost = [json.loads((run.folder / "cost.json").read_text())["forward_passes"] for run in runs]
    assert (cost[0]["target"], cost[0]["saved_target"]) == (40, 360)  # once a picture instead of ten times
    assert (cost[1]["target"], cost[1]["saved_target"]) == (400, 0)


def test_a_store_written_with_the_same_batch_size_changes_no_bit(made: dict[str, str], tmp_path: Path) -> None:
    runs = [refine(made, tmp_path / kind, frozen=kind, evaluation__batch_size=8) for kind in ("stored", "live")]
    assert losses(runs[0]) == losses(runs[1])
    stored, live = (run.model.module.state_dict() for run in runs)
    assert all(torch.equal(live[name], tensor) for name, tensor in stored.items())


def test_runs_that_share_a_store_run_each_frozen_network_once(made: dict[str, str], tmp_path: Path) -> None:
    counts = []
    for name in ("first", "second"):
        run = refine(
            made, tmp_path / name, store=str(tmp_path / "store"), data__fraction=1.0 if name == "first" else 0.5
        )
        counts.append(json.loads((run.folder / "cost.json").read_text())["forward_passes"]["target"])
    assert counts == [40, 0]


def test_the_weights_as_anchor_pull_towards_where_they_began(made: dict[str, str], tmp_path: Path) -> None:
    student = modalign.load(made["model"]).to("cpu", torch.float64)
    settings = {"model": student, "optimizer__weight_decay": 0.0, "schedule__warmup_steps": 0}

    def moved(weight: float, name: str) -> float:
        method = methods.Kuea(anchor="weights", anchor_weight=weight, learn_kernel=False)
        run = refine(made, tmp_path / name, method=method, **settings)
        after = run.model.module.state_dict()
        assert ("weight_anchor" in lines(run)[-1]) == (weight > 0)
        return sum(float((after[n] - p.detach()).square().sum()) for n, p in student.named_parameters("image"))

    assert moved(1000.0, "held") < moved(0.0, "free") / 4


def test_the_same_objective_on_the_text_tower(made: dict[str, str], tmp_path: Path) -> None:
    run = refine(made, tmp_path / "run", method=methods.Kuea(tower="text"), data=made["data"])
    before, state = modalign.load(made["model"]), run.model.module.state_dict()
    assert all(torch.equal(state[n], p) for n, p in before.named_parameters("image"))
    assert any(not torch.equal(state[n], p) for n, p in before.named_parameters("text"))


@pytest.mark.parametrize("name", ["feature", "am-radio"])
def test_the_trained_baselines_learn(made: dict[str, str], tmp_path: Path, name: str) -> None:
    found = losses(refine(made, tmp_path / "whole", method=name, optimizer__lr=1e-4))
    assert sum(found[-5:]) < sum(found[:5])


def test_the_projection_stands_in_for_the_image_tower_and_leaves_no_model(made: dict[str, str], tmp_path: Path) -> None:
    task = f"retrieval:{made['data']}"
    run = refine(made, tmp_path / "run", method="projection", evaluation__tasks=[task], evaluation__resamples=200)
    record = json.loads((run.folder / "evaluation.json").read_text())
    names = {name: m["value"] for name, m in record["after"]["tasks"][0]["metrics"].items()}
    student, target = modalign.load(made["model"]), models.load_vision(made["target"])
    pairs = modalign.pairs(made["data"])
    from modalign.data.images import decode

    with torch.no_grad():
        seen = torch.stack([target.preprocess(decode(p)) for p in pairs.paths])
        frozen = student.encode_image(torch.stack([student.preprocess(decode(p)) for p in pairs.paths]))
        texts = student.encode_text(student.tokenize(pairs.captions))
        g, f = target.encode(seen).double(), frozen.double()
        fitted = g @ torch.linalg.lstsq(g, f, driver="gelsd").solution
    scores = torch.nn.functional.normalize(texts.double(), dim=1) @ torch.nn.functional.normalize(fitted, dim=1).T
    expected = float((scores.argmax(1) == torch.arange(40)).double().mean())
    assert names["text_to_image_r1"] == pytest.approx(expected, abs=1e-9)
    assert not (run.folder / "model").exists()
    with pytest.raises(ModelError, match="trains no model"):
        run.model  # noqa: B018


def test_published_lr_makes_the_first_update_whole(made: dict[str, str], tmp_path: Path) -> None:
    run = refine(made, tmp_path / "run", schedule__published_lr=True)
    rates = [line["lr"] for line in lines(run)]
    assert rates[:4] == pytest.approx([1e-3, 2e-3 / 3, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"target": None}, "names none"),
        ({"method": "clip-refine"}, "reads captions"),
        ({"method": "clip-refine", "data": "PAIRS"}, "reads no target"),
        ({"method": methods.Kuea(anchor="weights"), "train": "lora"}, "use anchor: features"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    made: dict[str, str], tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    if settings.get("data") == "PAIRS":
        settings = {**settings, "data": made["data"]}
    with pytest.raises(RecipeError, match=told) as caught:
        refine(made, tmp_path / "run", **settings)
    assert "\n" not in str(caught.value)


def test_a_killed_run_goes_on_bit_for_bit(made: dict[str, str], tmp_path: Path) -> None:
    from modalign.training.loop import Loop

    settings = {"method": methods.Kuea(fit_kernel=True), "checkpoint__every": 2}
    whole = refine(made, tmp_path / "whole", **settings)
    step = Loop._one_step

    class Killed(BaseException):
        pass

    def dying(self: Loop, batch: Any) -> dict[str, Any]:
        if batch.step == 7:
            raise Killed
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_one_step", dying)
        with pytest.raises(Killed):
            refine(made, tmp_path / "killed", **settings)
    resumed = refine(made, tmp_path / "killed", resume=True, **settings)
    assert losses(resumed) == losses(whole)
    for name, tensor in whole.model.module.state_dict().items():
        assert torch.equal(resumed.model.module.state_dict()[name], tensor)


@pytest.mark.parametrize(("method", "fewest"), [(methods.Kuea(), 2), (methods.Kuea(estimator="v"), 1)])
def test_a_last_batch_too_small_for_the_method_is_refused_before_the_first_step(
    made: dict[str, str], tmp_path: Path, method: Any, fewest: int
) -> None:
    settings = {"data__limit": 9, "data__drop_last": False, "epochs": 1}
    if fewest == 1:
        assert len(losses(refine(made, tmp_path / "run", method=method, **settings))) == 2
        return
    with pytest.raises(RecipeError, match=r"last batch of 1 row is smaller than method 'kuea'.*drop_last=true"):
        refine(made, tmp_path / "run", method=method, **settings)
    assert not list((tmp_path / "run").glob("metrics*"))


def test_features_that_nothing_can_be_fitted_to_are_told_in_one_line(made: dict[str, str], tmp_path: Path) -> None:
    path = Path(write_pairs(tmp_path / "same", n=8))
    first = (path / "0000.png").read_bytes()
    for picture in path.glob("*.png"):
        picture.write_bytes(first)
    method = methods.Kuea(fit_kernel=True)
    with pytest.raises(DataError, match=f"method 'kuea' cannot be fitted to .*{path}") as caught:
        refine(made, tmp_path / "run", method=method, data=f"images:{path}")
    assert "\n" not in str(caught.value)


def test_a_model_whose_features_are_no_numbers_is_named(made: dict[str, str], tmp_path: Path) -> None:
    network = modalign.load(made["model"])
    torch.nn.init.constant_(network.module.visual.proj, torch.nan)
    with pytest.raises(ModelError, match=r"gives NaN or infinity for .*check the model's weights"):
        refine(made, tmp_path / "run", network, "projection")


def test_a_group_freezes_the_methods_own_parameter(made: dict[str, str], tmp_path: Path) -> None:
    frozen = refine(made, tmp_path / "frozen", optimizer__groups=[{"match": r"method\.rho", "freeze": True}])
    free = refine(made, tmp_path / "free")
    rho = {
        run.folder.name: next(
            float(t)
            for path in sorted(run.folder.glob("checkpoints/*/state.safetensors"))[-1:]
            for name, t in load_file(path).items()
            if name.endswith("rho") and t.numel() == 1 and "exp" not in name
        )
        for run in (frozen, free)
    }
    begin = math.log(0.191623 / 0.0032)
    assert rho["frozen"] == pytest.approx(begin, abs=1e-6) and abs(rho["free"] - begin) > 1e-5


def test_drift_is_told_of_training_pictures_where_nothing_is_judged(made: dict[str, str], tmp_path: Path) -> None:
    run = refine(made, tmp_path / "run", epochs=1)
    record = json.loads((run.folder / "evaluation.json").read_text())
    assert run.gate is None and record["certificate"]["protocol"]["pictures"] == 40
    assert "certificate" in run.report.read_text().lower()


def test_a_method_without_steps_asks_for_no_batch(made: dict[str, str], tmp_path: Path) -> None:
    run = refine(made, tmp_path / "run", method="projection", data__batch_size=512)
    assert (run.folder / "stand_in.safetensors").is_file() or list(run.folder.glob("*.safetensors"))
