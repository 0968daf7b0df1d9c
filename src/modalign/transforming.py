"""`modalign transform`: a training-free transform fitted on stored vectors, judged on a held-out half, and applied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from modalign.errors import OutputError, RecipeError
from modalign.gap.transforms import Center, Transform, load, of_kind, stored_vectors
from modalign.gap.transforms.from_moments import MomentTransform
from modalign.gap.transforms.stored import pair_free
from modalign.held_out import HeldOut, judge_each, judge_pairs

if TYPE_CHECKING:
    from modalign.gap.transforms.vectors import Vectors


@dataclass(frozen=True)
class Fitted:
    """What `fit` made: the transform, fitted on all rows, and how one fitted on half of them did on the others."""

    transform: Transform
    held_out: HeldOut | None


def fit(
    kind: str,
    image: Vectors,
    text: Vectors,
    *,
    query: Vectors | None = None,
    parameters: dict[str, Any] | None = None,
    pairs: bool = True,
    out: Path,
    seed: int = 0,
    resamples: int = 1_000,
) -> Fitted:
    """Fits a transform on all rows, saves it, and judges one that was fitted on half of them by the other half.

    Args:
        kind: a name of `modalign.gap.transforms.KINDS`.
        image: N×d, raw or unit.
        text: M×d.
        query: Q×d query texts, for "center" alone.
        parameters: of the transform.
        pairs: whether row i of both is pair i; where not, or where N ≠ M, only what needs no pairs is measured.
        out: the folder to write; new or empty.
        seed: of the halves.
        resamples: of the intervals.

    Raises:
        OutputError: the folder is not empty.
        RecipeError: no such kind or parameter, pairs that are none, queries for a kind that has no such role.
        FeatureError: features that cannot be fitted.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty: choose a new folder, or empty it")
    transform = of_kind(kind, **(parameters or {}))
    paired = pairs and len(image) == len(text)
    if isinstance(transform, MomentTransform) and transform.paired and not paired:
        raise RecipeError(f"{kind} needs pairs, and these rows are none: give two files of as many rows, or --model")
    if query is not None and not isinstance(transform, Center):
        raise RecipeError(f"{kind} has no role for queries: leave them out, or use center")
    whole = transform.fit(image, text, query) if isinstance(transform, Center) else transform.fit(image, text)
    whole.save(out)
    fresh = of_kind(kind, **(parameters or {}))
    judged = judge_pairs(fresh, image, text, seed, resamples) if paired else judge_each(fresh, image, text, seed)
    return Fitted(whole, judged)


def apply(folder: Path, source: str, role: str, out: Path) -> tuple[int, ...]:
    """Maps stored vectors with a saved transform.

    Args:
        folder: what `fit` wrote.
        source: what `stored_vectors` reads.
        role: what the vectors are.
        out: the .npy file to write; it must not be there.

    Returns:
        The shape of what was written.

    Raises:
        OutputError: the file is there, or cannot be written.
        ModelError: the folder holds no transform.
        FeatureError: vectors that do not fit it.
    """
    if out.suffix != ".npy":
        raise OutputError(f"{out}: name a .npy file to write")
    if out.exists():
        raise OutputError(f"{out} exists already: choose another file, or remove it")
    mapped: Any = load(folder).transform(stored_vectors(source), role)
    array = mapped.numpy() if isinstance(mapped, Tensor) else mapped
    draft = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            np.save(file, array)
        draft.replace(out)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OutputError(f"{out} cannot be written ({error.strerror}); choose another place") from None
    return tuple(array.shape)


def read_pair(image: str, text: str) -> tuple[Vectors, Vectors, bool]:
    """Two sets of stored vectors, and whether row i of both may be a pair."""
    return stored_vectors(image), stored_vectors(text), not (pair_free(image) or pair_free(text))
