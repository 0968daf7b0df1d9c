"""What a captioning task wrote to its first pictures, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WAYS = {"direct": "from the image features", "memory": "from these, projected on the memory"}


@dataclass(frozen=True)
class Captioned:
    """One picture.

    Args:
        spec: the data.
        picture: its file's name.
        written: (way, before, after) a way of decoding.
        references: what people wrote.
    """

    spec: str
    picture: str
    written: tuple[tuple[str, str, str], ...]
    references: tuple[str, ...]


def captioned(evaluation: Mapping[str, Any]) -> list[Captioned]:
    """The pictures whose captions are among the notes on both sides.

    Args:
        evaluation: the contents of evaluation.json.
    """
    before, after = (_noted(evaluation.get(side)) for side in ("before", "after"))
    return [
        Captioned(
            key[1],
            key[2],
            tuple((told, str(before[key][way]), str(noted[way])) for way, told in WAYS.items()),
            tuple(map(str, noted["references"])),
        )
        for key, noted in after.items()
        if key in before
    ]


def _noted(results: Any) -> dict[tuple[int, str, str], Mapping[str, Any]]:
    """(task's place, spec, picture) → what is noted of it."""
    return {
        (place, task["spec"], noted["picture"]): noted
        for place, task in enumerate((results or {}).get("tasks") or [])
        for noted in task.get("notes", {}).get("captions", ())
    }
