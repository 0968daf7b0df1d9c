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


def test_relative_modality_gap_is_its_definition_by_cosines() -> None:
    image, text = (torch.nn.functional.normalize(features(30, 5, seed), dim=1).numpy() for seed in (1, 2))
    near = np.mean((1 - (image * text).sum(1)) / 2)
    others = ~np.eye(30, dtype=bool)
    inside = [((1 - rows @ rows.T) / 2)[others].mean() for rows in (image, text)]
    expected = near / (near + sum(inside) / 2)
    told = moments.relative_modality_gap(torch.from_numpy(image), torch.from_numpy(text))
    assert told.item() == pytest.approx(expected, abs=1e-14)
    assert moments.relative_modality_gap(torch.from_numpy(image), torch.from_numpy(image)).item() == 0


def test_relative_modality_gap_of_strangers_is_one_half() -> None:
    rows = torch.randn(20_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert moments.relative_modality_gap(rows[::2], rows[1::2]).item() == pytest.approx(0.5, abs=0.01)
