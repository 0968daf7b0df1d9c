from __future__ import annotations

import pytest
import torch

from modalign.errors import DataError
from modalign.evaluation.splits import draw_shots, stratified_split

LABELS = torch.tensor([0] * 10 + [1] * 5 + [2] * 2 + [3])


def test_each_class_keeps_its_share_and_never_stands_on_one_side() -> None:
    held = stratified_split(LABELS, 0.3)
    assert [int(held[c == LABELS].sum()) for c in range(4)] == [3, 2, 1, 0]  # a class of one is learned from
    high = stratified_split(LABELS, 0.99)
    assert [int(high[c == LABELS].sum()) for c in range(4)] == [9, 4, 1, 0]


def test_rows_of_one_picture_stay_together() -> None:
    groups = torch.tensor([7, 7, 3, 3, 5, 5, 1, 1])
    labels = torch.zeros(8).long()
    for seed in range(10):
        held = stratified_split(labels, 0.5, seed, groups)
        assert held.view(4, 2).all(1).sum() == 2 and not (held.view(4, 2).sum(1) == 1).any()


def test_a_split_is_a_pure_function_of_seed_and_labels() -> None:
    assert torch.equal(stratified_split(LABELS, 0.5, 1), stratified_split(LABELS, 0.5, 1))
    assert any(not torch.equal(stratified_split(LABELS, 0.5, 1), stratified_split(LABELS, 0.5, s)) for s in range(5))
    state = torch.get_rng_state()
    stratified_split(LABELS, 0.5, 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        stratified_split(LABELS, share)


def test_fewer_shots_are_among_more_and_none_is_validated_on() -> None:
    labels = torch.arange(100) % 4
    for seed in range(3):
        drawn = {count: draw_shots(labels, count, 4, seed) for count in (1, 2, 4, 8)}
        for few, more in ((1, 2), (2, 4), (4, 8)):
            assert set(drawn[few][0].tolist()) < set(drawn[more][0].tolist())
        for count, (learn, validate) in drawn.items():
            assert labels[learn].bincount().tolist() == [count] * 4
            assert labels[validate].bincount().tolist() == [4] * 4
            assert not set(learn.tolist()) & set(validate.tolist())
    assert set(draw_shots(labels, 4, 0, 0)[0].tolist()) != set(draw_shots(labels, 4, 0, 1)[0].tolist())


def test_a_small_class_gives_what_it_has_and_a_picture_is_drawn_once() -> None:
    learn, validate = draw_shots(LABELS, 4, 4, 0)
    assert LABELS[learn].bincount().tolist() == [4, 4, 2, 1]
    assert LABELS[validate].bincount(minlength=4).tolist() == [4, 1, 0, 0]
    groups = torch.tensor([0, 0, 1, 1])
    learn, _ = draw_shots(torch.zeros(4).long(), 3, 0, 0, groups)
    assert sorted(groups[learn].tolist()) == [0, 1]
