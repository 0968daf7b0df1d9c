"""BLEU-1 … BLEU-4 of a corpus, as sums that can be resampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modalign.evaluation.caption_metrics.ngrams import LONGEST, Words, ngrams
from modalign.evaluation.statistics import Floats

SMALL, TINY = 1e-9, 1e-15
"""What the COCO evaluation adds to denominators and numerators, so that nothing divides by 0."""
RESAMPLES_AT_ONCE = 500


@dataclass(frozen=True)
class BleuSums:
    """What BLEU of a corpus is made of: BLEU of any part of it follows from that part's sums.

    Attributes:
        table: N×10 numbers: of each caption its n-grams that match (4), its n-grams (4), its length, and the length of
            the reference nearest to it, the shorter of two as near.
    """

    table: NDArray[np.float64]

    @classmethod
    def of(cls, candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> BleuSums:
        """Counts; an n-gram matches as often as the one reference that has most of it.

        Args:
            candidates: N captions as words.
            references: N lists of at least one reference as words.
        """
        rows = []
        for candidate, of_image in zip(candidates, references, strict=True):
            ours = ngrams(candidate)
            most: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(LONGEST)]
            for reference in of_image:
                most = [known | counts for known, counts in zip(most, ngrams(reference), strict=True)]
            matched = [(counts & limit).total() for counts, limit in zip(ours, most, strict=True)]
            nearest = min((abs(len(reference) - len(candidate)), len(reference)) for reference in of_image)[1]
            rows.append([*matched, *(counts.total() for counts in ours), len(candidate), nearest])
        return cls(np.array(rows, np.float64).reshape(-1, 2 * LONGEST + 2))

    def scores(self) -> Floats:
        """BLEU-1 … BLEU-4 of the whole.

            BLEU-n = min(1, exp(1 − r/c)) · (Π_{k≤n} matched_k / guessed_k)^{1/n}     sums over the corpus

        Returns:
            4 numbers from 0 to 1.

        Source: Papineni et al., "BLEU", 2002; "closest" reference length as in the COCO evaluation (arXiv 1504.00325).
        """
        return _scores(self.table.sum(0))

    def contributions(self) -> Floats:
        """N×4: BLEU-1…4 of the whole plus how far each caption moves it, N·∂BLEU/∂(weight of the caption).

        Their mean is BLEU of the whole, and bootstrapping it is bootstrapping BLEU to first order (the infinitesimal
        jackknife). So a corpus score can be compared example by example, like any mean.

        Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 21.3.
        """
        total, whole = self.table.sum(0), self.scores()
        matched, guessed = total[:LONGEST] + TINY, total[LONGEST:-2] + SMALL
        length, nearest = total[-2] + TINY, total[-1] + SMALL
        # d ln(precision_k), averaged over k ≤ n, and d ln(brevity) = −d(r/c) where the captions are too short
        moves = (self.table[:, :LONGEST] / matched - self.table[:, LONGEST:-2] / guessed).cumsum(1)
        moves /= np.arange(1, LONGEST + 1)
        if length < nearest:
            moves += (nearest / length * (self.table[:, -2] / length - self.table[:, -1] / nearest))[:, None]
        moves -= moves.mean(0)
        contributed: Floats = whole * (1 + len(self.table) * moves)
        return contributed

    def resampled(self, resamples: int, seed: int) -> Floats:
        """BLEU-1 … 4 of corpora drawn from this one with replacement; equal seeds draw equal captions.

        Args:
            resamples: how many corpora.
            seed: of the draws: two `BleuSums` of the same images and this seed are resampled as pairs.

        Returns:
            resamples×4.
        """
        rng, count = np.random.default_rng(seed), len(self.table)
        even = np.full(count, 1 / count)
        parts = [
            _scores(rng.multinomial(count, even, size=min(RESAMPLES_AT_ONCE, resamples - start)) @ self.table)
            for start in range(0, resamples, RESAMPLES_AT_ONCE)
        ]
        return np.concatenate(parts)


def _scores(totals: NDArray[np.float64]) -> Floats:
    """…×10 sums → …×4 scores."""
    precisions = (totals[..., :LONGEST] + TINY) / (totals[..., LONGEST:-2] + SMALL)
    geometric = precisions.cumprod(-1) ** (1 / np.arange(1, LONGEST + 1))
    ratio = (totals[..., -2:-1] + TINY) / (totals[..., -1:] + SMALL)
    scores: Floats = geometric * np.exp(np.minimum(0, 1 - 1 / ratio))
    return scores
