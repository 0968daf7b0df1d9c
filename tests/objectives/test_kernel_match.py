from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from modalign.objectives import kernel_alignment
from modalign.objectives.kernels import (
    AnyKernel,
    CosineKernel,
    GaussianKernel,
    LaplacianKernel,
    LearnableKernel,
    Normalized,
    PolynomialKernel,
    ProductKernel,
    SumKernel,
)
from tests.memory import peaks
from tests.objectives import kernel_oracle as oracle
from tests.objectives.comparison import assert_matches, features

TARGET = PolynomialKernel(1 / 5, 1.0)
TARGET_TRUTH = oracle.polynomial(1 / 5, 1.0, 3)


@pytest.mark.parametrize("estimator", ["v", "u", "pairs"])
@pytest.mark.parametrize(
    ("build", "truth", "parameters"),
    [
        (PolynomialKernel, lambda g, c: oracle.polynomial(g, c, 3), (0.3, 0.7)),
        (GaussianKernel, oracle.gaussian, (1.7,)),
        (LaplacianKernel, oracle.laplacian, (1.7,)),
        (CosineKernel, oracle.cosine, ()),
    ],
)
def test_losses_and_gradients_match_the_oracle(
    build: Callable[..., AnyKernel],
    truth: Callable[..., oracle.PairKernel],
    parameters: tuple[float, ...],
    estimator: str,
) -> None:
    target = features(5, 5, seed=1)
    assert_matches(
        lambda x, *p: kernel_alignment(x, torch.tensor(target), build(*p), TARGET, estimator),
        lambda x, *p: oracle.alignment(x, target, truth(*p), TARGET_TRUTH, estimator),
        features(5, 3, seed=2),
        *(np.array(p) for p in parameters),
        gradients=1e-10,
    )


def test_kernels_are_chosen_side_by_side_and_v_is_what_is_meant_without_a_word() -> None:
    student, target = features(6, 3, seed=3), features(6, 5, seed=4)
    loss = kernel_alignment(
        torch.tensor(student), torch.tensor(target), PolynomialKernel(0.2, 1.0), GaussianKernel(2.0)
    )
    expected = oracle.alignment(student, target, oracle.polynomial(0.2, 1.0, 3), oracle.gaussian(2.0), "v")
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_gamma_and_coef0_are_one_degree_of_freedom() -> None:
    x, g = torch.tensor(features(7, 4, seed=5)), torch.tensor(features(7, 5, seed=6))
    gamma, coef0 = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 0.7))
    for estimator in ("v", "u", "pairs"):
        loss = kernel_alignment(x, g, PolynomialKernel(gamma, coef0), TARGET, estimator)
        by_gamma, by_coef0 = torch.autograd.grad(loss, (gamma, coef0))
        assert abs(by_gamma) > 1e-4
        assert abs(gamma * by_gamma + coef0 * by_coef0).item() < 1e-14
        learnable = LearnableKernel(PolynomialKernel(0.3, 0.7))
        (by_rho,) = torch.autograd.grad(kernel_alignment(x, g, learnable.kernel, TARGET, estimator), learnable.rho)
        assert by_rho.item() == pytest.approx((coef0 * by_coef0).item(), rel=1e-12)


def test_v_is_n_minus_1_over_n_of_u() -> None:
    x, g = torch.randn(32, 8, dtype=torch.float64), torch.randn(32, 5, dtype=torch.float64)
    v, u = (kernel_alignment(x, g, PolynomialKernel(0.3, 0.7), TARGET, estimator) for estimator in "vu")
    assert (v / u).item() == pytest.approx(31 / 32, rel=1e-13)


def test_a_mismatch_on_the_diagonal_counts_for_v_alone() -> None:
    # K = XXᵀ = [[4, 0], [0, 9]] against the target's identity: 9 and 64 on the diagonal, 0 off it.
    x, g = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.eye(2)
    linear = lambda rows: rows @ rows.T  # noqa: E731
    assert kernel_alignment(x, g, linear, linear, "v").item() == (9 + 64) / 4
    assert kernel_alignment(x, g, linear, linear, "u").item() == 0


def test_pairs_are_the_rows_two_by_two_and_a_last_odd_row_is_left_out() -> None:
    x, g = (torch.randn(601, d, dtype=torch.float64, requires_grad=True) for d in (4, 5))
    kernel = GaussianKernel(2.0)
    expected = (kernel(x)[range(0, 600, 2), range(1, 600, 2)] - TARGET(g)[range(0, 600, 2), range(1, 600, 2)]).square()
    loss = kernel_alignment(x, g, kernel, TARGET, "pairs")
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-12)
    (slope,) = torch.autograd.grad(loss, x)
    assert torch.equal(slope[-1], torch.zeros(4, dtype=torch.float64)) and bool((slope[:-1] != 0).all())


def test_the_same_arrangement_costs_nothing_and_a_permutation_of_the_batch_changes_nothing() -> None:
    x = torch.tensor(features(6, 4, seed=7))
    turned = x @ torch.linalg.qr(torch.tensor(features(4, 4, seed=8))).Q
    assert kernel_alignment(x, turned, PolynomialKernel(0.3, 0.7), PolynomialKernel(0.6, 1.4)).item() < 1e-28
    g, order = torch.tensor(features(6, 5, seed=9)), torch.tensor([3, 1, 5, 0, 4, 2])
    for estimator in "vu":
        losses = [kernel_alignment(x[i], g[i], GaussianKernel(1.5), TARGET, estimator) for i in (slice(None), order)]
        torch.testing.assert_close(*losses, rtol=1e-13, atol=0)


