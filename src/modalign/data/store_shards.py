"""One shard of a feature store: a safetensors file that appears whole or not at all, and proves what it holds.

    names     F×16   pictures by (path, size, modification time), hashed
    contents  F×16   the first half of the SHA-256 of each of these pictures' bytes
    keys      R×16   the content each row belongs to
    rows      R×w    the features

A picture with a name and no row was tried and could not be read. Captions have no names: their content is the text.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modalign.errors import OutputError

Array = npt.NDArray[Any]
DIGEST = 16
"""Bytes of a name or content."""
_PARTS = ("names", "contents", "keys", "rows")
_TYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32, "F64": np.float64}


class DamagedShardError(ValueError):
    """A shard that is not what was written."""


@dataclass(frozen=True)
class Shard:
    """A shard, memory-mapped: nothing is read until it is looked at.

    Attributes:
        path: the file.
        request: a hash of the inputs it was written for, all shards of one request having the same.
        checksum: what `verify` compares with.
        names: F×16 bytes.
        contents: F×16 bytes.
        keys: R×16 bytes.
        rows: R×w.
    """

    path: Path
    request: str
    checksum: str
    names: Array
    contents: Array
    keys: Array
    rows: Array

    def verify(self) -> None:
        """Reads the whole shard.

        Raises:
            DamagedShardError: its bytes are not those that were written.
        """
        if _checksum(self.request, {part: getattr(self, part) for part in _PARTS}) != self.checksum:
            raise DamagedShardError("its checksum does not fit")


def digest(content: bytes) -> bytes:
    """The first 16 bytes of a SHA-256."""
    return hashlib.sha256(content).digest()[:DIGEST]


def table(digests: list[bytes]) -> Array:
    """Digests → n×16 bytes."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST)


def size_text(count: float) -> str:
    """A number of bytes as people read it: 9.2 GB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def write(path: Path, request: str, *, names: Array, contents: Array, keys: Array, rows: Array) -> None:
    """Writes a shard under a temporary name, syncs it, and only then gives it its own.

    Args:
        path: the file.
        request: a hash of the inputs it is written for.
        names: F×16 bytes.
        contents: F×16 bytes.
        keys: R×16 bytes.
        rows: R×w, float16, float32 or float64.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    from safetensors.numpy import save

    parts = {name: np.ascontiguousarray(part) for name, part in zip(_PARTS, (names, contents, keys, rows), strict=True)}
    # One entry: the order of several is not fixed, and equal shards should be equal files.
    told = json.dumps({"request": request, "sha256": _checksum(request, parts)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(save(parts, metadata={"shard": told}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written ({error.strerror}); what is there is kept: make room and run again"
        ) from None


def read(path: Path) -> Shard:
    """Maps a shard and reads its header; `verify` is for the rest.

    Raises:
        DamagedShardError: it is cut short, or its header makes no sense.
    """
    try:
        mapped = np.asarray(np.memmap(path, np.uint8, mode="r"))  # a plain array is quicker to index
        size = int.from_bytes(mapped[:8].tobytes(), "little")
        header = json.loads(mapped[8 : 8 + size].tobytes())
        told = json.loads(header.pop("__metadata__")["shard"])
        body = mapped[8 + size :]
        if sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values()) != len(body):
            raise DamagedShardError("it is cut short")
        parts = {}
        for name in _PARTS:
            begin, end = header[name]["data_offsets"]
            parts[name] = body[begin:end].view(_TYPES[header[name]["dtype"]]).reshape(header[name]["shape"])
        return Shard(path, str(told["request"]), str(told["sha256"]), **parts)
    except DamagedShardError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, MemoryError) as error:
        raise DamagedShardError(f"it cannot be read ({type(error).__name__})") from None


def _checksum(request: str, parts: dict[str, Array]) -> str:
    """SHA-256 of everything a shard means, its shapes and types included."""
    running = hashlib.sha256(request.encode())
    for name in _PARTS:
        part = parts[name]
        running.update(f"\n{name}:{part.dtype.str}:{part.shape}\n".encode())
        running.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return running.hexdigest()
