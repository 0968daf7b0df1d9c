"""Random numbers that depend on nothing but where they are used."""

from __future__ import annotations

import hashlib

import torch


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, the same in every process, Python version and order of calls."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, step: int, tag: str) -> torch.Generator:
    """A CPU generator for one use (`tag`) in one step of one run.

    Args:
        seed: the run's seed.
        step: the global step, counted from 0.
        tag: what the numbers are for; two uses with one tag draw the same numbers.
    """
    return torch.Generator().manual_seed(stable_seed(seed, step, tag))
