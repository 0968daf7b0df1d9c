from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from modalign.objectives import kernels
from modalign.objectives.kernels import (
    CosineKernel,
    GaussianKernel,
    Kernel,
    LaplacianKernel,
    LearnableKernel,
    Normalized,
    PolynomialKernel,
    ProductKernel,
    SumKernel,
)
from tests.objectives import kernel_oracle as oracle
from tests.objectives.comparison import assert_matches, features

FAMILIES: dict[str, tuple[Callable[..., Kernel], Callable[..., oracle.PairKernel], tuple[float, ...]]] = {
    "polynomial": (PolynomialKernel, lambda g, c: oracle.polynomial(g, c, 3), (0.3, 0.7)),
    "degree 2": (lambda g, c: PolynomialKernel(g, c, 2), lambda g, c: oracle.polynomial(g, c, 2), (0.3, 0.7)),
    "gaussian": (GaussianKernel, oracle.gaussian, (1.7,)),
    "laplacian": (LaplacianKernel, oracle.laplacian, (1.7,)),
    "cosine": (CosineKernel, oracle.cosine, ()),
}


@pytest.mark.parametrize(("build", "truth", "parameters"), FAMILIES.values(), ids=FAMILIES.keys())
def test_values_and_gradients_of_features_and_parameters_match_the_oracle(
    build: Callable[..., Kernel], truth: Callable[..., oracle.PairKernel], parameters: tuple[float, ...]
) -> None:
    weights = features(5, 5, seed=1)
    assert_matches(
        lambda x, *p: (build(*p)(x) * torch.tensor(weights)).sum(),
        lambda x, *p: (oracle.matrix(truth(*p), x) * weights).sum(),
        features(5, 4, seed=2),
        *(np.array(p) for p in parameters),
        gradients=1e-10,
    )


def test_the_polynomial_is_the_normalised_one_by_hand() -> None:
    # P = x·x' + 1 = [[2, 2], [2, 3]], cubed [[8, 8], [8, 27]].
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    expected = [[1, 8 / math.sqrt(8 * 27)], [8 / math.sqrt(8 * 27), 1]]
    np.testing.assert_allclose(PolynomialKernel(1.0, 1.0)(rows), expected, rtol=1e-15)
    np.testing.assert_allclose(PolynomialKernel(1.0, 1.0, normalized=False)(rows), [[8, 8], [8, 27]], rtol=1e-15)


def test_the_published_student_kernel_is_a_power_of_a_cosine_with_one_more_coordinate() -> None:
    rows = features(6, 8, seed=3, scale=4)
    longer = np.hstack([rows, np.full((6, 1), math.sqrt(0.191623 / 0.0032))])
    longer /= np.linalg.norm(longer, axis=1, keepdims=True)
    kernel = PolynomialKernel(0.0032, 0.191623, degree=3)
    np.testing.assert_allclose(kernel(torch.tensor(rows)), (longer @ longer.T) ** 3, rtol=1e-12, atol=1e-13)


def test_a_degree_that_is_not_whole_takes_negative_bases_as_nothing() -> None:
    rows = torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64, requires_grad=True)
    kernel = PolynomialKernel(1.0, 0.25, degree=2.5)(rows)
    # P = [[1.25, −0.75, 0.75], …]: the pair (0, 1) has a negative base.
    assert kernel[0, 1].item() == 0
    assert kernel[0, 2].item() == pytest.approx(0.75**2.5 / (1.25 * 0.5) ** 1.25, rel=1e-14)
    (slope,) = torch.autograd.grad(kernel.sum(), rows)
    assert bool(slope.isfinite().all())


