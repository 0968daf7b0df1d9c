"""The page of `modalign contrast`: one self-contained HTML file, the numbers as JSON beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modalign.data.pictures import Picture
from modalign.errors import OutputError
from modalign.report import template, wording
from modalign.report.examples import thumbnail

if TYPE_CHECKING:
    from modalign.contrasting import Contrast, Likeness, Pair

READINGS = {
    "kernel loss": "mean squared difference of kernel values over pairs of pictures, at the fitted kernel; 0 = alike",
    "kernel loss, one kernel": "the same at the kernel fitted to the first model: a scale that changed counts too",
    "CKA": "linear centred kernel alignment; 1 = the same up to rotation and scale",
    "mutual k-NN": "share of each picture's nearest neighbours that both name",
    "fitted γ": "of the polynomial kernel that brings the model closest to the target: method.gamma",
    "fitted c": "of the same kernel: method.coef0",
}


@dataclass(frozen=True)
class Row:
    """One number of the table.

    Attributes:
        name: in words.
        reading: what it means.
        values: of the model, and of the second one.
    """

    name: str
    reading: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """A picture on the page: a data URI (empty where the file cannot be read any more), its name and place."""

    uri: str
    name: str
    place: str


@dataclass(frozen=True)
class Bar:
    """How alike a network finds a pair: whose it is, the rank in per cent, the cosine, and its colour."""

    who: str
    percent: float
    cosine: str
    colour: str


@dataclass(frozen=True)
class Card:
    """One blind pair."""

    pictures: tuple[Shown, Shown]
    bars: tuple[Bar, ...]


def need_place(page: Path) -> None:
    """Refuses a place that cannot become a page, before anything is computed.

    Raises:
        OutputError: it is a folder, or does not end in .html.
    """
    if page.suffix != ".html" or page.is_dir():
        raise OutputError(f"{page} cannot be the page: name a file that ends in .html")


def write(found: Contrast, page: Path, environment: Mapping[str, Any]) -> None:
    """Writes the page, and `.json` beside it.

    Args:
        found: what is shown.
        page: the .html file.
        environment: versions and seed, for the JSON file.

    Raises:
        OutputError: the folder cannot be written.
    """
    numbers = json.dumps({**found.to_dict(), "environment": environment}, indent=1, ensure_ascii=False)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for path, content in ((page.with_suffix(".json"), numbers + "\n"), (page, render(found))):
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                temporary.write_text(content, encoding="utf-8", errors="replace")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{page} cannot be written ({error.strerror}): choose another --out") from error


def render(found: Contrast) -> str:
    """The page as text."""
    specs = [found.student.spec] + ([found.against.spec] if found.against else [])
    cards = [_card(pair, found) for pair in found.pairs]
    apart = None
    if found.against is not None and found.pairs:
        apart = sum(pair.against is not None and pair.against.rank < pair.student.rank for pair in found.pairs)
    return template.render(
        "contrast.html",
        found=found,
        headline=_headline(found),
        specs=specs,
        rows=_rows(found),
        cards=cards,
        apart=apart,
    )


def _headline(found: Contrast) -> str:
    if not found.pairs:
        return "No pair is alike for the model and unlike for the target"
    count = len(found.pairs)
    return f"{count} pair{'s' if count > 1 else ''} alike for the model, unlike for the target"


def _rows(found: Contrast) -> list[Row]:
    sides = [side for side in (found.student, found.against) if side is not None]
    chance = found.neighbours / (found.pictures - 1)
    values = {
        "kernel loss": [wording.number(side.kernel_loss) for side in sides],
        "kernel loss, one kernel": [wording.number(side.kernel_loss_at_first) for side in sides],
        "CKA": [wording.number(side.cka) for side in sides],
        "mutual k-NN": [wording.number(side.mutual_knn) for side in sides],
        "fitted γ": [wording.number(side.gamma) for side in sides],
        "fitted c": [wording.number(side.coef0) for side in sides],
    }
    if found.against is None:
        del values["kernel loss, one kernel"]
    said = {"mutual k-NN": f"{READINGS['mutual k-NN']}; k = {found.neighbours}, chance {wording.number(chance)}"}
    return [Row(name, said.get(name, READINGS[name]), tuple(cells)) for name, cells in values.items()]


def _card(pair: Pair, found: Contrast) -> Card:
    bars = [_bar("model", pair.student, "--orange")]
    if pair.against is not None:
        bars.append(_bar("second model", pair.against, "--amber"))
    bars.append(_bar("target", pair.target, "--blue"))
    return Card((_shown(pair.first), _shown(pair.second)), tuple(bars))


def _bar(who: str, likeness: Likeness, colour: str) -> Bar:
    return Bar(who, 100 * likeness.rank, f"{likeness.cosine:.3f}".replace("-", "−"), colour)


def _shown(picture: Picture) -> Shown:
    return Shown(thumbnail(picture), picture.name, str(picture))
