"""Seeded parts of a data set that lie in one another: 25 % in 50 %, the first k in the first k + 1."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from modalign.errors import DataError


def nested_order(strata: Mapping[str, int], seed: int) -> list[str]:
    """Puts names in an order of which every beginning holds each stratum in its proportion.

    Within a stratum of n names, ordered by a hash of seed and name, the r-th (from 0) is placed at (r + ½) / n. The
    first of every stratum come before all others, so that a beginning at least as long as there are strata misses none.

    Args:
        strata: each name's stratum, such as its class; their order does not matter.
        seed: another seed gives another order.

    Returns:
        Every name once.
    """
    hashed = {
        name: hashlib.sha256(f"subset\0{seed}\0{name}".encode(errors="surrogateescape")).digest() for name in strata
    }
    members: dict[int, list[str]] = {}
    for name in sorted(strata, key=hashed.__getitem__):
        members.setdefault(strata[name], []).append(name)
    place: dict[str, tuple[bool, float, bytes]] = {}
    for names in members.values():
        for rank, name in enumerate(names):
            place[name] = (rank > 0, (rank + 0.5) / len(names), hashed[name])
    return sorted(place, key=place.__getitem__)


def subset_size(total: int, fraction: float | None, limit: int | None, what: str) -> int:
    """How many of `total` a fraction and a limit leave: round(fraction · total), at least one, at most the limit.

    Args:
        total: how many there are.
        fraction: above 0 and up to 1, or None.
        limit: at least 1, or None.
        what: the data, for messages.

    Raises:
        DataError: one of them is out of range.
    """
    if fraction is not None and not 0 < fraction <= 1:
        raise DataError(f"{what}: cannot take a fraction of {fraction:g}; pass one above 0 and up to 1, such as 0.25")
    if limit is not None and limit < 1:
        raise DataError(f"{what}: cannot take {limit} pictures; pass a limit of at least 1")
    count = total if fraction is None else min(max(round(fraction * total), 1), total)
    return count if limit is None else min(count, limit)


def subset_of(
    spec: str, names: Sequence[str], strata: Sequence[int], fraction: float | None, limit: int | None, seed: int
) -> list[bool] | None:
    """Which rows stay: those of the first pictures of a nested order; None where all do.

    Args:
        spec: the data, for messages.
        names: of N rows' pictures; equal names are one picture.
        strata: N numbers; a picture's is that of its first row.
        fraction: as for `subset_size`.
        limit: likewise.
        seed: as for `nested_order`.
    """
    stratum: dict[str, int] = {}
    for name, number in zip(names, strata, strict=True):
        stratum.setdefault(name, number)
    count = subset_size(len(stratum), fraction, limit, spec)
    if count == len(stratum):
        return None
    chosen = set(nested_order(stratum, seed)[:count])
    return [name in chosen for name in names]
