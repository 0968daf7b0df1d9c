"""Prompt templates that turn a class name into captions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from modalign.data import benchmark_folders
from modalign.data.records import Labelled
from modalign.errors import DataError
from modalign.evaluation.class_names import DataSet, data_set, data_sets, nearest, recognised

PLACEHOLDERS = ("{}", "{class}")
BENCHMARK = "clip-benchmark"
OWN_NAMES = "the data's own"


@dataclass(frozen=True)
class Prompts:
    """A named set of templates, each with one "{}" where the class name goes.

    Attributes:
        name: of the set, for the protocol.
        templates: the templates.
        class_names: whose class names go into them, for the protocol.
    """

    name: str
    templates: tuple[str, ...]
    class_names: str = OWN_NAMES

    def __call__(self, class_name: str) -> list[str]:
        """The class's captions, one a template."""
        return [class_name.join(template.split("{}")) for template in self.templates]

    def of(self, data: Labelled) -> tuple[Prompts, Labelled]:
        """These templates, and the data as it is."""
        return self, data


@dataclass(frozen=True)
class BenchmarkPrompts:
    """Templates and class names as CLIP_benchmark has them.

    Attributes:
        data_set: of which data set; "" = of the one that each spec names.
    """

    data_set: str = ""

    def of(self, data: Labelled) -> tuple[Prompts, Labelled]:
        """The templates of the data's set, and the data with that set's class names.

        A folder in CLIP_benchmark's layout that brings class names and templates along is used as it is.

        Args:
            data: labelled; its spec tells the set, if nothing else does.

        Raises:
            DataError: the spec names no known set, or a class is none of the set's.
        """
        spelled = "" if self.data_set else data.spec
        if spelled and (own := benchmark_folders.templates_of(spelled)) is not None:
            templates = tuple(_template(line.replace("{c}", "{}"), where) for where, line in own)
            return Prompts(BENCHMARK, templates, "the folder's classnames.txt"), data
        known = data_set(self.data_set) if self.data_set else recognised(data.spec)
        if known is None:
            raise DataError(
                f"{data.spec}: no part of it is the name of a known data set, so nothing says whose templates to take: "
                f"name one of {', '.join(data_sets())} instead of {BENCHMARK}"
            )
        named = data if data.spec.startswith("torchvision:") else _named(data, known)  # which has its names already
        return Prompts(f"{BENCHMARK} {known.name}", known.templates, f"{BENCHMARK} {known.name}"), named


def read_prompts(source: str) -> Prompts | BenchmarkPrompts:
    """Reads a set of templates.

    Args:
        source: "single" ("a photo of {}", without a full stop, the protocol of arXiv 2504.12717), "openai80" (the 80
            published with CLIP, as open_clip ships them), "clip-benchmark" (those of CLIP_benchmark for the data set
            that the data's spec names, with its class names), the name of a data set ("cifar10": likewise, of this
            one), or a text file with one template a line, each holding "{}" or "{class}" exactly once.

    Returns:
        Something whose `of(data)` gives the `Prompts`, and the data with the class names to use.

    Raises:
        DataError: no such set or file, an empty file, a line without its placeholder or with several.
    """
    if source == "single":
        return Prompts("single", ("a photo of {}",))
    if source == "openai80":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return Prompts("openai80", tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES))
    if source == BENCHMARK:
        return BenchmarkPrompts()
    path = Path(source)
    if not path.is_file() and (named := _data_set(source)) is not None:
        return BenchmarkPrompts(named.name)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        reason = "is not UTF-8 text" if isinstance(problem, UnicodeDecodeError) else "cannot be read"
        instead = f"did you mean {near}? Or " if (near := nearest(source)) else ""
        raise DataError(
            f"templates {source!r}: neither single, openai80, {BENCHMARK} nor a data set's name, and {reason} as a "
            f"file: {instead}name one of these, or a text file with one template a line"
        ) from None
    templates = tuple(
        _template(line.strip(), f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()
    )
    if not templates:
        raise DataError(f'{path}: no template in it: write one a line, such as "a photo of {{}}"')
    return Prompts(path.name, templates)


def _data_set(name: str) -> DataSet | None:
    try:
        return data_set(name)
    except DataError:
        return None


def _named(data: Labelled, known: DataSet) -> Labelled:
    names = known.renamed(data.class_names)
    if isinstance(names, str):
        raise DataError(
            f"{data.spec}: {names!r} is no class of {known.name}, or one of several of that name: rename it as "
            f"{known.name} does ({', '.join(known.class_names[:3])}, …), or pass a file of templates to keep it"
        )
    return replace(data, class_names=names)


def _template(line: str, where: str) -> str:
    found = sum(line.count(placeholder) for placeholder in PLACEHOLDERS)
    if found != 1:
        raise DataError(f'{where}: {line!r} holds {found} placeholders: write "{{}}" (or "{{class}}") exactly once')
    return line.replace("{class}", "{}")
