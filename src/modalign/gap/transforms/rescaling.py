"""Transforms that give the texts the pictures' place and size; pictures stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from modalign.errors import RecipeError
from modalign.gap.transforms.from_moments import MomentTransform
from modalign.gap.transforms.vectors import blocks, unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from modalign.gap.transforms.vectors import Vectors


@dataclass(eq=False, repr=False, kw_only=True)
class Standardize(MomentTransform):
    """Gives every dimension of the texts the pictures' mean and spread: (t − μt)·σx/σt + μx.

    A dimension in which no text differs is moved and not scaled.

    Args:
        normalize: scale every row to length 1 first.
        renormalize: scale rows to length 1 afterwards.
    """

    kind: ClassVar[str] = "standardize"

    renormalize: bool = False

    def _solve(self) -> None:
        image, text = (self._side(name).variance.sqrt() for name in ("image", "text"))
        self.scale_ = torch.where(text > 0, image / text, 1.0)

    def _map(self, rows: Tensor, role: str) -> Tensor:
        if role.endswith("text"):
            rows = (rows - self.text_mean_) * self.scale_ + self.image_mean_
        return unit(rows) if self.renormalize else rows


@dataclass(eq=False, repr=False, kw_only=True)
class ReAlign(MomentTransform):
    """Gives the texts the pictures' mean and total variance, on the sphere.

        e = μx + s·(t − μt),  s = √(tr Sx / tr St)          mean and trace of e are those of x
        e' = unit(e)
        e'' = unit(e' − μe' + μx)                           scaling moved the mean: it is put back

    `scale_` is s and `drift_` is μe', the mean of e' over the texts, which no moments tell: `fit` reads the texts a
    second time; `partial_fit` keeps up to `SAMPLE` of them, drawn evenly, and is exact up to that many.

    Args:
        normalize: scale every row to length 1 first.

    Source: arXiv 2602.07026 (ReAlign: anchor, trace and centroid alignment).
    """

    kind: ClassVar[str] = "realign"
    SAMPLE: ClassVar[int] = 16_384

    def __post_init__(self) -> None:
        super().__post_init__()
        self._sample = _Sample(self.SAMPLE)

    def fit(self, image: Vectors, text: Vectors) -> Self:
        """Fits in two passes, forgetting what was fitted before; arguments as in `partial_fit`."""
        self._forget()
        self._take(image=image, text=text)
        self._solve_with(self._sample.drawing(blocks(text, "text", self.normalize)))
        return self

    def partial_fit(self, image: Vectors, text: Vectors) -> Self:
        """Fits to these rows and all that came before.

        Args:
            image: N×d features, raw or unit.
            text: M×d.

        Returns:
            The transform itself.

        Raises:
            FeatureError: shapes that do not fit, rows that are not finite or zero, too few rows.
            RecipeError: it was loaded: texts seen before are not saved.
        """
        if self._moments and not self._sample.seen:
            raise RecipeError("realign was loaded, and the texts it was fitted on are not saved: call fit")
        self._take(image=image, text=text)
        for _ in self._sample.drawing(blocks(text, "text", self.normalize)):
            pass
        self._solve()
        return self

    def _solve(self) -> None:
        self._solve_with([self._sample.rows])

    def _solve_with(self, texts: Iterable[Tensor]) -> None:
        image, text = (float(self._side(name).variance.sum()) for name in ("image", "text"))
        self.scale_ = (image / text) ** 0.5 if text > 0 else 1.0
        count, total = 0, torch.zeros_like(self.image_mean_)
        for rows in texts:
            count, total = count + len(rows), total + self._on_sphere(rows).sum(0)
        self.drift_ = total / count

    def _on_sphere(self, rows: Tensor) -> Tensor:
        return unit(self.image_mean_ + self.scale_ * (rows - self.text_mean_))

    def _map(self, rows: Tensor, role: str) -> Tensor:
        if role.endswith("image"):
            return rows
        return unit(self._on_sphere(rows) - self.drift_ + self.image_mean_)

    def _forget(self) -> None:
        super()._forget()
        self._sample = _Sample(self.SAMPLE)

    def take(self, told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes over what `state` gave."""
        super().take(told, tensors)
        self._sample = _Sample(self.SAMPLE)


class _Sample:
    """At most `most` rows, each of all that were seen being as likely to be among them; the same on every run."""

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, 0
        self.rows, self._draws = torch.empty(0, 0), torch.empty(0, dtype=torch.float64)
        self._generator = torch.Generator().manual_seed(0)

    def drawing(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Passes rows on, n×d each, and draws from them."""
        for rows in parts:
            draws = torch.rand(len(rows), dtype=torch.float64, generator=self._generator)
            self.rows = torch.cat([self.rows, rows]) if self.seen else rows
            self._draws = torch.cat([self._draws, draws])
            self.seen += len(rows)
            if len(self.rows) > self.most:
                kept = self._draws.topk(self.most).indices.sort().values
                self.rows, self._draws = self.rows[kept], self._draws[kept]
            yield rows
