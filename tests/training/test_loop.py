from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modalign import methods
from modalign import recipe as recipes
from modalign.console import Reporter
from modalign.data.records import Pairs
from modalign.errors import DataError, NonFiniteError, RecipeError
from modalign.models.dual_encoder import DualEncoder
from modalign.training import checkpoint, inputs, scope
from modalign.training.distributed import Processes
from modalign.training.loop import Loop
from tests.training.toy import ToyEncoder, toy_pairs

BASE = {
    "model": "toy",
    "data": {"train": "toy", "batch_size": 5},
    "method": {"name": "clip-refine"},
    "epochs": 3,
    "optimizer": {"lr": 0.01},
    "schedule": {"name": "cosine", "warmup_steps": 2},
    "probe_every": 3,
    "checkpoint": {"every": 2},
}


def recipe(**changes: object) -> recipes.Recipe:
    return recipes.load(None, **{**BASE, **changes})


def make(
    pairs: Pairs,
    folder: Path,
    settings: recipes.Recipe,
    dtype: torch.dtype = torch.float32,
    held: Pairs | None = None,
    model: DualEncoder | None = None,
) -> Loop:
    model = model or ToyEncoder(dtype=dtype, dropout=0.3)
    method = methods.from_config(settings.method)
    chosen = scope.choose(model, method, settings)
    quiet, alone = Reporter(silent=True), Processes()
    folder.mkdir(exist_ok=True)
    data = inputs.prepare(model, pairs, settings, chosen.plan, folder / "cache", alone, quiet)
    held_plan = inputs.Plan(chosen.plan.trunk, chosen.plan.features | set(chosen.live))
    validation = inputs.prepare(model, held, settings, held_plan, folder / "cache", alone, quiet) if held else None
    if method.needs_fit:
        method.fit({f"frozen_{tower}": rows for tower, rows in data.features.items()})
    return Loop(model, method, settings, chosen, data, validation, folder, alone, quiet)


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in loop.model.module.named_parameters()}


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


class Killed(BaseException):
    pass


def run_until(loop: Loop, step: int) -> None:
    """Trains and dies, as a kill would, right after the given step's update: nothing of the loop runs any more."""
    one_step = loop._one_step

    def dying(batch: inputs.Batch) -> dict:
        if batch.step == step:
            raise Killed
        return one_step(batch)

    loop._one_step = dying
    with pytest.raises(Killed):
        loop.run()


LORA = {"train": "lora", "lora": {"rank": 2, "target": "hidden|proj", "dropout": 0.2}, "dropout": "on", "chunk": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {"train": "full"},
        {"train": "projection"},
        {"train": "image"},
        {"ema": 0.8, "dropout": "on"},
        LORA | {"ema": 0.8},
    ],
    ids=["full", "projection", "image", "averaged", "lora"],
)
@pytest.mark.parametrize("killed_after", [1, 2, 11])
def test_killed_in_mid_epoch_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, changes: dict, killed_after: int
) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    settings = recipe(method={"name": "clip-refine", "prior": "fitted"}, **changes)
    whole = make(pairs, tmp_path / "whole", settings)
    whole.run()

    broken = make(pairs, tmp_path / "broken", settings)
    run_until(broken, killed_after)
    resumed = make(pairs, tmp_path / "broken", settings)
    assert resumed.restore() == (killed_after >= 2)
    assert resumed.step == killed_after // 2 * 2
    resumed.run()

    assert same(weights(whole), weights(resumed))
    assert records(tmp_path / "whole") == records(tmp_path / "broken")
    assert resumed.cost.samples == whole.cost.samples == 12 * 5


@pytest.mark.parametrize("changes", [{"ema": 0.8}, LORA | {"ema": 0.8}], ids=["averaged", "lora"])
def test_resumed_after_the_last_step_the_model_is_averaged_and_merged_as_it_was(tmp_path: Path, changes: dict) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    first = make(pairs, tmp_path / "run", recipe(**changes))
    first.run()
    again = make(pairs, tmp_path / "run", recipe(**changes))
    assert again.restore() and again.step == again.steps
    again.run()
    assert weights(first).keys() == weights(again).keys() and same(weights(first), weights(again))


