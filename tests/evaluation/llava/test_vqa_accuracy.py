"""VQA's spelling rules and its rule of three, by hand."""

from __future__ import annotations

import pytest

from modalign.evaluation.llava.vqa_accuracy import exact_match, normalise, vqa_accuracy, vqa_outcomes


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Dog", "dog"),
        ("two dogs\n", "2 dogs"),
        ("none", "0"),
        ("yes.", "yes"),
        ("3.5 m.", "3.5 m"),
        ("red/blue", "red blue"),  # a mark between letters becomes a space
        ("red, blue", "red blue"),  # beside a space it goes
        ("1,000", "1000"),  # a number with a comma loses all marks
        ("1,000 red/blue", "1000 redblue"),
        ("dont", "don't"),
        ("don't", "don't"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("x-ray", "x ray"),
        ("yall'dve", "yall'dve"),
        ("yalld've", "yalld've"),
        ("y'alld've", "y'all'd've"),
        ("What?!", "what"),
        ("T.V.", "tv"),
    ],
)
def test_normalise(text: str, plain: str) -> None:
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("agreeing", "score"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_rule_of_three_over_ten_people(agreeing: int, score: float) -> None:
    """Each person's answer is judged by the nine others: of 1 who agrees, nine see one match and she sees none."""
    answers = ["Two"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert vqa_accuracy("2", answers) == pytest.approx(score)


def test_exact_match_and_what_is_told_of_few_answers() -> None:
    assert exact_match("The cup.", ["a mug", "cup"]) == 1
    assert exact_match("cups", ["cup"]) == 0
    assert set(vqa_outcomes(["cup"], [["cup"]])) == {"exact_match"}
    both = vqa_outcomes(["cup", "no"], [["cup"] * 10, ["yes"] * 10])
    assert {name: values.tolist() for name, values in both.items()} == {"exact_match": [1, 0], "vqa_accuracy": [1, 0]}
