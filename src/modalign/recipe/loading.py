"""From a file, `--set a.b=c` and keyword values to a recipe: what was given, what is wrong with it, where."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modalign.errors import RecipeError
from modalign.recipe import file as recipe_file
from modalign.recipe.file import RecipeFile
from modalign.recipe.problems import explain
from modalign.recipe.sections import DEFAULT_METHOD, Recipe


@dataclass(frozen=True)
class Given:
    """What a recipe was asked to be, before defaults.

    Attributes:
        tree: the file with everything else laid over it.
        file: what was read, or None.
        over: the dotted keys that did not come from the file.
    """

    tree: dict[str, Any]
    file: RecipeFile | None
    over: frozenset[str]


def load(source: str | Path | None, overrides: Iterable[str] = (), **values: Any) -> Recipe:
    """Reads a recipe and lays overrides over it.

    Args:
        source: a YAML file, a run folder, the name of a recipe that modalign ships ("clip-refine-vit-b-32"), or None
            for defaults.
        overrides: texts "a.b=c"; c is read as YAML.
        values: dotted keys with "__" for the dots ("data__train"); None means not given.

    Raises:
        RecipeError: names the key, its value and the nearest valid key.
    """
    return resolve(gather(source, overrides, **values))


def gather(source: str | Path | None, overrides: Iterable[str] = (), **values: Any) -> Given:
    """What `load` reads, not yet checked; arguments as there."""
    file = None if source is None else recipe_file.read(find(source))
    tree: dict[str, Any] = {} if file is None else copy.deepcopy(file.tree)
    over: set[str] = set()
    for name, value in values.items():
        if value is None:
            continue
        if name == "method__name":
            given = tree.get("method")
            if not isinstance(given, dict) or given.get("name", DEFAULT_METHOD) != value:
                tree["method"] = {}  # another method's settings mean nothing to this one
        _put(tree, name.split("__"), value, over)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise RecipeError(f"--set {text}: write key=value, for example --set optimizer.lr=1e-5")
        _put(tree, key.strip().split("."), recipe_file.parse_value(value, f"--set {text}"), over)
    if tree.get("method") is None:
        tree["method"] = {}
    if isinstance(tree["method"], str):
        tree["method"] = {"name": tree["method"]}
    if isinstance(tree["method"], dict):
        tree["method"].setdefault("name", DEFAULT_METHOD)
    return Given(tree, file, frozenset(over))


def resolve(given: Given) -> Recipe:
    """The recipe, with every default written out; an error names the line of the file that holds its key."""
    try:
        return validate(given.tree)
    except RecipeError as error:
        told = [located(given, key, problem) for key, problem in zip(error.keys, error.problems, strict=True)]
        raise RecipeError(*told, keys=error.keys) from None


def located(given: Given, key: str, problem: str) -> str:
    """A problem behind the file and line that hold its key, where a file does.

    Args:
        given: what was read.
        key: dotted.
        problem: one line.
    """
    name = re.sub(r"\[(\d+)\]", r".\1", key)
    if given.file is None or any(f"{name}.".startswith(f"{other}.") for other in given.over):
        return problem
    while name and name not in given.file.lines:
        name = name.rpartition(".")[0]  # what is missing is missing from the section above
    line = given.file.lines.get(name)
    return f"{given.file.path}:{line}: {problem}" if line else problem


def validate(tree: Mapping[str, Any]) -> Recipe:
    """Turns a plain mapping into a recipe.

    Raises:
        RecipeError: every mistake, each with its key.
    """
    from modalign.methods import from_config, to_config

    problems: list[tuple[str, str]] = []
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        problems += explain(error, Recipe)
    config = tree.get("method", {"name": DEFAULT_METHOD})
    if isinstance(config, Mapping):
        try:
            method = to_config(from_config(config))
        except RecipeError as error:
            problems += zip(error.keys, error.problems, strict=True)
    if problems:
        raise RecipeError(*(told for _, told in problems), keys=[key for key, _ in problems])
    recipe.method = method  # with every default written out
    return recipe


def find(source: str | Path) -> Path:
    """The file or run folder that a recipe's name means.

    Raises:
        RecipeError: neither a file, a folder nor a shipped recipe; with the nearest name.
    """
    if Path(source).exists():
        return Path(source)
    known = shipped()
    if str(source) in known:
        return known[str(source)]
    near = difflib.get_close_matches(str(source), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; shipped recipes: {', '.join(known) or 'none'}"
    raise RecipeError(f"recipe {str(source)!r} is neither a file nor a shipped recipe{hint}")


def shipped() -> dict[str, Path]:
    """The recipes that come with modalign, by name: the path below their folder, without its ending.

    A file's first line is the command that runs it; those of `modalign llava` are of another kind and not listed.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if folder.is_dir():
            found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
            return {
                name: found[name]
                for name in sorted(found)
                if not _first_line(found[name]).startswith("# modalign llava")
            }
    return {}


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        return lines.readline()


def _put(tree: dict[str, Any], path: list[str], value: Any, over: set[str]) -> None:
    """Lays a value over a tree and notes its key."""
    over.add(".".join(path))
    for key in path[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise RecipeError(f"{'.'.join(path)}: {key!r} is not a section of the recipe")
        tree = below
    tree[path[-1]] = value