def test_training_changes_what_the_scope_names_and_nothing_else(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    for train, moved in (("full", {"visual", "text"}), ("image", {"visual"}), ("text", {"text"})):
        loop = make(pairs, tmp_path / train, recipe(train=train))
        before = weights(loop)
        loop.run()
        changed = {name for name, value in weights(loop).items() if not torch.equal(value, before[name])}
        assert {name.split(".")[0] for name in changed} == moved
    loop = make(pairs, tmp_path / "projection", recipe(train="projection"))
    before = weights(loop)
    loop.run()
    changed = {name for name, value in weights(loop).items() if not torch.equal(value, before[name])}
    assert changed == {f"{tower}.proj.{kind}" for tower in ("visual", "text") for kind in ("weight", "bias")}


def test_projection_on_stored_outputs_equals_freezing_the_rest_of_the_towers(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    stored = make(pairs, tmp_path / "stored", recipe(train="projection"), torch.float64)
    passes = stored.model.image_calls, stored.model.text_calls
    stored.run()
    distinct_pictures, distinct_captions = len(set(pairs.paths)), len(set(pairs.captions))
    assert passes == (distinct_pictures, distinct_captions)
    assert (stored.model.image_calls, stored.model.text_calls) == passes  # training itself never ran a trunk

    frozen_rest = recipe(optimizer={"lr": 0.01, "groups": [{"match": "hidden|norm|embed", "freeze": True}]})
    through = make(pairs, tmp_path / "through", frozen_rest, torch.float64)
    through.run()
    for name, value in weights(through).items():
        torch.testing.assert_close(weights(stored)[name], value, rtol=0, atol=1e-9)


def test_live_and_stored_teachers_and_any_chunk_give_the_same_losses_and_weights(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    reference = make(pairs, tmp_path / "stored", recipe(), torch.float64)
    reference.run()
    for name, changes in {
        "live": {"frozen": "live"},
        "chunk": {"chunk": 2},
        "both": {"frozen": "live", "chunk": 3},
    }.items():
        other = make(pairs, tmp_path / name, recipe(**changes), torch.float64)
        other.run()
        for mine, theirs in zip(records(tmp_path / "stored"), records(tmp_path / name), strict=True):
            assert mine["terms"] == pytest.approx(theirs["terms"], rel=1e-6)
        for key, value in weights(other).items():
            torch.testing.assert_close(weights(reference)[key], value, rtol=0, atol=1e-9)


def test_the_trajectory_is_adamw_on_the_published_sum(tmp_path: Path) -> None:
    """Against a loop written out here: plain batches, one graph through both towers, torch's own AdamW."""
    from modalign.data import order
    from modalign.objectives import hybrid_distillation, random_feature_alignment

    pairs = toy_pairs(tmp_path / "pictures")
    settings = recipe(schedule={"name": "constant"}, optimizer={"lr": 0.01, "weight_decay": 0.1, "clip_norm": 0.5})
    ours = make(pairs, tmp_path / "run", settings, torch.float64)
    ours.run()

    model, teacher = ToyEncoder(dtype=torch.float64), ToyEncoder(dtype=torch.float64)
    optimizer = torch.optim.AdamW(model.module.requires_grad_().parameters(), lr=0.01, weight_decay=0.1)
    method = methods.from_config(settings.method)
    data = inputs.TrainingSet(pairs)
    from modalign.data.images import decode

    for step in range(12):
        rows = order.global_batch(0, step, len(pairs), 5, True)
        captions = data.first[rows] + order.drawn_caption(0, step // 4, rows, data.counts[rows])
        pixels = torch.stack([model.preprocess(decode(pairs.paths[i])) for i in rows]).double()
        tokens = model.tokenize([data.captions[i] for i in captions])
        image, text = model.encode_image(pixels), model.encode_text(tokens)
        with torch.no_grad():
            frozen = teacher.encode_image(pixels), teacher.encode_text(tokens)
        shared = (data.image_ids[rows][:, None] == data.image_ids[rows]) | (
            data.caption_ids[captions][:, None] == data.caption_ids[captions]
        )
        z = method.draw(0, step, 5, 6)["reference"]
        loss = random_feature_alignment(image, text, z) + hybrid_distillation(image, text, *frozen, positives=shared)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.module.parameters(), 0.5)
        optimizer.step()
        assert records(tmp_path / "run")[step]["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
    for name, parameter in model.module.named_parameters():
        torch.testing.assert_close(weights(ours)[name], parameter.detach(), rtol=0, atol=1e-10)


def test_validation_rows_are_judged_at_the_start_and_after_each_epoch(tmp_path: Path) -> None:
    pairs, held = toy_pairs(tmp_path / "pictures", n=30).split_off(0.3, 0)
    for changes in ({}, {"frozen": "live"}, {"train": "projection"}, {"train": "text"}):
        name = "-".join(map(str, changes.values())) or "plain"
        loop = make(pairs, tmp_path / name, recipe(**changes), held=held)
        loop.run()
        found = [record for record in records(tmp_path / name) if "validation" in record]
        assert [record["step"] for record in found] == [0, *range(loop.per_epoch, loop.steps + 1, loop.per_epoch)]
        assert all(record["validation"]["rows"] == len(held) for record in found)


def test_a_loss_that_blows_up_stops_with_the_last_good_weights_saved(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    loop = make(pairs, tmp_path / "run", recipe(checkpoint={"every": 100}))
    one_step = loop._one_step
    good = {}

    def poison(batch: inputs.Batch) -> dict:
        if batch.step == 4:
            good.update(weights(loop))
            loop.data.features["image"][:] = float("inf")
        return one_step(batch)

    loop._one_step = poison
    with pytest.raises(NonFiniteError, match=r"step 5: .*hycd"):
        loop.run()
    kept = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert kept is not None and kept.step == 4
    tensors = kept.tensors()
    assert all(torch.equal(tensors[f"model.{name}"], value) for name, value in good.items())


def test_a_picture_changed_after_the_start_is_named(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    loop = make(pairs, tmp_path / "run", recipe())
    pairs.paths[4].write_bytes(b"no longer a picture")
    with pytest.raises(DataError, match=r"004\.png \(list:5\)"):
        loop.run()


def test_a_changed_picture_or_caption_or_weight_is_not_served_from_the_cache(tmp_path: Path) -> None:
    import os

    pairs = toy_pairs(tmp_path / "pictures")
    first = make(pairs, tmp_path / "run", recipe(train="projection"))
    again = make(pairs, tmp_path / "run", recipe(train="projection"))
    assert first.model.image_calls > 0 and again.model.image_calls == 0
    assert torch.equal(first.data.trunk["image"], again.data.trunk["image"])
    other = pairs.paths[5].read_bytes()
    pairs.paths[6].write_bytes(other)
    os.utime(pairs.paths[6])
    copied = make(pairs, tmp_path / "run", recipe(train="projection"))
    assert copied.model.image_calls == 0  # these bytes have been seen before
    assert torch.equal(copied.data.trunk["image"][6], copied.data.trunk["image"][5])
    pairs.paths[6].write_bytes((toy_pairs(tmp_path / "other", seed=1).paths[6]).read_bytes())
    changed = make(pairs, tmp_path / "run", recipe(train="projection"))
    assert changed.model.image_calls == 1
    assert not torch.equal(changed.data.trunk["image"][6], copied.data.trunk["image"][6])


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    loop = make(pairs, tmp_path / "run", recipe())
    loop.run()
    final = weights(loop)
    newest = tmp_path / "run" / "checkpoints" / "step-00000012"
    damaged = bytearray((newest / "state.safetensors").read_bytes())
    damaged[-3] ^= 1
    (newest / "state.safetensors").write_bytes(damaged)
    resumed = make(pairs, tmp_path / "run", recipe())
    assert resumed.restore() and resumed.step == 10
    assert "not what was written" in caplog.text
    resumed.run()
    assert same(final, weights(resumed))


def test_groups_set_rates_decay_and_freezing_and_a_typo_is_refused(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path / "pictures")
    groups = [
        {"match": r"^text\.embed", "freeze": True},
        {"match": "bias|norm", "weight_decay": 0.0},
        {"match": r"proj", "lr": 0.5},
    ]
    loop = make(pairs, tmp_path / "run", recipe(optimizer={"lr": 0.01, "weight_decay": 0.2, "groups": groups}))
    found = {name: (g["base_lr"], g["weight_decay"]) for g in loop.optimizer.param_groups for name in g["names"]}
    assert "text.embed.weight" not in found
    assert found["visual.proj.bias"] == (0.01, 0.0)  # the first matching group decides
    assert found["visual.proj.weight"] == (0.5, 0.2)
    assert found["text.hidden.weight"] == (0.01, 0.2)
    with pytest.raises(RecipeError, match="'vizual' matches none"):
        make(pairs, tmp_path / "typo", recipe(optimizer={"groups": [{"match": "vizual"}]}))
    with pytest.raises(RecipeError, match="'tetx' matches none"):
        make(pairs, tmp_path / "freeze", recipe(optimizer={"groups": [{"match": "tetx", "freeze": True}]}))
    with pytest.raises(RecipeError, match="nothing is left to train"):
        make(pairs, tmp_path / "none", recipe(optimizer={"groups": [{"match": ".", "freeze": True}]}))


def test_schedules_follow_their_formulas() -> None:
    from math import cos, pi

    from modalign.training.optimizer import factor

    schedule = recipe(schedule={"name": "cosine", "warmup_steps": 4}).schedule
    assert [factor(schedule, s, 10) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [factor(schedule, s, 10) for s in range(4, 10)] == pytest.approx(
        [(1 + cos(pi * k / 6)) / 2 for k in range(6)]
    )
    constant = recipe(schedule={"name": "constant"}).schedule
    assert {factor(constant, s, 10) for s in range(10)} == {1.0}
