"""YAML as recipes use it: numbers and truth values of YAML 1.2, no key twice, every key's line kept.

YAML 1.1, which PyYAML reads, takes `1e-6` for a text, `off` for false, `010` for eight and `1:30` for ninety; a recipe
means what YAML 1.2 and editors mean by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from modalign.errors import RecipeError

_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
    "merge": (r"<<", ["<"]),
}


_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Reader(yaml.SafeLoader):
    """Only the plain scalars of YAML 1.2 have a meaning of their own."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 - PyYAML's own way


class _Writer(yaml.SafeDumper):
    """Quotes what either version of YAML would mistake for something else than a text."""

    yaml_implicit_resolvers: Any = {k: list(v) for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, (_pattern, _first) in _PLAIN.items():
    _Reader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)
_Writer.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT})$"), _PLAIN["float"][1])
_Reader.add_constructor(  # 010 is ten
    "tag:yaml.org,2002:int", lambda reader, node: int(str(node.value))
)


@dataclass
class RecipeFile:
    """What a recipe file holds.

    Attributes:
        path: the file.
        tree: its content.
        lines: dotted key → line, counted from 1; the items of a list are keys too ("optimizer.groups.0.match").
    """

    path: Path
    tree: dict[str, Any]
    lines: dict[str, int]


def read(path: Path) -> RecipeFile:
    """Reads a recipe file, or that of a run folder.

    Args:
        path: a YAML file, or a folder that holds recipe.yaml.

    Raises:
        RecipeError: it cannot be read, is not YAML, names a key twice, or is not a mapping; with the line.
    """
    if path.is_dir():
        path = path / "recipe.yaml"
        if not path.is_file():
            raise RecipeError(f"{path.parent} is a folder without recipe.yaml; name a recipe file or a run folder")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror}); check the path") from None
    builder = _Builder(str(path), numbered=True)
    tree = _parse(text, builder, "correct the file")
    if not isinstance(tree, dict | None):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this file holds a {type(tree).__name__}")
    return RecipeFile(path, tree or {}, builder.lines)


def parse_value(text: str, where: str) -> Any:
    """One value as YAML, such as what follows `--set key=`.

    Args:
        text: the value.
        where: what to call its place in an error.

    Raises:
        RecipeError: it is not YAML, or names a key twice.
    """
    return _parse(text, _Builder(where, numbered=False), "quote the value")


def leaves(tree: Any, key: str = "") -> set[str]:
    """The dotted keys whose value holds no further key: neither a section nor a list of sections."""
    if isinstance(tree, dict) and tree:
        return {leaf for name, value in tree.items() for leaf in leaves(value, _join(key, name))}
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        return {leaf for number, item in enumerate(tree) for leaf in leaves(item, _join(key, number))}
    return {key}


def dump(value: Any, *, flow: bool = False) -> str:
    """A value as YAML that every reader takes for the same value; `flow` writes it in one line."""
    style = '"' if flow and any(text.splitlines() not in ([], [text]) for text in _texts(value)) else None
    text: str = yaml.dump(
        value,
        Dumper=_Writer,
        sort_keys=False,
        allow_unicode=True,
        width=float("inf"),
        default_flow_style=flow,
        default_style=style,
    )
    return text.removesuffix("\n...\n").removesuffix("\n") if flow else text


def _parse(text: str, builder: _Builder, hint: str) -> Any:
    reader = None
    try:
        reader = _Reader(text)
        node = reader.get_single_node()
        value = None if node is None else builder.build(reader, node, "", ())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = builder.at(mark.line) if mark is not None else builder.where
        raise RecipeError(f"{place}: this is not YAML ({_reason(error)}); {hint}") from None
    except RecursionError:
        raise RecipeError(f"{builder.where}: lists and sections are nested too deeply; {hint}") from None
    finally:
        if reader is not None:
            reader.dispose()
    if builder.problems:
        raise RecipeError(*builder.problems)
    return value


@dataclass
class _Builder:
    """From nodes to values; notes where keys stand, and which stand there twice."""

    where: str
    numbered: bool
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def at(self, line: int) -> str:
        return f"{self.where}:{line + 1}" if self.numbered else self.where

    def build(self, reader: _Reader, node: yaml.Node, key: str, above: tuple[yaml.Node, ...]) -> Any:
        if node in above:
            self._complain(node, f"{key!r} holds itself through an alias; write it out")
            return None
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTIONS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self._complain(node, f"the tag {tag} means nothing in a recipe; remove it")
            return None
        below = (*above, node)
        if isinstance(node, yaml.SequenceNode):
            places = [(_join(key, number), item) for number, item in enumerate(node.value)]
            self.lines.update((place, item.start_mark.line + 1) for place, item in places)
            return [self.build(reader, item, place, below) for place, item in places]
        if not isinstance(node, yaml.MappingNode):
            return reader.construct_object(node)
        seen: dict[str, int] = {}
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                self._complain(name, "a key is one word, not a list or a section; rename it")
                return None
            if name.value in seen:
                self._complain(
                    name, f"key {_join(key, name.value)!r} stands in line {seen[name.value]} already; keep one"
                )
            seen.setdefault(name.value, name.start_mark.line + 1)
        reader.flatten_mapping(node)
        tree = {}
        for name, value in node.value:
            self.lines[_join(key, name.value)] = name.start_mark.line + 1
            tree[str(name.value)] = self.build(reader, value, _join(key, name.value), below)
        return tree

    def _complain(self, node: yaml.Node, problem: str) -> None:
        self.problems.append(f"{self.at(node.start_mark.line)}: {problem}")


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _reason(error: yaml.YAMLError) -> str:
    reason = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read")
    if "'\\t'" in reason:
        return "a tab stands where YAML wants spaces"
    return " ".join(reason.split())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(name)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
