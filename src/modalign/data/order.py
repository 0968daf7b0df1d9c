"""The order of training: every function is pure, so any step of any run can be asked for on its own.

Seeds are 64 bits of a SHA-256 of the arguments: equal in every process and Python version, and unrelated for
neighbouring seeds, epochs and purposes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalign.errors import DataError


def epoch_order(seed: int, epoch: int, rows: int) -> Tensor:
    """A random permutation of the rows, a pure function of its arguments.

    Args:
        seed: the run's seed.
        epoch: counted from 0.
        rows: N, how many rows the data has.

    Returns:
        N integers, each of 0 … N−1 once.
    """
    return _epoch_order(seed, epoch, rows).clone()


# Every step of an epoch asks for the same permutation; two epochs meet where a loader reads ahead.
@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(_stable_seed("epoch order", seed, epoch, rows))
    return torch.randperm(rows, generator=generator)


def steps_per_epoch(rows: int, batch_size: int, drop_last: bool) -> int:
    """How many batches an epoch has: ⌊rows / batch_size⌋ with `drop_last`, else ⌈rows / batch_size⌉.

    Args:
        rows: N, how many rows the data has.
        batch_size: B, the size of the *global* batch.
        drop_last: leave out the last batch of an epoch when it would be smaller than B.

    Raises:
        DataError: there is no batch to make.
    """
    if batch_size < 1:
        raise DataError(f"batch size {batch_size} is not positive; pass at least 1")
    if rows < 1:
        raise DataError("the data has no rows; check the data spec")
    if drop_last and rows < batch_size:
        raise DataError(
            f"{rows} rows do not fill one batch of {batch_size} and the last, smaller batch is dropped; "
            f"set data.batch_size to at most {rows}, or data.drop_last=false"
        )
    return rows // batch_size if drop_last else -(-rows // batch_size)


def global_batch(seed: int, step: int, rows: int, batch_size: int, drop_last: bool) -> Tensor:
    """The rows of one global step; an epoch visits each row once (with `drop_last`: at most once).

    Args:
        seed: the run's seed.
        step: the global step, counted from 0; its epoch is step // steps_per_epoch.
        rows: N, how many rows the data has.
        batch_size: B, the size of the *global* batch.
        drop_last: leave out the last batch of an epoch when it would be smaller than B.

    Returns:
        B row numbers (fewer in an epoch's last batch when it is kept).

    Raises:
        DataError: there is no batch to make.
    """
    epoch, position = divmod(step, steps_per_epoch(rows, batch_size, drop_last))
    return _epoch_order(seed, epoch, rows)[position * batch_size : (position + 1) * batch_size].clone()


def source_draws(weights: Sequence[float], draws: int) -> list[int]:
    """How many of an epoch's draws each source of a mixture gets: wₛ / Σw of them, to within one, in every epoch.

    The fractions are cut off and the draws left over go to the largest remainders (the first source where they tie).

    Args:
        weights: one a source, positive.
        draws: how many draws an epoch has.

    Returns:
        One number a source; they add up to `draws`.

    Raises:
        DataError: a weight is not positive, or so small that its source would never be seen.
    """
    if bad := [weight for weight in weights if not 0 < weight < float("inf")]:
        raise DataError(f"a source has the weight {bad[0]:g}; pass a positive number, or leave the source out")
    total = sum(map(Fraction, weights))
    exact = [Fraction(weight) * draws / total for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda source: counts[source] - exact[source])
    for source in by_remainder[: draws - sum(counts)]:
        counts[source] += 1
    if 0 in counts:
        source = counts.index(0)
        raise DataError(
            f"weight {weights[source]:g} of source {source + 1} is too small: none of an epoch's {draws:,} draws would "
            "be its own; raise it or leave the source out"
        )
    return counts


def mixed_batch(
    seed: int, step: int, members: Sequence[Tensor], weights: Sequence[float], batch_size: int, drop_last: bool
) -> tuple[Tensor, Tensor]:
    """The rows of one global step of a weighted mixture.

    An epoch has as many draws as the mixture has rows (with `drop_last`, as fit into whole batches). Source s gets
    `source_draws` of them, at places that a random permutation of the epoch's draws decides. What it gives there is its
    own endless sequence, one random permutation of its rows after another, which goes on where the last epoch stopped:
    no row of a source comes again before all its others have been seen. A pure function of its arguments.

    Args:
        seed: the run's seed.
        step: the global step, counted from 0.
        members: each source's row numbers; N in all.
        weights: one a source, positive; only their proportions count.
        batch_size: B, the size of the *global* batch.
        drop_last: leave out the last batch of an epoch when it would be smaller than B.

    Returns:
        B row numbers (fewer in an epoch's last batch when it is kept), and for each which pass over its source it
        belongs to, counted from 0.

    Raises:
        DataError: there is no batch to make, or a weight that cannot be.
    """
    rows = sum(map(len, members))
    per_epoch = steps_per_epoch(rows, batch_size, drop_last)
    if empty := [source for source, own in enumerate(members, start=1) if not len(own)]:
        raise DataError(f"source {empty[0]} of the mixture has no row left; leave it out, or take more of the data")
    draws = source_draws(weights, per_epoch * batch_size if drop_last else rows)
    epoch, position = divmod(step, per_epoch)
    source, place, turn = _mixed_epoch(seed, epoch, tuple(map(len, members)), tuple(draws))
    part = slice(position * batch_size, (position + 1) * batch_size)
    chosen = zip(source[part].tolist(), place[part].tolist(), strict=True)
    return torch.tensor([int(members[s][p]) for s, p in chosen], dtype=torch.long), turn[part].clone()


@functools.lru_cache(maxsize=2)
def _mixed_epoch(seed: int, epoch: int, sizes: tuple[int, ...], draws: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Of every draw of an epoch: its source, the place among the source's rows, the pass over the source."""
    source = torch.bucketize(_epoch_order(seed, epoch, sum(draws)), torch.tensor(draws).cumsum(0), right=True)
    place, turn = torch.empty_like(source), torch.empty_like(source)
    for number, (size, count) in enumerate(zip(sizes, draws, strict=True)):
        own = torch.arange(epoch * count, (epoch + 1) * count)
        first, last = int(own[0]) // size, int(own[-1]) // size
        passes = torch.cat([_pass_order(seed, number, i, size) for i in range(first, last + 1)])
        place[source == number] = passes[own - first * size]
        turn[source == number] = own // size
    return source, place, turn


def _pass_order(seed: int, source: int, number: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(_stable_seed("pass over a source", seed, source, number, rows))
    return torch.randperm(rows, generator=generator)


def own_share(batch: Tensor, rank: int, world: int) -> Tensor:
    """The contiguous part of a global batch that one process embeds; sizes differ by at most one.

    Args:
        batch: B row numbers, the same on every process.
        rank: this process, 0 … world − 1.
        world: how many processes there are.

    Returns:
        ⌈B / world⌉ or ⌊B / world⌋ row numbers; the shares of all ranks, joined in order, are the batch.
    """
    return torch.tensor_split(batch, world)[rank]


def drawn_caption(seed: int, epoch: int | Tensor, row_indices: Tensor, counts: Tensor) -> Tensor:
    """Which of its captions each row shows in an epoch: uniform, and the same in whatever batch the row is asked for.

    Row i shows caption h(seed, epoch, i) mod counts_i, where h is the splitmix64 hash.

    Args:
        seed: the run's seed.
        epoch: counted from 0; of a mixture B integers, each row's pass over its source.
        row_indices: B row numbers.
        counts: B, how many captions each of these rows has, at least 1.

    Returns:
        B integers, 0 ≤ result < counts.

    Raises:
        ValueError: a row has no caption, or the arguments differ in length.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (the mixing function).
    """
    if row_indices.shape != counts.shape:
        raise ValueError(f"{len(row_indices)} rows but {len(counts)} counts; pass one count for each row")
    if bool((counts < 1).any()):
        raise ValueError("a row has no caption to draw; leave rows without captions out")
    key: Any
    if isinstance(epoch, Tensor):
        turns, place = np.unique(epoch.numpy(), return_inverse=True)
        key = np.array([_stable_seed("drawn caption", seed, turn) for turn in turns.tolist()], np.uint64)[place]
    else:
        key = np.uint64(_stable_seed("drawn caption", seed, epoch))
    hashed = key + (row_indices.numpy().astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed = hashed ^ (hashed >> np.uint64(31))
    return torch.from_numpy((hashed % counts.numpy().astype(np.uint64)).astype(np.int64))


def _stable_seed(*parts: str | int) -> int:
    """63 bits (what torch takes as a non-negative seed) of a hash of the arguments."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
