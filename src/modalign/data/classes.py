"""The classes of training pictures, for subsets that keep them in proportion."""

from __future__ import annotations

from collections.abc import Sequence

from modalign.data import sources
from modalign.data.mixing import IMAGES, Part
from modalign.data.pictures import real_paths
from modalign.data.records import Pairs
from modalign.errors import DataError


def classes_of(
    pairs: Pairs, train: str | Sequence[Part], *, image_column: str | None = None, label_column: str | None = None
) -> list[int]:
    """The class of each row's picture, as `modalign.labelled` reads it from the same data.

    Args:
        pairs: N rows, read from `train`.
        train: the spec, or the sources of a mixture; classes of different sources are different classes.
        image_column: as for `modalign.labelled`, where a source names none.
        label_column: likewise, of every source.

    Returns:
        N numbers.

    Raises:
        DataError: a source has no classes, or a picture has none.
    """
    parts = [(train, None)] if isinstance(train, str) else [(part.spec, part.image_column) for part in train]
    known: dict[tuple[int, str], int] = {}
    classes = 0
    for source, (spec, own) in enumerate(parts):
        found = sources.labelled(
            spec.removeprefix(IMAGES), image_column=own or image_column, label_column=label_column, max_bad=None
        )
        for picture, row in zip(real_paths(found.paths), found.rows, strict=True):
            known.setdefault((source, picture), classes + row.label)
        classes += len(found.class_names)
    numbers = []
    for picture, pair in zip(real_paths(pairs.paths), pairs.rows, strict=True):
        if (pair.source, picture) not in known:
            raise DataError(f"{pair.where}: {pair.path.name} has no class, so it cannot be stratified; give it one")
        numbers.append(known[pair.source, picture])
    return numbers
