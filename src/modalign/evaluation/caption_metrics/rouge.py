"""ROUGE-L."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modalign.evaluation.caption_metrics.ngrams import Words
from modalign.evaluation.statistics import Floats

BETA = 1.2


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Floats:
    """ROUGE-L of each caption: the F-measure of the longest common subsequence.

        P = max over references of lcs/|c|,   R = max over references of lcs/|r|       (each its own maximum)
        F = (1 + β²)·P·R / (R + β²·P)                                                           β = 1.2

    Args:
        candidates: N captions as words.
        references: N lists of at least one reference as words.

    Returns:
        N numbers from 0 to 1; 0 where nothing is common, and for an empty caption.

    Source: Lin, "ROUGE", 2004, section 3; the maxima and β as in the COCO evaluation (arXiv 1504.00325).
    """
    scores = np.zeros(len(candidates))
    for number, (candidate, of_image) in enumerate(zip(candidates, references, strict=True)):
        common = [longest_common_subsequence(candidate, reference) for reference in of_image]
        if not any(common):
            continue
        precision = max(common) / len(candidate)
        recall = max(length / len(reference) for length, reference in zip(common, of_image, strict=True) if reference)
        scores[number] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return scores


def longest_common_subsequence(first: Words, second: Words) -> int:
    """The length of the longest sequence of words that both hold in this order, gaps allowed."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]
