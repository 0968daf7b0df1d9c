"""The stored features of one frozen network: append-only shards in a folder named by what the features depend on.

Two locks, both given up by the system when a process dies: `.use` is held (shared) by everyone who has the folder
open, so that `remove` can tell; `.write` is held by the one process, or group of processes, that adds shards.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from modalign.console import Reporter
from modalign.data import store_shards
from modalign.data.store_shards import Array, DamagedShardError, Shard
from modalign.errors import OutputError

log = logging.getLogger("modalign")
RECORD = "store.json"
ATTEMPTS = 100
"""How often a folder is made that others remove at once."""


class StoreFolder:
    """One network's rows, found by content, and contents, found by name.

    Args:
        root: where stores lie, one folder each.
        facts: everything the bits of a row depend on; another value of any is another folder.
        title: what `modalign store ls` shows.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(self, root: Path, facts: Mapping[str, Any], title: str) -> None:
        self.key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
        self.path = root / self.key
        self._use = _open(self.path)
        os.utime(self.path / ".use")
        if not (self.path / RECORD).is_file():
            draft = self.path / f".{RECORD}.{os.getpid()}.tmp"
            draft.write_text(json.dumps({"title": title, **facts}, indent=1), encoding="utf-8")
            draft.replace(self.path / RECORD)
        self._shards: dict[str, Shard] = {}
        self._sound: set[str] = set()
        self._damaged: set[str] = set()
        self.refresh()

    # ---- what is there --------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Looks for shards that were added."""
        present = sorted(path.name for path in self.path.glob("shard-*.safetensors"))
        for name in present:
            if name not in self._shards and name not in self._damaged:
                try:
                    self._shards[name] = store_shards.read(self.path / name)
                except DamagedShardError as error:
                    self._pass_over(name, error)
        self._shards = {name: self._shards[name] for name in present if name in self._shards}
        self._names = _Index([shard.names for shard in self._shards.values()])
        self._contents = _joined([shard.contents for shard in self._shards.values()])

    def others(self, request: str) -> bool:
        """Whether rows were written for other requests than this one."""
        return any(shard.request != request and len(shard.keys) for shard in self._shards.values())

    def contents(self, names: Array) -> tuple[Array, Array]:
        """What each name stood for when it was last written.

        Args:
            names: n×16 bytes.

        Returns:
            n×16 bytes, and n booleans: whether the name is known at all.
        """
        at = self._names.find(names)
        known = at >= 0
        found = np.zeros_like(names)
        found[known] = self._contents[at[known]]
        return found, known

    def places(self, contents: Array, *, apart_from: str | None = None) -> Array:
        """Where the row of each content lies; every shard named here has been read whole and is sound.

        Args:
            contents: n×16 bytes.
            apart_from: a request whose shards do not count.

        Returns:
            n×2 integers: position in `files`, row in that shard; -1 where there is none.
        """
        while True:
            numbers = [
                number for number, shard in enumerate(self._shards.values()) if shard.request != (apart_from or "")
            ]
            shards = list(self._shards.values())
            sizes = [len(shards[number].keys) for number in numbers]
            owner = np.repeat(np.array(numbers, np.int64), sizes)
            row = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.empty(0, np.int64)
            at = _Index([shards[number].keys for number in numbers]).find(contents)
            places = np.full((len(contents), 2), -1, np.int64)
            places[at >= 0, 0], places[at >= 0, 1] = owner[at[at >= 0]], row[at[at >= 0]]
            used = {shards[number].path.name for number in np.unique(places[:, 0]) if number >= 0}
            if not self._verify(sorted(used - self._sound)):
                return places

    @property
    def files(self) -> list[str]:
        """The names of the shards, in the order `places` counts them."""
        return list(self._shards)

    def maps(self, files: Sequence[str]) -> list[Array]:
        """The memory-mapped rows of these shards.

        Raises:
            OutputError: one cannot be seen from this process.
        """
        for name in files:
            if name not in self._shards:
                try:
                    self._shards[name] = store_shards.read(self.path / name)
                except DamagedShardError as error:
                    raise OutputError(
                        f"{self.path / name}: {error} by this process, though another has just read it; "
                        "put the store on a disk that all processes share"
                    ) from None
        return [self._shards[name].rows for name in files]

    # ---- adding to it ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, reporter: Reporter) -> Iterator[None]:
        """Keeps other writers out; clears away what an earlier one left half written, and damaged shards."""
        with (self.path / ".write").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                reporter.say(f"waiting for another process that writes to {self.path}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            for name in self._damaged:
                (self.path / name).unlink(missing_ok=True)
            self._damaged.clear()
            for draft in self.path.glob(".shard-*.tmp"):
                draft.unlink(missing_ok=True)
            self.refresh()
            yield

    @property
    def next_number(self) -> int:
        """The number of the next shard; only to be relied on while writing."""
        numbers = [int(path.name[6:-12]) for path in self.path.glob("shard-*.safetensors")]
        return max(numbers, default=-1) + 1

    def add(self, number: int, request: str, *, names: Array, contents: Array, keys: Array, rows: Array) -> None:
        """Writes one shard; see `store_shards.write`."""
        path = self.path / f"shard-{number:06d}.safetensors"
        store_shards.write(path, request, names=names, contents=contents, keys=keys, rows=rows)

    # ---- damage ---------------------------------------------------------------------------------------------

    def _verify(self, names: list[str]) -> bool:
        """Whether any of these shards is damaged; such ones are passed over from now on."""

        def problem(name: str) -> DamagedShardError | None:
            try:
                self._shards[name].verify()
            except DamagedShardError as error:
                return error
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets other threads run
            problems = dict(zip(names, pool.map(problem, names), strict=True))
        self._sound.update(name for name in names if problems[name] is None)
        damaged = [(name, error) for name, error in problems.items() if error is not None]
        for name, error in damaged:
            self._pass_over(name, error)
        if damaged:
            self.refresh()
        return bool(damaged)

    def _pass_over(self, name: str, error: DamagedShardError) -> None:
        log.warning("passing over %s: %s; its rows are computed again", self.path / name, error)
        self._damaged.add(name)
        self._sound.discard(name)
        self._shards.pop(name, None)


class _Index:
    """Finds n×16-byte keys in a table; of equal ones the last counts."""

    def __init__(self, tables: list[Array]) -> None:
        self._table = _joined(tables)
        heads = _heads(self._table)
        self._order = np.argsort(heads, kind="stable")
        self._sorted = heads[self._order]

    def find(self, wanted: Array) -> Array:
        """n positions in the table, -1 where a key is missing."""
        if not len(self._table):
            return np.full(len(wanted), -1, np.int64)
        heads = _heads(wanted)
        at = np.searchsorted(self._sorted, heads, side="right") - 1
        candidate = self._order[np.maximum(at, 0)]
        hit = (at >= 0) & (self._table[candidate] == wanted).all(axis=1)
        return np.where(hit, candidate, -1)


def _joined(tables: list[Array]) -> Array:
    return np.concatenate(tables) if tables else np.empty((0, store_shards.DIGEST), np.uint8)


def _heads(keys: Array) -> Array:
    """The first eight bytes as one number; keys that differ only after them are, at worst, computed again."""
    return np.ascontiguousarray(keys[:, :8]).view(np.uint64).reshape(-1)


def _open(folder: Path) -> IO[str]:
    """Makes the folder and says that it is in use, for as long as the file returned is open."""
    for _ in range(ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None
        try:
            held = (folder / ".use").open("a")
        except FileNotFoundError:  # removed between the two
            continue
        except OSError as error:
            raise _unwritable(folder, error) from None
        fcntl.flock(held, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(held.fileno()), os.stat(folder / ".use")):  # noqa: PTH116 - a pair
                return held
        held.close()  # it was removed while we waited
    raise OutputError(f"{folder} is removed whenever it is made ({ATTEMPTS} times); choose another store")


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{folder} cannot be written ({error.strerror}); choose another store")