def test_normalising_the_bare_polynomial_gives_the_normalised_one() -> None:
    rows = torch.tensor(features(6, 4, seed=4))
    bare = PolynomialKernel(0.3, 0.7, 3, normalized=False)
    torch.testing.assert_close(Normalized(bare)(rows), PolynomialKernel(0.3, 0.7)(rows), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(Normalized(lambda x: x @ x.T)(rows), CosineKernel()(rows), rtol=1e-13, atol=1e-14)


def test_sums_and_products_are_entry_by_entry_and_know_their_diagonals() -> None:
    rows = torch.tensor(features(5, 4, seed=5))
    first, second = PolynomialKernel(0.3, 0.7, 2, normalized=False), GaussianKernel(1.5)
    a, b = first(rows), second(rows)
    torch.testing.assert_close(SumKernel(first, second)(rows), a + b)
    torch.testing.assert_close(ProductKernel(first, second, lambda x: x @ x.T)(rows), a * b * (rows @ rows.T))
    for kernel in (first, second, CosineKernel(), SumKernel(first, second), ProductKernel(first, second)):
        torch.testing.assert_close(kernel.diagonal(rows), kernel(rows).diagonal())
    with pytest.raises(ValueError, match="SumKernel needs at least one kernel; pass kernels"):
        SumKernel()


HARD = {
    "zero rows": torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 2, 3], [-1, 0, 1]]),
    "duplicates": torch.tensor([[1.0, 2, 3], [1, 2, 3], [1, 2, 3], [-1, 0, 1]]),
    "all alike": torch.full((4, 3), 7.3),
    "negative P": torch.tensor([[1.0, 0, 0], [-1, 0, 0], [-3, 0.1, 0], [2, 0, 0]]),
    "far away": torch.tensor([[1e4, 1, 0], [1e4, 1, 0], [1e4, 2, 0], [1e4, 1, 3]]),
    "tiny": 1e-25 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]]),
}
ALL = {
    "polynomial": PolynomialKernel(0.5, 0.1),
    "polynomial, c = 0": PolynomialKernel(0.5, 0.0),
    "degree 2.5": PolynomialKernel(0.5, 0.1, 2.5),
    "degree 0.5": PolynomialKernel(0.5, 0.0, 0.5),
    "bare": PolynomialKernel(0.5, 0.1, normalized=False),
    "gaussian": GaussianKernel(1.0),
    "laplacian": LaplacianKernel(1.0),
    "cosine": CosineKernel(),
    "normalized": Normalized(PolynomialKernel(0.5, 0.0, normalized=False)),
    "product": ProductKernel(CosineKernel(), LaplacianKernel(2.0)),
}


