"""COCO captions and Flickr30k as they are published: annotation files beside folders of pictures."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modalign.data.bad_rows import Complaint
from modalign.data.captions import captions_in
from modalign.data.files import FileIndex
from modalign.data.records import PairRow
from modalign.errors import DataError

# A published split, and what `dataset_coco.json` calls its parts ("restval": pictures of val2014 in no other part).
KARPATHY_PARTS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
COCO_SPLITS = ("train2017", "val2017", "karpathy-train", "karpathy-val", "karpathy-test")
FLICKR30K_SPLITS = ("train", "val", "test")
FLICKR30K_FOLDERS = ("flickr30k-images", "flickr30k_images", "images", ".")

# The published captions, by the file's ending. One line of the csv in circulation lacks its second "|".
FLICKR30K_LINES = {
    ".token": re.compile(r"([^#]+)#\d+\t\s*(.*)"),  # 1000092795.jpg#0<tab>caption
    ".csv": re.compile(r"([^|]+?)\s*\|\s*\d+\s*\|?\s*(.*)"),  # 1000092795.jpg| 0| caption
}

# A picture by its place below the folder of pictures, or several places it may lie at.
Places = Sequence[str]


def coco(root: Path, split: str, bad: list[Complaint]) -> list[PairRow]:
    """COCO captions: `annotations/captions_<split>.json`, or Karpathy's `dataset_coco.json`.

    Args:
        root: holds `annotations/` (or the annotation files themselves) and the pictures' folders, the latter perhaps
            in `images/`.
        split: one of `COCO_SPLITS`.
        bad: takes a complaint for each picture or caption that cannot be used.

    Raises:
        DataError: an unknown split, or an annotation file or folder of pictures that is not where it should be.
    """
    _known("coco", split, COCO_SPLITS)
    if split.startswith("karpathy-"):
        annotation = _first_file([root / "dataset_coco.json", root / "annotations" / "dataset_coco.json"])
        # The pictures of 2017 are those of 2014, shared out differently and named by their number alone.
        folders = [base / name for base in (root, root / "images") for name in ("val2014", "train2014")]
        folders += [base / name for base in (root, root / "images") for name in ("val2017", "train2017")]
        _first_folder(folders)
        return _karpathy(annotation, [root, root / "images"], split.removeprefix("karpathy-"), _coco_places, bad)
    name = f"captions_{split}.json"
    annotation = _first_file([root / "annotations" / name, root / name])
    folder = _first_folder([root / split, root / "images" / split])
    return _coco_captions(annotation, folder, bad)


def flickr30k(root: Path, split: str, bad: list[Complaint]) -> list[PairRow]:
    """Flickr30k: Karpathy's `dataset_flickr30k.json`, or the published captions with a list of the split's pictures.

    Args:
        root: holds `dataset_flickr30k.json`, or `results_20130124.token` or `results.csv` with `<split>.txt` (a
            picture's name or number on each line), and the pictures in one of `FLICKR30K_FOLDERS`.
        split: one of `FLICKR30K_SPLITS`.
        bad: takes a complaint for each picture or caption that cannot be used.

    Raises:
        DataError: an unknown split, or an annotation file that is not where it should be.
    """
    _known("flickr30k", split, FLICKR30K_SPLITS)
    bases = [root / folder for folder in FLICKR30K_FOLDERS]
    json_files = [root / "dataset_flickr30k.json", root / "annotations" / "dataset_flickr30k.json"]
    if any(file.is_file() for file in json_files):
        return _karpathy(_first_file(json_files), bases, split, lambda entry: [str(entry["filename"])], bad)
    published = _first_file([*json_files, root / "results_20130124.token", root / "results.csv"])
    listed = _first_file([root / f"{split}.txt", root / f"flickr30k_{split}.txt"])
    return _published_flickr30k(published, listed, bases, bad)


def _coco_captions(annotation: Path, folder: Path, bad: list[Complaint]) -> list[PairRow]:
    content = _load(annotation, ["images", "annotations"])
    captions: dict[Any, list[Any]] = {}
    for entry in content["annotations"]:
        captions.setdefault(entry.get("image_id"), []).append(entry.get("caption"))
    index = FileIndex()
    rows: list[PairRow] = []
    for entry in content["images"]:
        where = f"{annotation.name}: image {entry.get('id')}"
        places = [str(entry["file_name"])] if entry.get("file_name") else []
        _add(rows, where, _find([folder], places, index), places, captions.pop(entry.get("id"), []), bad)
    bad += [Complaint(f"{annotation.name}: image {image}", "has captions but is not listed") for image in captions]
    return rows


def _karpathy(
    annotation: Path,
    bases: Sequence[Path],
    split: str,
    places_of: Callable[[Mapping[str, Any]], Places],
    bad: list[Complaint],
) -> list[PairRow]:
    parts = KARPATHY_PARTS[split]
    index = FileIndex()
    rows: list[PairRow] = []
    for number, entry in enumerate(_load(annotation, ["images"])["images"]):
        if entry.get("split") not in parts:
            continue
        where = f"{annotation.name}: image {entry.get('cocoid', entry.get('imgid', number))}"
        places = places_of(entry) if entry.get("filename") else []
        captions = [sentence.get("raw") for sentence in entry.get("sentences") or []]
        _add(rows, where, _find(bases, places, index), places, captions, bad)
    return rows


def _coco_places(entry: Mapping[str, Any]) -> Places:
    name = str(entry["filename"])
    number = name.rpartition("_")[2]
    return [os.path.join(str(entry.get("filepath") or ""), name), f"val2017/{number}", f"train2017/{number}"]  # noqa: PTH118


def _published_flickr30k(published: Path, listed: Path, bases: Sequence[Path], bad: list[Complaint]) -> list[PairRow]:
    captions: dict[str, list[str]] = {}
    pattern = FLICKR30K_LINES[published.suffix]
    for number, line in enumerate(_lines(published), start=1):
        if match := pattern.fullmatch(line):
            captions.setdefault(match[1], []).append(match[2])
        elif line and not (number == 1 and published.suffix == ".csv"):
            bad.append(Complaint(f"{published.name}:{number}", f"not a picture, a number and a caption: {line:.40}"))
    index = FileIndex()
    rows: list[PairRow] = []
    for number, line in enumerate(_lines(listed), start=1):
        if line:
            name = line if line.endswith(".jpg") else f"{line}.jpg"
            where = f"{listed.name}:{number}"
            _add(rows, where, _find(bases, [name], index), [name], captions.get(name, []), bad)
    return rows


def _add(
    rows: list[PairRow], where: str, path: str | None, places: Places, captions: list[Any], bad: list[Complaint]
) -> None:
    texts, reasons = captions_in(captions)
    if path is None:
        reasons.insert(0, f"no such file {places[0]}" if places else "names no file")
    if reasons:
        bad.append(Complaint(where, "; ".join(reasons)))
    if path is not None and texts:
        rows.append(PairRow(Path(path), texts, where))


def _find(bases: Iterable[Path], places: Places, index: FileIndex) -> str | None:
    for place in places:
        for base in bases:
            path = str(base / place)
            if index.lists(path):
                return path
    return None


def _load(annotation: Path, keys: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(annotation.read_bytes())
    except (ValueError, OSError) as error:
        raise DataError(f"{annotation} cannot be read as JSON ({error}); download it again") from None
    for key in keys:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{annotation} holds no list {key!r} of objects; is it the right file?")
    return content  # type: ignore[no-any-return]


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")]


def _known(kind: str, split: str, splits: Sequence[str]) -> None:
    if split not in splits:
        raise DataError(f"{kind} has no split {split!r}; pass {kind}:<root>@ and one of {', '.join(splits)}")


def _first_file(candidates: Sequence[Path]) -> Path:
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(f"no annotations: looked for {', '.join(map(str, candidates))}; put one of them there")


def _first_folder(candidates: Sequence[Path]) -> Path:
    for path in candidates:
        if path.is_dir():
            return path
    raise DataError(f"no folder of pictures: looked for {', '.join(map(str, candidates))}; put the pictures there")
