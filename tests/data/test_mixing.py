from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import modalign
from modalign.data.mixing import mix, read
from modalign.data.records import PairRow, Pairs
from modalign.errors import DataError
from modalign.recipe import SourceRecipe
from modalign.recipe import load as load_recipe
from modalign.training.inputs import TrainingSet, batches
from tests.tiny import write_pairs


def made(root: str, count: int) -> Pairs:
    rows = tuple(PairRow(Path(root) / f"{i}.png", (f"{root} {i}", f"also {i}"), f"{i}") for i in range(count))
    return Pairs(root, rows)


def visits(pairs: Pairs, start: int, stop: int, rank: int = 0, world: int = 1) -> list[Any]:
    recipe = load_recipe(None, data__batch_size=6, seed=3)
    processes = SimpleNamespace(rank=rank, world=world)
    return list(batches(TrainingSet(pairs), None, recipe, processes, start, stop, pixels=False))  # type: ignore[arg-type]


def test_without_weights_a_mixture_is_the_joined_list() -> None:
    parts = made("/a", 11), made("/b", 8)
    mixed = mix([(part, None) for part in parts])
    joined = Pairs("joined", parts[0].rows + parts[1].rows)
    assert mixed.fingerprint == joined.fingerprint and mixed.image_ids.tolist() == joined.image_ids.tolist()
    for ours, theirs in zip(visits(mixed, 0, 9), visits(joined, 0, 9), strict=True):
        assert torch.equal(ours.rows, theirs.rows) and torch.equal(ours.captions, theirs.captions)


def test_a_weighted_run_continues_anywhere_on_any_number_of_processes() -> None:
    mixed = mix([(made("/a", 11), 1), (made("/b", 8), 3)])
    whole = visits(mixed, 0, 12)
    for start in (1, 5, 9):
        for ours, theirs in zip(visits(mixed, start, 12), whole[start:], strict=True):
            assert torch.equal(ours.rows, theirs.rows) and torch.equal(ours.captions, theirs.captions)
    shares = [visits(mixed, 0, 12, rank, 4) for rank in range(4)]
    for step, batch in enumerate(whole):
        assert all(torch.equal(share[step].rows, batch.rows) for share in shares)
        assert torch.equal(torch.cat([share[step].rows[share[step].own] for share in shares]), batch.rows)


def test_a_row_that_comes_twice_in_an_epoch_shows_its_captions_anew() -> None:
    mixed = mix([(made("/a", 400), 1), (made("/b", 2), 400)])
    found = visits(mixed, 0, 60)
    rows = torch.cat([batch.rows for batch in found])
    captions = torch.cat([batch.captions for batch in found])
    of_one = captions[rows == 400]
    assert len(of_one) > 100 and 0.3 < (of_one == 800).float().mean() < 0.7


def test_pictures_shared_by_sources_share_an_id(tmp_path: Path) -> None:
    folder = Path(write_pairs(tmp_path / "a", n=4))
    (tmp_path / "more.csv").write_text("file_name,text\na/0001.png,other words\n")
    mixed = mix([(modalign.pairs(folder), 1), (modalign.pairs(tmp_path / "more.csv"), 1)])
    assert mixed.image_ids.tolist() == [0, 1, 2, 3, 1] and mixed.sources.tolist() == [0, 0, 0, 0, 1]
    stay, held = mixed.split_off(0.5, 0)
    assert not set(stay.paths) & set(held.paths) and stay.weights == mixed.weights


