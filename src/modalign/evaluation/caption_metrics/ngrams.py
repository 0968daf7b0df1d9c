"""Counting n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

LONGEST = 4
Ngram = tuple[str, ...]
Words = Sequence[str]


def ngrams(words: Words) -> list[Counter[Ngram]]:
    """How often each n-gram occurs: one counter for each n = 1 … 4."""
    return [
        Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1)) for n in range(1, LONGEST + 1)
    ]
