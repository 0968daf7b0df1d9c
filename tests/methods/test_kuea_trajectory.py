"""Twelve steps of KUEA on a linear tower against NumPy: the loss's gradient by hand, AdamW and its schedule by hand.

X = U Vᵀ,   P = X Xᵀ + r,   C_ij = P_ij/√(P_ii P_jj),   K = C³
with B = ∂L/∂C and s_i = P_ii^(−½):
D = B ∘ ssᵀ − diag(½ s_i³ Σ_j (B + Bᵀ)_ij P_ij s_j) = ∂L/∂P,   ∂L/∂X = (D + Dᵀ) X,   ∂L/∂ρ = r Σ_ij D_ij
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modalign.embeddings import Embeddings
from modalign.methods import Kuea
from modalign.recipe import OptimizerRecipe, ScheduleRecipe
from modalign.training import boundary, optimizer

STEPS, WARMUP, ROWS, INPUTS, WIDTH, TARGET_WIDTH = 12, 3, 8, 6, 5, 7
RATE, DECAY, BETAS, EPS = 0.02, 0.1, (0.9, 0.999), 1e-8
GAMMA, COEF0, WEIGHT = 0.3, 0.6, 40.0


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(STEPS, ROWS, INPUTS))
    inputs[4, 1] = inputs[4, 0]  # a picture twice in a batch
    return inputs, rng.normal(size=(STEPS, ROWS, TARGET_WIDTH)), rng.normal(size=(WIDTH, INPUTS))


def loss_and_slopes(
    x: np.ndarray, f: np.ndarray, g: np.ndarray, gamma: float, coef0: float, estimator: str
) -> tuple[float, np.ndarray, float]:
    """The loss, ∂L/∂X, and ∂L/∂ρ where γ = 1 and c = exp(ρ)."""
    count = len(x)
    t = g @ g.T / TARGET_WIDTH + 1
    target = (t / np.sqrt(np.outer(np.diag(t), np.diag(t)))) ** 3
    p = gamma * x @ x.T + coef0
    s = np.diag(p) ** -0.5
    c = p * np.outer(s, s)
    counted = np.ones((count, count)) if estimator == "v" else 1 - np.eye(count)
    counted /= counted.sum()
    error = c**3 - target
    b = WEIGHT * 2 * counted * error * 3 * c**2
    d = b * np.outer(s, s) - np.diag(0.5 * s**3 * (((b + b.T) * p) @ s))
    loss = WEIGHT * (counted * error**2).sum() + ((x - f) ** 2).sum() / count
    return loss, gamma * (d + d.T) @ x + 2 * (x - f) / count, coef0 * d.sum()


def factor(step: int) -> float:
    if step < WARMUP:
        return (step + 1) / WARMUP
    return (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


class Adam:
    def __init__(self, decay: float) -> None:
        self.decay, self.first, self.second, self.count = decay, 0.0, 0.0, 0

    def step(self, value: np.ndarray, slope: np.ndarray, rate: float) -> np.ndarray:
        self.count += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * slope
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * slope**2
        first, second = self.first / (1 - BETAS[0] ** self.count), self.second / (1 - BETAS[1] ** self.count)
        return value * (1 - rate * self.decay) - rate * first / (np.sqrt(second) + EPS)


def reference(learn: bool, estimator: str) -> tuple[list[float], np.ndarray, float]:
    inputs, target, initial = data()
    weight, rho = initial.copy(), math.log(COEF0 / GAMMA)
    of_weight, of_rho, losses = Adam(DECAY), Adam(0.0), []
    for step in range(STEPS):
        x, f = inputs[step] @ weight.T, inputs[step] @ initial.T
        gamma, coef0 = (1.0, math.exp(rho)) if learn else (GAMMA, COEF0)
        loss, slope, by_rho = loss_and_slopes(x, f, target[step], gamma, coef0, estimator)
        losses.append(loss)
        rate = RATE * factor(step)
        weight = of_weight.step(weight, slope.T @ inputs[step], rate)
        rho = of_rho.step(rho, by_rho, rate) if learn else rho
    return losses, weight, rho


@pytest.mark.parametrize("estimator", ["u", "v"])
@pytest.mark.parametrize("learn", [False, True])
def test_twelve_steps_follow_the_reference(learn: bool, estimator: str) -> None:
    inputs, target, initial = (torch.tensor(a) for a in data())
    method = Kuea(kernel_weight=WEIGHT, gamma=GAMMA, coef0=COEF0, learn_kernel=learn, estimator=estimator)
    module = method.module()
    own = dict(module.named_parameters()) if module is not None else {}
    weight = torch.nn.Parameter(initial.clone())
    recipe = OptimizerRecipe(lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY)
    stepper = optimizer.build({"visual.proj": weight}, own, recipe)
    losses = []
    for step in range(STEPS):
        batch = Embeddings(frozen_image=inputs[step] @ initial.T, target=target[step])
        side = boundary.Side(lambda part: part @ weight.T, {"visual.proj": weight}, inputs[step])
        stepper.zero_grad(set_to_none=True)
        outcome = boundary.backward({"image": side}, batch, slice(0, ROWS), method, (step + 1) / STEPS, chunk=3)
        optimizer.set_rate(stepper, optimizer.factor(ScheduleRecipe(name="cosine", warmup_steps=WARMUP), step, STEPS))
        stepper.step()
        losses.append(outcome.loss)

    expected_losses, expected_weight, expected_rho = reference(learn, estimator)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-10)
    np.testing.assert_allclose(weight.detach(), expected_weight, rtol=1e-10, atol=1e-11)
    assert np.abs(expected_weight - initial.numpy()).max() > 0.05
    if learn:
        assert own["rho"].item() == pytest.approx(expected_rho, rel=1e-10)
        assert abs(expected_rho - math.log(COEF0 / GAMMA)) > 0.05
