"""Image–text retrieval as maths over embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.errors import DataError

RECALLS = (1, 5, 10)
FEW = 32
TIES = "a wrong item that scores as high as the best right one counts as ranked before it"
IDENTICAL_CAPTIONS = (
    "shared positives: a caption's pictures are all that carry the same string, "
    "a picture's captions are all whose string is one of its own"
)


@dataclass(frozen=True)
class Found:
    """How well the queries of one way find their right items.

    Attributes:
        rank: n, the place of the best right item, 1 = first.
        precision: n, the average precision over all right items, 0…1.
    """

    rank: NDArray[np.float64]
    precision: NDArray[np.float64]

    def hits(self, k: int) -> NDArray[np.float64]:
        """n zeros and ones: whether a right item is among the k best."""
        return (self.rank <= k).astype(np.float64)


def retrieve(
    image: Tensor, text: Tensor, image_of_text: Tensor, caption_ids: Tensor | None = None, *, chunk: int = 256
) -> dict[str, Found]:
    """The ranks of every query's right items, both ways.

        rank = 1 + (wrong items that score at least as high as the best right one)
        average precision = mean over right items j of  r_j / (r_j + wrong items that score at least as high as j)

    with r_j = j's place among the right items alone. With identical captions shared, the right items of a caption are
    all pictures that carry its string, and those of a picture all captions whose string is one of its own. Ties count
    against: what scores the same as a right item and is wrong stands before it.

    Args:
        image: N×d, raw or unit, one row a picture.
        text: M×d, raw or unit, one row a caption.
        image_of_text: M, the picture of each caption; every picture needs at least one.
        caption_ids: M, equal for equal strings; None = all captions differ.
        chunk: queries at once: memory grows with chunk × gallery, not with N×M.

    Returns:
        {"image_to_text": one entry a picture, "text_to_image": one entry a caption}.

    Raises:
        DataError: shapes that do not fit, a picture without captions, features that are not finite.
    """
    strings = torch.arange(len(text)) if caption_ids is None else caption_ids.cpu()
    pictures = image_of_text.cpu()
    _check(image, text, pictures, strings)
    _, strings = torch.unique(strings, return_inverse=True)
    gallery_image, gallery_text = _Gallery.of(image), _Gallery.of(text)
    carries = torch.unique(torch.stack([pictures, strings], 1), dim=0)  # distinct (picture, string)
    count = int(strings.max()) + 1
    strings_of = _Lists.of(carries[:, 0], carries[:, 1], len(image))
    pictures_of = _Lists.of(carries[:, 1], carries[:, 0], count)
    return {
        "image_to_text": _found(
            gallery_image, gallery_text, lambda queries: strings_of.mask(queries, count)[:, strings], chunk
        ),
        "text_to_image": _found(
            gallery_text, gallery_image, lambda queries: pictures_of.mask(strings[queries], len(image)), chunk
        ),
    }


def retrieval_outcomes(
    image: Tensor,
    text: Tensor,
    image_of_text: Tensor,
    caption_ids: Tensor | None = None,
    ks: Sequence[int] = RECALLS,
    *,
    chunk: int = 256,
) -> dict[str, NDArray[np.float64]]:
    """Recall at k of every query, both ways: 1 when a right item is among the k best, else 0.

    Without ties and duplicates this is the usual recall (CLIP_benchmark's). Constant features score 0 wherever more
    than k wrong items exist, never 100 %.

    Args:
        image: as in `retrieve`.
        text: likewise.
        image_of_text: likewise.
        caption_ids: likewise.
        ks: the k; those that reach over the whole gallery, where everything is a hit, are kept all the same.
        chunk: as in `retrieve`.

    Returns:
        "image_to_text_r<k>" → N and "text_to_image_r<k>" → M zeros and ones.

    Raises:
        DataError: as in `retrieve`.

    Source: the recall of arXiv 2103.00020's retrieval tables (any right item counts).
    """
    ways = retrieve(image, text, image_of_text, caption_ids, chunk=chunk)
    return {f"{way}_r{k}": found.hits(k) for way, found in ways.items() for k in ks}


def linked_captions(image_of_text: Tensor, caption_ids: Tensor) -> Tensor:
    """Groups the captions that share a picture or a string, directly or through others.

    Args:
        image_of_text: M, the picture of each caption.
        caption_ids: M, equal for equal strings.

    Returns:
        M group numbers: the lowest picture number of each group.
    """
    pictures, strings = image_of_text.cpu(), torch.unique(caption_ids.cpu(), return_inverse=True)[1]
    group = pictures
    while True:
        wider = group
        for owner in (strings, pictures):
            lowest = torch.full((int(owner.max()) + 1,), int(pictures.max()))
            wider = lowest.scatter_reduce_(0, owner, wider, "amin")[owner]
        if torch.equal(wider, group):
            return group
        group = wider


def _found(queries: _Gallery, gallery: _Gallery, right: Callable[[Tensor], Tensor], chunk: int) -> Found:
    """Ranks and precisions of all queries; `right`: q queries → q×G, true at their right items."""
    parts = []
    for rows in torch.arange(len(queries)).split(chunk):
        scores = gallery.scores(queries, rows)
        parts.append(_ranked(scores, right(rows).to(scores.device)))
    ranks, precisions = zip(*parts, strict=True)
    return Found(torch.cat(ranks).cpu().double().numpy(), torch.cat(precisions).cpu().numpy())


def _ranked(scores: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """q×G scores and right items → q ranks of the best right item, and q average precisions."""
    counts = right.sum(1)
    # Right scores, best first, -inf where a query has fewer than the others.
    bounds = scores.masked_fill(~right, -torch.inf).topk(int(counts.max()), dim=1).values
    wrong = _as_high(scores, bounds) - _as_high(bounds, bounds)
    place = torch.arange(1, bounds.shape[1] + 1, device=scores.device)
    precision = (place / (place + wrong).double()).masked_fill(place > counts[:, None], 0.0)
    return wrong[:, 0] + 1, precision.sum(1) / counts


def _as_high(scores: Tensor, bounds: Tensor) -> Tensor:
    """q×G scores, q×R bounds, descending → q×R: how many scores are at least as high as each bound."""
    if bounds.shape[1] <= FEW:
        flags = torch.empty_like(scores)  # ones that are floats add up five times as fast as booleans, and as exactly
        each = [torch.ge(scores, bound[:, None], out=flags).sum(1).long() for bound in bounds.unbind(1)]
        return torch.stack(each, 1)
    # Each score falls into the bin of the highest bound that it reaches: one search a score, however many bounds.
    reached = torch.searchsorted(bounds.flip(1), scores.contiguous(), right=True)
    bins = torch.zeros(len(scores), bounds.shape[1] + 1, dtype=torch.long, device=scores.device)
    bins.scatter_add_(1, reached, torch.ones_like(reached))
    return bins.flip(1).cumsum(1)[:, :-1]


@dataclass(frozen=True)
class _Gallery:
    """Unit features, each distinct row once: equal rows must tie exactly, which a matrix product does not promise."""

    distinct: Tensor
    row: Tensor | None

    def __len__(self) -> int:
        return len(self.distinct if self.row is None else self.row)

    @classmethod
    def of(cls, features: Tensor) -> _Gallery:
        wide = features if features.dtype == torch.float64 else features.float()
        unit = torch.nn.functional.normalize(wide, dim=-1)
        distinct, row = torch.unique(unit, dim=0, return_inverse=True)
        return cls(distinct, row) if len(distinct) < len(unit) else cls(unit, None)

    def scores(self, queries: _Gallery, rows: Tensor) -> Tensor:
        """Cosines of some of the queries with every item."""
        scores = queries.distinct[rows if queries.row is None else queries.row[rows]] @ self.distinct.T
        return scores if self.row is None else scores[:, self.row]


@dataclass(frozen=True)
class _Lists:
    """For each owner a list of items, laid end to end."""

    starts: Tensor
    items: Tensor

    @classmethod
    def of(cls, owners: Tensor, items: Tensor, count: int) -> _Lists:
        order = owners.argsort(stable=True)
        sizes = torch.bincount(owners, minlength=count)
        return cls(torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), items[order])

    def mask(self, owners: Tensor, width: int) -> Tensor:
        """q owners → q×width, true at their items."""
        first, sizes = self.starts[owners], self.starts[owners + 1] - self.starts[owners]
        rows = torch.repeat_interleave(torch.arange(len(owners)), sizes)
        within = torch.arange(len(rows)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        mask = torch.zeros(len(owners), width, dtype=torch.bool)
        mask[rows, self.items[first[rows] + within]] = True
        return mask


def _check(image: Tensor, text: Tensor, pictures: Tensor, strings: Tensor) -> None:
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1] or not len(text):
        raise DataError(
            f"image features {tuple(image.shape)} and text features {tuple(text.shape)} do not fit: pass N×d and M×d"
        )
    if pictures.shape != (len(text),) or strings.shape != (len(text),):
        raise DataError(
            f"{len(text)} captions, {len(pictures)} pictures of captions and {len(strings)} caption ids: pass one each"
        )
    if int(pictures.min()) < 0 or int(pictures.max()) >= len(image):
        raise DataError(
            f"image_of_text names picture {int(pictures.max())}: there are {len(image)} (0…{len(image) - 1})"
        )
    alone = (torch.bincount(pictures, minlength=len(image)) == 0).nonzero().flatten()
    if len(alone):
        raise DataError(f"picture {int(alone[0])} has no caption: leave it out of the retrieval pairs")
    if not bool(image.isfinite().all()) or not bool(text.isfinite().all()):
        raise DataError("features hold NaN or infinity: check the model's weights and precision")
