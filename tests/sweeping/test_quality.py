from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from modalign.errors import DataError
from modalign.sweeping.checkpoints import Checkpoint
from modalign.sweeping.quality import regress
from tests.sweeping.made import checkpoint, results


def sweep(runs: int, weights: int, distribution_noise: float, raw_noise: float, seed: int = 0) -> list[Checkpoint]:
    """Runs whose retrieval rises as a hidden quality does, which either gap shows through noise of its own."""
    rng = np.random.default_rng(seed)
    before = results("before", right=range(20), gap={"raw_gap": 1.2, "distribution_gap": 0.9})
    found = [checkpoint("0", before, before, weight=0.0)]
    for run in range(runs):
        end, off = int(rng.integers(5, 45)), rng.normal(size=2)
        for step in range(1, weights + 1):
            right = 15 + round(end * step / weights)
            gap = {
                "raw_gap": 3 - right / 30 + raw_noise * off[0],
                "distribution_gap": 2 - right / 40 + distribution_noise * off[1],
                "flat": 0.3,
            }
            here = results(f"{run}-{step}", right=range(right), gap=gap)
            found.append(checkpoint(str(run), here, before, weight=step / weights))
    return found


def test_each_regression_agrees_with_scipy() -> None:
    rows = sweep(6, 3, 0.1, 0.3)
    quality = regress(rows, resamples=20)
    assert quality.checkpoints == 19 and quality.runs == 6
    assert quality.measures == ("raw_gap", "distribution_gap")  # "flat" does not vary, and before lacks it
    assert quality.metrics == ("retrieval.image_to_text_r1", "retrieval.text_to_image_r1")  # zero-shot does not vary
    for (measure, metric), fit in quality.fits.items():
        x, y = [row.gap[measure] for row in rows], [row.results.metrics[metric].value for row in rows]
        assert fit.r2 == pytest.approx(scipy.stats.linregress(x, y).rvalue ** 2)
        assert fit.rho == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_the_papers_finding_holds_fails_or_cannot_be_told() -> None:
    assert regress(sweep(25, 3, 0.02, 2.0), resamples=300).verdict == "holds"
    assert regress(sweep(25, 3, 2.0, 0.02), resamples=300).verdict == "does not hold"
    unclear = regress(sweep(25, 3, 0.5, 0.5, seed=3), resamples=300)
    assert unclear.verdict == "cannot be told" and "0.986" in unclear.sentence and "cannot be told" in unclear.sentence


def test_weights_of_one_run_are_not_taken_for_independent_runs() -> None:
    """Twelve weights a run in place of one make no interval narrower: what differs between runs is all there is."""

    def width(weights: int) -> float:
        widths = []
        for seed in range(4):
            fit = regress(sweep(8, weights, 0.6, 0.6, seed), resamples=100).fits[
                "raw_gap", "retrieval.image_to_text_r1"
            ]
            assert fit.r2_interval is not None
            widths.append(fit.r2_interval[1] - fit.r2_interval[0])
        return float(np.mean(widths))

    assert width(12) > 0.6 * width(1)


def test_the_model_before_counts_once_and_few_runs_give_no_interval() -> None:
    rows = sweep(2, 3, 0.1, 0.1)
    again = [*rows, *(checkpoint("1", rows[0].results, rows[0].before, weight=0.0) for _ in range(5))]
    few = regress(again)
    assert few.checkpoints == 7 and few.runs == 2 and few.verdict == "cannot be told"
    assert "(2 runs and the model before)" in few.sentence
    assert all(fit.r2_interval is None for fit in few.fits.values()) and "at least 4 runs" in few.sentence
    with pytest.raises(DataError, match="at least 3"):
        regress(rows[:2])
