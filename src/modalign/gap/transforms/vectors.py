"""Vectors as users hold them: arrays, tensors, memory-mapped files and stored rows, checked and read block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.gap.features import FeatureError, Features

if TYPE_CHECKING:
    from modalign.data.feature_store import Rows

    Vectors = Features | Rows
"""N×d numbers: a NumPy array (memory-mapped or not), a tensor, or rows of a feature store."""

BLOCK = 4096
"""Rows in memory at once."""


def width_of(vectors: Vectors, name: str) -> int:
    """The width d of N×d vectors.

    Args:
        vectors: N×d.
        name: of their modality, for messages.

    Raises:
        FeatureError: anything but N×d floating-point numbers with d > 0.
    """
    shape = getattr(vectors, "shape", None)
    if shape is None or not hasattr(vectors, "__getitem__"):
        raise FeatureError(f"{name} features are a {type(vectors).__name__}: pass an N×d array or tensor")
    if len(shape) != 2 or not shape[1]:
        raise FeatureError(f"{name} features have the shape {tuple(shape)}: pass N×d, one row a vector")
    kind = getattr(vectors, "dtype", torch.float32)
    if not (kind.is_floating_point if isinstance(kind, torch.dtype) else kind.kind == "f"):
        raise FeatureError(f"{name} features are {kind}: pass floating-point numbers")
    return int(shape[1])


def blocks(vectors: Vectors, name: str, normalize: bool) -> Iterator[Tensor]:
    """Checked rows, `BLOCK` at a time: n×d, float64, on the CPU, of length 1 where asked for.

    Args:
        vectors: N×d.
        name: of their modality, for messages.
        normalize: scale rows to length 1.

    Raises:
        FeatureError: rows with NaN or infinity, or rows of length 0 that are to be normalised; numbered from 0.
    """
    for start in range(0, len(vectors), BLOCK):
        rows = _wide(vectors[start : start + BLOCK])
        lengths = torch.linalg.vector_norm(rows, dim=1)
        _refuse(~lengths.isfinite(), f"{name} features hold NaN or infinity in", "leave these rows out", start)
        if normalize:
            _refuse(lengths == 0, f"{name} features are zero in", "leave these rows out, or set normalize=False", start)
            rows /= lengths[:, None]
        yield rows


def mapped(
    vectors: Vectors, name: str, normalize: bool, change: Callable[[Tensor], Tensor], width: int
) -> NDArray[Any] | Tensor:
    """Applies a map to rows, block by block, in float64.

    Args:
        vectors: N×d.
        name: of their modality, for messages.
        normalize: scale rows to length 1 first.
        change: n×d → n×w, both float64.
        width: w.

    Returns:
        N×w of the library and, half precision becoming float32, of the type that came in; tensors stay where they are.
    """
    out = torch.empty(len(vectors), width, dtype=kept_type(vectors))
    done = 0
    for rows in blocks(vectors, name, normalize):
        out[done : done + len(rows)] = change(rows)
        done += len(rows)
    if isinstance(vectors, np.ndarray):
        return out.numpy()
    return out.to(vectors.device) if isinstance(vectors, Tensor) else out


def kept_type(vectors: Vectors) -> torch.dtype:
    """The type vectors are returned in: float64 stays, all else is float32."""
    if isinstance(vectors, np.ndarray):
        return torch.float64 if vectors.dtype.itemsize >= 8 else torch.float32
    first = vectors if isinstance(vectors, Tensor) else vectors[:1]
    return torch.float64 if first.dtype == torch.float64 else torch.float32


def unit(rows: Tensor) -> Tensor:
    """n×d → rows of length 1; a row of zeros stays one."""
    return torch.nn.functional.normalize(rows, dim=1)


def _wide(rows: Features) -> Tensor:
    # A copy of one's own: what is memory-mapped, read-only or of another byte order is none of torch's.
    if isinstance(rows, np.ndarray):
        return torch.from_numpy(rows.astype(np.float64))
    return rows.detach().to("cpu", torch.float64, copy=True)


def _refuse(wrong: Tensor, told: str, remedy: str, start: int) -> None:
    rows = (wrong.nonzero().flatten() + start).tolist()
    if rows:
        shown = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
        raise FeatureError(f"{told} row {shown}: {remedy}")
