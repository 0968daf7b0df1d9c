"""Classification by nearest neighbours: what image features alone know about classes, without any text."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.errors import DataError

NEIGHBOURS = 10
ROUNDING = 1e-9
"""Two pictures whose cosine is within this of 1 are one: features of equal pixels differ by less, of others by more."""
TIES = (
    "all that are as near as the last neighbour vote; of classes with equally many votes the one with the nearest "
    "voter wins; what is still equal counts against"
)
COPIES = f"rows of one file, and pictures with 1 - cosine up to {ROUNDING:g}, are not each other's neighbours"


def knn_outcomes(
    image: Tensor, labels: Tensor, pictures: Tensor | None = None, k: int = NEIGHBOURS, *, chunk: int = 256
) -> NDArray[np.float64]:
    """Whether the vote of each picture's k nearest neighbours among the others names its class.

        ŷ_i = argmax_c |{j ∈ N_k(i): y_j = c}|,   N_k(i) by cosine, without i and its copies

    Every neighbour has one vote. Where several are as near as the k-th, all of them vote, so that the order of rows
    does not matter. Of classes with equally many votes the one whose nearest voter is nearest wins; a picture whose
    class ties even there counts as wrong, and so does one without a neighbour. Copies would vote for themselves: rows
    of the same file, and features that are equal up to rounding, are left out, so constant features score 0. A zero
    row is near to nothing.

    Args:
        image: N×d, raw or unit.
        labels: N class numbers.
        pictures: N ids, equal for rows of the same file; None = all differ.
        k: neighbours that vote; all others where there are fewer.
        chunk: pictures at once.

    Returns:
        N zeros and ones.

    Raises:
        DataError: shapes that do not fit, features that are not finite, or k below 1.
    """
    own = torch.arange(len(image)) if pictures is None else pictures
    return _outcomes(image, labels, own, image, labels, own, k, chunk)


def knn_probe_outcomes(
    train: Tensor, train_labels: Tensor, image: Tensor, labels: Tensor, k: int = NEIGHBOURS, *, chunk: int = 256
) -> NDArray[np.float64]:
    """Whether the vote of each picture's k nearest neighbours among training pictures names its class.

    The vote, its ties and the rule for copies are those of `knn_outcomes`.

    Args:
        train: M×d, raw or unit.
        train_labels: M class numbers.
        image: N×d, raw or unit, other pictures.
        labels: N class numbers.
        k: neighbours that vote.
        chunk: pictures at once.

    Returns:
        N zeros and ones.

    Raises:
        DataError: shapes that do not fit, features that are not finite, or k below 1.
    """
    apart = torch.arange(len(train) + len(image))
    return _outcomes(image, labels, apart[len(train) :], train, train_labels, apart[: len(train)], k, chunk)


def _outcomes(
    image: Tensor,
    labels: Tensor,
    pictures: Tensor,
    voters: Tensor,
    voters_labels: Tensor,
    voters_pictures: Tensor,
    k: int,
    chunk: int,
) -> NDArray[np.float64]:
    """N features, labels and ids, and those of M that vote → N: whether the vote is right."""
    for features, classes in ((image, labels), (voters, voters_labels)):
        if features.dim() != 2 or not len(features) or len(classes) != len(features) or k < 1:
            raise DataError(
                f"image features {tuple(features.shape)}, {len(classes)} labels and k = {k} do not fit: "
                "pass N×d, N and k ≥ 1"
            )
        if not bool(features.isfinite().all()):
            raise DataError("features hold NaN or infinity: check the model's weights and precision")
    if image.shape[1] != voters.shape[1]:
        raise DataError(f"features of width {image.shape[1]} and {voters.shape[1]} do not fit: pass those of one model")
    unit, voting = (torch.nn.functional.normalize(f.detach().double(), dim=1) for f in (image, voters.to(image.device)))
    own, of, labels, classes = (t.to(unit.device) for t in (pictures, voters_pictures, labels, voters_labels))
    nothing, silent = ~unit.any(dim=1), ~voting.any(dim=1)
    outcomes = [
        _right(unit[rows] @ voting.T, (own[rows, None] == of) | nothing[rows, None] | silent, classes, labels[rows], k)
        for rows in (slice(start, start + chunk) for start in range(0, len(unit), chunk))
    ]
    return torch.cat(outcomes).double().cpu().numpy()


def _right(similarity: Tensor, apart: Tensor, labels: Tensor, wanted: Tensor, k: int) -> Tensor:
    """B×M similarities and which are no neighbours → B: whether the vote is for the wanted class."""
    similarity = similarity.masked_fill(apart | (similarity >= 1 - ROUNDING), -torch.inf)
    last = similarity.topk(min(k, similarity.shape[1]), dim=1).values[:, -1:]
    row, column = ((similarity >= last) & (similarity > -torch.inf)).nonzero(as_tuple=True)
    classes = int(torch.cat([labels, wanted]).max()) + 1
    place = row * classes + labels[column]
    size = len(similarity) * classes
    votes = torch.bincount(place, minlength=size).view(len(similarity), -1)
    nearest = similarity.new_full((size,), -torch.inf)
    nearest = nearest.scatter_reduce(0, place, similarity[row, column], "amax").view_as(votes)
    leading = votes == votes.amax(dim=1, keepdim=True)
    nearest = nearest.masked_fill(~leading, -torch.inf)
    own = nearest.gather(1, wanted[:, None])
    best = (nearest >= own).sum(dim=1) == 1
    return best & (own[:, 0] > -torch.inf)