@pytest.mark.parametrize("block", [1, 3, 7, 16, 100])
@pytest.mark.parametrize("estimator", ["v", "u"])
@pytest.mark.parametrize("kind", ["polynomial", "gaussian", "laplacian", "mixed"])
def test_blocks_change_neither_the_loss_nor_any_gradient(kind: str, estimator: str, block: int) -> None:
    x, g = torch.tensor(features(16, 4, seed=10)), torch.tensor(features(16, 5, seed=11))
    x[3] = x[2]
    x[5] = 0

    def run(block: int | None) -> list[Tensor]:
        rows = x.clone().requires_grad_()
        own = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, 0.7)]
        kernel: AnyKernel = {
            "polynomial": lambda: PolynomialKernel(*own),
            "gaussian": lambda: GaussianKernel(own[0]),
            "laplacian": lambda: LaplacianKernel(own[1]),
            "mixed": lambda: Normalized(
                SumKernel(GaussianKernel(own[0]), ProductKernel(PolynomialKernel(*own, 2, False)))
            ),
        }[kind]()
        loss = kernel_alignment(rows, g, kernel, TARGET, estimator, block=block)
        slopes = torch.autograd.grad(loss, [rows, *own], allow_unused=True)
        return [loss, *(slope for slope in slopes if slope is not None)]

    for whole, pieces in zip(run(None), run(block), strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12 * float(whole.detach().abs().max()))


def test_large_batches_are_split_unasked_and_equal_the_whole() -> None:
    x, g = torch.randn(2100, 3, requires_grad=True), torch.randn(2100, 4)
    split, whole = (kernel_alignment(x, g, GaussianKernel(2.0), GaussianKernel(2.0), block=b) for b in (None, 2100))
    assert split.item() == pytest.approx(whole.item(), rel=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (split, whole)), rtol=1e-4, atol=1e-9)


def test_a_function_of_ones_own_is_a_kernel() -> None:
    x, g = torch.tensor(features(9, 4, seed=12)), torch.tensor(features(9, 5, seed=13))
    own = lambda rows: torch.exp(-torch.cdist(rows, rows).square() / 8)  # noqa: E731
    for estimator in ("v", "u", "pairs"):
        losses = [kernel_alignment(x, g, k, TARGET, estimator, block=2) for k in (own, GaussianKernel(2.0))]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", ["v", "u", "pairs"])
@pytest.mark.parametrize("side", ["duplicates", "zero rows", "all alike"])
def test_rows_that_repeat_or_vanish_give_finite_losses_and_gradients(side: str, estimator: str) -> None:
    x, g = torch.tensor(features(6, 4, seed=14)).float(), torch.tensor(features(6, 5, seed=15)).float()
    for rows in (x, g):
        if side == "duplicates":
            rows[1], rows[3] = rows[0], rows[2]
        elif side == "zero rows":
            rows[:2] = 0
        else:
            rows[:] = rows[0]
    x.requires_grad_()
    for kernel in (PolynomialKernel(0.3, 0.0), GaussianKernel(1.0), LaplacianKernel(1.0), CosineKernel()):
        loss = kernel_alignment(x, g, kernel, TARGET, estimator)
        (slope,) = torch.autograd.grad(loss, x)
        assert bool(loss.isfinite()) and bool(slope.isfinite().all()) and float(slope.abs().max()) < 100


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((torch.ones(4, 3), torch.ones(5, 3)), {}, "student is 4×3 and target 5×3; pass N×d and N×d_t features"),
        ((torch.ones(4), torch.ones(4)), {}, "student is 4 and target 4; pass"),
        ((torch.ones(0, 3), torch.ones(0, 3)), {}, "student is 0×3"),
        ((torch.ones(4, 3), torch.ones(4, 3)), {"estimator": "w"}, "estimator is 'w'; use 'v' or 'u' or 'pairs'"),
        ((torch.ones(1, 3), torch.ones(1, 3)), {"estimator": "u"}, "one row makes no pair"),
        ((torch.ones(4, 3), torch.ones(4, 3)), {"block": 0}, "block is 0; use a whole number of rows above 0"),
    ],
)
def test_refusals_say_what_to_pass(arguments: tuple[Tensor, Tensor], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_alignment(*arguments, CosineKernel(), CosineKernel(), **settings)


FEATURES = """
import torch
from modalign.objectives import kernel_alignment
from modalign.objectives.kernels import LearnableKernel, PolynomialKernel
x, g = torch.randn(16384, 512, requires_grad=True), torch.randn(16384, 1024)
"""
ALIGNED = """
own = LearnableKernel(PolynomialKernel(0.0032, 0.191623))
kernel_alignment(x, g, own.kernel, PolynomialKernel(1 / 1024, 1.0), "u").backward()
assert own.rho.grad != 0 and x.grad.isfinite().all()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sixteen_thousand_rows_fit_in_two_gibibytes() -> None:
    before, after = peaks(FEATURES, ALIGNED)
    assert after < 2 * 2**30  # the whole process, libraries and features included
    assert after - before < 2**30  # one kernel matrix of all rows has as much
