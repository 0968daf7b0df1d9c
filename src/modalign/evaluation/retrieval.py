"""Image–text retrieval as maths over embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.errors import DataError

TIES = "a wrong item that scores as high as the best right one counts as ranked before it"
IDENTICAL_CAPTIONS = (
    "shared positives: a caption's pictures are all that carry the same string, "
    "a picture's captions are all whose string is one of its own"
)


def retrieval_outcomes(
    image: Tensor,
    text: Tensor,
    image_of_text: Tensor,
    caption_ids: Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    *,
    chunk: int = 256,
) -> dict[str, NDArray[np.float64]]:
    """Recall at k of every query, both ways: 1 when a right item is among the k best, else 0.

    With identical captions shared, the right items of a caption are all pictures that carry its string, and those of
    a picture all captions whose string is one of its own. Hit at k = fewer than k *wrong* items score at least as high
    as the best right one: without ties and duplicates the usual recall (CLIP_benchmark's); ties count against, so
    constant features score 0 wherever more than k wrong items exist, never 100 %.

    Args:
        image: N×d, raw or unit, one row a picture.
        text: M×d, raw or unit, one row a caption.
        image_of_text: M, the picture of each caption; every picture needs at least one.
        caption_ids: M, equal for equal strings; None = all captions differ.
        ks: the k; those that reach over the whole gallery, where everything is a hit, are kept all the same.
        chunk: queries at once: memory grows with chunk × gallery, not with N×M.

    Returns:
        "image_to_text_r<k>" → N and "text_to_image_r<k>" → M zeros and ones.

    Raises:
        DataError: shapes that do not fit, a picture without captions, features that are not finite.

    Source: the recall of arXiv 2103.00020's retrieval tables (any right item counts).
    """
    strings = torch.arange(len(text)) if caption_ids is None else caption_ids.cpu()
    pictures = image_of_text.cpu()
    _check(image, text, pictures, strings)
    _, strings = torch.unique(strings, return_inverse=True)
    gallery_image, gallery_text = _Gallery.of(image), _Gallery.of(text)
    carries = torch.unique(torch.stack([pictures, strings], 1), dim=0)  # distinct (picture, string)

    image_ranks = torch.empty(len(image), dtype=torch.int64)
    strings_of = _Lists.of(carries[:, 0], carries[:, 1], len(image))
    for start in range(0, len(image), chunk):
        queries = torch.arange(start, min(start + chunk, len(image)))
        right = strings_of.mask(queries, int(strings.max()) + 1)[:, strings]
        image_ranks[queries] = _wrong_before(gallery_text.scores(gallery_image, queries), right)

    text_ranks = torch.empty(len(text), dtype=torch.int64)
    pictures_of = _Lists.of(carries[:, 1], carries[:, 0], int(strings.max()) + 1)
    for start in range(0, len(text), chunk):
        queries = torch.arange(start, min(start + chunk, len(text)))
        right = pictures_of.mask(strings[queries], len(image))
        text_ranks[queries] = _wrong_before(gallery_image.scores(gallery_text, queries), right)

    ranks = {"image_to_text": image_ranks, "text_to_image": text_ranks}
    return {f"{way}_r{k}": (rank < k).double().numpy() for way, rank in ranks.items() for k in ks}


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


def _wrong_before(scores: Tensor, right: Tensor) -> Tensor:
    """q×G scores, q×G right items → q: how many wrong items score at least as high as the best right one."""
    right = right.to(scores.device)
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best) & ~right).sum(1).cpu()


@dataclass(frozen=True)
class _Gallery:
    """Unit features, each distinct row once: equal rows must tie exactly, which a matrix product does not promise."""

    distinct: Tensor
    row: Tensor

    @classmethod
    def of(cls, features: Tensor) -> _Gallery:
        wide = features if features.dtype == torch.float64 else features.float()
        distinct, row = torch.unique(torch.nn.functional.normalize(wide, dim=-1), dim=0, return_inverse=True)
        return cls(distinct, row)

    def scores(self, queries: _Gallery, rows: Tensor) -> Tensor:
        """Cosines of some of the queries with every item."""
        return (queries.distinct[queries.row[rows]] @ self.distinct.T)[:, self.row]


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
