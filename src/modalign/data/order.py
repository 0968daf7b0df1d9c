"""The order of training: every function is pure, so any step of any run can be asked for on its own.

Seeds are 64 bits of a SHA-256 of the arguments: equal in every process and Python version, and unrelated for
neighbouring seeds, epochs and purposes.
"""

from __future__ import annotations

import functools
import hashlib

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


def drawn_caption(seed: int, epoch: int, row_indices: Tensor, counts: Tensor) -> Tensor:
    """Which of its captions each row shows in an epoch: uniform, and the same in whatever batch the row is asked for.

    Row i shows caption h(seed, epoch, i) mod counts_i, where h is the splitmix64 hash.

    Args:
        seed: the run's seed.
        epoch: counted from 0.
        row_indices: B row numbers.
        counts: B, how many captions each of these rows has, at least 1.

    Returns:
        B integers, 0 ≤ result < counts.

    Raises:
        ValueError: a row has no caption, or the two arguments differ in length.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (the mixing function).
    """
    if row_indices.shape != counts.shape:
        raise ValueError(f"{len(row_indices)} rows but {len(counts)} counts; pass one count for each row")
    if bool((counts < 1).any()):
        raise ValueError("a row has no caption to draw; leave rows without captions out")
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
