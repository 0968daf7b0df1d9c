from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.gap.spectrum import Spectrum, effective_rank, participation_ratio


def features(rows: int = 40, width: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.2, 2, width, dtype=torch.float64)
    return torch.randn(rows, width, dtype=torch.float64, generator=generator) * scales + 0.3


@pytest.mark.parametrize("count", [effective_rank, participation_ratio])
def test_known_spectra(count) -> None:  # type: ignore[no-untyped-def]
    eye = torch.eye(4, dtype=torch.float64)
    assert count(torch.cat([eye, -eye])).item() == pytest.approx(4, abs=1e-12)
    line = torch.outer(torch.arange(5, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    assert count(line).item() == pytest.approx(1, abs=1e-12)
    assert count(torch.full((9, 3), 0.1, dtype=torch.float64)).item() == 0


def test_variances_three_and_one_worked_by_hand() -> None:
    rows = torch.tensor([[3.0, 0], [-3, 0], [0, 3**0.5], [0, -(3**0.5)]], dtype=torch.float64)
    # Eigenvalues 4.5 and 1.5, shares ¾ and ¼: 1/(9/16 + 1/16) = 1.6.
    assert participation_ratio(rows).item() == pytest.approx(1.6, abs=1e-14)
    assert effective_rank(rows).item() == pytest.approx((4 / 3) ** 0.75 * 4**0.25, abs=1e-14)


def test_both_counts_against_numpy() -> None:
    rows = features()
    eigenvalues = np.linalg.eigvalsh(np.cov(rows.numpy().T, bias=True))
    shares = eigenvalues / eigenvalues.sum()
    assert effective_rank(rows).item() == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=1e-12)
    assert participation_ratio(rows).item() == pytest.approx(1 / (shares**2).sum(), abs=1e-12)


@pytest.mark.parametrize(("rows", "width"), [(40, 7), (6, 12)])
def test_influences_are_the_derivatives_of_the_logarithms_by_the_weights(rows: int, width: int) -> None:
    x = features(rows, width).numpy()

    def logs(weights: np.ndarray) -> np.ndarray:
        centred = x - weights @ x
        eigenvalues = np.linalg.eigvalsh((centred * weights[:, None]).T @ centred)
        shares = eigenvalues[eigenvalues > 1e-12] / eigenvalues.sum()
        return np.array([-(shares * np.log(shares)).sum(), -np.log((shares**2).sum())])

    uniform = np.full(rows, 1 / rows)
    step = 1e-6
    # The measures move towards one row: w = (1 − ε)/N + ε·1_i.
    slopes = [
        (logs((1 - step) * uniform + step * row) - logs((1 + step) * uniform - step * row)) / (2 * step)
        for row in np.eye(rows)
    ]
    spectrum = Spectrum.of(torch.from_numpy(x))
    told = torch.stack([spectrum.effective_rank_influence(), spectrum.participation_ratio_influence()], dim=1)
    np.testing.assert_allclose(told, slopes, atol=1e-6)
