"""Several sources of pairs as one: joined end to end, or drawn from by weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from modalign.data import sources
from modalign.data.order import source_draws
from modalign.data.records import Images, PairRow, Pairs
from modalign.errors import DataError

IMAGES = "images:"


class Part(Protocol):
    """One source of a mixture, as a recipe has it."""

    @property
    def spec(self) -> str:
        """A spec for `modalign.pairs`."""

    @property
    def weight(self) -> float | None:
        """Its share, or None."""

    @property
    def image_column(self) -> str | None:
        """As for `modalign.pairs`; None = the mixture's."""

    @property
    def text_column(self) -> str | list[str] | None:
        """As for `modalign.pairs`; None = the mixture's."""


def mix(parts: Iterable[tuple[Pairs | Images, float | None]]) -> Pairs:
    """Joins several sources of pairs, or of pictures alone.

    Without weights this is the plain joined list: each row once an epoch. With weights wₛ, an epoch still has as many
    draws as there are rows in all, and source s gets the share wₛ / Σw of them, to within one; it is gone through
    without repetition before any of its rows comes again, over epochs if need be (`order.mixed_batch`). Rows that show
    the same picture share an image id, whichever source they are from. Where one source has pictures alone, the rows of
    all are without captions: for methods that read none.

    Args:
        parts: (pairs or images, weight) of each source; all weights are positive numbers, or all are None.

    Returns:
        The rows of the first source, then those of the second, …

    Raises:
        DataError: no source, one within another mixture, weights for some only, or one that is not positive.

    Example:
        >>> modalign.mix([(modalign.pairs("coco:coco@train2017"), 3), (modalign.pairs("own"), 1)])  # doctest: +SKIP
    """
    given = [(without_captions(part) if isinstance(part, Images) else part, weight) for part, weight in parts]
    weights = tuple(float(weight) for _, weight in given if weight is not None)
    spec = " + ".join(f"{part.spec}" + (f" × {weight:g}" if weight is not None else "") for part, weight in given)
    if not given:
        raise DataError("there is nothing to mix; pass at least one source")
    if nested := [part.spec for part, _ in given if part.weights or any(row.source for row in part.rows)]:
        raise DataError(f"{nested[0]} is a mixture itself; pass its sources one by one")
    if weights and len(weights) < len(given):
        bare = next(part.spec for part, weight in given if weight is None)
        raise DataError(f"{bare} has no weight while others have; give every source a weight, or none")
    rows = tuple(replace(row, source=number) for number, (part, _) in enumerate(given) for row in part.rows)
    if not all(part.captions for part, _ in given):
        rows = tuple(replace(row, captions=()) for row in rows)
    if weights:
        source_draws(weights, len(rows))  # says early what cannot be
    return Pairs(spec, rows, weights=weights)


def without_captions(images: Images) -> Pairs:
    """Pictures alone as pairs whose rows have no caption: what a method that reads no text trains on."""
    return Pairs(f"{IMAGES}{images.spec}", tuple(PairRow(row.path, (), row.where) for row in images.rows))


def read(
    train: str | Sequence[Part],
    *,
    image_column: str | None = None,
    text_column: str | list[str] | None = None,
    max_bad: int | None = 0,
) -> Pairs:
    """The training pairs of a recipe: one spec, or a mixture.

    Args:
        train: a spec for `modalign.pairs`, or several with weights and columns of their own; `images:SPEC` reads
            pictures alone, as rows without captions.
        image_column: as for `modalign.pairs`, where a source names none.
        text_column: likewise.
        max_bad: how many rows of each source may be bad.

    Raises:
        DataError: as `modalign.pairs` and `mix`.
    """
    shared = {"image_column": image_column, "text_column": text_column}
    if isinstance(train, str):
        return _read(train, max_bad, **shared)
    for name, column in shared.items():
        if column is not None and not any(_has(part.spec, name) for part in train):
            named = ", ".join(part.spec for part in train)
            raise DataError(f"none of {named} has columns, so {name} = {column!r} names nothing; leave it out")
    return mix((_read(part.spec, max_bad, **_columns(part, shared)), part.weight) for part in train)


def _read(spec: str, max_bad: int | None, *, image_column: Any, text_column: Any) -> Pairs:
    """The rows of one source."""
    if not spec.startswith(IMAGES):
        return sources.pairs(spec, image_column=image_column, text_column=text_column, max_bad=max_bad)
    if text_column is not None:
        raise DataError(f"{spec} reads pictures alone, so a text column names nothing there; leave it out")
    return without_captions(sources.images(spec.removeprefix(IMAGES), image_column=image_column, max_bad=max_bad))


def _has(spec: str, name: str) -> bool:
    """Whether `image_column` or `text_column` can name anything in a source."""
    if spec.startswith(IMAGES):
        return name == "image_column" and sources.has_columns(spec.removeprefix(IMAGES))
    return sources.has_columns(spec)


def _columns(part: Part, shared: Mapping[str, Any]) -> dict[str, Any]:
    """A source's own columns, and those for all where it has such a column and names none."""
    own = {"image_column": part.image_column, "text_column": part.text_column}
    return {
        name: shared[name] if column is None and shared[name] is not None and _has(part.spec, name) else column
        for name, column in own.items()
    }
