"""VQA's accuracy: the share of three people who would have said the same, after its own spelling rules.

    accuracy(r) = mean over the answers i of min(1, |{j ≠ i: n(a_j) = n(r)}| / 3)          n: `normalise`

The rules are those of the VQAv2 evaluation, quirks included: punctuation becomes a space, or nothing where it stands
beside a space or the text has a number with a comma; number words become digits; articles go; contractions without
their apostrophe get it back. They are applied to the response and to the answers, always; the published script leaves
the answers (and in one version the response) as they are where all people agree.

Source: arXiv 1505.00468, section 3, and the evaluation published with VQAv2 (visualqa.org/evaluation).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST = 4
"""Answers below which nobody could reach 1: each is judged by the others, and three of them must agree."""

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WORDS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
ARTICLES = frozenset(("a", "an", "the"))
_ONE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_SEVERAL = """
couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
"""
CONTRACTIONS = {
    **{word.replace("'", ""): word for word in _ONE.split()},
    **{word[:i] + word[i + 1 :]: word for word in _SEVERAL.split() for i, c in enumerate(word) if c == "'"},
    "somebody'd": "somebodyd",  # the wrong way round there too
}
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA = re.compile(r"\d,\d")


def normalise(text: str) -> str:
    """A text as the VQAv2 evaluation compares it."""
    text = re.sub(r"[\n\t]", " ", text).strip()
    plain, numbers = text, _COMMA.search(text) is not None
    for mark in PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside or numbers else " ")
    words = (WORDS.get(word, word) for word in _PERIOD.sub("", plain).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(response: str, answers: Sequence[str]) -> float:
    """How far a response agrees with what people said, between 0 and 1.

    Args:
        response: what the model said.
        answers: of N people; ten in VQAv2.
    """
    said = normalise(response)
    same = [normalise(answer) == said for answer in answers]
    others = (sum(same) - own for own in same)
    return float(np.mean([min(1.0, count / 3) for count in others]))


def exact_match(response: str, answers: Sequence[str]) -> float:
    """1 where the response is one of the answers, after the same rules, else 0."""
    return float(normalise(response) in {normalise(answer) for answer in answers})


def vqa_outcomes(responses: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, NDArray[np.float64]]:
    """One number a question.

    Args:
        responses: N.
        answers: N lists.

    Returns:
        "exact_match", and "vqa_accuracy" where every question has at least `FEWEST` answers.
    """
    pairs = list(zip(responses, answers, strict=True))
    outcomes = {"exact_match": np.array([exact_match(*pair) for pair in pairs], np.float64)}
    if all(len(given) >= FEWEST for given in answers):
        outcomes["vqa_accuracy"] = np.array([vqa_accuracy(*pair) for pair in pairs], np.float64)
    return outcomes
