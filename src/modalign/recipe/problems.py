"""What is wrong with a recipe, in lines that name the key, its value and the nearest valid key."""

from __future__ import annotations

import difflib
import re
import reprlib
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

_SHORT = reprlib.Repr()
_MEMBER = re.compile(r"[a-z-]+\[.*\]|str|int|float|bool|none")
_SHORT.maxstring = _SHORT.maxother = 100


class ClashError(ValueError):
    """Two keys that contradict each other.

    Args:
        key: the one to change, dotted, below the section that is validated.
        told: what is wrong, in a line that names both.
    """

    def __init__(self, key: str, told: str) -> None:
        super().__init__(told)
        self.key = key


def explain(error: ValidationError, recipe: type[BaseModel]) -> list[tuple[str, str]]:
    """(dotted key, what is wrong with it) for every mistake pydantic found.

    Args:
        error: raised by validating a tree.
        recipe: the class it was to become.
    """
    problems: dict[str, str] = {}
    for problem in error.errors():
        place = _place(problem["loc"], recipe)
        clash = problem.get("ctx", {}).get("error")
        if isinstance(clash, ClashError):
            problems[".".join([*place, clash.key])] = str(clash)
            continue
        key, value = ".".join(place), _SHORT.repr(problem["input"])
        message = problem["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if key in problems:  # another member of a union does not fit either
            problems[key] += f", or: {message}"
        elif problem["type"] == "extra_forbidden":
            problems[key] = f"unknown recipe key {key!r} (value {value}); {_nearest(place, recipe)}"
        elif problem["type"] == "missing":
            problems[key] = f"recipe key {key!r} is missing; add it"
        elif problem["type"] in ("model_type", "model_attributes_type"):
            valid = ", ".join(_keys_at(place, recipe))
            problems[key] = f"{key} = {value}: this is a section; put its keys under it ({valid})"
        else:
            problems[key] = f"{key} = {value}: {message}" if key else f"recipe: {message}"
    inner = {key for key in problems if any(other.startswith(f"{key}.") for other in problems)}
    return [(key, told) for key, told in problems.items() if not key or key not in inner]


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of this type holds, alone, in a list or as an option; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (list, Union, UnionType, Annotated):
        return next((found for part in get_args(annotation) if (found := section_in(part)) is not None), None)
    return None


def _place(location: tuple[int | str, ...], recipe: type[BaseModel]) -> list[str]:
    """The keys of a location, without the names of union members that pydantic puts among them."""
    place: list[str] = []
    section: type[BaseModel] | None = recipe
    for part in location:
        if section is not None and part in section.model_fields:
            section = section_in(section.model_fields[str(part)].annotation)
        elif isinstance(part, str) and (_MEMBER.fullmatch(part) or (section is not None and part == section.__name__)):
            continue
        place.append(str(part))
    return place


def _nearest(place: list[str], recipe: type[BaseModel]) -> str:
    valid = _keys_at(place[:-1], recipe)
    elsewhere = [key for key in _all_keys(recipe) if key.rpartition(".")[2] == place[-1]]
    near = difflib.get_close_matches(place[-1], valid, n=1, cutoff=0.5)
    if elsewhere:
        return f"did you mean {' or '.join(map(repr, elsewhere))}?"
    if near:
        return f"did you mean {'.'.join([*place[:-1], near[0]])!r}?"
    return f"valid here: {', '.join(valid)}"


def _keys_at(place: list[str], section: type[BaseModel]) -> list[str]:
    for key in place:
        if key.isdigit():
            continue
        field = section.model_fields.get(key)
        inner = section_in(field.annotation) if field is not None else None
        if inner is None:
            return []
        section = inner
    return list(section.model_fields)


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        members = (field.annotation, *get_args(field.annotation))  # what is in a list has no key of its own
        inner = next((part for part in members if isinstance(part, type) and issubclass(part, BaseModel)), None)
        inner = None if get_origin(field.annotation) is list else inner
        keys.append(prefix + name)
        keys += _all_keys(inner, f"{prefix}{name}.") if inner is not None else []
    return keys
