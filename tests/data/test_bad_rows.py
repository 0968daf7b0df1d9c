from __future__ import annotations

from pathlib import Path

import pytest

from modalign.data.bad_rows import BadRow, BadRows
from modalign.errors import DataError


def bad(number: int) -> BadRow:
    return BadRow(f"metadata.csv:{number}", Path(f"/data/{number}.jpg"), "truncated")


def test_the_message_counts_all_and_names_ten() -> None:
    rows = BadRows(0, total=4064)
    rows.add(bad(number) for number in range(12))
    with pytest.raises(DataError) as caught:
        rows.finish()
    text = str(caught.value)
    assert text.startswith("12 of 4,064 images cannot be read (limit --max-bad 0): 0.jpg (metadata.csv:0): truncated; ")
    assert "9.jpg" in text and "10.jpg" not in text
    assert text.endswith("and 2 more; fix or remove them, or raise --max-bad")


def test_a_pass_stops_early_only_when_ten_can_be_named() -> None:
    rows = BadRows(2)
    rows.add(bad(number) for number in range(9))
    rows.check()
    rows.add(bad(9))
    with pytest.raises(DataError, match=r"^at least 10 images"):
        rows.check()


def test_as_many_as_allowed_pass() -> None:
    rows = BadRows(12)
    rows.add(bad(number) for number in range(12))
    rows.check()
    rows.finish()
    rows.add(bad(12))
    with pytest.raises(DataError, match=r"13 images.*limit --max-bad 12"):
        rows.finish()
    everything = BadRows(None)
    everything.add(bad(number) for number in range(50))
    everything.finish()


def test_a_row_met_in_every_epoch_counts_once() -> None:
    rows = BadRows(1)
    for _ in range(5):
        rows.add(bad(3))
    rows.finish()
    assert rows.rows == (bad(3),)
