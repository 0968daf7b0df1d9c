"""Transforms made of the two means alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self, cast

from torch import Tensor

from modalign.gap.transforms.base import Given
from modalign.gap.transforms.from_moments import MomentTransform
from modalign.gap.transforms.vectors import mapped, unit, width_of

if TYPE_CHECKING:
    from modalign.gap.transforms.vectors import Vectors


@dataclass(eq=False, repr=False, kw_only=True)
class Center(MomentTransform):
    """Takes each modality's mean away: x − μx, t − μt.

    The centroid gap of what it was fitted on becomes 0 and the distribution gap stays as it is; with `renormalize`
    rows are scaled back to length 1, which changes the distribution gap and leaves a small centroid gap. Cosine
    similarities, and so rankings by them, are the same either way.

    Queries that are no captions of the documents ("what does …?") have a mean of their own: give them as `query`, and
    use the roles "query-text", "document-text" and "document-image".

    Args:
        normalize: scale every row to length 1 first.
        renormalize: scale rows to length 1 afterwards.

    Source: arXiv 2412.14384 (I0T, post hoc); the roles and fused documents arXiv 2507.19054 (GR-CLIP).
    """

    kind: ClassVar[str] = "center"

    renormalize: bool = False

    def fit(self, image: Vectors, text: Vectors, query: Vectors | None = None) -> Self:
        """Fits the means, forgetting what was fitted before.

        Args:
            image: N×d features of pictures, raw or unit.
            text: M×d of (document) texts; N and M may differ.
            query: Q×d of query texts; None = queries are centred as texts are.

        Returns:
            The transform itself.

        Raises:
            FeatureError: shapes that do not fit, rows that are not finite or zero, too few rows.
        """
        self._forget()
        return self.partial_fit(image, text, query)

    def partial_fit(self, image: Vectors, text: Vectors, query: Vectors | None = None) -> Self:
        """Fits the means to these rows and all that came before; arguments as in `fit`."""
        self._take(image=image, text=text, **({} if query is None else {"query": query}))
        return self

    def transform_fused(self, features: Given, weight: float = 0.5) -> Given:
        """Maps documents whose picture and text were fused: z = a·t + (1−a)·x becomes z − (a·μt + (1−a)·μx).

        Args:
            features: N×d, fused from the unit features (raw ones where `normalize` is False); taken as they are.
            weight: a, of the text.

        Returns:
            N×d, as `transform` does.

        Raises:
            NotFittedError: `fit` was not called.
            FeatureError: another width than it was fitted on, rows that are not finite, a weight outside of 0…1.
        """
        from modalign.gap.features import FeatureError

        if not 0 <= weight <= 1:
            raise FeatureError(f"weight is {weight!r}: pass the share of the text, 0 to 1")
        mean = weight * self.text_mean_ + (1 - weight) * self.image_mean_
        given = cast("Vectors", features)
        if width_of(given, "fused") != len(mean):
            raise FeatureError(f"fused features have {width_of(given, 'fused')} dimensions, the means {len(mean)}")
        return cast("Given", mapped(given, "fused", False, lambda rows: self._away(rows, mean), len(mean)))

    def _solve(self) -> None:
        """Nothing but the means."""

    def _map(self, rows: Tensor, role: str) -> Tensor:
        name = "query" if role == "query-text" and "query" in self._moments else role.rpartition("-")[2]
        return self._away(rows, self._moments[name].mean)

    def _away(self, rows: Tensor, mean: Tensor) -> Tensor:
        return unit(rows - mean) if self.renormalize else rows - mean


@dataclass(eq=False, repr=False, kw_only=True)
class Shift(MomentTransform):
    """Moves both modalities along the gap: unit(x − λΔ/2), unit(t + λΔ/2), Δ = μx − μt.

    Args:
        normalize: scale every row to length 1 first.
        amount: λ: 0 = nothing, 1 = the means meet (before rows are scaled back to length 1), below 0 = farther apart.

    Source: arXiv 2203.02053, section 5.
    """

    kind: ClassVar[str] = "shift"

    amount: float = 1.0

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if isinstance(self.amount, bool) or not isinstance(self.amount, int | float) or not math.isfinite(self.amount):
            raise self._wrong("amount", "a number, for example 1.0")

    def _solve(self) -> None:
        self.gap_ = self.image_mean_ - self.text_mean_

    def _map(self, rows: Tensor, role: str) -> Tensor:
        sign = -1 if role.endswith("image") else 1
        return unit(rows + sign * self.amount / 2 * self.gap_)


@dataclass(eq=False, repr=False, kw_only=True)
class DropDimensions(MomentTransform):
    """Leaves out the k dimensions in which the two means are farthest apart: the largest |Δ_j|.

    Half of ‖Δ‖² may sit in 3 of 512 dimensions (arXiv 2203.02053's models have such ones); `share_` says how much does.

    Args:
        normalize: scale every row to length 1 first.
        k: how many.
        renormalize: scale rows to length 1 afterwards.
    """

    kind: ClassVar[str] = "drop-dimensions"

    k: int = 3
    renormalize: bool = False

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise self._wrong("k", "how many dimensions to drop, at least 1")

    def _check_widths(self, widths: dict[str, int]) -> None:
        super()._check_widths(widths)
        if self.k >= widths["image"]:
            raise self._wrong("k", f"fewer than the {widths['image']} dimensions there are")

    def _solve(self) -> None:
        squared = (self.image_mean_ - self.text_mean_).square()
        order = squared.argsort(descending=True, stable=True)
        self.dropped_ = order[: self.k].sort().values
        self.kept_ = order[self.k :].sort().values
        total = float(squared.sum())
        self.share_ = float(squared[self.dropped_].sum()) / total if total else 0.0

    def _map(self, rows: Tensor, role: str) -> Tensor:
        kept = rows[:, self.kept_]
        return unit(kept) if self.renormalize else kept
