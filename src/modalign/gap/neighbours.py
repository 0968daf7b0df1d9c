"""Gap measures made of nearest neighbours: whether modalities mix, and whether some rows are everyone's neighbour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

NEIGHBOURS = 10
COINCIDE = 1e-5
"""Rows nearer than this share of the rows' size are one row: equal inputs embedded in different batches."""
PERMUTATIONS = 200


@dataclass(frozen=True)
class Mixing:
    """How well two modalities mix among nearest neighbours.

    Attributes:
        of_pair: N, the mean over a pair's distinct members of (share of the other modality among the k nearest) / (its
            expectation); 0 for a pair without any.
        weight: N, how many distinct members the pair has; the rate is their weighted mean.
        null: 2.5 and 97.5 % of the rate when the labels are permuted.
    """

    of_pair: Tensor
    weight: Tensor
    null: tuple[float, float]

    @property
    def rate(self) -> Tensor:
        """0 = no neighbour is of the other modality, 1 = as many as by chance; more where pairs sit together."""
        return (self.of_pair * self.weight).sum() / self.weight.sum()


def knn_mixing(image: Tensor, text: Tensor, *, k: int = NEIGHBOURS, seed: int = 0) -> Mixing | None:
    """The share of the other modality among each row's k nearest of the union, over its expectation.

        rate = mean_i (other_i / k) / (n_other / (n − 1))

    Rows that coincide with an earlier one of their modality are left out (a caption that repeats would be its own
    neighbour), n rows are left. It sees what a linear probe does not: centred modalities can be at chance for the probe
    and still not mix at all.

    Args:
        image: N×d.
        text: N×d.
        k: neighbours of a row, by Euclidean distance, itself left out.
        seed: of the permutations.

    Returns:
        The mixing; None where a modality has no more than k distinct rows.

    Source: Schilling, "Multivariate two-sample tests based on nearest neighbors", JASA 1986, over its expectation.
    """
    keep = torch.cat([distinct(image), distinct(text)])
    labels = (torch.arange(len(keep)) >= len(image))[keep]
    texts, rows = int(labels.sum()), torch.cat([image, text])[keep]
    if min(texts, len(rows) - texts) <= k:
        return None
    near = nearest(rows, rows, k, alone=True)

    def rates(labels: Tensor) -> Tensor:
        expected = torch.where(labels, len(rows) - texts, texts).double() / (len(rows) - 1)
        return (labels[near] != labels[:, None]).double().mean(1) / expected

    generator = np.random.default_rng(seed)
    orders = (torch.from_numpy(generator.permutation(len(rows))) for _ in range(PERMUTATIONS))
    low, high = np.quantile([float(rates(labels[order]).mean()) for order in orders], [0.025, 0.975])
    of_row = torch.zeros(len(keep), dtype=torch.float64)
    of_row[keep] = rates(labels)
    weight = keep.double().view(2, -1).sum(0)
    return Mixing(of_row.view(2, -1).sum(0) / weight.clamp_min(1), weight, (float(low), float(high)))


def k_occurrence(queries: Tensor, candidates: Tensor, *, k: int = NEIGHBOURS) -> Tensor:
    """How often each candidate is among a query's k nearest by cosine.

    Args:
        queries: N×d, raw or unit.
        candidates: M×d, raw or unit.
        k: at most M.

    Returns:
        M counts; their mean is kN/M.

    Source: Radovanović et al., "Hubs in space", JMLR 2010.
    """
    near = nearest(normalize(queries, dim=1), normalize(candidates, dim=1), k)
    return torch.bincount(near.flatten(), minlength=len(candidates)).double()


def skewness(values: Tensor, weights: Tensor) -> Tensor:
    """E(v − μ)³ / (E(v − μ)²)^1.5 under each row of weights: of k-occurrence counts, their hubness.

    Args:
        values: N.
        weights: R×N, rows sum to 1.

    Returns:
        R; 0 = symmetric, above 1 a few hubs are near to everything; 0 where all counts are equal.

    Source: Radovanović et al., "Hubs in space", JMLR 2010.
    """
    values = values - values.mean()
    first, second, third = (weights @ values.pow(power) for power in (1, 2, 3))
    variance = second - first.square()
    moment = third - 3 * first * second + 2 * first.pow(3)
    return torch.where(variance > 1e-12, moment / variance.clamp_min(1e-12).pow(1.5), torch.zeros_like(moment))


def nearest(queries: Tensor, candidates: Tensor, k: int, *, alone: bool = False, block: int = 1024) -> Tensor:
    """The k candidates nearest to each query by Euclidean distance.

    Args:
        queries: N×d.
        candidates: M×d.
        k: at most M, or M − 1 where `alone`.
        alone: the queries are the candidates, none its own neighbour.
        block: queries compared at once.

    Returns:
        N×k row numbers, nearest first.
    """
    squares = candidates.square().sum(1)
    found = []
    for start in range(0, len(queries), block):
        # ‖q‖² is the same for all candidates: left out.
        near = squares - 2 * queries[start : start + block] @ candidates.T
        if alone:
            near.diagonal(start).fill_(torch.inf)
        found.append(near.topk(k, dim=1, largest=False).indices)
    return torch.cat(found)


def distinct(rows: Tensor) -> Tensor:
    """Which rows come first among those that coincide, up to rounding; N booleans."""
    limit = COINCIDE * float(rows.square().sum(1).mean().sqrt())
    # Rows that coincide have neighbouring sums: only those are compared.
    key, order = rows.sum(1).sort(stable=True)
    repeated = torch.zeros(len(rows), dtype=torch.bool)
    for shift in range(1, len(rows)):
        close = (key[shift:] - key[:-shift]) <= limit * rows.shape[1] ** 0.5
        if not bool(close.any()):
            break
        first, second = order[:-shift][close], order[shift:][close]
        fresh = ~(repeated[first] | repeated[second])
        first, second = first[fresh], second[fresh]
        same = (rows[first] - rows[second]).square().sum(1).sqrt() <= limit
        repeated[torch.maximum(first, second)[same]] = True
    return ~repeated
