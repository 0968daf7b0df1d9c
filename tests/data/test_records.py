from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.data.records import PairRow, Pairs
from modalign.errors import DataError


def made(names: list[str], root: str = "/data") -> Pairs:
    rows = tuple(
        PairRow(Path(root) / name, (f"caption {line}",), f"metadata.csv:{line}") for line, name in enumerate(names)
    )
    return Pairs(root, rows, "train")


def test_flat_captions_by_hand() -> None:
    rows = (
        PairRow(Path("/d/a.png"), ("one", "two"), "1"),
        PairRow(Path("/d/b.png"), ("two ",), "2"),
        PairRow(Path("/d/a.png"), ("Two", "one", "\none"), "3"),
    )
    data = Pairs("/d", rows)
    assert data.image_ids.tolist() == [0, 1, 0]
    assert data.captions == ["one", "two", "two ", "Two", "one", "\none"]
    assert data.caption_rows.tolist() == [0, 0, 1, 2, 2, 2]
    assert data.first_caption.tolist() == [0, 2, 3]
    assert data.caption_counts.tolist() == [2, 1, 3]
    assert data.caption_ids.tolist() == [0, 1, 1, 2, 0, 0]
    assert data.take([2, 1]).image_ids.tolist() == [0, 1]
    assert data.take([2, 1]).captions[0] == "Two"


def test_links_to_a_picture_are_that_picture(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "b.png").symlink_to("real/a.png")
    (tmp_path / "c.png").write_bytes(b"")
    names = ["real/a.png", "linked/a.png", "b.png", "c.png", "real/../real/a.png"]
    assert made(names, str(tmp_path)).image_ids.tolist() == [0, 0, 0, 1, 0]


names = st.lists(st.integers(0, 40).map("{}.png".format), min_size=2, max_size=60).filter(lambda n: len(set(n)) > 1)


@given(names=names, share=st.floats(0.001, 0.999), seed=st.integers(0, 2**64), data=st.data())
@settings(max_examples=80, deadline=None)
def test_split_off_parts_the_pictures_whatever_the_order_of_rows(
    names: list[str], share: float, seed: int, data: st.DataObject
) -> None:
    pairs = made(names)
    stay, out = pairs.split_off(share, seed)
    held, distinct = {row.path for row in out.rows}, len(set(names))
    assert sorted([*stay.rows, *out.rows], key=lambda row: int(row.where[13:])) == list(pairs.rows)
    assert not held & {row.path for row in stay.rows}
    assert len(held) == min(max(round(share * distinct), 1), distinct - 1)
    order = data.draw(st.permutations(range(len(names))))
    assert {row.path for row in pairs.take(order).split_off(share, seed)[1].rows} == held
    assert out.rows == pairs.split_off(share, seed)[1].rows
    moved = made(names, "/elsewhere/below").split_off(share, seed)[1]
    assert {path.name for path in moved.paths} == {path.name for path in held}


def test_split_off_draws_evenly_and_seeds_differ() -> None:
    pairs = made([f"{i}.png" for i in range(200)])
    draws = [frozenset(pairs.split_off(0.1, seed)[1].paths) for seed in range(100)]
    assert len(set(draws)) == 100
    counts = [sum(path in draw for draw in draws) for path in pairs.paths]  # binomial(100, 0.1)
    assert max(counts) <= 24 and sum(counts) == 2000


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_split_off_refuses_what_is_no_share(share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        made(["a.png", "b.png"]).split_off(share, 0)


def test_one_picture_cannot_be_parted() -> None:
    with pytest.raises(DataError, match=r"1 picture\(s\)"):
        made(["a.png", "a.png"]).split_off(0.5, 0)


def test_the_fingerprint_keeps_when_data_moves_and_changes_with_its_content() -> None:
    data = made(["x/a.png", "b.png", "c.png"])
    assert data.fingerprint == made(["x/a.png", "b.png", "c.png"], "/mnt/copy").fingerprint
    others = [made(["x/a.png", "b.png", "d.png"]), data.take([1, 0, 2]), data.take([0, 1])]
    recaptioned = Pairs("/data", (PairRow(data.rows[0].path, ("caption", "0"), ""), *data.rows[1:]))
    assert len({data.fingerprint, recaptioned.fingerprint, *(other.fingerprint for other in others)}) == 5
