"""Every transform by its name, and how a saved one is found again."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from modalign.errors import ModelError, RecipeError
from modalign.gap.transforms import disk
from modalign.gap.transforms.base import Transform
from modalign.gap.transforms.centring import Center, DropDimensions, Shift
from modalign.gap.transforms.gaussian_ot import GaussianOT
from modalign.gap.transforms.nnn import NNN
from modalign.gap.transforms.paired import CCA, Procrustes, Ridge
from modalign.gap.transforms.rescaling import ReAlign, Standardize

KINDS: dict[str, type[Transform]] = {
    "center": Center,
    "shift": Shift,
    "standardize": Standardize,
    "realign": ReAlign,
    "gaussian-ot": GaussianOT,
    "procrustes": Procrustes,
    "ridge": Ridge,
    "cca": CCA,
    "drop-dimensions": DropDimensions,
    "nnn": NNN,
}


def of_kind(kind: str, **parameters: Any) -> Transform:
    """An unfitted transform by its name.

    Args:
        kind: a name of `KINDS`.
        parameters: its parameters; what is not named keeps its default.

    Raises:
        RecipeError: there is no such kind or parameter.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        told = f"did you mean {near[0]}?" if near else f"there are {', '.join(KINDS)}"
        raise RecipeError(f"there is no transform {kind!r}: {told}")
    return KINDS[kind]().set_params(**parameters)


def load(folder: str | Path) -> Transform:
    """Reads a transform that `save` wrote; it maps bit for bit as it did.

    Args:
        folder: where it is.

    Raises:
        ModelError: it holds no transform, or a damaged one.
    """
    place = Path(folder).expanduser()
    told, tensors = disk.read(place)
    try:
        transform = of_kind(told["kind"], **told["parameters"])
        transform._check_parameters()
        transform.take(told, tensors)
    except (KeyError, TypeError, AttributeError, RecipeError) as error:
        raise ModelError(f"{place / disk.RECORD} makes no sense ({error}): fit the transform anew") from None
    return transform
