"""First and second moments of rows that come in parts: two sets of them merge exactly, in any order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """What is kept of N rows of width w.

    Attributes:
        count: N.
        mean: μ, w, float64.
        scatter: Σ (z − μ)(z − μ)ᵀ, w×w, or only its diagonal, w.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor, full: bool) -> Moments:
        """The moments of n×w rows; `full` keeps the whole scatter."""
        mean = rows.mean(0)
        away = rows - mean
        return cls(len(rows), mean, away.T @ away if full else away.square().sum(0))

    def merged(self, other: Moments) -> Moments:
        """The moments of both."""
        count = self.count + other.count
        step = other.mean - self.mean
        between = torch.outer(step, step) if self.scatter.ndim == 2 else step.square()
        scatter = self.scatter + other.scatter + between * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        """S, w×w, from 1/N."""
        return self.scatter / self.count

    @property
    def variance(self) -> Tensor:
        """The diagonal of S, w."""
        return (self.scatter.diagonal() if self.scatter.ndim == 2 else self.scatter) / self.count

    @property
    def standard_error(self) -> Tensor:
        """How far μ may lie from the true mean, per dimension: √(S_jj / (N − 1)); its length is the whole error."""
        return (self.variance / (self.count - 1)).sqrt()

    def part(self, columns: slice) -> Moments:
        """The moments of some of the columns."""
        scatter = self.scatter[columns, columns] if self.scatter.ndim == 2 else self.scatter[columns]
        return Moments(self.count, self.mean[columns], scatter)


def added(known: Moments | None, parts: Iterable[Tensor], full: bool) -> Moments | None:
    """Moments with more rows, n×w each; None where there are none at all."""
    for rows in parts:
        more = Moments.of(rows, full)
        known = more if known is None else known.merged(more)
    return known
