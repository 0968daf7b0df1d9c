"""What `modalign store ls` shows and `modalign store rm` deletes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modalign.data import store_shards
from modalign.data.store_folder import RECORD
from modalign.data.store_shards import DamagedShardError, size_text
from modalign.errors import DataError, OutputError

log = logging.getLogger("modalign")


@dataclass(frozen=True)
class StoreInfo:
    """One store, as `modalign store ls` shows it.

    Attributes:
        key: its folder's name.
        title: whose features it holds.
        rows: how many.
        bytes: its size on disk.
        used: when it was last opened, seconds since 1970.
        state: "idle", "in use" or "being written".
        damaged: shards whose header cannot be read.
    """

    key: str
    title: str
    rows: int
    bytes: int
    used: float
    state: str
    damaged: int

    def cells(self) -> list[str]:
        """One line of `modalign store ls`."""
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        state = f"{self.state}, {self.damaged} damaged" if self.damaged else self.state
        return [self.key, f"{self.rows:,}", size_text(self.bytes), day, state, self.title]


def stores(root: Path) -> list[StoreInfo]:
    """The stores below a root, the last used first; reads headers only."""
    return sorted(map(_info, _folders(root)), key=lambda info: -info.used)


def remove(
    root: Path, keys: Sequence[str] = (), *, everything: bool = False, older_than: float | None = None
) -> list[StoreInfo]:
    """Deletes stores that nobody has open.

    Args:
        root: where the stores lie.
        keys: their names, or the first letters of them.
        everything: all of them.
        older_than: those last used more than so many days ago.

    Returns:
        What was deleted.

    Raises:
        DataError: a key fits no store, or several.
        OutputError: a store named by its key is in use.
    """
    known = {info.key: info for info in stores(root)}
    chosen = set(known) if everything else set()
    if older_than is not None:
        chosen |= {key for key, info in known.items() if info.used < time.time() - 86_400 * older_than}
    for text in keys:
        fits = [key for key in known if key.startswith(text)]
        if len(fits) != 1 or not text:
            told = f"fits {len(fits)} stores" if fits else "fits no store"
            raise DataError(f"{text!r} {told} in {root}; `modalign store ls` lists them")
        chosen.update(fits)
    removed = []
    for key in sorted(chosen):
        if _delete(root / key):
            removed.append(known[key])
        elif any(key.startswith(text) for text in keys):
            raise OutputError(f"{root / key} is in use by another process; wait for it, then remove it")
        else:
            log.warning("left %s: it is in use", root / key)
    return removed


def _delete(folder: Path) -> bool:
    with (folder / ".use").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        doomed = folder.with_name(f".removed-{folder.name}-{os.getpid()}")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return True


def _folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob(f"*/{RECORD}")) if root.is_dir() else []


def _info(folder: Path) -> StoreInfo:
    try:
        title = str(json.loads((folder / RECORD).read_text(encoding="utf-8"))["title"])
    except (ValueError, KeyError):
        title = f"({RECORD} cannot be read)"
    rows = damaged = 0
    for path in folder.glob("shard-*.safetensors"):
        try:
            rows += len(store_shards.read(path).keys)
        except DamagedShardError:
            damaged += 1
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    state = "being written" if _locked(folder / ".write") else "in use" if _locked(folder / ".use") else "idle"
    return StoreInfo(folder.name, title, rows, size, (folder / ".use").stat().st_mtime, state, damaged)


def _locked(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
