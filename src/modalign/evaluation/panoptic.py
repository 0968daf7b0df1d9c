"""Which class lies where: COCO's panoptic maps, and COCO-Stuff's pixel maps.

    coco-panoptic:<root>@val2017     <root>/annotations/panoptic_val2017.json and the folder of PNGs beside it
    coco-stuff:<root>@val2017        <root>/stuffthingmaps/val2017/*.png (or stuffthingmaps_trainval2017/…)

A panoptic PNG holds segment ids, R + 256·G + 65536·B, which the JSON maps to categories, things and stuff alike; 0 is
nothing. A stuff PNG holds the class of each pixel; 255 is nothing. The pictures are in <root>/val2017 or
<root>/images/val2017.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalign.data.bad_rows import Complaint, refuse_above
from modalign.data.files import FileIndex
from modalign.data.records import ImageRow, Images
from modalign.errors import DataError

NOTHING = -1


@dataclass(frozen=True)
class ClassMap:
    """The map of one picture.

    Attributes:
        path: the PNG.
        segments: id in the PNG → class number; None where the PNG holds class numbers itself.
        where: what names it, for messages.
    """

    path: Path
    segments: Mapping[int, int] | None
    where: str

    @property
    def listed(self) -> list[tuple[int, int]]:
        """The segments as JSON has them."""
        return [] if self.segments is None else sorted(self.segments.items())

    def read(self) -> NDArray[np.int64]:
        """H×W class numbers, `NOTHING` where none is known.

        Raises:
            DataError: the PNG cannot be read, or names a segment that the JSON does not.
        """
        from PIL import Image

        try:
            with Image.open(self.path) as image:
                pixels = np.asarray(image.convert("RGB") if self.segments is not None else image)
        except Exception as error:  # Pillow and its decoders raise nearly every kind
            raise DataError(f"{self.where}: {self.path} cannot be read ({error}); replace the file") from None
        if self.segments is None:
            if pixels.ndim != 2:
                raise DataError(f"{self.where}: {self.path} is no map of classes (one channel); replace the file")
            classes = pixels.astype(np.int64)
            return np.where(classes == 255, NOTHING, classes)
        ids, places = np.unique(pixels.astype(np.int64) @ np.array([1, 256, 65536]), return_inverse=True)
        if unknown := [int(i) for i in ids if i and int(i) not in self.segments]:
            raise DataError(f"{self.where}: {self.path.name} holds segment {unknown[0]}, which the JSON does not name")
        known = np.array([self.segments.get(int(i), NOTHING) for i in ids], np.int64)
        return known[places.reshape(pixels.shape[:2])]


@dataclass(frozen=True)
class ClassMaps:
    """Pictures and their maps.

    Attributes:
        data: N pictures.
        maps: N maps.
        names: C class names.
    """

    data: Images
    maps: tuple[ClassMap, ...]
    names: tuple[str, ...]


def class_maps(spec: str, *, max_bad: int | None = 0) -> ClassMaps:
    """Reads the maps of a spec (see the module); they are opened when they are needed.

    Raises:
        DataError: another spec, a file that is not where it should be, or more bad entries than allowed.
    """
    kind, _, rest = spec.partition(":")
    root, at, split = rest.rpartition("@")
    if kind not in READERS or not at or not root:
        raise DataError(f"{spec}: write {' or '.join(f'{name}:<root>@val2017' for name in READERS)}")
    place = Path(root).expanduser().absolute()
    bad: list[Complaint] = []
    rows, maps, names = READERS[kind](place, split, bad)
    refuse_above(max_bad, bad, len(rows) + len(bad), f"pictures of {spec} cannot be used")
    if not rows:
        raise DataError(f"{spec} holds no picture; check its content")
    return ClassMaps(Images(spec, tuple(rows)), tuple(maps), tuple(names))


def _panoptic(root: Path, split: str, bad: list[Complaint]) -> tuple[list[ImageRow], list[ClassMap], Sequence[str]]:
    name = f"panoptic_{split}"
    file = _first([root / "annotations" / f"{name}.json", root / f"{name}.json"], "no annotations")
    pngs = _first([file.parent / name, root / name], "no folder of panoptic PNGs (unpack the zip beside the JSON)")
    pictures = _pictures(root, split)
    try:
        content: Any = json.loads(file.read_bytes())
        categories = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
        files = {int(entry["id"]): str(entry["file_name"]) for entry in content["images"]}
        annotations = list(content["annotations"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{file} is no panoptic annotation ({error!r:.80}); download it again") from None
    numbers = {category: number for number, category in enumerate(sorted(categories))}
    index = FileIndex()
    rows, maps = [], []
    for entry in annotations:
        where = f"{file.name}: image {entry.get('image_id') if isinstance(entry, dict) else entry!r:.20}"
        try:
            segments = {int(part["id"]): numbers[int(part["category_id"])] for part in entry["segments_info"]}
            png, picture = pngs / str(entry["file_name"]), pictures / files[int(entry["image_id"])]
        except (KeyError, TypeError, ValueError) as error:
            bad.append(Complaint(where, f"its entry cannot be read ({error!r:.60})"))
            continue
        if missing := [path for path in (png, picture) if str(path) not in index]:
            bad.append(Complaint(where, f"no such file {missing[0]}"))
            continue
        rows.append(ImageRow(picture, where))
        maps.append(ClassMap(png, segments, where))
    return rows, maps, [categories[category] for category in sorted(categories)]


def _stuff(root: Path, split: str, bad: list[Complaint]) -> tuple[list[ImageRow], list[ClassMap], Sequence[str]]:
    folders = [root / name / split for name in ("stuffthingmaps", "stuffthingmaps_trainval2017")]
    pngs, pictures, index = _first(folders, "no folder of stuff maps"), _pictures(root, split), FileIndex()
    rows, maps = [], []
    for png in sorted(pngs.glob("*.png")):
        found = next((path for end in (".jpg", ".png") if str(path := pictures / f"{png.stem}{end}") in index), None)
        if found is None:
            bad.append(Complaint(f"{split}/{png.name}", f"no such file {pictures / png.stem}.jpg"))
            continue
        rows.append(ImageRow(found, f"{split}/{png.name}"))
        maps.append(ClassMap(png, None, f"{split}/{png.name}"))
    return rows, maps, [str(number) for number in range(255)]


READERS = {"coco-panoptic": _panoptic, "coco-stuff": _stuff}


def _pictures(root: Path, split: str) -> Path:
    return _first([root / split, root / "images" / split], "no folder of pictures")


def _first(candidates: Sequence[Path], what: str) -> Path:
    for path in candidates:
        if path.exists():
            return path
    raise DataError(f"{what}: looked for {', '.join(map(str, candidates))}; put it there")
