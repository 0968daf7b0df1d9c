"""Losses are computed in float32 or wider, whatever the towers ran in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(objective: Callable[P, R]) -> Callable[P, R]:
    """Runs an objective outside autocast, its matrices in the widest of float32 and their own types.

    Half precision is upcast to float32, float64 stays float64 and takes the other matrices with it. Scalars
    (a logit scale) follow PyTorch's own promotion, so that they never widen a whole batch.

    Args:
        objective: a function of tensors, or of tuples of tensors, on one device.

    Returns:
        The same function, with gradients that reach the inputs in the inputs' own types.
    """

    @functools.wraps(objective)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = list(_tensors((*args, *kwargs.values())))
        matrices = [tensor.dtype for tensor in tensors if _is_matrix(tensor)]
        dtype = functools.reduce(torch.promote_types, matrices, torch.float32)
        device_type = tensors[0].device.type if tensors else "cpu"
        widened: Any = _widen(args, dtype)
        widened_keywords: Any = {key: _widen(value, dtype) for key, value in kwargs.items()}
        if not torch.amp.is_autocast_available(device_type):
            return objective(*widened, **widened_keywords)
        with torch.autocast(device_type, enabled=False):
            return objective(*widened, **widened_keywords)

    return wrapped


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() > 0


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)


def _widen(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if _is_matrix(value) else value
    if isinstance(value, tuple):
        return tuple(_widen(item, dtype) for item in value)
    return value
