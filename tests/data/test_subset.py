from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.data.mixing import mix
from modalign.data.records import Labelled, LabelledRow, PairRow, Pairs
from modalign.data.subset import nested_order
from modalign.errors import DataError


def pairs(names: list[str], root: str = "/data") -> Pairs:
    return Pairs(root, tuple(PairRow(Path(root) / name, (name,), f"{i}") for i, name in enumerate(names)))


def labelled(sizes: list[int]) -> Labelled:
    rows = [(f"{label}/{i}.png", label) for label, size in enumerate(sizes) for i in range(size)]
    names = tuple(str(label) for label in range(len(sizes)))
    return Labelled("x", tuple(LabelledRow(Path("/data") / name, label, "") for name, label in rows), names)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 60).map(lambda i: f"{i:03d}.png"), min_size=4, max_size=80), st.integers(0, 9))
def test_parts_lie_in_one_another_and_never_cut_a_picture(names: list[str], seed: int) -> None:
    data = pairs(names)
    smaller: set[Path] = set()
    for fraction in (0.25, 0.5, 0.75, 1.0):
        part = data.subset(fraction=fraction, seed=seed)
        kept = {Path(str(path)) for path in part.paths}
        assert smaller <= kept and len(kept) == max(1, round(fraction * len(set(names))))
        assert [row for row in data.rows if row.path in kept] == list(part.rows)
        smaller = kept
    smaller = set()
    for limit in range(1, len(set(names)) + 2):
        kept = {Path(str(path)) for path in data.subset(limit=limit, seed=seed).paths}
        assert smaller <= kept and len(kept) == min(limit, len(set(names)))
        smaller = kept


def test_neither_the_order_of_rows_nor_the_place_changes_the_draw() -> None:
    names = [f"{i % 7}/{i}.png" for i in range(50)]
    drawn = {path.name for path in pairs(names).subset(fraction=0.3, seed=1).paths}
    assert {path.name for path in pairs(names[::-1], "/else/where").subset(fraction=0.3, seed=1).paths} == drawn
    assert {path.name for path in pairs(names).subset(fraction=0.3, seed=2).paths} != drawn
    _, held = pairs(names).split_off(0.3, 1)
    assert {path.name for path in held.paths} != drawn  # the two draws have nothing to do with each other


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 5))
def test_every_class_keeps_its_proportion(sizes: list[int], seed: int) -> None:
    data, total = labelled(sizes), sum(sizes)
    before = Counter[int]()
    for limit in range(1, total + 1):
        counts = Counter(data.subset(limit=limit, seed=seed).labels.tolist())
        assert sum(counts.values()) == limit and all(counts[label] >= n for label, n in before.items())
        if limit >= len(sizes):
            assert len(counts) == len(sizes)
            for label, size in enumerate(sizes):  # the first of each class can cost the others one each
                assert abs(counts[label] - limit * size / total) <= len(sizes)
        before = counts
    assert data.subset(limit=total, seed=seed) is data


def test_an_order_by_hand() -> None:
    """Four of class 0 at ⅛, ⅜, ⅝, ⅞ and two of class 1 at ¼, ¾; the first of each come before all others."""
    classes = {"a": 0, "b": 0, "c": 0, "d": 0, "x": 1, "y": 1}
    for seed in range(5):
        assert [classes[name] for name in nested_order(classes, seed)] == [0, 1, 0, 0, 1, 0]


def test_each_source_of_a_mixture_gives_its_part() -> None:
    large, small = pairs([f"{i}.png" for i in range(90)], "/large"), pairs([f"{i}.png" for i in range(10)], "/small")
    part = mix([(large, 1), (small, 1)]).subset(fraction=0.2, seed=0)
    assert part.sources.bincount().tolist() == [18, 2] and part.weights == (1.0, 1.0)


def test_out_of_range() -> None:
    data = pairs(["a.png", "b.png"])
    for options, named in [
        ({"fraction": 0.0}, "cannot take a fraction of 0; pass one above 0 and up to 1"),
        ({"fraction": 1.5}, "fraction of 1.5"),
        ({"fraction": float("nan")}, "fraction of nan"),
        ({"limit": 0}, "cannot take 0 pictures; pass a limit of at least 1"),
    ]:
        with pytest.raises(DataError, match=named):
            data.subset(**options)  # type: ignore[arg-type]
