"""Class names and prompt templates of published data sets, one JSON file each, in the order of the data set's labels.

A file holds `name`, `title`, `aliases`, `source`, `class_names`, `templates` (with "{class}"), and `published_names`:
what the data set itself calls the same classes (folders, numbers, WordNet ids). Where a data set shares the names or
templates of another, that one's name stands in their place.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from modalign.errors import DataError

__all__ = ["DataSet", "class_names", "data_set", "data_sets", "nearest", "recognised", "templates"]


@dataclass(frozen=True)
class DataSet:
    """What the field calls the classes of a data set, and how it asks for them.

    Attributes:
        name: as CLIP_benchmark calls it, where it knows it.
        title: for people.
        aliases: other names of it.
        source: where names and templates are from.
        class_names: C names, in the order of the labels.
        templates: each with "{}" once where the class name goes.
        published_names: the data set's own names of the C classes, by their kind.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    source: dict[str, str]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    published_names: dict[str, tuple[str, ...]]

    def renamed(self, names: Sequence[str]) -> tuple[str, ...] | str:
        """Other names of these classes, or some of them, in the names' own order.

        Case, punctuation and leading zeros do not count: "aquarium fish", "n01440764", "00007" and "7" are all found.

        Args:
            names: as data calls its classes.

        Returns:
            As many of `class_names`, each once; or the first of the names that is no class here, or one twice.
        """
        wanted = [_plain(name) for name in names]
        places: dict[str, set[int]] = {}
        for known in (self.class_names, *self.published_names.values()):
            plain = [_plain(name) for name in known]
            if plain == wanted:  # which also tells classes of one name apart
                return self.class_names
            for number, name in enumerate(plain):
                places.setdefault(name, set()).add(number)
        found: dict[int, None] = {}
        for name, text in zip(names, wanted, strict=True):
            place = places.get(text, set())
            if len(place) != 1 or not place.isdisjoint(found):
                return name
            found[min(place)] = None
        return tuple(self.class_names[number] for number in found)


def class_names(name: str) -> tuple[str, ...]:
    """The class names of a data set, in the order of its labels.

    Args:
        name: such as "cifar10"; aliases and other spellings are understood.

    Raises:
        DataError: no such data set; the nearest name is told.
    """
    return data_set(name).class_names


def templates(name: str) -> tuple[str, ...]:
    """The prompt templates of a data set, each with "{}" once.

    Args:
        name: as for `class_names`.

    Raises:
        DataError: no such data set; the nearest name is told.
    """
    return data_set(name).templates


def data_set(name: str) -> DataSet:
    """All that is known of a data set.

    Args:
        name: as for `class_names`.

    Raises:
        DataError: no such data set; the nearest name is told.
    """
    known = _spellings()
    if _key(name) in known:
        return _load(known[_key(name)])
    instead = f"did you mean {near}? " if (near := nearest(name)) else ""
    raise DataError(f"no class names of a data set {name!r}: {instead}there are those of {', '.join(data_sets())}")


def nearest(name: str) -> str:
    """The data set whose name is nearest to a mistyped one; "" where none is near."""
    known = _spellings()
    near = difflib.get_close_matches(_key(name), known, n=1, cutoff=0.6)
    return known[near[0]] if near else ""


def recognised(spec: str) -> DataSet | None:
    """The data set that a data spec names in one of its parts ("wds:data/wds_vtab-cifar10@test"); the last one counts.

    Args:
        spec: as for `modalign.labelled`; one of torchvision names its data set first.
    """
    known = _spellings()
    kind, *parts = re.split(r"[@:/\\]", spec)
    for part in parts if kind == "torchvision" else [*reversed(parts), kind]:
        if _key(part) in known:
            return _load(known[_key(part)])
    return None


@cache
def data_sets() -> tuple[str, ...]:
    """The names of all data sets, sorted."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


@cache
def _spellings() -> dict[str, str]:
    """Every alias without case and punctuation → the data set's name."""
    return {_key(alias): name for name in data_sets() for alias in (name, *_read(name)["aliases"])}


@cache
def _load(name: str) -> DataSet:
    told = _read(name)
    names, asked = told["class_names"], told["templates"]
    alike = _load(names) if isinstance(names, str) else None
    published = {kind: tuple(listed) for kind, listed in told.get("published_names", {}).items()}
    return DataSet(
        told["name"],
        told["title"],
        tuple(told["aliases"]),
        told["source"],
        alike.class_names if alike else tuple(names),
        _load(asked).templates if isinstance(asked, str) else tuple(text.replace("{class}", "{}") for text in asked),
        alike.published_names if alike else published,
    )


@cache
def _read(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    return told


def _key(name: str) -> str:
    """A data set's name as it is compared; CLIP_benchmark's prefixes of folders and collections do not count."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"^(wds[_/-])?((vtab|tfds)[_/-])?", "", name.casefold()))


def _plain(name: str) -> str:
    text = re.sub(r"[^0-9a-z]", "", name.casefold())
    return str(int(text)) if text.isdecimal() else text
