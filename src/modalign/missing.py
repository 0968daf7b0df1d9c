"""What a store lacks of a request, cut into blocks, and where the computed blocks are put."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from modalign.console import Reporter
from modalign.data import store_shards
from modalign.data.pictures import Picture
from modalign.data.store_folder import StoreFolder
from modalign.data.store_lookup import NOTHING, look_up
from modalign.data.store_shards import Array, size_text
from modalign.encoders import Tower
from modalign.errors import DataError, ModelError, OutputError

BLOCK = 1024
"""Rows in a shard, at least: what a kill can cost."""


@dataclass
class Missing:
    """What is to be computed, decided by the main process.

    Attributes:
        request: a hash of all inputs.
        blocks: positions among the distinct inputs, each block a shard.
        retries: how many of the blocks, at the end, were tried before in vain.
        number: of the first shard.
        names: n×16 bytes, the main process's.
        unreadable: positions of pictures that are not there.
    """

    request: str
    blocks: list[list[int]] = field(default_factory=list)
    retries: int = 0
    number: int = 0
    names: Array = field(default_factory=lambda: store_shards.table([]))
    unreadable: list[int] = field(default_factory=list)


def missing_pictures(
    folder: StoreFolder,
    pictures: list[Picture],
    names: list[bytes],
    held: contextlib.ExitStack,
    batch_size: int,
    verify: bool,
    reporter: Reporter,
) -> Missing:
    """The pictures that have no row; those whose content is known under another name are entered at once.

    Args:
        folder: the store.
        pictures: the distinct ones of the request.
        names: what each is known by (path, size, time); empty where it is not there.
        held: takes the right to write, where something is missing.
        batch_size: of the forward passes, which blocks are made of.
        verify: compare contents, whatever the names say.
        reporter: told of waiting for another writer.
    """
    found = Missing("", names=store_shards.table([name or NOTHING for name in names]))
    found.request = store_shards.digest(found.names.tobytes()).hex()
    found.unreadable = [position for position, name in enumerate(names) if not name]
    reread: dict[int, bytes] = {}
    look = look_up(folder, pictures, found.names, found.request, verify, reread, reporter)
    if look.complete:
        return found  # without waiting for a writer
    held.enter_context(folder.writing(reporter))
    look = look_up(folder, pictures, found.names, found.request, verify, reread, reporter)
    found.number = folder.next_number
    if look.moved.any():
        names_now, contents = found.names[look.moved], look.contents[look.moved]
        none, no_rows = store_shards.table([]), np.empty((0, 0), np.float32)
        folder.add(found.number, found.request, names=names_now, contents=contents, keys=none, rows=no_rows)
        found.number += 1
    again = _blocks(np.flatnonzero(look.tried).tolist(), batch_size)
    found.blocks, found.retries = _blocks(np.flatnonzero(look.new).tolist(), batch_size) + again, len(again)
    return found


def missing_texts(
    folder: StoreFolder,
    tower: Tower,
    texts: list[str],
    keys: Array,
    held: contextlib.ExitStack,
    batch_size: int,
    reporter: Reporter,
) -> Missing:
    """The captions that have no row, shortest first; arguments as in `missing_pictures`.

    Args:
        folder: the store.
        tower: tells their length in tokens.
        texts: the distinct ones of the request.
        keys: n×16 bytes, what each is known by.
        held: as there.
        batch_size: as there.
        reporter: as there.
    """
    found = Missing(store_shards.digest(keys.tobytes()).hex())
    missing = np.flatnonzero(folder.places(keys)[:, 0] < 0).tolist()
    if missing:
        held.enter_context(folder.writing(reporter))
        missing = np.flatnonzero(folder.places(keys)[:, 0] < 0).tolist()
    lengths = [
        tower.model.token_lengths(tower.model.tokenize([texts[p] for p in missing[i : i + 4096]]))
        for i in range(0, len(missing), 4096)
    ]
    if lengths:
        order = torch.argsort(torch.cat(lengths), stable=True).tolist()
        found.blocks, found.number = _blocks([missing[i] for i in order], batch_size), folder.next_number
    return found


def _blocks(positions: list[int], batch_size: int) -> list[list[int]]:
    size = batch_size * -(-BLOCK // batch_size)
    return [positions[i : i + size] for i in range(0, len(positions), size)]


class Shelf:
    """Where computed blocks are put; the size of the whole is announced before the first is written.

    Args:
        folder: the store.
        spec: of the network, for messages.
        missing: what is computed.
        dtype: how rows are stored, None = as computed.
        reporter: told the size.
    """

    def __init__(
        self, folder: StoreFolder, spec: str, missing: Missing, dtype: torch.dtype | None, reporter: Reporter
    ) -> None:
        self.folder, self.spec, self.missing, self.dtype, self.reporter = folder, spec, missing, dtype, reporter
        self.computed = 0
        self._announced = False

    def put(
        self, number: int, rows: list[Tensor], told: Sequence[str], *, names: Array, contents: Array, keys: Array
    ) -> None:
        """Stores one block as a shard.

        Args:
            number: of the block.
            rows: its batches, each K×w on the CPU.
            told: what each row is of, for messages.
            names: of its pictures.
            contents: of its pictures, in the same order.
            keys: what each row is known by.

        Raises:
            ModelError: a feature is not finite.
            DataError: a feature does not fit the stored format.
            OutputError: the disk is too small.
        """
        stacked = torch.cat(rows) if rows else torch.empty(0, 0)
        bad = (~stacked.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            raise ModelError(
                f"{self.spec} gives NaN or infinity for {told[bad[0]]}; check the model's weights and precision"
            )
        stored = stacked.to(self.dtype) if self.dtype is not None else stacked
        if not stored.isfinite().all():
            raise DataError("a feature is too large for float16; store it as fp32")
        if not self._announced and len(stored):
            self._announce(stored.shape[1] * stored.element_size() + 3 * store_shards.DIGEST)
        shard, rows_now = self.missing.number + number, stored.numpy()
        self.folder.add(shard, self.missing.request, names=names, contents=contents, keys=keys, rows=rows_now)
        self.computed += len(stored)

    def _announce(self, bytes_a_row: int) -> None:
        needed = bytes_a_row * sum(map(len, self.missing.blocks))
        free = shutil.disk_usage(self.folder.path).free
        if needed > free:
            raise OutputError(
                f"{self.folder.path} needs {size_text(needed)} and its disk has {size_text(free)} free; make room, "
                "choose another store, or store float16"
            )
        self.reporter.say(f"will write {size_text(needed)} to {self.folder.path}")
        self._announced = True
