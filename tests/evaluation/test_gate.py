from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from modalign.errors import DataError, RecipeError
from modalign.evaluation.gate import Gate, judge, pick_interpolation, verdict
from modalign.evaluation.results import Metric, Results, TaskResult


def results(resamples: int = 10, **outcomes: np.ndarray | list[float]) -> Results:
    metrics = {name: Metric.of(name, values, resamples=resamples) for name, values in outcomes.items()}
    return Results({}, [TaskResult("retrieval", "spec", {}, metrics)])


def coins(n: int, p: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < p).astype(float)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.05, -0.011, "worse"),
        (-0.05, -0.01, "cannot tell"),
        (-0.05, 0.03, "cannot tell"),
        (-0.01, 0.03, "cannot tell"),
        (-0.0099, -0.001, "not worse"),  # surely a drop, and surely a tolerable one
        (0.02, 0.03, "not worse"),
        (0.0, 0.0, "not worse"),
        (math.nan, math.nan, "cannot tell"),
        (-math.inf, math.inf, "cannot tell"),
    ],
)
def test_the_three_verdicts(low: float, high: float, expected: str) -> None:
    assert verdict(low, high, 0.01) == expected


def test_verdicts_exit_codes_and_order() -> None:
    base = np.ones(400)
    dropped = base.copy()
    dropped[:60] = 0
    unsure = base.copy()
    unsure[:4] = 0
    gate = judge(results(a=base, b=base, c=base), results(a=base, b=unsure, c=dropped))
    assert [row.verdict for row in gate.rows] == ["not worse", "cannot tell", "worse"]
    assert gate.worst == "worse" and gate.exit_code() == gate.exit_code(strict=True) == 3
    assert gate.sentence == "worse: retrieval.c; cannot tell: retrieval.b; not worse: 1 of 3 metrics"
    doubtful = judge(results(a=base, b=base), results(a=base, b=unsure))
    assert (doubtful.worst, doubtful.exit_code(), doubtful.exit_code(strict=True)) == ("cannot tell", 0, 3)
    same = judge(results(a=base), results(a=base))
    assert (same.worst, same.exit_code(), same.exit_code(strict=True)) == ("not worse", 0, 0)


def test_a_single_picture_cannot_tell() -> None:
    assert judge(results(a=[1.0]), results(a=[0.0])).worst == "cannot tell"
    clustered = [
        Results({}, [TaskResult("retrieval", "s", {}, {"a": Metric.of("a", [v] * 5, clusters=[3] * 5, resamples=10)})])
        for v in (1.0, 0.0)
    ]
    assert judge(clustered[0], clustered[1]).worst == "cannot tell"


def test_lower_is_better_turns_the_sign() -> None:
    rng = np.random.default_rng(0)
    loss = rng.random(300)

    def of(values: np.ndarray) -> Results:
        metric = Metric.of("loss", values, higher_is_better=False, resamples=10)
        return Results({}, [TaskResult("retrieval", "s", {}, {"loss": metric})])

    risen = judge(of(loss), of(loss + 0.1)).rows[0]
    assert (risen.verdict, risen.difference) == ("worse", pytest.approx(0.1))
    assert judge(of(loss), of(loss - 0.1)).rows[0].verdict == "not worse"


def test_tolerances_by_name_then_pattern_then_default() -> None:
    outcomes = {name: np.ones(50) for name in ("image_to_text_r1", "image_to_text_r5", "text_to_image_r1", "other")}
    gate = judge(
        results(**outcomes),
        results(**outcomes),
        {"*_r1": 0.03, "retrieval.image_*": 0.02, "retrieval.text_to_image_r1": 0.04},
    )
    assert [row.tolerance for row in gate.rows] == [0.03, 0.02, 0.04, 0.01]
    assert {row.tolerance for row in judge(results(**outcomes), results(**outcomes), 0.5).rows} == {0.5}


def test_an_exact_name_with_a_spec_in_brackets_is_not_read_as_a_pattern() -> None:
    tasks = [TaskResult("zero_shot", spec, {}, {"acc1": Metric.of("acc1", [1.0, 1.0], resamples=10)}) for spec in "ab"]
    gate = judge(Results({}, tasks), Results({}, tasks), {"zero_shot[a].acc1": 0.2, "zero_shot*": 0.1})
    assert [row.tolerance for row in gate.rows] == [0.2, 0.1]


