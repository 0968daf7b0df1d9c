from __future__ import annotations

import numpy as np
import pytest
import torch

from modalign.gap import resampling
from modalign.gap.resampling import PairMeasures, bootstrap_weights, compared_pairs


def test_weights_are_draws_with_replacement_in_chunks_of_any_size() -> None:
    chunks = list(bootstrap_weights(7, 50, 0, cells=7 * 8))
    weights = torch.cat(chunks)
    assert [len(chunk) for chunk in chunks] == [8] * 6 + [2]
    assert torch.allclose(weights.sum(1), torch.ones(50, dtype=torch.float64))
    assert torch.equal((weights * 7).round(), weights * 7)


def test_weighted_moments_equal_those_of_the_repeated_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(30, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    weights = next(bootstrap_weights(30, 1, 1))
    drawn = torch.repeat_interleave(torch.arange(30), (weights[0] * 30).round().long())
    weighted = {name: value.item() for name, value in PairMeasures(image, text, 0).at(weights).items()}
    repeated = PairMeasures(image[drawn], text[drawn], 0).values()
    exact = [
        "raw_gap",
        "centroid_gap",
        "distribution_gap",
        "centroid_gap_scale_free",
        "distribution_gap_scale_free",
        "alignment",
        "published_gap",
    ]
    for name in exact:
        assert weighted[name] == pytest.approx(repeated[name], abs=1e-12), name


def test_first_order_measures_follow_a_true_resample() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(2000, 6, dtype=torch.float64, generator=generator), dim=1)
    text = torch.nn.functional.normalize(image + torch.randn(2000, 6, dtype=torch.float64, generator=generator), dim=1)
    measures = PairMeasures(image, text, 0)
    start = measures.values()
    moved, expected = [], []
    for weights in bootstrap_weights(2000, 8, 2, cells=2000):
        drawn = torch.repeat_interleave(torch.arange(2000), (weights[0] * 2000).round().long())
        again = PairMeasures(image[drawn], text[drawn], 0).values()
        for name in ("effective_rank_image", "effective_rank_text"):
            moved.append(measures.at(weights)[name].item() - start[name])
            expected.append(again[name] - start[name])
    assert np.corrcoef(moved, expected)[0, 1] > 0.8


def test_subsample_is_seeded_sorted_and_without_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "PAIRS_COMPARED", 10)
    drawn = compared_pairs(100, 3)
    assert len(drawn.unique()) == 10
    assert torch.equal(drawn, drawn.sort().values)
    assert torch.equal(drawn, compared_pairs(100, 3)) and not torch.equal(drawn, compared_pairs(100, 4))
    assert torch.equal(compared_pairs(9, 3), torch.arange(9))
