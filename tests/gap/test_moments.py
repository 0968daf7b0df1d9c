from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.gap import moments


def features(rows: int = 40, width: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.2, 2, width, dtype=torch.float64)
    return torch.randn(rows, width, dtype=torch.float64, generator=generator) * scales + 0.3


def test_two_pairs_worked_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    text = torch.tensor([[1.0, 2.0], [0.0, 3.0], [1.0, 3.0], [0.0, 2.0]], dtype=torch.float64)
    # Each caption lies exactly (0, 2) from its picture: all of the gap is centroid, none is distribution.
    assert moments.raw_gap(image, text).item() == 2
    assert moments.centroid_gap(image, text).item() == 2
    assert moments.distribution_gap(image, text).item() == 0
    assert moments.total_variance(image).item() == 0.5  # 1/N: (¼ + ¼), where 1/(N−1) would give ⅔


def test_effective_rank_of_known_spectra() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    assert moments.effective_rank(torch.cat([eye, -eye])).item() == pytest.approx(4, abs=1e-12)
    line = torch.outer(torch.arange(5, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    assert moments.effective_rank(line).item() == pytest.approx(1, abs=1e-12)
    assert moments.effective_rank(torch.full((9, 3), 0.1, dtype=torch.float64)).item() == 0


def test_effective_rank_against_numpy() -> None:
    rows = features()
    eigenvalues = np.linalg.eigvalsh(np.cov(rows.numpy().T, bias=True))
    shares = eigenvalues / eigenvalues.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert moments.effective_rank(rows).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("rows", "width"), [(40, 7), (6, 12)])
def test_influence_is_the_derivative_of_the_log_rank_by_the_weights(rows: int, width: int) -> None:
    x = features(rows, width).numpy()

    def log_rank(weights: np.ndarray) -> float:
        centred = x - weights @ x
        eigenvalues = np.linalg.eigvalsh((centred * weights[:, None]).T @ centred)
        shares = eigenvalues[eigenvalues > 1e-12] / eigenvalues.sum()
        return float(-(shares * np.log(shares)).sum())

    uniform = np.full(rows, 1 / rows)
    step = 1e-6
    # The measure moves towards one row: w = (1 − ε)/N + ε·1_i.
    slopes = [
        (log_rank((1 - step) * uniform + step * row) - log_rank((1 + step) * uniform - step * row)) / (2 * step)
        for row in np.eye(rows)
    ]
    np.testing.assert_allclose(moments.effective_rank_influence(torch.from_numpy(x)), slopes, atol=1e-6)
