"""Frozen networks run once: what a store knows is read, the rest is computed, stored, and then read.

    wanted ─▶ known by (path, size, time)? ─▶ known by content? ─▶ network, in blocks of whole batches ─▶ a shard each
                     └─────────── rows ───────────┴───────────────────────── rows ────────────────────────────┘

The bits of a row depend on how many inputs shared its forward pass. So batches are cut from what is missing in a fixed
order, blocks of them are shared out among processes, and a block is stored whole or not at all: killed anywhere and
run again, or run by any number of processes, the same request leaves the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from modalign import features
from modalign.console import Reporter
from modalign.data import store_shards
from modalign.data.bad_rows import BadRow, BadRows
from modalign.data.feature_store import Passes, Rows
from modalign.data.images import image_batches
from modalign.data.pictures import Picture
from modalign.data.store_folder import StoreFolder
from modalign.data.store_lookup import NOTHING, picture_content, picture_names
from modalign.data.store_shards import Array
from modalign.encoders import Encoder, Tower, refuse_unsteady
from modalign.environment import versions
from modalign.errors import DataError, OutputError
from modalign.missing import Missing, Shelf, missing_pictures, missing_texts
from modalign.training.distributed import Processes

T = TypeVar("T")
_Places = tuple[list[str], Array]


@dataclass
class Stored:
    """What a request gave.

    Attributes:
        rows: K×w, on disk; row k belongs to input position `kept[k]`.
        kept: K positions that could be read, ascending.
        bad: the others, each with file, row and reason.
        passes: distinct inputs computed and read.
        waited: seconds spent waiting for decoded pictures.
    """

    rows: Rows
    kept: Tensor
    bad: list[BadRow]
    passes: Passes
    waited: float = 0.0


@dataclass
class Embedder:
    """Asks frozen networks through a store.

    Args:
        root: where stores lie; one folder a network, precision and batch size.
        precision: the towers' number format, as in a recipe: part of the key.
        context: the autocast context that goes with it.
        dtype: how rows are stored: as computed (None), or float16, half the size and read back as float32.
        batch_size: inputs in one forward pass: part of the key.
        workers: decoding processes beside this one.
        max_bad: how many unreadable pictures may be left out.
        verify: compare every picture's bytes with those its row was computed from, instead of (path, size, time).
        processes: blocks are shared out among them; they must see one disk.
        reporter: shows sizes and progress.
    """

    root: Path
    precision: str = "fp32"
    context: AbstractContextManager[object] = field(default_factory=nullcontext)
    dtype: torch.dtype | None = None
    batch_size: int = 256
    workers: int = 0
    max_bad: int = 0
    verify: bool = False
    processes: Processes = field(default_factory=Processes)
    reporter: Reporter = field(default_factory=Reporter)

    @torch.no_grad()
    def images(self, encoder: Encoder, pictures: Sequence[Picture], wheres: Sequence[str]) -> Stored:
        """A row for each picture: read where the store has it, computed and stored where not.

        Args:
            encoder: the network, on its device.
            pictures: N of them; one that is named twice is encoded once.
            wheres: N texts that say where each was named, for messages.

        Raises:
            ModelError: equal pictures would not get equal features (random transform, dropout, batch statistics).
            DataError: more than `max_bad` pictures cannot be read, or one changes while it is read.
            OutputError: the disk is too small, or cannot be written.
        """
        refuse_unsteady(encoder)
        first: dict[Picture, int] = {}
        for position, picture in enumerate(pictures):
            first.setdefault(picture, position)
        distinct, told = list(first), [wheres[position] for position in first.values()]
        folder = self._folder(encoder)
        own = picture_names(distinct)
        with contextlib.ExitStack() as held:
            job = self._together(
                lambda: missing_pictures(folder, distinct, own, held, self.batch_size, self.verify, self.reporter)
            )
            gone = [distinct[position] for position in job.unreadable]
            _, absent = features.readable(gone, [told[p] for p in job.unreadable], max_bad=len(gone))
            computed, reasons, waited = self._compute_images(folder, encoder, distinct, told, own, job)
            why = {row.path: row.reason for row in absent}
            reasons |= {position: why[distinct[position]] for position in job.unreadable if distinct[position] in why}
            bad = BadRows(self.max_bad, len(distinct))
            bad.add(BadRow(told[position], distinct[position], reasons[position]) for position in sorted(reasons))
            bad.finish()
            files, places = self._together(lambda: self._locate(folder, job.names))
        lost = [position for position in np.flatnonzero(places[:, 0] < 0).tolist() if position not in reasons]
        if lost:
            raise OutputError(f"{folder.path} has no row for {distinct[lost[0]]} though it was just written; run again")
        number = {picture: position for position, picture in enumerate(distinct)}
        at = np.array([number[picture] for picture in pictures], np.int64)
        kept = np.flatnonzero(places[at, 0] >= 0) if len(at) else at
        rows = Rows(folder, files, places[at[kept]])
        return Stored(
            rows, torch.from_numpy(kept), list(bad.rows), Passes(computed, len(distinct) - computed - len(bad)), waited
        )

    @torch.no_grad()
    def texts(self, tower: Tower, captions: Sequence[str]) -> Stored:
        """A row for each caption; those that are missing are embedded shortest first, so that batches are narrow.

        Args:
            tower: a text side, on its device.
            captions: M strings; equal ones are encoded once.

        Raises:
            ModelError: equal captions would not get equal features (dropout, batch statistics).
            OutputError: the disk is too small, or cannot be written.
        """
        refuse_unsteady(tower)
        distinct = list(dict.fromkeys(captions))
        folder = self._folder(tower)
        keys = store_shards.table([store_shards.digest(text.encode("utf-8", "surrogatepass")) for text in distinct])
        with contextlib.ExitStack() as held:
            job = self._together(
                lambda: missing_texts(folder, tower, distinct, keys, held, self.batch_size, self.reporter)
            )
            computed = self._compute_texts(folder, tower, distinct, keys, job)
            files, places = self._together(lambda: self._locate(folder, None, keys))
        number = {text: position for position, text in enumerate(distinct)}
        at = np.array([number[text] for text in captions], np.int64)
        rows = Rows(folder, files, places[at])
        return Stored(rows, torch.arange(len(captions)), [], Passes(computed, len(distinct) - computed))

    # ---- what the store knows -------------------------------------------------------------------------------

    def _folder(self, encoder: Encoder | Tower) -> StoreFolder:
        facts = {
            "encoder": encoder.fingerprint,
            "inputs": hashlib.sha256(encoder.input_identity.encode()).hexdigest(),
            "weights": str(encoder.dtype),
            "precision": self.precision,
            "batch_size": self.batch_size,
            "stored": str(self.dtype) if self.dtype is not None else "as computed",
            "versions": versions(),
        }
        return StoreFolder(self.root, facts, encoder.spec)

    def _locate(self, folder: StoreFolder, names: Array | None, contents: Array | None = None) -> _Places:
        folder.refresh()
        known = np.ones(len(contents), bool) if contents is not None else np.zeros(0, bool)
        if contents is None:
            assert names is not None
            contents, known = folder.contents(names)
        places = np.full((len(contents), 2), -1, np.int64)
        places[known] = folder.places(contents[known])
        return folder.files, places

    # ---- computing it ---------------------------------------------------------------------------------------

    def _compute_images(
        self,
        folder: StoreFolder,
        encoder: Encoder,
        pictures: list[Picture],
        wheres: list[str],
        names: list[bytes],
        job: Missing,
    ) -> tuple[int, dict[int, str], float]:
        """Own blocks through the network; how many rows all processes computed, which they could not read and why,
        own seconds of waiting."""
        shelf = Shelf(folder, encoder.spec, job, self.dtype, self.reporter)
        own = list(enumerate(job.blocks))[self.processes.rank :: self.processes.world]
        total = sum(len(block) for _, block in own)
        batches = [torch.tensor(block).split(self.batch_size) for _, block in own]
        flat = (part for parts in batches for part in parts)
        stream = image_batches(pictures, wheres, encoder.preprocess, flat, workers=self.workers)
        waited, done, begin = 0.0, 0, time.perf_counter()
        bad, reasons = BadRows(self.max_bad, len(pictures)), dict[int, str]()
        with (
            ThreadPoolExecutor(2) as pool,
            self.reporter.progress(encoder.spec, total, "pictures") as update,
        ):
            for (number, block), parts in zip(own, batches, strict=True):
                kept: list[int] = []
                rows: list[Tensor] = []
                contents: list[bytes] = []
                for part in parts:
                    batch = next(stream)
                    waited += time.perf_counter() - begin
                    read = pool.map(picture_content, [pictures[position] for position in part.tolist()])
                    bad.add(batch.bad)
                    bad.check()
                    if len(batch.index):
                        with self.context:
                            rows.append(_on_cpu(encoder.encode(batch.pixels.to(encoder.device, encoder.dtype))))
                    read_now = set(batch.index.tolist())
                    left_out = [position for position in part.tolist() if position not in read_now]
                    reasons |= {position: row.reason for position, row in zip(left_out, batch.bad, strict=True)}
                    kept += batch.index.tolist()
                    contents += read
                    done += len(part)
                    update(done)
                    begin = time.perf_counter()
                now = picture_names([pictures[position] for position in block])
                good = np.isin(block, kept)
                for position, name, content, decoded in zip(block, now, contents, good, strict=True):
                    if name != names[position] or (decoded and content == NOTHING):
                        raise DataError(
                            f"{wheres[position]}: {pictures[position]} changed while it was read; run again"
                        )
                if not kept and number >= len(job.blocks) - job.retries:
                    continue  # still in vain, and known to be
                content_table, read_from = store_shards.table(contents), [wheres[position] for position in kept]
                shelf.put(
                    number, rows, read_from, names=job.names[block], contents=content_table, keys=content_table[good]
                )
        shared = self.processes.gather_objects((shelf.computed, reasons))
        for _, theirs in shared:
            reasons |= theirs
        return sum(count for count, _ in shared), reasons, waited

    def _compute_texts(self, folder: StoreFolder, tower: Tower, texts: list[str], keys: Array, job: Missing) -> int:
        shelf = Shelf(folder, tower.spec, job, self.dtype, self.reporter)
        own = list(enumerate(job.blocks))[self.processes.rank :: self.processes.world]
        done, none = 0, store_shards.table([])
        with self.reporter.progress(tower.spec, sum(len(block) for _, block in own), "captions") as update:
            for number, block in own:
                rows = []
                for part in torch.tensor(block).split(self.batch_size):
                    tokens = tower.model.tokenize([texts[position] for position in part.tolist()])
                    with self.context:
                        rows.append(_on_cpu(tower.encode(tokens.to(tower.device))))
                    done += len(part)
                    update(done)
                said = [repr(texts[position]) for position in block]
                shelf.put(number, rows, said, names=none, contents=none, keys=keys[block])
        return sum(self.processes.gather_objects(shelf.computed))

    def _together(self, decide: Callable[[], T]) -> T:
        """What the main process decides, on every process."""
        decided: list[T] = self.processes.gather_objects(decide() if self.processes.is_main else None)
        return decided[0]


def _on_cpu(rows: Tensor) -> Tensor:
    return (rows if rows.dtype == torch.float64 else rows.float()).cpu()
