from __future__ import annotations

import numpy as np
import pytest

from modalign.errors import DataError, RecipeError
from modalign.sweeping.halves import cut
from modalign.sweeping.picking import Condition, Rule, check, parse, pick, quantities, resolve
from tests.sweeping.made import PAIRS, checkpoint, results

KNOWN = quantities(results("model", gap={"raw_gap": 1.0, "centroid_gap": 0.5, "centroid_gap_scale_free": 0.4}))


def test_the_grammar() -> None:
    text = "max retrieval.r1 where zero_shot.acc1 >= before - 0.5 and gap.centroid_gap <= 0.3 and a<=before+1e-1"
    assert parse(text) == Rule(
        True,
        "retrieval.r1",
        (
            Condition("zero_shot.acc1", True, -0.5, True),
            Condition("gap.centroid_gap", False, 0.3, False),
            Condition("a", False, 0.1, True),
        ),
    )
    assert parse("  min   gap.raw_gap ") == Rule(False, "gap.raw_gap", ())
    assert parse("max a where b >= before").conditions == (Condition("b", True, 0.0, True),)
    assert parse("max a where b >= -2").conditions == (Condition("b", True, -2.0, False),)
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "retrieval.r1",
        "maximise retrieval.r1",
        "max",
        "max a b",
        "max a where",
        "max a where b",
        "max a where b > 1",
        "max a where b >= befor - 1",
        "max a where b >= before - x",
        "max a where b >= before 1",
        "max a where b >= 1 or c >= 2",
        "max a where b >= 1 and ",
        "",
    ],
)
def test_what_is_not_the_grammar_is_told_in_one_line(text: str) -> None:
    with pytest.raises(RecipeError, match="--pick") as caught:
        parse(text)
    assert "\n" not in str(caught.value) and "for example" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("zero_shot.acc1", ("zero_shot.acc1",)),
        ("acc1", ("zero_shot.acc1",)),
        ("retrieval.r1", ("retrieval.image_to_text_r1", "retrieval.text_to_image_r1")),
        ("zero_shot.recall", ("zero_shot.mean_per_class_recall",)),
        ("gap.centroid_gap", ("gap.centroid_gap",)),
    ],
)
def test_short_names(name: str, means: tuple[str, ...]) -> None:
    assert resolve(name, KNOWN) == means


def test_a_typo_gets_the_nearest_name_and_two_meanings_are_both_named() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'zero_shot\.acc1'"):
        resolve("zero_shot.ac1", KNOWN)
    with pytest.raises(RecipeError, match=r"gap\.raw_gap or gap\.centroid_gap"):
        resolve("gap.gap", KNOWN)
    with pytest.raises(RecipeError, match=r"did you mean 'gap\.centroid_gap'"):
        check(parse("min gap.centroid_gpa"), results("model", gap={"centroid_gap": 0.5}))


def test_it_is_chosen_on_one_half_and_judged_on_the_other_alone() -> None:
    before = results("before", right=range(0, PAIRS, 4))
    halves = cut(before)
    pairs = [part[part < PAIRS].tolist() for part in (halves.validation, halves.test)]
    flatterer = results("flatterer", right=pairs[0])  # right on the validation half alone
    honest = results("honest", right=[*pairs[0][:20], *pairs[1][:20]])
    found = pick([checkpoint("flatterer", flatterer, before), checkpoint("honest", honest, before)], "max retrieval.r1")
    assert found.checkpoint is not None and found.checkpoint.run.name == "flatterer"
    start, chosen = found.validation["retrieval.r1"]
    assert chosen == 100.0 and start == pytest.approx(100 * np.mean([p % 4 == 0 for p in pairs[0]]))
    assert found.gate is not None
    row = next(row for row in found.gate.rows if row.metric == "retrieval.image_to_text_r1")
    assert row.after == 0.0 and row.n == len(pairs[1])  # none of what it was chosen on
    assert row.before == pytest.approx(np.mean([p % 4 == 0 for p in pairs[1]]))


def test_conditions_hold_on_the_validation_half_in_points_and_relative_to_before() -> None:
    before = results("before", right=range(30), classified=range(60))
    held = cut(before).validation
    classes = (held[held >= PAIRS] - PAIRS).tolist()  # 30 pictures: one is 3.33 points
    worse = [i for i in range(60) if i not in classes[:3]]
    bold = checkpoint("bold", results("bold", right=range(60), classified=worse), before)
    meek = checkpoint("meek", results("meek", right=range(40), classified=range(60)), before)

    def chosen(rule: str) -> str | None:
        found = pick([meek, bold], rule).checkpoint
        return found and found.run.name

    assert chosen("max retrieval.r1") == "bold"
    assert chosen("max retrieval.r1 where zero_shot.acc1 >= before - 10") == "bold"  # exactly 10 points: kept
    assert chosen("max retrieval.r1 where zero_shot.acc1 >= before - 9.9") == "meek"
    assert chosen("max retrieval.r1 where zero_shot.acc1 >= 95") == "meek"
    assert chosen("min zero_shot.acc1") == "bold"
    none = pick([meek, bold], "max retrieval.r1 where zero_shot.acc1 >= before + 1")
    assert none.checkpoint is None and none.gate is None and none.sentence.startswith("none of 2 checkpoints")


def test_a_gap_is_that_of_the_halfs_own_pairs() -> None:
    before = results("before")
    near = {"validation": {"raw_gap": (1.0, 0.2)}, "test": {"raw_gap": (1.1, 0.9)}}
    far = {"validation": {"raw_gap": (1.0, 0.5)}, "test": {"raw_gap": (1.1, 0.3)}}
    candidates = [
        checkpoint(name, results(name), before, half_gaps=gaps) for name, gaps in (("far", far), ("near", near))
    ]
    found = pick(candidates, "min gap.raw_gap")
    assert found.checkpoint is not None and found.checkpoint.run.name == "near"
    assert found.validation == {"gap.raw_gap": (1.0, 0.2)} and found.test_gap == {"raw_gap": (1.1, 0.9)}
    with pytest.raises(DataError, match="too few pairs"):
        pick([checkpoint("bare", results("bare"), before)], "min gap.raw_gap")
