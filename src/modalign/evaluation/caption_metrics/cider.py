"""CIDEr-D."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from modalign.evaluation.caption_metrics.ngrams import LONGEST, Ngram, Words, ngrams
from modalign.evaluation.statistics import Floats

SIGMA = 6.0


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Floats:
    """CIDEr-D of each caption: the cosine of clipped tf-idf n-gram vectors, damped where the lengths differ.

        g_n(w)  = count(w)·(ln N − ln max(1, df(w)))              df: in how many of the N images' references w occurs
        sim_n   = exp(−(ℓ_c − ℓ_r)² / 2σ²) · Σ_w min(g_c, g_r)·g_r / (‖g_c‖·‖g_r‖)
        score   = 10 · mean over n = 1…4 and over the references of sim_n                                σ = 6

    As in the COCO evaluation, ℓ counts bigrams. df comes from the references judged here, so a score depends on the set
    it is taken on, and a single image scores 0.

    Args:
        candidates: N captions as words.
        references: N lists of at least one reference as words.

    Returns:
        N numbers from 0 to 10.

    Source: Vedantam et al., "CIDEr", arXiv 1411.5726, sections 4 and 5.3.
    """
    counted = [[ngrams(reference) for reference in of_image] for of_image in references]
    frequency: Counter[Ngram] = Counter()
    for of_image in counted:
        frequency.update({ngram for counts in of_image for orders in counts for ngram in orders})
    images = math.log(len(counted)) if counted else 0.0
    weight = {ngram: images - math.log(count) for ngram, count in frequency.items()}
    scores = np.zeros(len(counted))
    for number, (candidate, of_image) in enumerate(zip(candidates, counted, strict=True)):
        hypothesis = _Vectors(ngrams(candidate), weight, images)
        sims = [hypothesis.similarity(_Vectors(counts, weight, images)) for counts in of_image]
        scores[number] = 10 * sum(sims) / len(sims)
    return scores


class _Vectors:
    """The tf-idf vectors of one caption, one for each n."""

    def __init__(self, counts: list[Counter[Ngram]], weight: Mapping[Ngram, float], unseen: float) -> None:
        self.vectors = [{ngram: k * weight.get(ngram, unseen) for ngram, k in orders.items()} for orders in counts]
        self.norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in self.vectors]
        self.length = counts[1].total()

    def similarity(self, reference: _Vectors) -> float:
        """The mean over n of the damped, clipped cosines."""
        total = 0.0
        for n in range(LONGEST):
            norm = self.norms[n] * reference.norms[n]
            ours, theirs = self.vectors[n], reference.vectors[n]
            if norm > 0:
                total += sum(min(value, theirs[w]) * theirs[w] for w, value in ours.items() if w in theirs) / norm
        return total / LONGEST * math.exp(-((self.length - reference.length) ** 2) / (2 * SIGMA**2))