@pytest.mark.parametrize(
    ("tolerances", "message"),
    [
        (-0.01, "not a number ≥ 0"),
        (math.nan, "not a number"),
        ({"retrieval.r1": 0.1}, "fits no metric; write one of retrieval.a"),
    ],
)
def test_bad_tolerances_are_named(tolerances: float | dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        judge(results(a=[1.0, 1.0]), results(a=[1.0, 1.0]), tolerances)


def test_nothing_to_judge_is_refused() -> None:
    with pytest.raises(DataError, match="no metric to judge"):
        judge(Results({}, []), Results({}, []))


def test_round_trip_and_table() -> None:
    gate = judge(results(a=coins(200, 0.5, 0)), results(a=coins(200, 0.5, 1)))
    assert Gate.from_dict(json.loads(json.dumps(gate.to_dict(), allow_nan=False))) == gate
    header, row = gate.to_table()
    assert len(header) == len(row) == 8 and row[6] == gate.rows[0].verdict and row[7] == "200"
    low, high = gate.rows[0].interval
    assert f"[{100 * low:+.2f}, {100 * high:+.2f}]" in row[3]


def paired(n: int, drop: float, seed: int, improved: float = 0.06) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes at 60 %, of which some fall and fewer rise: a true drop of `drop`."""
    rng = np.random.default_rng(seed)
    before, chance = rng.random(n) < 0.6, rng.random(n)
    after = np.where(before, chance >= (improved + drop) / 0.6, chance < improved / 0.4)
    return before.astype(float), after.astype(float)


def verdicts(n: int, drop: float, improved: float, trials: int = 500) -> list[str]:
    found = []
    for seed in range(trials):
        before, after = paired(n, drop, seed, improved)
        found.append(judge(results(a=before), results(a=after), 0.01, resamples=1000, seed=seed).rows[0].verdict)
    return found


@pytest.mark.parametrize(
    ("n", "improved"), [(1000, 0.06), (1000, 0.0), (400, 0.1), (300, 0.0), (100, 0.0), (100, 0.06)]
)
def test_error_rates_over_500_trials(n: int, improved: float) -> None:
    tolerance = 0.01
    at_tolerance = verdicts(n, tolerance, improved)
    assert at_tolerance.count("not worse") <= 0.05 * 500
    assert at_tolerance.count("worse") <= 0.05 * 500
    drop = tolerance
    for _ in range(30):  # the standard error grows with the drop it is taken at
        drop = tolerance + 3 * math.sqrt((2 * improved + drop - drop**2) / n)
    assert verdicts(n, drop, improved).count("worse") >= 0.8 * 500


def mixture(weight: float, n: int = 4000) -> Results:
    """More weight, more examples lost: 20 % at weight 1, spread evenly over the pictures."""
    return results(a=(np.random.default_rng(0).random(n) >= 0.2 * weight**3).astype(float))


def test_interpolation_names_the_largest_weight_that_is_not_worse_and_reports_it_on_the_other_half() -> None:
    asked: list[float] = []

    def evaluate_at(weight: float) -> Results:
        asked.append(weight)
        return mixture(weight)

    picked = pick_interpolation(evaluate_at, 0.01, resamples=2000)
    # 0.2·w³ is 0.54 points at 0.3 and 1.28 at 0.4: the first is the largest below one point with room for noise.
    assert picked.weight in (0.2, 0.3)
    assert asked == [0.0, *[w / 10 for w in range(9, round(10 * picked.weight) - 1, -1)]]
    assert picked.pictures == (2000, 2000)
    assert picked.selection is not None and picked.selection.worst == "not worse"
    assert picked.reported is not None and picked.reported.rows[0].n == 2000
    told = json.loads(json.dumps(picked.to_dict(), allow_nan=False))
    assert told["weight"] == picked.weight and told["pictures"] == {"selection": 2000, "reported": 2000}


def test_the_choice_never_looks_at_the_reported_half() -> None:
    from modalign.evaluation.pairing import halves

    before = results(a=np.ones(2000))
    reported = set(halves(before, resamples=10)[1].metrics["retrieval.a"].owners.tolist())
    lost = np.array([0.0 if i in reported else 1.0 for i in range(2000)])
    picked = pick_interpolation(lambda weight: results(a=lost), 0.01, before=before, resamples=200)
    assert picked.weight == 0.9 and picked.selection is not None and picked.selection.worst == "not worse"
    assert picked.reported is not None and picked.reported.worst == "worse"
    assert "it is: worse: retrieval.a" in picked.sentence


def test_no_weight_is_said_plainly() -> None:
    picked = pick_interpolation(lambda w: results(a=np.full(100, float(w == 0))), 0.01, resamples=200)
    assert picked.weight is None and picked.reported is None
    assert [worst for _, worst in picked.tried] == ["worse"] * 9
    assert "no weight between before and after" in picked.sentence
    json.dumps(picked.to_dict())
    with pytest.raises(RecipeError, match="must lie between 0 and 1"):
        pick_interpolation(lambda w: results(a=np.ones(4)), weights=(1.0,))


def test_a_damaged_tower_is_worse_on_small_splits_and_a_model_against_itself_never() -> None:
    """A linear image tower on pictures about their classes, its weights disturbed until zero-shot truly drops."""
    from modalign.evaluation.zero_shot import zero_shot_outcomes

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 20, (40_000,), generator=generator)
    tower, classes = torch.randn(32, 64, generator=generator), torch.randn(20, 64, generator=generator)
    pictures = classes[labels] + 2.2 * torch.randn(40_000, 64, generator=generator)
    weights = torch.nn.functional.normalize(classes @ tower.T, dim=1)
    noise = torch.randn(32, 64, generator=generator)

    def right(strength: float) -> np.ndarray:
        return zero_shot_outcomes(pictures @ (tower + strength * noise).T, weights, labels)["acc1"]

    whole, small = right(0.0), 500
    for strength in np.linspace(0.02, 2, 100):
        damaged = right(float(strength))
        drop, error = (whole - damaged).mean(), (whole - damaged).std() / math.sqrt(small)
        if drop >= 0.01 + 3 * error:
            break
    assert drop == pytest.approx(0.01 + 3 * error, abs=0.02)
    rng = np.random.default_rng(1)
    verdicts, itself = [], []
    for _ in range(20):
        split = rng.choice(len(whole), small, replace=False)
        base = results(a=whole[split])
        verdicts.append(judge(base, results(a=damaged[split])).worst)
        itself.append(judge(base, results(a=whole[split])).worst)
    assert verdicts.count("worse") >= 16 and "worse" not in itself
