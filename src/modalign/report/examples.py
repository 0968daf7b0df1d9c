"""The retrieval examples whose rank changed most, with their pictures as small data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modalign.data.pictures import Member
from modalign.data.pictures import Picture as AnyPicture
from modalign.errors import DataError
from modalign.report.run_folder import Features
from modalign.report.similarity import Matches, RankChanges
from modalign.report.wording import clipped


@dataclass(frozen=True)
class Picture:
    """A thumbnail.

    Args:
        uri: a data URI, empty where the file cannot be read.
        alt: its caption.
        name: the file's name.
        right: whether it is the picture that the query belongs to.
    """

    uri: str
    alt: str
    name: str
    right: bool


@dataclass(frozen=True)
class Example:
    """One caption as a query, before and after.

    Args:
        caption: the query.
        before: rank of its picture before, 1 is the top.
        after: rank after.
        picture: the right picture.
        top_before: what ranked first before.
        top_after: what ranks first after.
    """

    caption: str
    before: int
    after: int
    picture: Picture
    top_before: Picture
    top_after: Picture


def examples(features: Features, changes: RankChanges, captions: tuple[int, ...], folder: Path) -> list[Example]:
    """What the page shows of some captions.

    Args:
        features: the evaluation pairs.
        changes: all ranks before and after.
        captions: which captions to show.
        folder: where relative picture paths start.
    """
    matches = Matches.of(features)
    own_caption = dict(zip(features.image_of_text[::-1].tolist(), features.captions[::-1], strict=True))
    thumbnails: dict[int, str] = {}

    def picture(row: int, query: int) -> Picture:
        path = features.paths[row]
        if row not in thumbnails:
            thumbnails[row] = thumbnail(path if isinstance(path, Member) else folder / path)
        right = bool(matches.matched(np.array([row]), np.array([query]))[0])
        return Picture(thumbnails[row], clipped(own_caption.get(row, path.name)), path.name, right)

    def shown(caption: int) -> Example:
        before, after = changes.before, changes.after
        return Example(
            caption=clipped(features.captions[caption]),
            before=int(before.rank[caption]),
            after=int(after.rank[caption]),
            picture=picture(int(features.image_of_text[caption]), caption),
            top_before=picture(int(before.top[caption]), caption),
            top_after=picture(int(after.top[caption]), caption),
        )

    return [shown(caption) for caption in captions]


def thumbnail(path: AnyPicture, side: int = 176, quality: int = 78) -> str:
    """A JPEG data URI of a picture, as the model sees its colours (RGB, transparency dropped), no larger than `side`.

    Args:
        path: any file Pillow reads, or a member of a container.
        side: the longest side in pixels.
        quality: of the JPEG.

    Returns:
        The data URI, or nothing where the file is missing or damaged.
    """
    from PIL import Image

    try:
        with Image.open(path.open() if isinstance(path, Member) else path) as opened:
            opened.draft("RGB", (side * 2, side * 2))
            image = opened.convert("RGB")
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=quality, optimize=True)
    except (OSError, ValueError, SyntaxError, DataError, Image.DecompressionBombError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def summary(changes: RankChanges) -> dict[str, float]:
    """How many captions rose, fell and stayed, and the ranks of their pictures in the middle.

    Args:
        changes: all ranks before and after.
    """
    before, after = changes.before.rank, changes.after.rank
    return {
        "captions": len(before),
        "pictures": changes.pictures,
        "rose": int((after < before).sum()),
        "fell": int((after > before).sum()),
        "stayed": int((after == before).sum()),
        "median_before": float(np.median(before)),
        "median_after": float(np.median(after)),
    }
