"""Clustering of features against classes: of pictures alone, and of pictures and texts together.

k-means and its scores are scikit-learn's. ARI, NMI and V-measure are functions θ of the table of class × cluster
counts; an example in cell (i, j) moves θ, were it drawn more often, by

    IF = n · (∂θ/∂n_ij − Σ_kl n_kl/n · ∂θ/∂n_kl)

so that the numbers θ + IF, one an example, average to θ, and a bootstrap of their mean is the infinitesimal jackknife
of θ: an interval for the sampling of examples with the clusters held fixed. How much the clusters themselves vary is
told by the spread over seeds.

Source: Efron, "The Jackknife, the Bootstrap and Other Resampling Plans", 1982, chapter 6.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.errors import DataError

SEEDS = 5
STARTS = 10
INTERVAL = "of the examples, the clusters held fixed; the deviation over seeds is told beside it"


@dataclass(frozen=True)
class Clustering:
    """What k-means found over several seeds.

    Attributes:
        assignments: S×N cluster numbers, a row a seed.
        scores: "ari", "nmi", "v_measure" → S numbers.
        outcomes: the same names → N numbers whose mean is the mean over seeds; see the module's docstring.
        notes: "clusters_found" where k-means found fewer than asked for.
    """

    assignments: NDArray[np.int64]
    scores: dict[str, list[float]]
    outcomes: dict[str, NDArray[np.float64]]
    notes: dict[str, int]

    def deviation(self, name: str) -> float:
        """The standard deviation of a score over seeds (S − 1); 0 for one seed."""
        return float(np.std(self.scores[name], ddof=1)) if len(self.scores[name]) > 1 else 0.0


def cluster(features: Tensor, labels: Tensor, clusters: int, *, seeds: int = SEEDS, starts: int = STARTS) -> Clustering:
    """k-means on unit features, scored against classes.

    Args:
        features: N×d, raw or unit; for joint clustering pictures and texts are stacked.
        labels: N class numbers.
        clusters: k.
        seeds: how many runs, seeded 0, 1, ….
        starts: n_init of each run.

    Returns:
        The `Clustering`.

    Raises:
        DataError: shapes that do not fit, fewer rows than clusters, features that are not finite.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if features.dim() != 2 or labels.shape != (len(features),) or not 2 <= clusters <= len(features):
        raise DataError(
            f"features {tuple(features.shape)}, labels {tuple(labels.shape)} and {clusters} clusters do not fit: "
            "pass N×d, N and between 2 and N"
        )
    if not bool(features.isfinite().all()):
        raise DataError("features hold NaN or infinity: check the model's weights and precision")
    unit = torch.nn.functional.normalize(features.detach(), dim=1).cpu().numpy()
    truth = np.unique(labels.cpu().numpy(), return_inverse=True)[1]
    runs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told below, with the number of clusters
        for seed in range(seeds):
            runs.append(KMeans(clusters, n_init=starts, random_state=seed).fit_predict(unit).astype(np.int64))
    tables = [_table(truth, run, clusters) for run in runs]
    scores: dict[str, list[float]] = {}
    outcomes: dict[str, NDArray[np.float64]] = {}
    for name, score in SCORES.items():
        values, spread = zip(*(_value_and_influence(score, table) for table in tables), strict=True)
        scores[name] = list(values)
        placed = [influence[truth, run] for influence, run in zip(spread, runs, strict=True)]
        outcomes[name] = np.mean(values) + np.mean(placed, axis=0)
    fewest = min(len(np.unique(run)) for run in runs)
    return Clustering(np.stack(runs), scores, outcomes, {"clusters_found": fewest} if fewest < clusters else {})


def adjusted_rand(table: Tensor) -> Tensor:
    """The adjusted Rand index of a class × cluster table of counts.

        ARI = (Σ C(n_ij, 2) − E) / (½(A + B) − E),   A = Σ C(a_i, 2),   B = Σ C(b_j, 2),   E = A·B / C(n, 2)

    Args:
        table: R×K counts, float64.

    Returns:
        A scalar; 1 where both sides are one and the same trivial partition, as scikit-learn has it.

    Source: Hubert and Arabie, "Comparing partitions", 1985.
    """
    both, rows, columns, whole = (_pairs(part) for part in (table, table.sum(1), table.sum(0), table.sum()[None]))
    expected = rows * columns / whole.clamp_min(1)
    most = 0.5 * (rows + columns)
    return torch.where(most == expected, torch.ones_like(both), (both - expected) / _nonzero(most - expected))


def v_measure(table: Tensor) -> Tensor:
    """The V-measure: the harmonic mean of homogeneity and completeness.

        V = 2·h·c / (h + c),   h = I/H(class),   c = I/H(cluster)

    It equals the mutual information over the arithmetic mean of the entropies, which is scikit-learn's default NMI.

    Args:
        table: R×K counts, float64.

    Returns:
        A scalar; 1 where both sides are one and the same trivial partition.

    Source: Rosenberg and Hirschberg, "V-Measure", 2007.
    """
    mutual, rows, columns = _information(table)
    return torch.where(rows + columns == 0, torch.ones_like(rows), 2 * mutual / _nonzero(rows + columns))


SCORES: dict[str, Callable[[Tensor], Tensor]] = {"ari": adjusted_rand, "nmi": v_measure, "v_measure": v_measure}


def _value_and_influence(
    score: Callable[[Tensor], Tensor], table: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """A score of a table, and the influence of an example in each of its cells."""
    counts = torch.from_numpy(table).requires_grad_(True)
    value = score(counts)
    (slope,) = torch.autograd.grad(value.sum(), counts)
    slope = slope.nan_to_num(0.0).detach()
    share = counts.detach() / counts.detach().sum()
    return float(value.detach()), (counts.detach().sum() * (slope - (share * slope).sum())).numpy()


def _table(truth: NDArray[np.int64], found: NDArray[np.int64], clusters: int) -> NDArray[np.float64]:
    table = np.zeros((int(truth.max()) + 1, clusters))
    np.add.at(table, (truth, found), 1.0)
    return table


def _pairs(counts: Tensor) -> Tensor:
    return (counts * (counts - 1) / 2).sum()


def _entropy(counts: Tensor) -> Tensor:
    """In nats; an empty cell adds nothing, to the value and to the gradient."""
    share = counts / counts.sum()
    return -(share * torch.where(share > 0, share, torch.ones_like(share)).log()).sum()


def _information(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = _entropy(table.sum(1)), _entropy(table.sum(0))
    return rows + columns - _entropy(table.flatten()), rows, columns


def _nonzero(value: Tensor) -> Tensor:
    return torch.where(value == 0, torch.ones_like(value), value)
