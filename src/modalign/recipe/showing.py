"""A recipe with every setting written out and, beside each, where its value comes from and what it means."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from modalign import recipe as recipes
from modalign.methods import METHODS, Method, OnCurriculum
from modalign.recipe import Given, Recipe
from modalign.recipe.file import dump, leaves
from modalign.recipe.problems import section_in

COLUMN = 44
"""Where comments begin, unless a value reaches further."""


def show(source: str | Path | None, overrides: Iterable[str] = ()) -> str:
    """The resolved recipe as YAML that loads as the same recipe.

    Args:
        source: a file, a run folder, the name of a shipped recipe, or None for the defaults.
        overrides: texts "a.b=c".

    Returns:
        One line a setting, its comment `line N`, `--set` or `default`, and the setting's description.

    Raises:
        RecipeError: as for `modalign.recipe.load`.
    """
    given = recipes.gather(source, overrides)
    origins = _Origins(given)
    tree = recipes.resolve(given).model_dump(mode="json")
    head = f"# {given.file.path}; every setting, and where its value comes from" if given.file else "# the defaults"
    return "\n".join([head, *_lines(tree, "", 0, origins, _described(tree))]) + "\n"


def method_keys(name: str) -> dict[str, str]:
    """What each setting of a method means, from the `Args` of its docstring and of those it is built on.

    Args:
        name: a name of `modalign.methods.METHODS`, or "curriculum".
    """
    found: dict[str, str] = {}
    for cls in reversed(_class_of(name).__mro__):
        if issubclass(cls, Method):
            found |= arguments(inspect.getdoc(cls) or "")
    return found


def arguments(docstring: str) -> dict[str, str]:
    """The `Args` section of a docstring: name → text in one line.

    Args:
        docstring: with its indentation removed, as `inspect.getdoc` gives it.
    """
    section = re.search(r"^Args:\n((?:[ ]+.*\n|\n)*)", docstring + "\n", flags=re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1], flags=re.MULTILINE)
    return {name: " ".join(text.split()).removesuffix(".") for name, text in entries}


def first_sentence(cls: type) -> str:
    """What a class is, in the first sentence of its docstring."""
    text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    return text.split(". ")[0].removesuffix(".")


class _Origins:
    """Where the value of a dotted key comes from."""

    def __init__(self, given: Given) -> None:
        self.over = given.over
        self.given = leaves(given.tree)
        self.lines = given.file.lines if given.file is not None else {}
        self.written = leaves(given.file.tree) if given.file is not None else set[str]()

    def __call__(self, key: str) -> str:
        leaf = next((place for place in _upwards(key) if place in self.given), "")
        if self.over.intersection(_upwards(leaf)):
            return "--set"
        return next((f"line {self.lines[place]}" for place in _upwards(leaf) if place in self.written), "default")


def _upwards(key: str) -> Iterator[str]:
    while key:
        yield key
        key = key.rpartition(".")[0]


def _lines(value: Any, key: str, depth: int, origins: _Origins, described: Mapping[str, str]) -> Iterator[str]:
    """The lines of a section or of a list of sections."""
    margin = "  " * depth
    if isinstance(value, list):
        for number, item in enumerate(value):
            inner = list(_lines(item, f"{key}.{number}", depth + 1, origins, described))
            yield f"{margin}- {inner[0].removeprefix(margin + '  ')}"
            yield from inner[1:]
        return
    for name, item in value.items():
        place = f"{key}.{name}" if key else name
        told = described.get(re.sub(r"\.\d+", "", place) if place not in described else place, "")
        title = f"{margin}{dump({name: None}, flow=True)[1:-1].removesuffix(' null')}"
        if (isinstance(item, dict) and item) or _holds_sections(item):
            yield _commented(title, told)
            yield from _lines(item, place, depth + 1, origins, described)
        else:
            origin = origins(place)
            yield _commented(f"{title} {dump(item, flow=True)}", f"{origin}: {told}" if told else origin)


def _holds_sections(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and item for item in value)


def _commented(line: str, comment: str) -> str:
    return f"{line:<{COLUMN}}  # {comment}" if comment else line


def _described(tree: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key → description; the items of a list share those of their section."""
    return dict(_of_section(Recipe, "")) | dict(_of_method(tree["method"], "method"))


def _of_section(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        yield prefix + name, field.description or (first_sentence(inner) if inner is not None else "")
        if inner is not None:
            yield from _of_section(inner, f"{prefix}{name}.")


def _of_method(config: Mapping[str, Any], key: str) -> Iterator[tuple[str, str]]:
    if "methods" in config:  # several methods, added up
        for number, part in enumerate(config["methods"]):
            yield from _of_method(part, f"{key}.methods.{number}")
        return
    if config["name"] == OnCurriculum.name:
        yield from _of_method(config["method"], f"{key}.method")
    yield f"{key}.name", first_sentence(_class_of(config["name"]))
    for name, told in method_keys(config["name"]).items():
        yield f"{key}.{name}", told


def _class_of(name: str) -> type[Method]:
    return OnCurriculum if name == OnCurriculum.name else METHODS[name]
