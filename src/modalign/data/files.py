"""Finding files: listings instead of one question per file, because 120,000 of these take a while on a network disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from modalign.errors import DataError, few

logger = logging.getLogger("modalign")

# Formats of still pictures that Pillow reads; torchvision's ImageFolder takes the first nine.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".gif", ".jfif", ".jpe", ".pbm", ".pnm", ".jp2", ".avif", ".tga", ".ico"),
)


class FileIndex:
    """Answers whether files exist from one listing of each folder."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def lists(self, path: str) -> bool:
        """Whether the listing of the path's folder names it as a file."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                with os.scandir(folder or ".") as entries:
                    self._names[folder] = frozenset(entry.name for entry in entries if entry.is_file())
            except OSError:
                self._names[folder] = frozenset()
        return name in self._names[folder]

    def __contains__(self, path: str) -> bool:
        # The file system has the last word: it may ignore case, or spell accents differently in its listing.
        return self.lists(path) or os.path.isfile(path)  # noqa: PTH113


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's data (".DS_Store", "__MACOSX"), as `datasets` has it."""
    return name.startswith((".", "__"))


def is_image(name: str) -> bool:
    """Whether a file's name ends like a picture's."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def files_below(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from `root` down, sorted, with the sorted names of its files.

    Hidden folders below `root` are passed over; hidden files are named. Links to folders are followed, once.

    Raises:
        DataError: a folder cannot be listed; going on would shorten the data without a word.
    """
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield Path(folder), sorted(files)


def _refuse(error: OSError) -> None:
    reason = error.strerror or str(error)
    raise DataError(f"{error.filename} cannot be listed ({reason}); make it readable, or move it elsewhere")


def image_files(root: Path) -> list[tuple[Path, str]]:
    """Every picture below a folder, sorted, with its path below it; what is left out is counted in the log."""
    found: list[tuple[Path, str]] = []
    ignored: list[str] = []
    for folder, names in files_below(root):
        for name in names:
            path = folder / name
            if is_image(name) and not is_hidden(name):
                found.append((path, path.relative_to(root).as_posix()))
            else:
                ignored.append(path.relative_to(root).as_posix())
    _report_ignored(root, ignored)
    return found


def class_folders(root: Path) -> dict[str, list[tuple[Path, str]]]:
    """The pictures in and below each folder of `root`, by the folder's name, sorted.

    Raises:
        DataError: there is no class folder, or one without a picture.
    """
    classes: dict[str, list[tuple[Path, str]]] = {
        folder.name: [] for folder in sorted(root.iterdir()) if folder.is_dir() and not is_hidden(folder.name)
    }
    if not classes:
        raise DataError(f"{root}: looked for metadata files and for class folders (<class>/<image>); there is neither")
    loose: list[str] = []
    for path, where in image_files(root):
        folder, slash, _ = where.partition("/")
        if slash:
            classes[folder].append((path, where))
        else:
            loose.append(where)
    if loose:
        logger.warning("%s: %d pictures in no class folder are left out: %s", root, len(loose), few(loose))
    if empty := [name for name, files in classes.items() if not files]:
        raise DataError(f"{root}: no picture in class folder {few(empty)}; remove it, or it would count as a class")
    return classes


def _report_ignored(root: Path, ignored: list[str]) -> None:
    if ignored:
        visible = [name for name in ignored if not is_hidden(name.rpartition("/")[2])]
        text = "%s: %d files that are no pictures are left out (%d of them hidden): %s"
        level = logging.WARNING if visible else logging.INFO
        logger.log(level, text, root, len(ignored), len(ignored) - len(visible), few(visible or ignored))
