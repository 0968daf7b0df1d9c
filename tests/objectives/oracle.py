"""Every loss once more, from its formula, in float64 NumPy loops; gradients by complex steps.

Scalars only, no matrix routine, nothing of torch: an error in the tensor code cannot hide in the same shortcut here.
All functions are analytic in their inputs, so that f(x + ih) gives df/dx = Im f / h exactly to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Matrix = np.ndarray


def dot(a: Matrix, b: Matrix) -> complex:
    return sum(p * q for p, q in zip(a, b, strict=True))


def unit(features: Matrix) -> Matrix:
    return np.array([row / np.sqrt(dot(row, row)) for row in features])


def log_softmax(row: list) -> list:
    top = max(np.real(value) for value in row if np.real(value) > -np.inf)
    total = sum(np.exp(value - top) for value in row if np.real(value) > -np.inf)
    return [value - top - np.log(total) for value in row]


def rows_to_one(weights: Matrix) -> Matrix:
    return np.array([[value / sum(row) for value in row] for row in np.asarray(weights, dtype=float)])


def cross_entropy(logits: list[list], target: Matrix) -> complex:
    loss = 0.0
    for row, weights in zip(logits, target, strict=True):
        log_p = log_softmax(row)
        loss -= sum(w * lp for w, lp in zip(weights, log_p, strict=True) if w > 0)
    return loss / len(target)


def products(a: Matrix, b: Matrix, scale: float) -> list[list]:
    return [[scale * dot(p, q) for q in b] for p in a]


def contrastive(image: Matrix, text: Matrix, scale: float, positives: Matrix | None = None) -> complex:
    positives = np.eye(len(image)) if positives is None else np.asarray(positives, dtype=float)
    x, t = unit(image), unit(text)
    to_text = cross_entropy(products(x, t, scale), rows_to_one(positives))
    to_image = cross_entropy(products(t, x, scale), rows_to_one(positives.T))
    return (to_text + to_image) / 2


def sigmoid(image: Matrix, text: Matrix, scale: float, bias: float, positives: Matrix | None = None) -> complex:
    positives = np.eye(len(image)) if positives is None else np.asarray(positives, dtype=float)
    x, t = unit(image), unit(text)
    loss = 0.0
    for i in range(len(x)):
        for j in range(len(t)):
            sign = 1 if positives[i][j] > 0 else -1
            loss += np.log(1 + np.exp(-sign * (scale * dot(x[i], t[j]) + bias)))
    return loss / len(x)


def random_feature(image: Matrix, text: Matrix, z_image: Matrix, z_text: Matrix, reduction: str) -> complex:
    pulls = [dot(a - z, a - z) for a, z in zip(image, z_image, strict=True)]
    pulls += [dot(a - z, a - z) for a, z in zip(text, z_text, strict=True)]
    rows, dim = image.shape
    return sum(pulls) / (rows * dim) if reduction == "mean" else sum(pulls) / (2 * rows)


def divergence(student: list[list], teacher: list[list], alpha: float, positives: Matrix) -> complex:
    loss = 0.0
    for s, s0, p in zip(student, teacher, rows_to_one(positives), strict=True):
        soft = np.exp(log_softmax(s0))
        for weight, teach, log_p in zip(p, soft, log_softmax(s), strict=True):
            q = alpha * weight + (1 - alpha) * teach
            if q > 0:
                loss += q * (np.log(q) - log_p)
    return loss / len(student)


def hybrid_distillation(
    image: Matrix,
    text: Matrix,
    image0: Matrix,
    text0: Matrix,
    alpha: float,
    temperature: float,
    scale: float | None = None,
    positives: Matrix | None = None,
) -> complex:
    positives = np.eye(len(image)) if positives is None else np.asarray(positives, dtype=float)
    if scale is not None:
        image, text, image0, text0 = unit(image), unit(text), unit(image0), unit(text0)
    factor = (1 if scale is None else scale) / temperature
    one = divergence(products(image, text, factor), products(image0, text0, factor), alpha, positives)
    other = divergence(products(text, image, factor), products(text0, image0, factor), alpha, positives.T)
    return temperature**2 * (one + other) / 2


def pair_distance(image: Matrix, text: Matrix) -> complex:
    differences = unit(image) - unit(text)
    return sum(dot(row, row) for row in differences) / len(image)


def mixture(x: Matrix, t: Matrix, share: float) -> Matrix:
    angle = np.arccos(dot(x, t))
    return np.sin(share * angle) / np.sin(angle) * x + np.sin((1 - share) * angle) / np.sin(angle) * t


def geodesic_contrastive(
    image: Matrix, text: Matrix, share: float, scale: float, positives: Matrix | None = None
) -> complex:
    x, t = unit(image), unit(text)
    mixed = [mixture(a, b, share) for a, b in zip(x, t, strict=True)]
    loss = 0.0
    for side in (x, t):
        for i in range(len(x)):
            row = [scale * dot(x[i], t[i])]
            for j in range(len(x)):
                related = positives is not None and (positives[i][j] > 0 or positives[j][i] > 0)
                if i != j and not related:
                    row.append(scale * dot(side[i], mixed[j]))
            loss -= log_softmax(row)[0]
    return loss / (2 * len(x))


def gradient(loss: Callable[..., complex], *inputs: Matrix) -> list[Matrix]:
    """∂loss/∂inputs, entry by entry."""
    found = []
    for position, matrix in enumerate(inputs):
        slope = np.zeros(matrix.shape)
        for index in np.ndindex(matrix.shape):
            shifted = [np.array(other, dtype=complex) for other in inputs]
            shifted[position][index] += 1e-30j
            slope[index] = np.imag(loss(*shifted)) / 1e-30
        found.append(slope)
    return found
