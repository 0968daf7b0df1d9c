"""Rows that cannot be used: counted, named, and limited, never silently skipped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from modalign.data.pictures import Picture
from modalign.errors import DataError

NAMED = 10


class Complaint(NamedTuple):
    """What is wrong with one line of a source; the line may still give a row (a caption of several is empty, say).

    Attributes:
        where: the file and line ("metadata.csv:17").
        reason: what is wrong, in a few words.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class BadRow:
    """One row whose image cannot be used.

    Attributes:
        where: the file and line the row was read from ("metadata.csv:17").
        path: the picture.
        reason: why it cannot be used, in a few words.
    """

    where: str
    path: Picture
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name} ({self.where}): {self.reason}"


class BadRows:
    """Counts the bad rows of a pass and stops it once there are more than allowed.

    A row that is met again (in the next epoch, say) counts once.

    Args:
        max_bad: how many bad rows are let pass; None lets all pass.
        total: how many rows there are, for the message.
    """

    def __init__(self, max_bad: int | None = 0, total: int | None = None) -> None:
        self.max_bad = max_bad
        self.total = total
        self._rows: dict[BadRow, None] = {}

    @property
    def rows(self) -> tuple[BadRow, ...]:
        """The distinct bad rows known so far, in the order they were met."""
        return tuple(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, bad: BadRow | Iterable[BadRow]) -> None:
        """Takes note of one bad row or several; raises nothing."""
        self._rows.update(dict.fromkeys([bad] if isinstance(bad, BadRow) else bad))

    def check(self) -> None:
        """Stops a pass early: to be called after each batch.

        Raises:
            DataError: more rows are bad than allowed and there are ten to name. (Fewer wait for `finish`, so that
                one message names as many as it can.)
        """
        if len(self._rows) >= NAMED:
            self._refuse("at least ")

    def finish(self) -> None:
        """Judges what is known: to be called at the end of a pass, or before bad rows would be trained around.

        Raises:
            DataError: more rows are bad than allowed; the first ten are named.
        """
        self._refuse("")

    def _refuse(self, qualifier: str) -> None:
        refuse_above(self.max_bad, self.rows, self.total, "images cannot be read", qualifier)


def refuse_above(
    max_bad: int | None, bad: Sequence[object], total: int | None, verdict: str, qualifier: str = ""
) -> None:
    """Raises one line that names the first ten bad things when there are more of them than allowed.

    Args:
        max_bad: how many are let pass; None lets all pass.
        bad: one for each bad thing; its text is shown.
        total: how many things there are, bad or good, if that is known.
        verdict: what follows ("images cannot be read").
        qualifier: "at least " when not everything has been looked at.

    Raises:
        DataError: there are more than `max_bad`.
    """
    if max_bad is None or len(bad) <= max_bad:
        return
    of = "" if total is None else f" of {total:,}"
    named = "; ".join(map(str, bad[:NAMED])) + (f"; and {len(bad) - NAMED:,} more" if len(bad) > NAMED else "")
    raise DataError(
        f"{qualifier}{len(bad):,}{of} {verdict} (limit --max-bad {max_bad}): {named}; "
        "fix or remove them, or raise --max-bad"
    )
