"""Seeded draws from labelled rows: pure functions of a seed and the labels, so that every model meets the same ones."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.errors import DataError


def stratified_split(labels: Tensor, share: float, seed: int = 0, groups: Tensor | None = None) -> Tensor:
    """Holds out a share of every class, by whole groups.

    A class of one group stays in the part that is kept; of any other at least one group is on either side.

    Args:
        labels: N class numbers.
        share: of each class's groups that is held out, between 0 and 1 (both excluded).
        seed: another seed draws others.
        groups: N ids of what stays together (the picture); a group belongs to the class of its first row. None = rows.

    Returns:
        N, true where held out.

    Raises:
        DataError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise DataError(f"cannot hold out a share of {share:g}: pass one between 0 and 1, such as 0.5")
    first, group = _groups(labels, groups)
    held = np.zeros(len(first), bool)
    for members in _orders(labels.cpu().numpy()[first], seed).values():
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held[members[:count]] = True
    return torch.from_numpy(held[group])


def draw_shots(
    labels: Tensor, shots: int, validation: int, seed: int, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draws so many examples of every class to learn from, and others to choose the penalty on.

    For one seed fewer shots are among more. A class with fewer examples than shots gives what it has, but for those
    that are left for validation none is taken from the shots.

    Args:
        labels: N class numbers.
        shots: examples a class.
        validation: further examples a class, as far as there are any.
        seed: another seed draws others.
        groups: as in `stratified_split`; one row of each group is drawn.

    Returns:
        The positions to learn from and those to validate on.
    """
    first, _ = _groups(labels, groups)
    learn, validate = [], []
    for members in _orders(labels.cpu().numpy()[first], seed).values():
        learn.append(members[:shots])
        validate.append(members[shots : shots + validation])
    return torch.from_numpy(first[np.concatenate(learn)]), torch.from_numpy(first[np.concatenate(validate)])


def _groups(labels: Tensor, groups: Tensor | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each group, in the order of rows, and each row's group."""
    ids = np.arange(len(labels)) if groups is None else groups.cpu().numpy()
    _, first, group = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[group]


def _orders(labels: NDArray[np.int64], seed: int) -> dict[int, NDArray[np.int64]]:
    """Class → its rows, shuffled by (seed, class)."""
    return {
        int(label): np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels == label))
        for label in np.unique(labels)
    }
