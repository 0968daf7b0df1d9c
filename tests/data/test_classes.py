from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from modalign.data import mixing
from modalign.data.classes import classes_of
from modalign.errors import DataError
from modalign.recipe import SourceRecipe

from .conftest import Draw


def folders(root: Path, draw: Draw) -> None:
    """Ninety cats and ten dogs; ten lines of a table about other pictures."""
    draw(*(f"pets/{'dog' if i % 10 == 3 else 'cat'}/{i:02d}.png" for i in range(100)))
    draw(*(f"t{i}.png" for i in range(10)))
    lines = [f"t{i}.png,text {i},{'dog' if i < 5 else 'cow'}" for i in range(10)]
    (root / "t.csv").write_text("\n".join(["file_name,text,kind", *lines]) + "\n")


def test_a_stratified_part_keeps_the_classes_of_folders_in_proportion_and_parts_lie_in_one_another(
    tmp_path: Path, draw: Draw
) -> None:
    folders(tmp_path, draw)
    train = f"images:{tmp_path / 'pets'}"
    pairs = mixing.read(train)
    classes = classes_of(pairs, train)
    parts = [pairs.subset(limit=limit, seed=1, classes=classes) for limit in (2, 10, 50)]
    for part, cats, dogs in zip(parts, (1, 9, 45), (1, 1, 5), strict=True):
        assert Counter(row.path.parent.name for row in part.rows) == {"cat": cats, "dog": dogs}
    assert set(parts[0].paths) < set(parts[1].paths) < set(parts[2].paths)


def test_classes_of_a_mixture_are_those_of_each_source(tmp_path: Path, draw: Draw) -> None:
    folders(tmp_path, draw)
    (tmp_path / "other.csv").write_text("file_name,text,kind\npets/cat/00.png,a,dog\npets/dog/03.png,b,dog\n")
    train = [SourceRecipe(spec=str(tmp_path / name)) for name in ("t.csv", "other.csv")]
    pairs = mixing.read(train)
    assert classes_of(pairs, train, label_column="kind") == [1] * 5 + [0] * 5 + [2] * 2


def test_a_picture_without_a_class_is_named(tmp_path: Path, draw: Draw) -> None:
    folders(tmp_path, draw)
    table = tmp_path / "t.csv"
    table.write_text(table.read_text().replace("t7.png,text 7,cow", "t7.png,text 7,"))
    with pytest.raises(DataError, match=r"t\.csv:9: t7\.png has no class"):
        classes_of(mixing.read(str(table)), str(table), label_column="kind")
    with pytest.raises(DataError, match="has no column label"):
        classes_of(mixing.read(str(table)), str(table))
