"""What every objective checks at its border, once, with a message that says what to pass instead."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import Tensor


def shape_of(tensor: Tensor) -> str:
    """A tensor's shape as a reader writes it: "4×512"."""
    return "×".join(str(size) for size in tensor.shape) or "a scalar"


def require_pairs(**features: Tensor) -> None:
    """Checks that all are matrices of one shape B×d, row i of each belonging to pair i.

    Raises:
        ValueError: naming the first that differs.
    """
    (first_name, first), *others = features.items()
    if first.dim() != 2 or 0 in first.shape:
        raise ValueError(f"{first_name} is {shape_of(first)}; pass B×d features, one row per pair")
    for name, value in others:
        if value.shape != first.shape:
            raise ValueError(
                f"{first_name} is {shape_of(first)} but {name} is {shape_of(value)}; "
                "pass features of the same pairs in the same space, all B×d"
            )


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Checks that a word is one of those offered."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; use {' or '.join(repr(choice) for choice in choices)}")


def require_range(name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Checks that a number is finite and lies in [low, high], or in (low, high] when `open_low`."""
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value:g}; use a finite number")
    if not (low < value <= high if open_low else low <= value <= high):
        wanted = f"a number {'above' if open_low else 'from'} {low:g}"
        wanted += f" to {high:g}" if math.isfinite(high) else ("" if open_low else " up")
        raise ValueError(f"{name} is {value:g}; use {wanted}")
