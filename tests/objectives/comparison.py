"""Loss and gradient of a torch objective against the oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.objectives import oracle


def features(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=shape)


def assert_matches(
    objective: Callable[..., Tensor], truth: Callable[..., complex], *inputs: np.ndarray, gradients: float = 1e-9
) -> None:
    """Losses to 1e-12, gradients to 1e-9 relative to the largest entry."""
    leaves = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in inputs]
    loss = objective(*leaves)
    assert loss.dtype == torch.float64
    np.testing.assert_allclose(loss.item(), np.real(truth(*inputs)), rtol=1e-12, atol=1e-12)
    loss.backward()
    for leaf, slope in zip(leaves, oracle.gradient(truth, *inputs), strict=True):
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), slope, rtol=0, atol=gradients * np.abs(slope).max())
    assert torch.autograd.gradcheck(objective, leaves)
