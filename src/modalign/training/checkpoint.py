"""Training state on disk: written under a temporary name, synced, renamed, manifest last.

A checkpoint is a folder `step-00000012/` with `state.safetensors`, `state.json` and `manifest.json`. The manifest
holds every file's size and SHA-256 and is written after everything else is in place, so a folder without a valid
manifest was cut off by a kill and is passed over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from modalign.tensor_files import write_tensors

log = logging.getLogger("modalign")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        path: its folder.
        step: how many steps had been taken.
        state: what was passed to `save` beside the tensors.
    """

    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """The saved tensors, on CPU."""
        from safetensors.torch import load_file

        return dict(load_file(self.path / "state.safetensors"))


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int) -> Checkpoint:
    """Writes one checkpoint and then removes all but the `keep` newest.

    Args:
        folder: the run's `checkpoints/`.
        step: how many steps have been taken.
        tensors: trained parameters, method state and optimizer state by name.
        state: JSON values.
        keep: how many checkpoints remain.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    if final.is_dir() and _damage(final) is None:
        return Checkpoint(final, step, dict(state))  # the same step of the same run: the same contents
    temporary = folder / f".{final.name}.tmp"
    for stale in (temporary, final):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir()
    write_tensors(temporary / "state.safetensors", tensors)
    (temporary / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    files = sorted(temporary.iterdir())
    for path in files:
        _sync(path)
    manifest = {path.name: {"size": path.stat().st_size, "sha256": _digest(path)} for path in files}
    _sync(temporary)
    temporary.rename(final)
    _sync(folder)
    write_atomically(final / "manifest.json", json.dumps(manifest, indent=1))
    prune(folder, keep)
    return Checkpoint(final, step, dict(state))


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose manifest and contents agree; damaged ones are named and passed over."""
    if not folder.is_dir():
        return None
    for path in sorted(folder.glob("step-*"), reverse=True):
        reason = _damage(path)
        if reason is None:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return Checkpoint(path, int(state.pop("step")), state)
        log.warning("passing over %s: %s", path, reason)
    return None


def prune(folder: Path, keep: int) -> None:
    """Removes unfinished writes and all but the `keep` newest complete checkpoints."""
    found = sorted(folder.glob("step-*"), reverse=True)
    complete = [path for path in found if (path / "manifest.json").is_file()]
    unfinished = [path for path in found if path not in complete]
    for path in [*complete[keep:], *unfinished, *folder.glob(".step-*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file by one that is complete on disk before it gets its name."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _damage(path: Path) -> str | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "it has no readable manifest (its writing was cut off)"
    for name, entry in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["size"] or _digest(file) != entry["sha256"]:
            return f"{name} is not what was written"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
