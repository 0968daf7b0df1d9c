from __future__ import annotations

import itertools
import math

import pytest
import torch

from modalign.training.curriculum import PRESETS, Curriculum, Phase, base_strength, check_phases, hold_back

STANDARD = PRESETS["anchor-ramp-stabilise"]


def test_the_standard_phases_by_hand() -> None:
    # 10 steps: 0 to step 2, then a fifth more with each step, whole from step 7.
    values = [base_strength(STANDARD, (step + 1) / 10) for step in range(10)]
    assert values == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])


def test_the_articles_phases_pass_through_a_fifth() -> None:
    article = PRESETS["article"]
    assert base_strength(article, 0.2) == 0
    assert base_strength(article, 0.5) == pytest.approx(0.2)
    assert base_strength(article, 0.75) == pytest.approx(0.6)
    assert base_strength(article, 1.0) == pytest.approx(1)


@pytest.mark.parametrize(("shape", "quarter"), [("linear", 0.25), ("cosine", 0.1464466), ("smoothstep", 0.15625)])
def test_shapes_agree_at_their_ends_and_middle(shape, quarter: float) -> None:
    phases = [Phase(1, 0, 1, shape)]
    assert base_strength(phases, 0.25) == pytest.approx(quarter)
    assert base_strength(phases, 0.5) == pytest.approx(0.5)
    assert base_strength(phases, 1.0) == pytest.approx(1)


def test_kappa_is_one_without_conflict_and_reaches_its_floor_at_opposite_gradients() -> None:
    assert hold_back(0.5, 0.3) == 1
    assert hold_back(1.0, -0.2) == pytest.approx(1)
    assert hold_back(4.0, 0.3) == pytest.approx(0.25)  # too large a gradient is scaled down to the base one
    assert hold_back(0.5, -1.0) == pytest.approx(0.1)
    assert hold_back(0.5, -0.6) == pytest.approx(1 - 0.9 * 0.4 / 0.8)  # half-way between −0.2 and −1
    assert hold_back(2.0, -0.6) == pytest.approx(0.5 * (1 - 0.9 * 0.4 / 0.8))


def run(target: float, gradients: list[tuple[list[float], list[float]]], **options) -> list[dict[str, float]]:
    curriculum = Curriculum(target, STANDARD, **options)
    told = []
    for step, (aligning, base) in enumerate(gradients):
        curriculum.observe(torch.tensor(aligning), torch.tensor(base))
        told.append(curriculum.advance((step + 1) / len(gradients)))
    return told


def test_a_conflict_lowers_the_strength_and_agreement_leaves_it() -> None:
    agree = run(0.5, [([0.5, 0.0], [1.0, 0.1])] * 20)
    assert [line["alpha"] for line in agree] == pytest.approx(
        [0.5 * base_strength(STANDARD, (s + 1) / 20) for s in range(20)]
    )
    conflict = run(0.5, [([-0.5, 0.0], [1.0, 0.0])] * 20)
    assert conflict[-1]["alpha"] == pytest.approx(0.05)
    assert conflict[-1]["cosine"] == pytest.approx(-1)  # bias-corrected: exact from the first step on
    assert conflict[0]["cosine"] == pytest.approx(-1)
    unaware = run(0.5, [([-0.5, 0.0], [1.0, 0.0])] * 20, on_conflict="ignore")
    assert unaware[-1]["alpha"] == pytest.approx(0.5)


def test_the_strength_rises_slowly_after_a_conflict_ends() -> None:
    told = run(1.0, [([-0.5, 0.0], [1.0, 0.0])] * 80 + [([0.5, 0.0], [1.0, 0.0])] * 20)
    alphas = [line["alpha"] for line in told]
    rise = 2 / (0.5 * 100)
    assert max(b - a for a, b in itertools.pairwise(alphas)) <= rise + 1e-12
    assert alphas[79] == pytest.approx(0.1)
    assert alphas[-1] > 0.4
    assert max(alphas) <= 1


def test_the_moving_average_by_hand() -> None:
    curriculum = Curriculum(1.0, STANDARD)
    for ratio in (1.0, 3.0):
        curriculum.observe(torch.tensor([ratio, 0.0]), torch.tensor([1.0, 0.0]))
    told = curriculum.advance(1.0)
    assert told["ratio"] == pytest.approx((0.9 * 1 + 3) / 1.9)  # (0.1·0.9·1 + 0.1·3) / (1 − 0.9²)
    assert told["kappa"] == pytest.approx(1.9 / 3.9)


def test_every_kth_step_is_due_and_none_where_nothing_would_follow() -> None:
    curriculum = Curriculum(1.0, STANDARD, every=3)
    due = []
    for step in range(7):
        due.append(curriculum.due)
        curriculum.advance((step + 1) / 7)
    assert due == [True, False, False, True, False, False, True]
    assert not Curriculum(0.0, STANDARD).due
    assert not Curriculum(1.0, STANDARD, on_conflict="ignore").due


def test_a_group_in_conflict_has_its_rate_lowered_and_no_other() -> None:
    curriculum = Curriculum(1.0, STANDARD, on_conflict="learning_rate")
    curriculum.watch(["image blocks.0", "image blocks.1", "text"])
    for _ in range(3):
        curriculum.observe(torch.tensor([-0.5, 0.0]), torch.tensor([1.0, 0.0]))
        curriculum.observe_groups({"image blocks.0": -1.0, "image blocks.1": 0.4})
    assert curriculum.rates() == pytest.approx({"image blocks.0": 0.1, "image blocks.1": 1, "text": 1})
    for step in range(20):
        told = curriculum.advance((step + 1) / 20)
    assert told["alpha"] == pytest.approx(1) and told["kappa"] == 1  # the strength itself follows the phases
    again = Curriculum(1.0, STANDARD, on_conflict="learning_rate")
    again.watch(["image blocks.0", "image blocks.1", "text"])
    again.load_state_dict(curriculum.state_dict())
    assert again.rates() == curriculum.rates()


def test_a_gradient_of_zero_is_passed_over() -> None:
    curriculum = Curriculum(1.0, STANDARD)
    curriculum.observe(torch.zeros(2), torch.ones(2))
    assert curriculum.advance(1.0)["kappa"] == 1


def test_a_restored_curriculum_goes_on_exactly() -> None:
    gradients = [torch.randn(2, 6, generator=torch.Generator().manual_seed(s)) for s in range(12)]
    whole, first, second = (Curriculum(0.3, STANDARD) for _ in range(3))
    expected = []
    for step, (a, b) in enumerate(gradients):
        whole.observe(a, b)
        expected.append(whole.advance((step + 1) / 12))
    for step in range(7):
        first.observe(*gradients[step])
        first.advance((step + 1) / 12)
    second.load_state_dict(first.state_dict())
    for step in range(7, 12):
        second.observe(*gradients[step])
        assert second.advance((step + 1) / 12) == expected[step]


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([], "empty"),
        ([Phase(0.5, 0, 1)], "sum to 0.5"),
        ([Phase(1, 0, 2)], "between 0 and 1"),
        ([Phase(math.nan, 0, 1)], "share is ≥ 0"),
        ([Phase(1.5, 0, 1), Phase(-0.5, 0, 1)], "share is ≥ 0"),
    ],
)
def test_phases_that_are_no_plan_are_refused(phases, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_phases(phases)


def test_target_zero_is_zero_throughout() -> None:
    assert all(line["alpha"] == 0 for line in run(0.0, [([1.0], [math.pi])] * 5))
