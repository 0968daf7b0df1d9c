from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.objectives import kernel_alignment
from modalign.objectives.gradient_error import gradient_error
from modalign.objectives.kernels import GaussianKernel, PolynomialKernel

KERNELS = (PolynomialKernel(0.1, 1.0), PolynomialKernel(1 / 6, 1.0))


def sample(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    x, g = (torch.randn(rows, d, generator=source, dtype=torch.float64) for d in (5, 6))
    return x, g


def test_it_compares_the_gradients_of_a_linear_map_that_all_rows_share() -> None:
    x, g = sample(20)

    def slope(index: torch.Tensor) -> torch.Tensor:
        shared = torch.eye(5, dtype=torch.float64, requires_grad=True)
        loss = kernel_alignment(x[index] @ shared, g[index], *KERNELS, "u")
        return torch.autograd.grad(loss, shared)[0]

    source, truth = torch.Generator().manual_seed(3), slope(torch.arange(20))
    squares = [((slope(torch.randperm(20, generator=source)[:8]) - truth).norm() / truth.norm()) ** 2 for _ in range(4)]
    found = gradient_error(x, g, *KERNELS, sizes=[8], trials=4, seed=3)
    assert found.errors[0] == pytest.approx(torch.stack(squares).mean().sqrt().item(), rel=1e-10)


def test_errors_fall_as_the_root_of_the_batch_and_vanish_with_all_rows() -> None:
    # Two views of the same four causes: rows without any structure have a mean gradient of almost 0.
    source = torch.Generator().manual_seed(0)
    causes = torch.randn(3000, 4, generator=source)
    x = causes @ torch.randn(4, 5, generator=source) + 0.3 * torch.randn(3000, 5, generator=source) + 2
    g = torch.tanh(causes @ torch.randn(4, 6, generator=source)) + 1
    found = gradient_error(x, g, *KERNELS, sizes=(32, 128, 512), trials=16)
    np.testing.assert_allclose(found.errors, found.law, rtol=0.2)
    assert found.law[0] / found.law[1] == pytest.approx(2 * np.sqrt((1 - 32 / 3000) / (1 - 128 / 3000)))
    assert gradient_error(x[:64], g[:64], *KERNELS, sizes=[16, 64]).errors[1] < 1e-5


def test_it_is_a_function_of_its_seed_and_can_be_written_down() -> None:
    x, g = sample(40)
    first, again, other = (gradient_error(x, g, *KERNELS, sizes=[8, 16], seed=s).to_dict() for s in (1, 1, 2))
    assert first == again != other
    assert first["sizes"] == [8, 16] and len(first["law"]) == 2 and first["rows"] == 40


def test_refusals_say_what_to_pass() -> None:
    x, g = sample(40)
    with pytest.raises(ValueError, match="size 64 of 40×5 features; use batches of 2 to 40 rows"):
        gradient_error(x, g, *KERNELS, sizes=[64])
    with pytest.raises(ValueError, match="no size is below the 40 rows"):
        gradient_error(x, g, *KERNELS, sizes=[40])
    with pytest.raises(ValueError, match="trials is 0"):
        gradient_error(x, g, *KERNELS, sizes=[8], trials=0)
    with pytest.raises(ValueError, match="norm 0, and no error is relative to it"):
        gradient_error(x, g, GaussianKernel(1e-3), KERNELS[1], sizes=[8])