def test_weights_count_in_the_identity_of_the_data() -> None:
    parts = made("/a", 5), made("/b", 5)
    fingerprints = {mix(zip(parts, weights, strict=True)).fingerprint for weights in [(1, 1), (1, 2), (None, None)]}
    assert len(fingerprints) == 3


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ((0, 1), "has the weight 0; pass a positive number"),
        ((-1, 1), "has the weight -1"),
        ((float("inf"), 1), "has the weight inf"),
        ((1, None), "/b has no weight while others have"),
        ((1e-9, 1), "weight 1e-09 of source 1 is too small: none of an epoch's 10 draws"),
    ],
)
def test_weights_that_cannot_be(weights: tuple[Any, Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        mix([(made("/a", 5), weights[0]), (made("/b", 5), weights[1])])


def test_pictures_alone_are_mixed_and_drawn_like_pairs(tmp_path: Path) -> None:
    for name, count in (("a", 7), ("b", 5)):
        write_pairs(tmp_path / name, n=count, seed=count)
    parts = [{"spec": f"images:{tmp_path / name}", "weight": weight} for name, weight in (("a", 3), ("b", 1))]
    mixed = read(load_recipe(None, data__train=parts).data.train)
    pairs = mix([(modalign.pairs(tmp_path / "a"), 3), (modalign.pairs(tmp_path / "b"), 1)])
    in_python = modalign.mix([(modalign.images(tmp_path / "a"), 3), (modalign.images(tmp_path / "b"), 1)])
    assert mixed.captions == [] and mixed.paths == pairs.paths and in_python == mixed
    for ours, theirs in zip(visits(mixed, 0, 9), visits(pairs, 0, 9), strict=True):
        assert torch.equal(ours.rows, theirs.rows) and not len(ours.captions)


def test_pairs_beside_pictures_alone_lose_their_captions(tmp_path: Path) -> None:
    """A method that reads no captions can train on both; one that does is told that there are none."""
    write_pairs(tmp_path / "a", n=4)
    write_pairs(tmp_path / "b", n=3, seed=1)
    parts = [{"spec": f"images:{tmp_path / 'a'}"}, {"spec": str(tmp_path / "b")}]
    mixed = read(load_recipe(None, data__train=parts).data.train, text_column="text")
    assert len(mixed) == 7 and mixed.captions == [] and len(visits(mixed, 0, 3)) == 3
    with pytest.raises(DataError, match="text_column = 'text' names nothing"):
        read(load_recipe(None, data__train=parts[:1]).data.train, text_column="text")
    with pytest.raises(DataError, match="reads pictures alone, so a text column"):
        read(load_recipe(None, data__train=[{**parts[0], "text_column": "text"}]).data.train)


def test_mixtures_are_not_mixed_again() -> None:
    mixed = mix([(made("/a", 5), 1), (made("/b", 5), 1)])
    with pytest.raises(DataError, match="is a mixture itself"):
        mix([(mixed, 1), (made("/c", 5), 1)])
    with pytest.raises(DataError, match="nothing to mix"):
        mix([])


def test_sources_of_a_recipe_have_columns_of_their_own(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", n=3)
    (tmp_path / "b.csv").write_text("img,alt\na/0001.png,other words\n")
    recipe = load_recipe(
        None,
        data__train=[
            {"spec": str(tmp_path / "a"), "weight": 2},
            {"spec": str(tmp_path / "b.csv"), "weight": 1, "image_column": "img", "text_column": "alt"},
        ],
    )
    pairs = read(recipe.data.train)
    assert len(pairs) == 4 and pairs.weights == (2, 1) and pairs.captions[-1] == "other words"
    assert pairs.spec == f"{tmp_path}/a × 2 + {tmp_path}/b.csv × 1"


def test_a_column_for_all_sources_is_read_by_those_that_have_columns(tmp_path: Path) -> None:
    table = Path(write_pairs(tmp_path / "pairs", n=4)) / "metadata.csv"
    table.write_text(table.read_text().replace("file_name,text", "file_name,words"))
    parts = [SourceRecipe(spec=str(tmp_path / "pairs")), SourceRecipe(spec="demo:test")]
    found = read(parts, text_column="words")
    assert [row.source for row in found.rows].count(0) == 4 and {row.source for row in found.rows} == {0, 1}
    with pytest.raises(DataError, match="none of demo:test has columns"):
        read(parts[1:], text_column="words")
    with pytest.raises(DataError, match="demo:test has no columns"):
        read([SourceRecipe(spec="demo:test", text_column="words")])
    with pytest.raises(DataError, match="reads pictures alone"):
        read(f"images:{tmp_path / 'pairs'}", text_column="words")
