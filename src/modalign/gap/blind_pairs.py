"""Pairs of pictures that one encoder finds alike and another tells apart, without ever holding N² numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ENTRIES_AT_ONCE = 2**22
BINS = 2**16
CANDIDATES = 16


@dataclass(frozen=True)
class BlindPair:
    """Two pictures, alike for one encoder and unlike for the other.

    Attributes:
        first: a row number.
        second: a later row number.
        score: how rare so great a likeness is for the student, times how unlike the target finds them.
    """

    first: int
    second: int
    score: float


class SimilarityRanks:
    """Where a cosine similarity stands among those of all pairs of pictures: its percentile rank.

    Cosines of two encoders do not compare (one may find nothing below 0.5), their ranks do. All N(N−1)/2 similarities
    are counted in 65,536 bins; a rank is exact up to the pairs in its own bin, of which half count as lower.

    Args:
        features: N×d, raw or unit, N ≥ 2.

    Attributes:
        unit: N×d, rows of length 1 (float32).
    """

    def __init__(self, features: Tensor) -> None:
        self.unit = torch.nn.functional.normalize(features.detach().float(), dim=1)
        counts = torch.zeros(BINS, dtype=torch.float64)
        for start, rows in _blocks(self.unit):
            cosines = rows @ self.unit[start:].T
            above = torch.ones_like(cosines, dtype=torch.bool).triu(1)
            counts += torch.bincount(_bin(cosines[above]), minlength=BINS)
        self._share = (counts.cumsum(0) - counts / 2) / counts.sum()
        self._least = float(0.5 / counts.sum())  # of a cosine that rounding puts above the highest bin

    def of(self, cosines: Tensor) -> Tensor:
        """Cosines of any shape → their ranks in (0, 1): the share of all pairs that are less alike."""
        return self._share[_bin(cosines)]

    def rarity(self) -> Tensor:
        """−log₁₀(1 − rank) of every bin, 0 up to the median: how rare so great a likeness is."""
        above = (1 - self._share).clamp(min=self._least)
        return torch.where(self._share > 0.5, -torch.log10(above), 0.0).float()

    def distance(self) -> Tensor:
        """1 − rank of every bin, 0 from the median on: the share of pairs that are more alike."""
        return torch.where(self._share < 0.5, 1 - self._share, 0.0).float()

    def between(self, first: int, second: int) -> tuple[float, float]:
        """The cosine similarity of two rows, and its rank."""
        cosine = self.unit[first] @ self.unit[second]
        return float(cosine), float(self.of(cosine))


def blind_pairs(
    student: SimilarityRanks,
    target: SimilarityRanks,
    count: int,
    content: Callable[[int], Hashable] = lambda row: row,
    most: int = 2,
) -> list[BlindPair]:
    """The pairs that are most alike for the student among those that are unlike for the target.

        score_ij = −log₁₀(1 − rank of the student's cosine) · (1 − rank of the target's cosine)

    over the pairs whose student's rank lies above ½ and whose target's rank lies below. The first factor counts the
    nines: a difference of ranks would hardly tell the most alike pair of all from one of the alike tenth.

    Args:
        student: of N pictures.
        target: of the same pictures.
        count: how many pairs at most.
        content: a row number → what tells copies of a picture apart from other pictures; asked from the best pair
            down, so of few.
        most: in how many pairs a picture, or a copy of it, may appear.

    Returns:
        Pairs, highest score first; none where the two encoders agree. Each picture brings its 16 best pairs.
    """
    chosen: list[BlindPair] = []
    used: dict[Hashable, int] = {}
    for score, first, second in _candidates(student, target):
        one, other = content(first), content(second)
        if one == other or used.get(one, 0) >= most or used.get(other, 0) >= most:
            continue
        used[one], used[other] = used.get(one, 0) + 1, used.get(other, 0) + 1
        chosen.append(BlindPair(first, second, score))
        if len(chosen) == count:
            break
    return chosen


def _candidates(student: SimilarityRanks, target: SimilarityRanks) -> list[tuple[float, int, int]]:
    """(score, i, j) with i < j of each row's best pairs, highest first; ties in the order of rows."""
    alike, unlike = student.rarity(), target.distance()
    found: dict[tuple[int, int], float] = {}
    for start, rows in _blocks(student.unit):
        stop = start + len(rows)
        scores = alike[_bin(rows @ student.unit.T)]
        scores *= unlike[_bin(target.unit[start:stop] @ target.unit.T)]
        scores[torch.arange(len(rows)), torch.arange(start, stop)] = 0
        best, columns = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)
        for row, (values, partners) in enumerate(zip(best.tolist(), columns.tolist(), strict=True), start):
            for value, partner in zip(values, partners, strict=True):
                if value > 0:
                    found[min(row, partner), max(row, partner)] = value
    return sorted(((value, *pair) for pair, value in found.items()), key=lambda each: (-each[0], *each[1:]))


def _blocks(unit: Tensor) -> Iterator[tuple[int, Tensor]]:
    size = max(1, ENTRIES_AT_ONCE // len(unit))
    return ((start, unit[start : start + size]) for start in range(0, len(unit), size))


def _bin(cosines: Tensor) -> Tensor:
    return ((cosines + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
