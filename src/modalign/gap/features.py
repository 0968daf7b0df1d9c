"""What may be measured: features checked once, at the border."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalign.errors import DataError
from modalign.gap.gaussian_pair import Shrinkage

Features = Tensor | NDArray[Any]


class FeatureError(DataError, ValueError):
    """Features that cannot be measured; a `ValueError` too, as an argument that is wrong."""


def checked(
    image: Features,
    text: Features,
    normalize: bool,
    names: tuple[str, str] = ("image", "text"),
    first_row: int = 0,
) -> tuple[Tensor, Tensor]:
    """Features as float64 on the CPU, unit where asked for.

    Args:
        image: N×d.
        text: N×d.
        normalize: scale every row to unit length.
        names: of the modalities, for messages.
        first_row: the number of the first row, for messages.

    Raises:
        FeatureError: shapes that differ, NaN or infinite numbers, zero rows that cannot be normalised.
    """
    x, t = (_wide(features) for features in (image, text))
    if x.ndim != 2 or x.shape != t.shape:
        raise FeatureError(
            f"{names[0]} features {tuple(x.shape)} and {names[1]} features {tuple(t.shape)} must both be N×d:"
            " pass one row a pair"
        )
    found = []
    for name, features in zip(names, (x, t), strict=True):
        # A row's length is finite where all its numbers are, and cheaper to look through.
        lengths = torch.linalg.vector_norm(features, dim=1)
        bad = (~lengths.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise FeatureError(f"{name} features hold NaN or infinity in {_rows(bad, first_row)}: remove these pairs")
        if normalize:
            bad = (lengths == 0).nonzero().flatten().tolist()
            if bad:
                where = _rows(bad, first_row)
                raise FeatureError(f"{name} features are zero in {where}: remove these pairs, or pass normalize=False")
            features /= lengths[:, None]
        found.append(features)
    return found[0], found[1]


def _wide(features: Features) -> Tensor:
    """A copy of one's own, so that what is memory-mapped, read-only or of another byte order is none of torch's."""
    if isinstance(features, np.ndarray):
        return torch.from_numpy(features.astype(np.float64))
    return torch.as_tensor(features).detach().to("cpu", torch.float64, copy=True)


def enough(pairs: int, shrinkage: Shrinkage) -> None:
    """Refuses fewer than 3 pairs, and a shrinkage that is none."""
    if pairs < 3:
        raise FeatureError(f"{pairs} pairs are too few to measure a gap: pass at least 3")
    if shrinkage not in (None, "ledoit-wolf") and not (isinstance(shrinkage, int | float) and 0 < shrinkage <= 1):
        raise FeatureError(f"shrinkage is {shrinkage!r}: pass a number above 0 up to 1, 'ledoit-wolf' or None")


def _rows(rows: list[int], first_row: int) -> str:
    shown = ", ".join(str(first_row + row) for row in rows[:5])
    return f"row {shown}" if len(rows) == 1 else f"{len(rows):,} rows ({shown}{', …' if len(rows) > 5 else ''})"
