"""Nearest-neighbour normalisation: a correction of scores, against documents that are near to every query."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from modalign.gap.features import FeatureError
from modalign.gap.transforms.base import ROLES, Given, Modality, Transform
from modalign.gap.transforms.vectors import blocks, kept_type, width_of

if TYPE_CHECKING:
    from modalign.gap.transforms.vectors import Vectors

_OPPOSITE: dict[Modality, Modality] = {"image": "text", "text": "image"}


@dataclass(eq=False, repr=False, kw_only=True)
class NNN(Transform):
    """Takes from a document's scores what it gives to any query: score(q, c) − α · b(c).

        b(c) = mean of the k largest r·c over the reference queries r

    The reference queries of pictures are the texts it was fitted on, those of texts the pictures. It corrects scores,
    not vectors; but as b depends on the document alone, the corrected scores are inner products of vectors with one
    column more, which any index for inner products can hold:

        document: [c, −α·b(c)]        query: [q, 1]        (do not normalise these)

    So `transform` takes the roles "document-image", "document-text", "query-text" and "query-image".

    Args:
        normalize: scale every row to length 1 first, so that scores are cosines.
        k: how many reference queries.
        alpha: α.

    Source: arXiv 2410.24114 (k = 128, α = ¾).
    """

    kind: ClassVar[str] = "nnn"

    k: int = 128
    alpha: float = 0.75

    def partial_fit(self, image: Vectors, text: Vectors) -> Self:
        """Adds reference queries.

        Args:
            image: N×d features, raw or unit: references of texts. They are kept: memory grows with N.
            text: M×d: references of pictures.

        Returns:
            The transform itself.

        Raises:
            FeatureError: shapes that do not fit, rows that are not finite or zero, fewer than k rows in all.
            RecipeError: a parameter that makes no sense.
        """
        self._check_parameters()
        given = {"image": image, "text": text}
        widths = {name: width_of(vectors, name) for name, vectors in given.items()} | {
            f"earlier {name}": width for name, width in self._widths().items()
        }
        if len(set(widths.values())) > 1:
            told = " and ".join(f"{name} features of {width} dimensions" for name, width in widths.items())
            raise FeatureError(f"{told}: pass features of one model")
        found = {}
        for name, vectors in given.items():
            rows = [part.to(kept_type(vectors)) for part in blocks(vectors, name, self.normalize)]
            known = getattr(self, f"{name}_references_", None)
            rows = rows if known is None else [known, *rows]
            count = sum(map(len, rows))
            if count < self.k:
                raise FeatureError(f"k is {self.k} and there are {count} {name} features: pass more, or a smaller k")
            found[name] = torch.cat(rows)
        self.image_references_, self.text_references_ = found["image"], found["text"]
        return self

    def bias(self, candidates: Given, role: str) -> Given:
        """α · b(c): what is to be taken from each candidate's scores.

        Args:
            candidates: N×d features, raw or unit.
            role: "document-image" or "document-text".

        Returns:
            N, of the library and type that came in.

        Raises:
            NotFittedError: `fit` was not called.
            FeatureError: as `transform`.
        """
        if not role.startswith("document-"):
            raise FeatureError(f"role is {role!r}: pass document-image or document-text")
        return -self.transform(candidates, role)[:, -1]  # type: ignore[index,no-any-return]

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise self._wrong("k", "a number of reference queries, at least 1")
        wrong = isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float)
        if wrong or not math.isfinite(self.alpha):
            raise self._wrong("alpha", "a number, for example 0.75")

    def _map(self, rows: Tensor, role: str) -> Tensor:
        if role in ("image", "text"):
            raise FeatureError(f"nnn treats queries and documents apart: pass the role query-{role} or document-{role}")
        if role.startswith("query"):
            return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        references = getattr(self, f"{_OPPOSITE[ROLES[role]]}_references_").double()
        best = [(part @ references.T).topk(self.k, dim=1).values.mean(1) for part in rows.split(256)]
        return torch.cat([rows, -self.alpha * torch.cat(best)[:, None]], dim=1)

    def _widths(self) -> dict[Modality, int]:
        if not hasattr(self, "text_references_"):
            return {}
        width = self.text_references_.shape[1]
        return {"image": width, "text": width}
