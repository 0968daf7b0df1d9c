"""Retrieval from a pool of pictures and texts: who is found, and whether one modality crowds out the other.

With a gap between the modalities a text query is nearer to any text than to any picture: pictures that would answer it
fall behind texts that do not. It shows in the share of each modality among the first k, in recall and in NDCG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from modalign.errors import DataError
from modalign.evaluation.results import Metric
from modalign.evaluation.statistics import Floats

CELLS_AT_ONCE = 2**24
TIES = "documents that score alike: those worth less come first; among the first k each counts with its probability"


@dataclass(frozen=True)
class MixedRetrieval:
    """What every query found.

    Attributes:
        outcomes: "r<k>", "ndcg<k>" and "share<k>.<modality>" → Q numbers in 0…1, one a query.
        pool_share: modality → its share of the documents.
        relevant_share: modality → its share of the documents relevant to a query, the mean over queries: what its share
            among the first k would be if retrieval did not look at the modality.
    """

    outcomes: dict[str, Floats]
    pool_share: dict[str, float]
    relevant_share: dict[str, float]

    def metrics(
        self, *, clusters: ArrayLike | None = None, resamples: int = 10_000, seed: int = 0
    ) -> dict[str, Metric]:
        """Each outcome's mean over queries with a 95 % bootstrap interval.

        Args:
            clusters: Q ids; queries of equal id are drawn together.
            resamples: of the bootstrap.
            seed: of the draws.
        """
        return {
            name: Metric.of(name, values, clusters=clusters, resamples=resamples, seed=seed)
            for name, values in self.outcomes.items()
        }

    def to_table(self, *, resamples: int = 10_000, seed: int = 0) -> list[list[str]]:
        """Rows of text in per cent, the first being the header."""
        rows = [["", "value", "95 % interval"]]
        for name, metric in self.metrics(resamples=resamples, seed=seed).items():
            low, high = metric.interval
            rows.append([name, f"{100 * metric.value:.1f}", f"{100 * low:.1f} – {100 * high:.1f}"])
        for title, shares in (("of the pool", self.pool_share), ("of the relevant", self.relevant_share)):
            rows += [[f"{name}, share {title}", f"{100 * share:.1f}", ""] for name, share in shares.items()]
        return rows


def mixed_retrieval(
    queries: Tensor | NDArray[Any],
    documents: Tensor | NDArray[Any],
    modalities: Sequence[str],
    judged: Tensor | NDArray[Any],
    grades: Tensor | NDArray[Any] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    *,
    normalize: bool = True,
) -> MixedRetrieval:
    """Ranks one pool of documents of several modalities for each query.

        recall@k = relevant documents among the first k / relevant documents
        DCG@k    = Σ_{ranks r ≤ k} grade / log₂(r + 1),    NDCG@k = DCG@k / the largest DCG@k there could be
        share@k  = documents of a modality among the first k / k

    With more than k relevant documents recall@k stays below 1. A k beyond the pool counts as the whole pool.

    Args:
        queries: Q×d, raw or unit.
        documents: D×d, raw or unit: pictures, texts and, if any, fused documents in one list.
        modalities: D names, "image" or "text" for example.
        judged: M×2 integers, (query, document) for each relevant document; every query needs one.
        grades: M numbers above 0, how relevant; None = 1 each.
        ks: the k.
        normalize: rank by cosine; False = by inner product (what `NNN` gives).

    Returns:
        Every query's outcomes, to be averaged with intervals.

    Raises:
        DataError: shapes that do not fit, numbers that are not finite, a query without a relevant document, a
            judgement twice or of nothing.

    Source: Järvelin and Kekäläinen 2002 (NDCG, linear gain as in scikit-learn); mixed pools arXiv 2507.19054.
    """
    query, document = (_wide(features) for features in (queries, documents))
    pairs = torch.as_tensor(judged)
    worth = torch.ones(len(pairs)).double() if grades is None else torch.as_tensor(grades).double().cpu()
    _check(query, document, modalities, pairs, worth, ks)
    pairs = pairs.long().cpu()
    order = pairs[:, 0].argsort(stable=True)
    pairs, worth = pairs[order], worth[order]
    if normalize:
        query, document = (torch.nn.functional.normalize(rows, dim=1) for rows in (query, document))
    # Equal documents must tie exactly, which a matrix product does not promise.
    distinct, copy = torch.unique(document, dim=0, return_inverse=True)
    names = list(dict.fromkeys(modalities))
    member = torch.tensor([names.index(name) for name in modalities])
    held = torch.nn.functional.one_hot(member, len(names)).double()

    found: dict[str, list[Tensor]] = {}
    step = max(1, CELLS_AT_ONCE // len(document))
    for start in range(0, len(query), step):
        scores = (query[start : start + step] @ distinct.T)[:, copy]
        here = (pairs[:, 0] >= start) & (pairs[:, 0] < start + step)
        local, value = pairs[here] - torch.tensor([start, 0]), worth[here]
        ranks = _ranks(scores, local, value, step)
        for k in ks:
            among = (ranks <= k).double()
            gain = among * value / (ranks + 1).log2()
            sums = [_per_query(each, local, len(scores)) for each in (among, torch.ones_like(among), gain)]
            ideal = _per_query(_ideal(local, value, k), local, len(scores))
            found.setdefault(f"r{k}", []).append(sums[0] / sums[1])
            found.setdefault(f"ndcg{k}", []).append(sums[2] / ideal)
            shares = _shares(scores, held, min(k, len(document)))
            for number, name in enumerate(names):
                found.setdefault(f"share{k}.{name}", []).append(shares[:, number])
    whole = torch.bincount(pairs[:, 0]).double()
    relevant = _per_query(held[pairs[:, 1]], pairs, len(query)) / whole[:, None]
    return MixedRetrieval(
        {name: torch.cat(parts).numpy() for name, parts in found.items()},
        dict(zip(names, held.mean(0).tolist(), strict=True)),
        dict(zip(names, relevant.mean(0).tolist(), strict=True)),
    )


def _ranks(scores: Tensor, local: Tensor, value: Tensor, step: int) -> Tensor:
    """The rank, from 1, of each relevant document; what scores alike and is worth less comes before it."""
    worth = torch.zeros_like(scores, dtype=torch.float64)
    worth[local[:, 0], local[:, 1]] = value
    found = []
    place = torch.arange(scores.shape[1])
    for part, own in zip(local.split(step), value.split(step), strict=True):
        row, column = part.unbind(1)
        mine, theirs = scores[row, column][:, None], scores[row]
        before = (worth[row] < own[:, None]) | ((worth[row] == own[:, None]) & (place < column[:, None]))
        found.append(1 + ((theirs > mine) | ((theirs == mine) & before)).sum(1))
    return torch.cat(found).double()


def _ideal(local: Tensor, value: Tensor, k: int) -> Tensor:
    """What each relevant document would add to DCG@k if the best came first."""
    order = torch.from_numpy(np.lexsort((-value.numpy(), local[:, 0].numpy())))
    row = local[order, 0]
    first = torch.searchsorted(row, row)
    rank = torch.arange(len(row)) - first + 1
    gains = torch.zeros_like(value)
    gains[order] = torch.where(rank <= k, value[order] / (rank + 1).double().log2(), 0.0)
    return gains


def _shares(scores: Tensor, held: Tensor, k: int) -> Tensor:
    """q×D → q×modalities: the share of each among the first k, ties at the border shared out evenly."""
    border = scores.topk(k, dim=1).values[:, -1:]
    above, level = (scores > border).double(), (scores == border).double()
    left = k - above.sum(1, keepdim=True)
    return (above @ held + left * (level @ held) / level.sum(1, keepdim=True)) / k


def _per_query(values: Tensor, local: Tensor, count: int) -> Tensor:
    return torch.zeros(count, *values.shape[1:], dtype=values.dtype).index_add_(0, local[:, 0], values)


def _wide(features: Tensor | NDArray[Any]) -> Tensor:
    rows = torch.from_numpy(np.array(features)) if isinstance(features, np.ndarray) else features.detach().cpu()
    return rows if rows.dtype == torch.float64 else rows.float()


def _check(
    query: Tensor, document: Tensor, modalities: Sequence[str], pairs: Tensor, worth: Tensor, ks: Sequence[int]
) -> None:
    if query.ndim != 2 or document.ndim != 2 or query.shape[1] != document.shape[1] or not len(query):
        raise DataError(
            f"queries {tuple(query.shape)} and documents {tuple(document.shape)} do not fit: pass Q×d and D×d"
        )
    if len(modalities) != len(document):
        raise DataError(f"{len(document)} documents and {len(modalities)} modalities: pass one name a document")
    if not ks or min(ks) < 1:
        raise DataError(f"ks are {tuple(ks)}: pass whole numbers from 1")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.is_floating_point() or worth.shape != (len(pairs),):
        raise DataError(
            f"judgements {tuple(pairs.shape)} and grades {tuple(worth.shape)}: pass M×2 integers, and M grades"
        )
    if not bool(query.isfinite().all()) or not bool(document.isfinite().all()):
        raise DataError("features hold NaN or infinity: check the model's weights and precision")
    if not bool((worth > 0).all() and worth.isfinite().all()):
        raise DataError("a grade is not above 0: judge only the documents that are relevant")
    limits = torch.tensor([len(query), len(document)])
    outside = ((pairs.cpu() < 0) | (pairs.cpu() >= limits)).any(1).nonzero().flatten()
    if len(outside):
        row = int(outside[0])
        raise DataError(f"judgement {row} is {tuple(pairs[row].tolist())}: there is no such query or document")
    if len(torch.unique(pairs.cpu(), dim=0)) < len(pairs):
        raise DataError("a query and a document are judged twice: keep one of the judgements")
    empty = (torch.bincount(pairs[:, 0].cpu().long(), minlength=len(query)) == 0).nonzero().flatten()
    if len(empty):
        raise DataError(f"query {int(empty[0])} has no relevant document: leave it out")
