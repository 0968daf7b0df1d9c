from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from modalign import recipe as recipes
from modalign.errors import RecipeError
from modalign.training.precision import autocast, device


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_hardware_that_is_not_there_is_told_in_one_line(name: str) -> None:
    if (torch.cuda if "cuda" in name else torch.backends.mps).is_available():
        pytest.skip(f"this machine has {name}")
    with pytest.raises(RecipeError, match=rf"^device = '{name}': .*--device cpu$") as told:
        device(name)
    assert "\n" not in str(told.value)


def test_unknown_devices_and_formats_name_what_there_is() -> None:
    with pytest.raises(RecipeError, match="use auto, cpu, cuda, cuda:N or mps"):
        device("gpu")
    with pytest.raises(RecipeError, match="precision"):
        recipes.load(None, precision="fp16")
    with pytest.raises(RecipeError, match=r"tf32.*NVIDIA"):
        autocast("tf32", torch.device("cpu"))
    with autocast("bf16", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.demo
def test_fifty_steps_of_the_demo_lose_alike_in_bfloat16_and_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text tower trains and the image tower's features are stored: both run under autocast."""
    from modalign.console import Reporter
    from modalign.demo import run
    from modalign.demo.model import base_model
    from modalign.running import run_recipe

    monkeypatch.setenv("MODALIGN_CACHE", os.environ.get("MODALIGN_CACHE", str(tmp_path / "cache")))
    model, losses = base_model(0), {}
    for precision in ("fp32", "bf16"):
        settings = run.recipe("clip-refine", 0, "full").model_dump()
        settings |= {"precision": precision, "train": "text", "epochs": 13, "steps": 50}
        settings["data"] |= {"batch_size": 32, "limit": 128}
        settings["optimizer"]["groups"] = [{"match": r"^text\.proj\.", "lr": run.HEAD_RATE}]
        settings["evaluation"] |= {"tasks": []}
        run_recipe(recipes.validate(settings), tmp_path / precision, model=model, reporter=Reporter(silent=True))
        lines = map(json.loads, (tmp_path / precision / "metrics.jsonl").read_text().splitlines())
        losses[precision] = [line["loss"] for line in lines]
    assert len(losses["fp32"]) == 50 and losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-2)
    assert losses["fp32"][-1] < 0.8 * losses["fp32"][0]  # the weights did move
