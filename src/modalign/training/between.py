"""The weights on the straight line between the initial and the refined model: w = 0 and w = 1 are its ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Between:
    """Remembers where training begins.

    Args:
        changing: the model's own tensors that training changes, at their initial values. Under LoRA these are the
            weights that the adapters are merged into, so that a point between scales B·A.
    """

    def __init__(self, changing: Mapping[str, Tensor]) -> None:
        self._live = changing
        self._initial = _copied(changing)

    @contextmanager
    def kept(self) -> Iterator[Mapping[str, Tensor]]:
        """Gives the refined tensors, and puts them back after the block."""
        refined = _copied(self._live)
        try:
            yield refined
        finally:
            self._set(refined)

    def put(self, refined: Mapping[str, Tensor], weight: float) -> None:
        """Puts initial + weight · (refined − initial) into the model."""
        self._set({name: torch.lerp(self._initial[name], refined[name], weight) for name in refined})

    @torch.no_grad()
    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(tensors[name])


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
