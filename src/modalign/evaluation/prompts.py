"""Prompt templates that turn a class name into captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modalign.errors import DataError

PLACEHOLDERS = ("{}", "{class}")


@dataclass(frozen=True)
class Prompts:
    """A named set of templates, each with one "{}" where the class name goes."""

    name: str
    templates: tuple[str, ...]

    def __call__(self, class_name: str) -> list[str]:
        """The class's captions, one a template."""
        return [class_name.join(template.split("{}")) for template in self.templates]


def read_prompts(source: str) -> Prompts:
    """Reads a set of templates.

    Args:
        source: "single" ("a photo of {}", without a full stop, the protocol of arXiv 2504.12717), "openai80" (the 80
            published with CLIP, as open_clip ships them), or a text file with one template a line, each holding "{}"
            or "{class}" exactly once.

    Returns:
        The `Prompts`.

    Raises:
        DataError: no such set or file, an empty file, a line without its placeholder or with several.
    """
    if source == "single":
        return Prompts("single", ("a photo of {}",))
    if source == "openai80":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return Prompts("openai80", tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES))
    path = Path(source)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        reason = "is not UTF-8 text" if isinstance(problem, UnicodeDecodeError) else "cannot be read"
        raise DataError(
            f"templates {source!r}: neither single nor openai80, and {reason} as a file: "
            "name one of the two, or a text file with one template a line"
        ) from None
    templates = tuple(
        _template(line.strip(), f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()
    )
    if not templates:
        raise DataError(f'{path}: no template in it: write one a line, such as "a photo of {{}}"')
    return Prompts(path.name, templates)


def _template(line: str, where: str) -> str:
    found = sum(line.count(placeholder) for placeholder in PLACEHOLDERS)
    if found != 1:
        raise DataError(f'{where}: {line!r} holds {found} placeholders: write "{{}}" (or "{{class}}") exactly once')
    return line.replace("{class}", "{}")
