from __future__ import annotations

import torch

from modalign.gap.separability import held_out_accuracy


def noise(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_far_apart_is_one_and_indistinguishable_is_half() -> None:
    image = noise(60, 8, 0)
    assert held_out_accuracy(image, image + 9).mean().item() == 1
    assert held_out_accuracy(image, image).mean().item() == 0.5
    assert held_out_accuracy(torch.ones_like(image), torch.ones_like(image)).mean().item() == 0.5


def test_held_out_so_more_dimensions_than_pairs_do_not_separate_the_inseparable() -> None:
    # Fitted and judged on the same pairs, a probe in 200 dimensions would be right on all of these.
    accuracy = held_out_accuracy(noise(60, 200, 1), noise(60, 200, 2)).mean().item()
    assert 0.3 < accuracy < 0.7


def test_split_by_pair_so_a_partner_seen_in_fitting_gives_nothing_away() -> None:
    # Members of a pair nearly coincide: a probe that had seen one partner would put the other on the wrong side.
    image = noise(60, 200, 3)
    accuracy = held_out_accuracy(image, image + 1e-3 * noise(60, 200, 4)).mean().item()
    assert accuracy > 0.3


def test_deterministic_in_its_seed() -> None:
    image, text = noise(50, 4, 5), noise(50, 4, 6) + 0.5
    assert torch.equal(held_out_accuracy(image, text, seed=3), held_out_accuracy(image, text, seed=3))
    assert not torch.equal(held_out_accuracy(image, text, seed=3), held_out_accuracy(image, text, seed=4))
