"""An exponential moving average of what trains, which a run validates, judges and saves instead of the last weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """Keeps a_t = decay · a_(t-1) + (1 - decay) · w_t with a_0 = w_0, the weights training begins with.

    Args:
        tensors: what is averaged, by name: trained parameters and, where they move, BatchNorm's running statistics.
        decay: in (0, 1), or None: nothing is averaged and every call does nothing.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float | None) -> None:
        self.decay = decay
        self._live = {} if decay is None else {n: t for n, t in tensors.items() if t.is_floating_point()}
        self.tensors = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after one optimizer step."""
        for name, average in self.tensors.items():
            assert self.decay is not None
            average.mul_(self.decay).add_(self._live[name], alpha=1 - self.decay)

    @torch.no_grad()
    def take_over(self) -> None:
        """Puts the average into the model for good."""
        for name, average in self.tensors.items():
            self._live[name].copy_(average)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average into the model for the length of the block."""
        kept = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self.take_over()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in kept.items():
                    self._live[name].copy_(tensor)
