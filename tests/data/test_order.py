from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from modalign.data.order import (
    drawn_caption,
    epoch_order,
    global_batch,
    mixed_batch,
    own_share,
    source_draws,
    steps_per_epoch,
)
from modalign.errors import DataError

SEEDS = st.integers(0, 2**63)
sizes = st.tuples(st.integers(1, 60), st.integers(1, 25))


@given(seed=SEEDS, epoch=st.integers(0, 9), size=sizes, drop_last=st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_epoch_visits_each_row_once(seed: int, epoch: int, size: tuple[int, int], drop_last: bool) -> None:
    rows, batch_size = size
    if drop_last and rows < batch_size:
        return
    steps = steps_per_epoch(rows, batch_size, drop_last)
    batches = [global_batch(seed, epoch * steps + i, rows, batch_size, drop_last) for i in range(steps)]
    visited = torch.cat(batches).tolist()
    assert len(set(visited)) == len(visited)
    assert len(visited) == (rows // batch_size * batch_size if drop_last else rows)
    assert set(visited) <= set(range(rows))
    assert all(len(batch) == batch_size for batch in batches[:-1])


@given(seed=SEEDS, step=st.integers(0, 400), size=sizes, world=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_a_step_is_the_same_alone_and_shared_out(seed: int, step: int, size: tuple[int, int], world: int) -> None:
    rows, batch_size = size
    batch = global_batch(seed, step, rows, batch_size, False)
    global_batch(seed, step + 1, rows, batch_size, False)
    assert torch.equal(batch, global_batch(seed, step, rows, batch_size, False))
    shares = [own_share(batch, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat(shares), batch)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50).tolist()) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_changing_a_returned_order_changes_no_later_one() -> None:
    order = epoch_order(3, 0, 10)
    kept = order.clone()
    order.zero_()
    batch = global_batch(3, 0, 10, 10, False)
    batch.zero_()
    assert torch.equal(epoch_order(3, 0, 10), kept)


def test_another_process_and_another_global_seed_give_the_same_order() -> None:
    code = (
        "import torch; torch.manual_seed(99); from modalign.data.order import *;"
        "print(epoch_order(7, 2, 12).tolist(), drawn_caption(7, 2, torch.arange(12), torch.full((12,), 5)).tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    drawn = drawn_caption(7, 2, torch.arange(12), torch.full((12,), 5))
    assert printed.strip() == f"{epoch_order(7, 2, 12).tolist()} {drawn.tolist()}"


def test_steps_by_hand() -> None:
    assert steps_per_epoch(117_104, 512, True) == 228  # the published run: 99 % of COCO train2017
    assert steps_per_epoch(10, 4, False) == 3
    assert steps_per_epoch(10, 4, True) == 2
    assert [len(global_batch(0, step, 10, 4, False)) for step in range(4)] == [4, 4, 2, 4]


@pytest.mark.parametrize(("rows", "batch_size", "named"), [(7, 8, "7 rows.*8"), (0, 8, "no rows"), (8, 0, "size 0")])
def test_no_batch_to_make(rows: int, batch_size: int, named: str) -> None:
    with pytest.raises(DataError, match=named):
        steps_per_epoch(rows, batch_size, True)


def test_the_drawn_caption_is_uniform_over_rows_and_over_epochs() -> None:
    rows = torch.arange(100_000)
    by_row = drawn_caption(0, 0, rows, torch.full_like(rows, 5))
    assert chisquare(torch.bincount(by_row, minlength=5).numpy()).pvalue > 1e-3
    # Consecutive rows are independent too: all 25 pairs are equally frequent.
    assert chisquare(torch.bincount(by_row[::2] * 5 + by_row[1::2], minlength=25).numpy()).pvalue > 1e-3
    one = torch.tensor([17])
    by_epoch = torch.cat([drawn_caption(0, epoch, one, torch.tensor([5])) for epoch in range(4_000)])
    assert chisquare(torch.bincount(by_epoch, minlength=5).numpy()).pvalue > 1e-3


@given(seed=SEEDS, epoch=st.integers(0, 5), rows=st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_rows_caption_does_not_depend_on_its_batch(seed: int, epoch: int, rows: list[int]) -> None:
    indices = torch.tensor(rows)
    counts = indices % 7 + 1
    together = drawn_caption(seed, epoch, indices, counts)
    alone = [int(drawn_caption(seed, epoch, indices[i : i + 1], counts[i : i + 1])) for i in range(len(rows))]
    assert together.tolist() == alone
    assert bool((together < counts).all()) and bool((together >= 0).all())


def test_a_row_without_captions_is_refused() -> None:
    with pytest.raises(ValueError, match="no caption"):
        drawn_caption(0, 0, torch.tensor([0, 1]), torch.tensor([1, 0]))


# ---- mixtures -----------------------------------------------------------------------------------------------


def test_draws_follow_the_weights_by_hand() -> None:
    assert source_draws([1, 1, 1], 10) == [4, 3, 3]  # 3⅓ each, the one left over to the first
    assert source_draws([3, 1], 10) == [8, 2]  # 7.5 and 2.5: the first of equal remainders
    assert source_draws([0.2, 0.7, 0.1], 1000) == [200, 700, 100]
    assert source_draws([11, 8], 19) == [11, 8]  # in proportion to the sizes: every row once


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.2, 5)), min_size=1, max_size=4),
    st.integers(1, 7),
    st.booleans(),
    st.integers(0, 20),
)
def test_a_mixture_is_exact_and_never_repeats_early(
    sources: list[tuple[int, float]], batch_size: int, drop_last: bool, seed: int
) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    members = list(torch.arange(sum(sizes)).split(sizes))
    rows = sum(sizes)
    if drop_last and rows < batch_size:
        return
    per_epoch = steps_per_epoch(rows, batch_size, drop_last)
    draws = per_epoch * batch_size if drop_last else rows
    if min(weight / sum(weights) * draws for weight in weights) < 1:
        return  # a source that an epoch may leave out is refused
    seen: list[int] = []
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        found = [mixed_batch(seed, step, members, weights, batch_size, drop_last) for step in steps]
        drawn = torch.cat([batch for batch, _ in found]).tolist()
        assert len(drawn) == draws
        for own, weight in zip(members, weights, strict=True):
            count = sum(int(own[0]) <= row <= int(own[-1]) for row in drawn)
            assert abs(count - draws * weight / sum(weights)) < 1
        seen += drawn
    for own in members:  # cut into its passes, a source's sequence holds each row once a pass
        sequence = [row for row in seen if int(own[0]) <= row <= int(own[-1])]
        for start in range(0, len(sequence), len(own)):
            turn = sequence[start : start + len(own)]
            assert len(set(turn)) == len(turn)


def test_passes_are_told_and_differ() -> None:
    members = [torch.arange(5), torch.arange(5, 45)]
    found = [mixed_batch(1, step, members, [1, 1], 10, True) for step in range(4)]
    rows, turns = (torch.cat(parts) for parts in zip(*found, strict=True))
    own = rows < 5
    assert own.sum() == 20 and torch.equal(turns[own], torch.arange(20) // 5)
    orders = rows[own].view(4, 5).tolist()
    assert len({tuple(order) for order in orders}) > 1  # each pass has an order of its own


def test_a_source_without_rows_is_named() -> None:
    with pytest.raises(DataError, match="source 2 of the mixture has no row left"):
        mixed_batch(0, 0, [torch.arange(4), torch.arange(0)], [1, 1], 2, True)


def test_captions_are_drawn_by_pass_as_by_epoch() -> None:
    rows, counts = torch.arange(30), torch.full((30,), 7)
    turns = torch.arange(30) % 3
    drawn = drawn_caption(5, turns, rows, counts)
    for turn in range(3):
        assert torch.equal(drawn[turns == turn], drawn_caption(5, turn, rows, counts)[turns == turn])