@pytest.mark.parametrize("kernel", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("rows", HARD.values(), ids=HARD.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_rows_give_finite_values_and_gradients(kernel: Kernel, rows: Tensor, dtype: torch.dtype) -> None:
    rows = rows.to(dtype).clone().requires_grad_()
    matrix = kernel(rows)
    assert matrix.dtype == dtype and bool(matrix.isfinite().all())
    (slope,) = torch.autograd.grad((matrix * torch.arange(16).reshape(4, 4)).sum(), rows)
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("kernel", [GaussianKernel(0.5), LaplacianKernel(0.5)])
def test_rows_that_coincide_are_at_distance_zero_and_pull_nothing(kernel: Kernel) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 512, generator=generator) + 30  # float32, in a narrow cone far from the origin
    rows[1] = rows[0]
    rows.requires_grad_()
    matrix = kernel(rows)
    assert matrix[0, 1].item() == 1 and torch.equal(matrix.diagonal(), torch.ones(4))
    (slope,) = torch.autograd.grad(matrix[0, 1], rows)
    assert torch.equal(slope, torch.zeros_like(rows))


def test_a_zero_row_is_like_nothing_and_gets_no_pull_from_the_cosine() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    matrix = CosineKernel()(rows)
    assert torch.equal(matrix, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    (slope,) = torch.autograd.grad(matrix.sum(), rows)
    assert torch.equal(slope, torch.zeros(2, 2))


@pytest.mark.parametrize("kernel", [PolynomialKernel(0.1, 0.5), GaussianKernel(3.0), LaplacianKernel(3.0)])
def test_half_precision_is_widened_outside_autocast(kernel: Kernel) -> None:
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matrix = kernel(rows)
    assert matrix.dtype == torch.float32 and torch.equal(matrix, kernel(rows.float()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PolynomialKernel(0.0, 1.0), "gamma is 0; use a number above 0"),
        (lambda: PolynomialKernel(1.0, -1.0), "coef0 is -1; use a number from 0 up"),
        (lambda: PolynomialKernel(1.0, math.nan), "coef0 is nan; use a finite number"),
        (lambda: PolynomialKernel(1.0, 1.0, 0), "degree is 0; use a number above 0"),
        (lambda: PolynomialKernel(torch.ones(3), 1.0), "gamma is 3; pass a number or a 0-d tensor"),
        (lambda: GaussianKernel(-2.0), "bandwidth is -2; use a number above 0"),
        (lambda: LaplacianKernel(math.inf), "bandwidth is inf; use a finite number"),
        (lambda: CosineKernel()(torch.ones(4)), "features is 4; pass N×d"),
        (lambda: SumKernel(lambda x: x)(torch.ones(4, 3)), "turn 4×3 features into 4×4 similarities"),
        (lambda: LearnableKernel(CosineKernel()), "has no single scale; pass a normalised PolynomialKernel"),
        (lambda: LearnableKernel(PolynomialKernel(1.0, 0.0)), "coef0 is 0.*set coef0 above 0 or learn_kernel to false"),
    ],
)
def test_refusals_say_what_to_pass(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def no_guard(x: Tensor) -> Tensor:
    return (x @ x.T) / (x.norm(dim=1)[:, None] * x.norm(dim=1))


def no_gradient(x: Tensor) -> Tensor:
    return torch.exp(-(x[:, None] - x).square().sum(-1).sqrt())


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (no_guard, "values that are NaN or infinite"),
        (no_gradient, "gradients that are NaN or infinite"),
        (lambda x: x @ x.roll(1, 1).T, "is not symmetric"),
        (lambda x: -(x @ x.T), "has a negative eigenvalue"),
        (lambda x: torch.exp(-torch.cdist(x, x) / torch.cdist(x, x).mean()), "depends on the other rows"),
        (lambda x: x[:, :3], "give 48×48|gives 48×3"),
        (lambda x: (x @ x.T).detach(), "gives no gradient"),
        (lambda x: x.detach().numpy() @ x.detach().numpy().T, "gives no gradient"),
    ],
)
def test_check_names_what_is_wrong_with_a_kernel(kernel: kernels.AnyKernel, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.check(kernel, dim=8)


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("degree")])
def test_check_passes_the_kernels_that_are_here(name: str) -> None:
    kernels.check(ALL[name], dim=8)  # broken degrees: positive semi-definite where P > 0 only


@pytest.mark.parametrize("given", [PolynomialKernel(0.0032, 0.191623), GaussianKernel(8.7), LaplacianKernel(8.7)])
def test_a_learnable_kernel_starts_where_it_was_given_and_moves_on_a_logarithm(given: Kernel) -> None:
    rows = torch.tensor(features(5, 4, seed=6, scale=4))
    learnable = LearnableKernel(given)
    torch.testing.assert_close(learnable.kernel(rows), given(rows), rtol=1e-13, atol=1e-14)
    (slope,) = torch.autograd.grad(learnable.kernel(rows).sum(), learnable.rho)
    scale = torch.tensor(kernels.scale_of(given), dtype=torch.float64, requires_grad=True)
    (by_scale,) = torch.autograd.grad(kernels.with_scale(given, scale)(rows).sum(), scale)
    assert slope.item() == pytest.approx((scale * by_scale).item(), rel=1e-12)  # ∂/∂ρ = r ∂/∂r


def test_a_scale_that_is_not_learnt_is_a_buffer_and_travels_in_the_state() -> None:
    fitted, fresh = (LearnableKernel(GaussianKernel(s), learn=False) for s in (3.0, 8.7))
    assert not list(fitted.parameters())
    fresh.load_state_dict(fitted.state_dict())
    assert kernels.scale_of(fresh.kernel) == pytest.approx(3.0, rel=1e-15)


def test_a_device_without_float64_gets_float32() -> None:
    def to_narrow_device(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("no float64 here")
        return tensor

    learnable = LearnableKernel(GaussianKernel(2.0))
    learnable._apply(to_narrow_device)
    assert learnable.rho.dtype == torch.float32 and learnable.rho.item() == pytest.approx(math.log(2))
