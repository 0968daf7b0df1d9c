"""A model folder on disk: written whole or not at all, with a `modalign.json` that says what it is."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from modalign.errors import ModelError, OutputError, first_line
from modalign.version import __version__

if TYPE_CHECKING:
    from modalign.models.dual_encoder import DualEncoder

RECORD = "modalign.json"
STAND_IN = "stand_in.safetensors"
"""In a run folder: the map that a method without a tower fitted, in place of `model/`."""
FORMAT = 1


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `folder` that takes its place when the block ends, and vanishes when it fails.

    An existing `folder` keeps its other files; the record is replaced last, so that it never describes half a save.

    Raises:
        OutputError: the place is a file, or cannot be written.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder: choose another place to write")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        draft.chmod(0o777 & ~_umask())
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}; choose another place to write") from error
    try:
        try:
            yield draft
        except SafetensorError as error:  # how the libraries' own writers tell of a full disk
            reason = first_line(error)
            raise OutputError(f"cannot write {folder}: {reason}; check the free space and permissions") from error
        for path in draft.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~_umask())  # safetensors writes for the owner alone
                _sync(path)
        try:
            _put(draft, folder)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror}; choose another place to write") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_record(model: DualEncoder, folder: Path) -> None:
    """Writes `modalign.json`: what the folder holds, where it came from, and what wrote it."""
    record = {
        "format": FORMAT,
        "family": model.family,
        "spec": model.spec,
        "revision": model.revision,
        "dtype": str(model.dtype).removeprefix("torch."),
        "fingerprint": model.fingerprint,
        "versions": versions(),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Reads `modalign.json`; empty where there is none.

    Raises:
        ModelError: the file is damaged or written by a newer format.
    """
    if not (folder / RECORD).is_file():
        return {}
    record = read_json(folder / RECORD)
    if record.get("format") != FORMAT:
        found = record.get("format")
        raise ModelError(f"{folder / RECORD}: format {found} is unknown (this is {FORMAT}): install a newer modalign")
    return record


def model_folder(folder: Path) -> Path:
    """The model's own folder: `model/` in a run, else `folder` itself."""
    return folder / "model" if (folder / "model" / RECORD).is_file() else folder


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ModelError: the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist: name the folder that holds the whole model") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): copy the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object: copy the model again")
    return content


def versions() -> dict[str, str]:
    """The versions of what computes a feature, of those installed."""
    found = {"modalign": __version__}
    for package in ("torch", "open_clip_torch", "transformers", "timm"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _put(draft: Path, folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        draft.rename(folder)
        return
    for path in sorted(draft.iterdir(), key=lambda path: path.name == RECORD):
        if path.is_dir():
            shutil.rmtree(folder / path.name, ignore_errors=True)
        path.replace(folder / path.name)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
