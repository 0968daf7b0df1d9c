"""Ten steps of refinement with and without chunks, from one model: the same losses, the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import modalign
from tests.tiny import write_pairs


def assert_chunks_change_nothing(spec: str | Path, folder: Path, method: dict[str, Any]) -> None:
    """Losses to 1e-6 relative, weights to 1e-9, in float64; logit scale and bias stay as they were.

    Args:
        spec: the model's.
        folder: an empty folder to run in.
        method: the recipe's section.
    """
    data = write_pairs(folder / "pairs", n=8)
    initial = modalign.load(spec).to("cpu", torch.float64)
    found = {}
    for name, chunk in (("whole", None), ("chunked", 3)):
        run = modalign.refine(
            initial,
            data,
            out=folder / name,
            method=modalign.methods.from_config(method),
            data__batch_size=4,
            epochs=5,
            chunk=chunk,
            optimizer__lr=1e-3,
            evaluation__tasks=[],
            silent=True,
        )
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        found[name] = losses, dict(run.model.module.state_dict()), run.model
    (losses, weights, model), (chunked_losses, chunked_weights, _) = found.values()
    assert len(losses) == 10 and chunked_losses == pytest.approx(losses, rel=1e-6)
    before = initial.module.state_dict()
    moved = {name for name, tensor in weights.items() if not torch.equal(tensor, before[name])}
    assert {model.tower_of(name) for name in moved} == {"image", "text"}
    assert (model.logit_scale, model.logit_bias) == (initial.logit_scale, initial.logit_bias)
    for name, tensor in weights.items():
        torch.testing.assert_close(chunked_weights[name], tensor, rtol=0, atol=1e-9)
