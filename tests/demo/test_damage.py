"""A model damaged on purpose is called worse on splits far smaller than the one that its damage was measured on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.console import Reporter
from modalign.demo import model as demo_model
from modalign.evaluation.gate import judge
from modalign.evaluation.pairing import judged_on
from modalign.evaluation.results import Results
from modalign.evaluation.tasks import evaluate
from modalign.features import TrunkMemo
from modalign.models import DualEncoder

TASK, METRIC = "zero-shot:demo:pretrain", "zero_shot.acc1"
TOLERANCE, SMALL, SPLITS = 0.01, 200, 20


def damaged(model: DualEncoder, noise: float) -> DualEncoder:
    """A copy whose image projection has noise of so many of its own standard deviations added."""
    twin = model.frozen_copy()
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in twin.named_parameters("image"):
            if name in twin.projection_names("image") and parameter.dim() > 1:
                parameter += noise * parameter.std() * torch.randn(parameter.shape, generator=source)
    return twin


@pytest.mark.demo
def test_a_damaged_model_is_worse_on_most_small_splits_and_the_base_never() -> None:
    memo = TrunkMemo()
    base = demo_model.base_model(0, Reporter(silent=True))
    before = evaluate(base, [TASK], batch_size=32, memo=memo, resamples=200, gap=False)

    def judged(noise: float) -> tuple[Results, float, float]:
        """Results, the drop on the large split, and its standard error on a small one."""
        after = evaluate(damaged(base, noise), [TASK], batch_size=32, memo=memo, resamples=200, gap=False)
        change = after.metrics[METRIC].outcomes - before.metrics[METRIC].outcomes
        return after, -float(change.mean()), float(change.std(ddof=1)) / math.sqrt(SMALL)

    low, high = (
        0.0,
        4.0,
    )  # bisection: the least noise that costs the tolerance and three standard errors
    for _ in range(7):
        middle = (low + high) / 2
        _, drop, error = judged(middle)
        low, high = (low, middle) if drop >= TOLERANCE + 3 * error else (middle, high)
    after, drop, error = judged(high)
    assert TOLERANCE + 3 * error <= drop < 0.3, "a damage of the size asked for, not a wreck"

    owners = np.unique(before.metrics[METRIC].owners)
    verdicts = {"damaged": [], "base": []}
    for split in range(SPLITS):
        some = np.sort(np.random.default_rng(split).choice(owners, SMALL, replace=False))
        first, second = (judged_on(side, some, f"split {split}", resamples=200) for side in (before, after))
        for name, candidate in (("damaged", second), ("base", first)):
            gate = judge(first, candidate, tolerances={METRIC: TOLERANCE})
            verdicts[name].append(next(row.verdict for row in gate.rows if row.metric == METRIC))
    assert verdicts["damaged"].count("worse") >= 16, verdicts["damaged"]
    assert "worse" not in verdicts["base"]
