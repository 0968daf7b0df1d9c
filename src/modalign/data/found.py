"""What every kind of source gives for one of its rows, before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from modalign.data.pictures import Picture
from modalign.errors import DataError

IMAGE_COLUMNS = ("file_name", "image", "image_path", "path", "filepath", "filename", "image_file_name")
TEXT_COLUMNS = ("text", "caption", "captions", "title", "sentences", "txt")
LABEL_COLUMNS = ("label",)

# What is read beside the picture.
Want = Literal["text", "label", "picture"]


class Found(NamedTuple):
    """One row of a source.

    Attributes:
        where: the file and line, for messages.
        picture: the picture, or None and then the reason.
        reason: what is wrong with the row as a whole; "" where nothing is.
        cells: the caption cells, one a column; or the one label; or nothing.
    """

    where: str
    picture: Picture | None
    reason: str
    cells: tuple[Any, ...]


@dataclass(frozen=True)
class Columns:
    """The columns that a user named; None where the usual names are meant.

    Attributes:
        image: what holds or names pictures.
        text: what holds captions; several are read side by side.
        label: what holds class names.
    """

    image: str | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None

    @classmethod
    def of(cls, image: str | None = None, text: str | Sequence[str] | None = None, label: str | None = None) -> Columns:
        """As functions take them; one text column may be a plain text."""
        return cls(image, (text,) if isinstance(text, str) else tuple(text) if text else None, label)

    def beside_the_picture(self, want: Want, columns: Sequence[str], place: str) -> list[str]:
        """The columns of captions, or of labels, that a header has.

        Raises:
            DataError: it lacks one.
        """
        if want == "text" and self.text is not None:
            return [choose(columns, name, (), "text", place) for name in self.text]
        if want == "text":
            return [choose(columns, None, TEXT_COLUMNS, "text", place)]
        return [choose(columns, self.label, LABEL_COLUMNS, "label", place)] if want == "label" else []


def choose(columns: Sequence[str], given: str | None, usual: Sequence[str], what: str, place: str) -> str:
    """The column that was named, or the first of the usual ones that is there.

    Args:
        columns: what there is.
        given: what the user named, or None.
        usual: names to look for where the user named none.
        what: "image", "text" or "label".
        place: the file, for the message.

    Raises:
        DataError: there is none.
    """
    wanted = (given,) if given is not None else usual
    for name in wanted:
        if columns.count(name) > 1:
            raise DataError(f"{place} has {columns.count(name)} columns {name!r}; rename all but one")
        if name in columns:
            return name
    has = ", ".join(map(repr, columns)) or "no columns"
    option = f"--{what}-column (in Python {what}_column=)"
    raise DataError(f"{place} has no column {' or '.join(wanted)}; it has {has}; pass {option} to name another")
