"""Folders of WebDataset tars in CLIP_benchmark's layout, as `clip_benchmark_export_wds` writes them.

    wds_vtab-pets/
      classnames.txt                            a class a line, in the order of the labels; a line may be empty
      zeroshot_classification_templates.txt     a template a line, with {c}
      dataset_type.txt                          "retrieval" or "multilabel"; absent = classes
      test/nshards.txt                          how many tars there are
      test/0.tar, 1.tar, …                      .webp, .png or .jpg beside .cls (a number), or .txt (a caption a line)

`wds:<folder>@test` reads them with `tar_shards`; what only this layout knows is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modalign.data import tar_shards
from modalign.errors import DataError

TEMPLATES = "zeroshot_classification_templates.txt"
CLASS_NAMES = "classnames.txt"


def refuse_incomplete(spec: str, shards: Sequence[Path]) -> None:
    """Refuses a folder without all the tars that its `nshards.txt` counts; anything else passes.

    Args:
        spec: as written, for messages.
        shards: the tars that were found; a pattern that names some of a folder's is taken at its word.

    Raises:
        DataError: a tar is missing.
    """
    counted = shards[0].parent / "nshards.txt"
    if spec.endswith(".tar") or "::" in spec or "{" in spec or "*" in spec or not counted.is_file():
        return
    text = counted.read_text(encoding="utf-8", errors="replace").strip()
    if not text.isdecimal():
        raise DataError(f"{counted} holds {text!r:.40}, no number of tar files; fetch it again")
    there = {shard.name for shard in shards}
    if missing := [f"{number}.tar" for number in range(int(text)) if f"{number}.tar" not in there]:
        told = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise DataError(f"{spec}: {counted} counts {text} tar files, and {told} is missing; fetch the rest")


def refuse_multilabel(spec: str, shards: Sequence[Path]) -> None:
    """Refuses labels in the plural, where one class a picture is asked for.

    Raises:
        DataError: `dataset_type.txt` says multilabel or retrieval.
    """
    path = tar_shards.beside(shards[0], "dataset_type.txt")
    kind = path.read_text(encoding="utf-8", errors="replace").strip().lower() if path else ""
    if kind == "multilabel":
        raise DataError(f"{spec}: {path} says multilabel, several classes a picture; name data with one class each")
    if kind == "retrieval":
        raise DataError(f"{spec}: {path} says retrieval, captions without classes; judge it by retrieval:{spec}")


def templates_of(spec: str) -> list[tuple[str, str]] | None:
    """The templates that a folder of tars brings along with its class names, each with its place for messages.

    Args:
        spec: of any data.

    Returns:
        The lines of `zeroshot_classification_templates.txt`, with {c}; None where the spec names no tars, or tars
        without that file or without class names.

    Raises:
        DataError: there are no such tars, or the file cannot be read.
    """
    kind, _, rest = spec.partition(":")
    pattern = rest if kind == "wds" else spec if spec.endswith(".tar") else ""
    if not pattern:
        return None
    shard = tar_shards.shards(spec, pattern).shards[0]
    path = tar_shards.beside(shard, TEMPLATES)
    if path is None or tar_shards.beside(shard, CLASS_NAMES) is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); write it as UTF-8, a template a line") from None
    return [(f"{path}:{number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()] or None
