"""L2-regularised multinomial logistic regression, for many penalties in one batched solve.

    F_λ(W, b) = Σ_i [log Σ_c exp(w_c·x_i + b_c) − (w_{y_i}·x_i + b_{y_i})] + λ/2 · ‖W‖²        λ = 1/C of scikit-learn

1. **Principal coordinates.** Features are centred (the free intercept takes the mean up) and rotated onto the axes of
   their covariance; axes without variance, on which W is 0, are dropped. With n examples no more than n axes are left.
2. **A preconditioner that fits every penalty.** The Hessian is at most ½·XᵀX + λ for each class (Böhning 1992), in
   these coordinates a diagonal, ½·s_j + λ. L-BFGS starts from its inverse, so the spread of s costs few iterations.
3. **One matrix product for all penalties.** Each keeps its own step size and history; a trial point that does not
   lower its loss halves that one's step while the others go on, and one that has converged leaves the batch.

Source: Böhning, "Multinomial logistic regression algorithm", 1992 (the bound); Nocedal and Wright, "Numerical
Optimization", algorithm 7.4 (L-BFGS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modalign.errors import DataError

TOLERANCE = 1e-2
MOST_ITERATIONS = 1000
HISTORY = 10
CELLS_AT_ONCE = 2**25
SUFFICIENT = 1e-4
SMALLEST_STEP = 2.0**-20


@dataclass(frozen=True)
class Fits:
    """One classifier a penalty.

    Attributes:
        penalties: L numbers, λ.
        weights: L×C×d, for features as they were passed.
        bias: L×C.
        residual: L: ‖∇F‖ / (λ·‖W‖). F being λ-strongly convex in W, ‖W − W*‖ is at most about this share of ‖W‖;
            the intercepts' part is weighed so that the scores are as near.
        iterations: L integers.
        converged: L: whether the residual met the tolerance.
    """

    penalties: tuple[float, ...]
    weights: Tensor
    bias: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor

    def scores(self, features: Tensor, which: int) -> Tensor:
        """N×d → N×C logits of one of the classifiers."""
        return features.to(self.weights) @ self.weights[which].T + self.bias[which]


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalties: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
    most_iterations: int = MOST_ITERATIONS,
) -> Fits:
    """Fits one classifier a penalty, all of them together.

    For two classes scikit-learn's `LogisticRegression` fits one weight vector; with its C that is this with λ = 2/C.

    Args:
        features: N×d, any scale; where they are decides CPU or GPU; float64 is kept, everything else float32.
        labels: N class numbers below `classes`; classes without examples are allowed.
        classes: C ≥ 2.
        penalties: L positive numbers, λ.
        tolerance: of `Fits.residual`.
        most_iterations: of each penalty.

    Returns:
        The `Fits`, on the features' device.

    Raises:
        DataError: shapes that do not fit, features that are not finite, a penalty that is not positive.
    """
    _check(features, labels, classes, penalties)
    wide = features.detach() if features.dtype == torch.float64 else features.detach().float()
    axes, mean, coordinates, spread = _principal(wide)
    problem = _Problem(coordinates, labels.to(wide.device), classes, float(spread.sum() / len(wide)) ** 0.5)
    lam = torch.tensor(penalties, dtype=torch.float64, device=wide.device)
    v, residual, iterations = _solve(problem, spread, lam, tolerance, most_iterations)
    weights = torch.einsum("dp,plc->lcd", axes, v[:-1].double())
    bias = v[-1].double() - weights @ mean
    return Fits(
        tuple(float(p) for p in penalties),
        weights.to(wide.dtype),
        bias.to(wide.dtype),
        residual.cpu(),
        iterations.cpu(),
        (residual <= tolerance).cpu(),
    )


def _principal(features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """N×d → axes d×p, mean d, the coordinates N×(p+1) with a column of ones, and each axis' sum of squares p.

    Everything is float64 but for the coordinates, which keep the features' type.
    """
    x = features.double()
    mean = x.mean(0)
    x = x - mean
    if len(x) > x.shape[1]:
        spread, axes = torch.linalg.eigh(x.T @ x)
    else:
        _, singular, rows = torch.linalg.svd(x, full_matrices=False)
        spread, axes = singular.square(), rows.T
    eps = torch.finfo(torch.float64).eps
    kept = spread > eps * torch.maximum(spread.max() * max(x.shape), eps * features.double().square().sum())
    axes, spread = axes[:, kept], spread[kept]
    coordinates = torch.cat([x @ axes, x.new_ones(len(x), 1)], dim=1)
    return axes, mean, coordinates.to(features.dtype), spread


@dataclass
class _Problem:
    """The data: coordinates n×P (the last one the intercept's), labels n, C, and the features' root mean square."""

    x: Tensor
    labels: Tensor
    classes: int
    size: float

    def loss_and_gradient(self, v: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        """P×a×C → a losses in float64 and the P×a×C gradient."""
        width, active, classes = v.shape
        flat = v.reshape(width, -1)
        gradient = torch.zeros_like(flat)
        loss = torch.zeros(active, dtype=torch.float64, device=v.device)
        intercepts = torch.zeros(active, classes, dtype=torch.float64, device=v.device)
        rows = max(1, CELLS_AT_ONCE // flat.shape[1])
        most = 1 - torch.finfo(v.dtype).eps
        for x, y in zip(self.x.split(rows), self.labels.split(rows), strict=True):
            chosen = y[:, None, None].expand(-1, active, 1)
            residual = torch.softmax((x @ flat).view(-1, active, classes), dim=2)
            # 1 − p of the right class, as the sum of the others: where p is nearly 1 the difference would be rounding.
            wrong = residual.scatter_(2, chosen, 0.0).sum(2)
            loss -= torch.log1p(-wrong.clamp_max(most)).sum(0, dtype=torch.float64)
            residual.scatter_(2, chosen, -wrong[..., None])
            gradient.addmm_(x.T, residual.view(len(x), -1))
            intercepts += residual.sum(0, dtype=torch.float64)
        gradient = gradient.view_as(v)
        # Summed in float64, without the part that shifts all classes alike: where λ is large the scores are so small
        # that rounding here would decide between classes.
        gradient[-1] = intercepts - intercepts.mean(1, keepdim=True)
        penalised, weight = v[:-1], lam.to(v.dtype)[None, :, None]
        gradient[:-1] += weight * penalised
        return loss + 0.5 * lam * penalised.square().sum((0, 2), dtype=torch.float64), gradient

    def residual(self, v: Tensor, gradient: Tensor, lam: Tensor) -> Tensor:
        """P×a×C twice → a: how far the weights are from the minimum, relative to them; see `Fits.residual`."""
        if len(v) == 1:  # features without variance: no weights to find, and the intercepts stay equal
            return torch.zeros_like(lam)
        squares = gradient.square().sum(2, dtype=torch.float64)
        norm = lam * v[:-1].square().sum((0, 2), dtype=torch.float64).sqrt()
        # An error of the intercepts, about C/n of their gradient, has to be small beside the scores that W gives; where
        # λ is large those are tiny.
        weight = (lam * v.shape[2] / (len(self.x) * self.size)).clamp_min(self.size)
        off = (squares[:-1].sum(0) + weight.square() * squares[-1]).sqrt()
        return torch.where(off > 0, off / norm, 0.0)


def _solve(
    problem: _Problem, spread: Tensor, lam: Tensor, tolerance: float, most_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The minimisers P×L×C, the sizes of their gradients and their iterations."""
    x = problem.x
    shape = (x.shape[1], len(lam), problem.classes)
    solution = x.new_zeros(shape)
    size, iterations = torch.zeros_like(lam), torch.zeros(len(lam), dtype=torch.long, device=x.device)
    state = _State.start(problem, spread, lam)
    while True:
        moving = state.size > tolerance
        moving &= (state.iterations < most_iterations) & (state.step >= SMALLEST_STEP)
        if not bool(moving.all()):
            done = state.which[~moving]
            solution[:, done] = state.v[:, ~moving]
            size[done], iterations[done] = state.size[~moving], state.iterations[~moving]
            if not bool(moving.any()):
                return solution, size, iterations
            state = state.keep(moving.nonzero().flatten())
        state.advance(problem)


@dataclass
class _State:
    """L-BFGS of a penalties at once; of the shapes, the second (or last) axis is the penalty."""

    which: Tensor
    lam: Tensor
    inverse: Tensor
    v: Tensor
    loss: Tensor
    gradient: Tensor
    size: Tensor
    direction: Tensor
    step: Tensor
    iterations: Tensor
    moves: list[tuple[Tensor, Tensor, Tensor]]
    gamma: Tensor

    @classmethod
    def start(cls, problem: _Problem, spread: Tensor, lam: Tensor) -> _State:
        x = problem.x
        bound = torch.cat([0.5 * spread[:, None] + lam, lam.new_full((1, len(lam)), 0.5 * len(x))])
        inverse = bound.reciprocal().to(x.dtype)[..., None]
        v = x.new_zeros(x.shape[1], len(lam), problem.classes)
        loss, gradient = problem.loss_and_gradient(v, lam)
        numbers = torch.arange(len(lam), device=x.device)
        return cls(
            numbers,
            lam,
            inverse,
            v,
            loss,
            gradient,
            problem.residual(v, gradient, lam),
            -inverse * gradient,
            torch.ones_like(lam),
            torch.zeros_like(numbers),
            [],
            torch.ones_like(lam, dtype=x.dtype),
        )

    def keep(self, index: Tensor) -> _State:
        """Only these penalties."""
        return _State(
            self.which[index],
            self.lam[index],
            self.inverse[:, index],
            self.v[:, index],
            self.loss[index],
            self.gradient[:, index],
            self.size[index],
            self.direction[:, index],
            self.step[index],
            self.iterations[index],
            [(s[:, index], y[:, index], rho[index]) for s, y, rho in self.moves],
            self.gamma[index],
        )

    def advance(self, problem: _Problem) -> None:
        """Tries every penalty's step; takes those that lower its loss, halves the others."""
        slope = _dot(self.gradient, self.direction)
        trial = self.v + self.step.to(self.v.dtype)[None, :, None] * self.direction
        loss, gradient = problem.loss_and_gradient(trial, self.lam)
        rounding = 4 * torch.finfo(self.v.dtype).eps * self.loss.abs()
        taken = loss <= self.loss + SUFFICIENT * self.step * slope + rounding
        # A pair of weight 0 leaves the two loops as they are: a penalty that stays put adds one.
        s, y = trial - self.v, gradient - self.gradient
        curvature = _dot(s, y)
        useful = taken & (curvature > 0)
        rho = torch.where(useful, 1 / curvature, 0).to(self.v.dtype)
        scale = curvature / _dot(y, self.inverse * y)
        self.gamma = torch.where(useful, scale.to(self.v.dtype), self.gamma)
        self.moves = [*self.moves[-HISTORY + 1 :], (s, y, rho)]
        wide = taken[None, :, None]
        self.v, self.gradient = torch.where(wide, trial, self.v), torch.where(wide, gradient, self.gradient)
        self.loss = torch.where(taken, loss, self.loss)
        self.size = problem.residual(self.v, self.gradient, self.lam)
        self.direction = torch.where(wide, self._two_loops(), self.direction)
        self.step = torch.where(taken, 1.0, 0.5 * self.step)
        self.iterations = self.iterations + 1

    def _two_loops(self) -> Tensor:
        q = self.gradient.clone()
        alphas = []
        for s, y, rho in reversed(self.moves):
            alphas.append((rho * _dot(s, q).to(rho.dtype))[None, :, None])
            q -= alphas[-1] * y
        r = self.gamma[None, :, None] * self.inverse * q
        for (s, y, rho), alpha in zip(self.moves, reversed(alphas), strict=True):
            r += (alpha - (rho * _dot(y, r).to(rho.dtype))[None, :, None]) * s
        return -r


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """P×a×C twice → a inner products, in float64."""
    return (a * b).sum((0, 2), dtype=torch.float64)


def _check(features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]) -> None:
    if features.dim() != 2 or not len(features) or labels.shape != (len(features),) or classes < 2:
        raise DataError(
            f"features {tuple(features.shape)}, labels {tuple(labels.shape)} and {classes} classes do not fit: "
            "pass N×d, N and at least 2"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}: {classes} classes allow 0…{classes - 1}"
        )
    if not bool(features.isfinite().all()):
        raise DataError("features hold NaN or infinity: check the model's weights and precision")
    if not penalties or not all(0 < penalty < float("inf") for penalty in penalties):
        raise DataError(f"penalties {list(penalties)}: pass at least one, and positive numbers only")
