"""The page of a sweep, from checkpoints that were never a network's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from modalign.gap import Measure
from modalign.report import pareto
from modalign.sweeping import Sweep, pick, regress
from modalign.sweeping.front import TRAINING_FREE, settings, trends
from modalign.sweeping.plan import Axis
from tests.sweeping.made import checkpoint, results

HOSTILE = "<script>alert(1)</script>"
KEY = "method.alpha_target"


def made_sweep(folder: Path, *, long_name: str = "") -> Sweep:
    """Four strengths, two seeds, three weights, two transforms; what is gained in retrieval is lost in zero-shot."""
    folder.mkdir(parents=True, exist_ok=True)
    before = results("before", range(20), range(40), {"raw_gap": 1.0, "distribution_gap": 0.8})
    rows = []
    for strength in (0.0, 0.05, 0.1, 0.5):
        for seed in (0, 1):
            for weight in (0.0, 0.5, 1.0):
                moved = weight * strength
                gap = {"raw_gap": 1 - 0.6 * moved + 0.01 * seed, "distribution_gap": 0.8 - 0.5 * moved}
                name = f"alpha_target={strength},seed={seed}{long_name}"
                right, classified = range(20 + round(40 * moved) + seed), range(40 - round(20 * moved))
                here = before if weight == 0 else results(f"{name}{weight}", right, classified, gap)
                ratio = 1 - 0.6 * moved
                rows.append(
                    checkpoint(name, here, before, values={KEY: strength}, seed=seed, weight=weight, ratio=ratio)
                )
    free = [
        checkpoint(name, results(name, range(20 + gain)), before, values={TRAINING_FREE: name}, ratio=ratio)
        for name, ratio, gain in (("center", 0.5, 30), ("shift", 0.95, -5))
    ]
    picked = pick([row for row in rows if row.weight], "max retrieval.r1 where zero_shot.acc1 >= before - 3")
    return Sweep(
        folder=folder,
        axes=[Axis(KEY, (0.0, 0.05, 0.1, 0.5))],
        checkpoints=rows,
        transforms=free,
        settings=settings(rows),
        baselines=settings(free),
        trends=trends(rows, [KEY], ["raw_gap"]),
        quality=regress(rows, resamples=100),
        picked=picked,
        model=str(folder / "picked"),
        failed={"alpha_target=9,seed=0": f"a loss is not finite {HOSTILE}"},
    )


def test_the_page_says_what_is_which_and_loads_nothing(tmp_path: Path) -> None:
    sweep = made_sweep(tmp_path)
    pareto.write(sweep)
    page = sweep.report.read_text()
    assert HOSTILE not in page and "&lt;script&gt;" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for told in ("validation half", "test half", sweep.model, "0.986", "the larger alpha_target, the smaller"):
        assert told.lower() in page.lower()
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert len(numbers["checkpoints"]) == 24 and numbers["picked"]["model"] == sweep.model
    assert numbers["quality"]["verdict"] == sweep.quality.verdict  # type: ignore[union-attr]


def test_where_a_transform_wins_is_told_and_where_none_does_too(tmp_path: Path) -> None:
    page = pareto.render(made_sweep(tmp_path))
    assert re.search(r"image → text R@1: center, no training, beats “alpha_target 0.5”", page)
    # At half the gap it lost every picture: nothing has so small a gap, and yet that is no win.
    assert "acc@1: none beats a setting on the front" in page


def test_a_sweep_of_which_nothing_is_left_still_gets_a_page(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, [Axis(KEY, (1,))], [], failed={"alpha_target=1,seed=0": "why"})
    pareto.write(sweep)
    assert "No run finished" in sweep.report.read_text() and "why" in sweep.report.read_text()


def test_intervals_are_drawn(tmp_path: Path) -> None:
    sweep = made_sweep(tmp_path)
    metric = pareto.metrics(sweep)[0]
    chart = pareto.trade_off(sweep.settings, sweep.baselines, "raw_gap", metric, {})
    flat = [
        type(s)(s.name, s.values, s.weight, s.seeds, {k: Measure(float(v)) for k, v in s.ratios.items()},
                {k: Measure(float(v)) for k, v in s.changes.items()}, s.values_of)
        for s in sweep.settings
    ]  # fmt: skip
    assert chart.svg != pareto.trade_off(flat, sweep.baselines, "raw_gap", metric, {}).svg
    assert chart.svg.startswith("<svg") and "no training" in str(chart.legend)


@pytest.mark.parametrize("share", [True, False])
def test_changes_in_their_own_unit(share: bool) -> None:
    row = pareto._change(Measure(0.125, (0.1, 0.15)), pareto.Metric("m", "m", share, True))
    assert row[0] == ("+12.50" if share else "+0.1250")
