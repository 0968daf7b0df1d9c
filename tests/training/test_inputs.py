"""Training on stored features against asking the frozen network at every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modalign import methods
from modalign import recipe as recipes
from modalign.console import Reporter
from modalign.data.feature_store import Rows
from modalign.data.records import Pairs
from modalign.training import inputs, scope
from modalign.training.distributed import Processes
from modalign.training.loop import Loop
from tests.training.toy import ToyEncoder, toy_pairs

STEPS = 50


def train(data: Pairs, folder: Path, dtype: torch.dtype, **changes: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    settings = recipes.load(
        None,
        **{"data__batch_size": 5, "epochs": 20, "steps": STEPS, "optimizer__lr": 0.01, "probe_every": 0, **changes},
    )
    model, method = ToyEncoder(dtype=dtype), methods.from_config(settings.method)
    chosen = scope.choose(model, method, settings)
    folder.mkdir()
    prepared = inputs.prepare(model, data, settings, chosen.plan, folder / "cache", Processes(), Reporter(silent=True))
    Loop(model, method, settings, chosen, prepared, None, folder, Processes(), Reporter(silent=True)).run()
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return losses, {name: p.detach().clone() for name, p in model.module.named_parameters()}


@pytest.fixture
def data(tmp_path: Path) -> Pairs:
    """25 rows, 24 pictures: a stored pass of them is made of full batches of 4, 6, 8 or 12."""
    return toy_pairs(tmp_path / "pictures", n=25)


def test_fifty_steps_with_and_without_the_store_agree(tmp_path: Path, data: Pairs) -> None:
    live, expected = train(data, tmp_path / "live", torch.float64, frozen="live")
    stored, weights = train(data, tmp_path / "stored", torch.float64)
    assert len(stored) == STEPS and stored == pytest.approx(live, rel=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-9)


def test_written_with_the_batch_size_of_training_the_store_changes_no_bit(tmp_path: Path, data: Pairs) -> None:
    same = {"data__batch_size": 8, "evaluation__batch_size": 8}
    live, expected = train(data, tmp_path / "live", torch.float32, frozen="live", **same)
    stored, weights = train(data, tmp_path / "stored", torch.float32, **same)
    assert stored == live
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_features_too_many_for_memory_are_read_step_by_step_with_the_same_bits(
    tmp_path: Path, data: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, expected = train(data, tmp_path / "held", torch.float32, train="projection")
    monkeypatch.setattr(inputs, "IN_MEMORY", 0)
    seen: list[type] = []
    holding = inputs._held
    monkeypatch.setattr(inputs, "_held", lambda rows: seen.append(type(holding(rows))) or holding(rows))
    read, weights = train(data, tmp_path / "read", torch.float32, train="projection")
    assert seen == [Rows, Rows] and read == held
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
