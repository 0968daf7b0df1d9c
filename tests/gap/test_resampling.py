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
        *("raw_gap", "centroid_gap", "distribution_gap", "centroid_gap_scale_free", "distribution_gap_scale_free"),
        *("alignment", "published_gap", "relative_modality_gap"),
    ]
    for name in exact:
        assert weighted[name] == pytest.approx(repeated[name], abs=1e-12), name


FIRST_ORDER = [
    # Not the sliced distance: measured anew it has other directions (test_transport.py takes enough of them).
    *("shape_gap", "shape_gap_scale_free", "frechet_distance", "symmetric_kl", "mmd_squared"),
    *("cka", "effective_rank_image", "effective_rank_text", "participation_ratio_image", "participation_ratio_text"),
    *("uniformity", "uniformity_image", "uniformity_text", "uniformity_cross"),
]


@pytest.fixture(scope="module", params=[None, 0.2])
def resampled(request: pytest.FixtureRequest) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """What weights foretell of each measure's change, and what measuring the drawn pairs anew gives."""
    generator = torch.Generator().manual_seed(0)
    # Axes that differ: where all carry the same variance, a rank is at its greatest and no first order moves it.
    scales = torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=torch.float64)
    image = torch.randn(500, 4, dtype=torch.float64, generator=generator) * scales + 0.5
    noise = torch.randn(500, 4, dtype=torch.float64, generator=generator)
    text = 0.7 * image + 0.3 * noise - 0.3
    measures = PairMeasures(image, text, 0, request.param)
    start = measures.values()
    told: dict[str, list[float]] = {name: [] for name in FIRST_ORDER}
    found: dict[str, list[float]] = {name: [] for name in FIRST_ORDER}
    for weights in bootstrap_weights(500, 15, 2, cells=500):
        drawn = torch.repeat_interleave(torch.arange(500), (weights[0] * 500).round().long())
        again = PairMeasures(image[drawn], text[drawn], 0, request.param).values()
        moved = measures.at(weights)
        for name in FIRST_ORDER:
            told[name].append(moved[name].item() - start[name])
            found[name].append(again[name] - start[name])
    return told, found


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order_measures_follow_a_true_resample(
    name: str, resampled: tuple[dict[str, list[float]], dict[str, list[float]]]
) -> None:
    told, found = (side[name] for side in resampled)
    assert np.corrcoef(told, found)[0, 1] > 0.9
    assert np.polyfit(told, found, 1)[0] == pytest.approx(1, abs=0.25)


def test_subsample_is_seeded_sorted_and_without_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "PAIRS_COMPARED", 10)
    drawn = compared_pairs(100, 3)
    assert len(drawn.unique()) == 10
    assert torch.equal(drawn, drawn.sort().values)
    assert torch.equal(drawn, compared_pairs(100, 3)) and not torch.equal(drawn, compared_pairs(100, 4))
    assert torch.equal(compared_pairs(9, 3), torch.arange(9))
