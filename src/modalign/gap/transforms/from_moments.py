"""Transforms made of means and covariances: fitted in parts, without holding a row."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor

from modalign.gap.features import FeatureError
from modalign.gap.transforms.accumulating import Moments, added
from modalign.gap.transforms.base import Modality, Transform
from modalign.gap.transforms.vectors import blocks, width_of

if TYPE_CHECKING:
    from modalign.gap.transforms.vectors import Vectors


@dataclass(eq=False, repr=False, kw_only=True)
class MomentTransform(Transform):
    """A transform made of means and (co)variances, so that it can be fitted in parts, at O(d²) memory."""

    paired: ClassVar[bool] = False
    """Whether row i of the images belongs to row i of the texts."""
    full: ClassVar[bool] = False
    """Whether whole covariances are needed, or only variances."""
    same_width: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._moments: dict[str, Moments] = {}
        self._image_width = 0

    def partial_fit(self, image: Vectors, text: Vectors) -> Self:
        """Fits the map to these rows and all that came before.

        Parts give what all rows at once give, to rounding. A loaded transform goes on where it was saved.

        Args:
            image: N×d features, raw or unit.
            text: M×d; with a transform of pairs M = N, and row i belongs to row i of `image`.

        Returns:
            The transform itself.

        Raises:
            FeatureError: as `fit`, and where d differs from what came before; nothing is added then.
            RecipeError: as `fit`.
        """
        self._take(image=image, text=text)
        self._solve()
        return self

    @property
    def rows_(self) -> dict[str, int]:
        """How many rows of each modality it was fitted on."""
        return {name: moments.count for name, moments in self._sides().items()}

    @property
    def image_mean_(self) -> Tensor:
        """μx, d."""
        return self._side("image").mean

    @property
    def text_mean_(self) -> Tensor:
        """μt, d."""
        return self._side("text").mean

    @property
    def standard_error_(self) -> dict[str, Tensor]:
        """The standard error of each modality's mean, d each: √(S_jj/(N−1)).

        Its length, to be set beside the centroid gap, is how far the mean lies from the true one (root mean square).
        """
        self._check_fitted()
        return {name: moments.standard_error for name, moments in self._sides().items()}

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All there is to save, the moments included: more rows can be added to a loaded transform."""
        told, tensors = super().state()
        told["rows"] = {name: moments.count for name, moments in self._moments.items()}
        told["image_width"] = self._image_width
        for name, moments in self._moments.items():
            tensors |= {f"moments.{name}.mean": moments.mean, f"moments.{name}.scatter": moments.scatter}
        return told, tensors

    def take(self, told: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes over what `state` gave."""
        fitted = {name: tensor for name, tensor in tensors.items() if not name.startswith("moments.")}
        super().take(told, fitted)
        self._image_width = int(told["image_width"])
        self._moments = {
            name: Moments(int(count), tensors[f"moments.{name}.mean"], tensors[f"moments.{name}.scatter"])
            for name, count in told["rows"].items()
        }

    @abstractmethod
    def _solve(self) -> None:
        """Sets the fitted attributes from the moments."""

    def _take(self, **given: Vectors) -> None:
        """Adds rows to the moments, all of them or none."""
        self._check_parameters()
        widths = {name: width_of(vectors, name) for name, vectors in given.items()}
        self._check_widths(widths)
        if self.paired:
            counts = [len(vectors) for vectors in given.values()]
            if counts[0] != counts[1]:
                raise FeatureError(f"{counts[0]:,} image and {counts[1]:,} text features: {self.kind} needs pairs")
            halves = (blocks(vectors, name, self.normalize) for name, vectors in given.items())
            parts = {"pairs": (torch.cat(both, dim=1) for both in zip(*halves, strict=True))}
        else:
            parts = {name: blocks(vectors, name, self.normalize) for name, vectors in given.items()}  # type: ignore[misc]
        found = {name: added(self._moments.get(name), rows, self.full) for name, rows in parts.items()}
        for name, moments in found.items():
            if moments is None or moments.count < 2:
                raise FeatureError(f"{self.kind} was given fewer than 2 {name} vectors: pass more rows to begin with")
        self._moments |= cast("dict[str, Moments]", found)
        self._image_width = widths["image"]

    def _check_widths(self, widths: dict[str, int]) -> None:
        if self.same_width and len(set(widths.values())) > 1:
            told = " and ".join(f"{name} features of {width} dimensions" for name, width in widths.items())
            raise FeatureError(f"{told}: {self.kind} needs one width; pass features of one model")
        for name, known in self._widths().items():
            if widths[name] != known:
                raise FeatureError(
                    f"{name} features of {widths[name]} dimensions after {known}: "
                    "pass features of one model, or call fit"
                )

    def _forget(self) -> None:
        super()._forget()
        self._moments = {}

    def _sides(self) -> dict[str, Moments]:
        if "pairs" not in self._moments:
            return self._moments
        both = self._moments["pairs"]
        return {"image": both.part(slice(self._image_width)), "text": both.part(slice(self._image_width, None))}

    def _side(self, name: str) -> Moments:
        self._check_fitted()
        return self._sides()[name]

    def _widths(self) -> dict[Modality, int]:
        if not self._moments:
            return {}
        return {"image": len(self._sides()["image"].mean), "text": len(self._sides()["text"].mean)}
