"""Stored vectors in place of a network: any two sets of embeddings can be aligned, through a linear map.

`vectors:<file>.npy` stands for N rows of width d, and so does `vectors:<folder>`, a store that `modalign embed` wrote,
where it holds one data set's rows. As a model it is its own trunk output, under a square map that
begins as the identity; as a target it is what it says. Row i of both belongs to the same thing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from modalign.data import store_shards
from modalign.data.records import PairRow, Pairs
from modalign.data.store_folder import RECORD
from modalign.data.store_shards import Array, DamagedShardError
from modalign.errors import DataError, ModelError
from modalign.models.dual_encoder import DualEncoder, TowerName
from modalign.tensor_files import write_tensors

KIND = "vectors"
WEIGHTS = "map.safetensors"


class StoredVectors:
    """N×d vectors of a file, memory-mapped, or of a feature store.

    Attributes:
        spec: `vectors:<file>` or `vectors:<folder>`.
        rows: N×d, as stored.
        keys: N×16 bytes, the content that each row of a store belongs to; None for a file.
    """

    keys: Array | None = None

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.path = Path(spec.partition(":")[2]).expanduser()
        if self.path.is_dir():
            self.rows, self.keys = _stored(self.path)
            return
        if not self.path.is_file():
            raise DataError(f"{spec}: there is no file {self.path}; write vectors:<file>.npy or a store's folder")
        try:
            rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f"{self.path} is no .npy file of numbers ({error}); save it with numpy.save") from None
        if rows.ndim != 2 or 0 in rows.shape or rows.dtype not in (np.float16, np.float32, np.float64):
            shape = "×".join(map(str, rows.shape)) or "a scalar"
            raise DataError(f"{self.path} holds {shape} of type {rows.dtype}; save N×d floating-point numbers")
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def embed_dim(self) -> int:
        """The width d."""
        return int(self.rows.shape[1])

    def tensor(self) -> Tensor:
        """All rows in memory, half precision as float32.

        Raises:
            DataError: a row holds a number that is not finite.
        """
        rows = torch.from_numpy(np.array(self.rows))
        rows = rows if rows.dtype == torch.float64 else rows.float()
        bad = (~rows.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            raise DataError(f"{self.path}: row {bad[0]} holds NaN or infinity; remove such rows from both files")
        return rows

    @property
    def fingerprint(self) -> str:
        """A hash of the numbers: 64 hexadecimal digits."""
        digest = hashlib.sha256(f"{self.rows.dtype}{self.rows.shape}".encode())
        for start in range(0, len(self.rows), 65536):
            digest.update(np.ascontiguousarray(self.rows[start : start + 65536]).tobytes())
        return digest.hexdigest()

    def follow(self, other: StoredVectors) -> None:
        """Puts rows of a store into the order of another store's, by the content each belongs to.

        Raises:
            DataError: only one of both is a store, or they hold rows of different inputs.
        """
        if self.keys is None and other.keys is None:
            return
        if self.keys is None or other.keys is None:
            store = self if other.keys is None else other
            raise DataError(
                f"{store.spec} is a store, whose rows have an order of their own, and the other is a file; name two "
                "stores, or two files (modalign embed --npy writes them)"
            )
        mine, theirs = (np.lexsort(keys.T) for keys in (self.keys, other.keys))
        if not np.array_equal(self.keys[mine], other.keys[theirs]):
            raise DataError(f"{other.spec} and {self.spec} hold rows of different inputs; embed the same data for both")
        order = np.empty_like(mine)
        order[theirs] = mine
        self.rows, self.keys = self.rows[order], self.keys[order]

    def as_pairs(self) -> Pairs:
        """One row a vector, without captions: what batches are drawn from."""
        rows = (PairRow(self.path / f"row {i}", (), f"{self.path.name}: row {i}") for i in range(len(self)))
        return Pairs(self.spec, tuple(rows))


def _stored(folder: Path) -> tuple[Array, Array]:
    """The rows of a store and their keys; the store's own folder, or one that holds this store alone.

    Raises:
        DataError: there is no store, or not one data set's rows.
    """
    found = [folder] if (folder / RECORD).is_file() else sorted(path.parent for path in folder.glob(f"*/{RECORD}"))
    if len(found) != 1:
        named = f"{len(found)} stores; name one, such as vectors:{found[0]}" if found else "no store of modalign embed"
        raise DataError(f"{folder} holds {named}")
    try:
        shards = [store_shards.read(path) for path in sorted(found[0].glob("shard-*.safetensors"))]
        shards = [shard for shard in shards if len(shard.keys)]
        for shard in shards:
            shard.verify()
    except DamagedShardError as error:
        raise DataError(f"{found[0]} is damaged ({error}); run modalign embed again") from None
    if (requests := len({shard.request for shard in shards})) != 1:
        raise DataError(
            f"{found[0]} holds the rows of {requests} data sets, not of one; embed one into a store of its own"
        )
    return np.concatenate([shard.rows for shard in shards]), np.concatenate([shard.keys for shard in shards])


class _Map(nn.Module):
    """W, under a name of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.map.weight)


class VectorModel(DualEncoder):
    """Vectors under a linear map: x ↦ W x, W = 1 at first.

    It has no tower: it is trained with `train: projection`, and `project_image` applies it to vectors.

    Attributes:
        vectors: the rows it was made for; None where only the map was loaded.
    """

    family: ClassVar[str] = KIND

    def __init__(self, spec: str, dim: int, vectors: StoredVectors | None = None) -> None:
        super().__init__(_Map(dim), spec)
        self.vectors = vectors
        if vectors is not None and vectors.rows.dtype == np.float64:
            self.to("cpu", torch.float64)

    def project_image(self, hidden: Tensor) -> Tensor:
        """B×d vectors → B×d, mapped."""
        mapped: Tensor = self.network.map(hidden.to(self.dtype))
        return mapped

    def _none(self) -> NoReturn:
        raise ModelError(
            f"{self.spec} holds vectors and no network for pictures or captions: refine it with train: projection, map "
            "vectors with project_image(vectors), or name a model that has towers"
        )

    @property
    def preprocess(self) -> Callable[[Any], Tensor]:  # type: ignore[override]
        """Refused: there is no network."""
        self._none()

    def image_trunk(self, pixels: Tensor) -> Tensor:
        """Refused: there is no network."""
        self._none()

    def text_trunk(self, tokens: Tensor) -> Tensor:
        """Refused: there is no network."""
        self._none()

    def project_text(self, hidden: Tensor) -> Tensor:
        """Refused: there is no network."""
        self._none()

    def token_lengths(self, tokens: Tensor) -> Tensor:
        """Refused: there is no network."""
        self._none()

    def tokenize(self, captions: list[str]) -> Tensor:
        """Refused: there is no network."""
        self._none()

    @property
    def embed_dim(self) -> int:
        """The width d."""
        return int(self.network.map.in_features)

    @property
    def logit_scale(self) -> float:
        """1: vectors come without one."""
        return 1.0

    def tower_of(self, name: str) -> TowerName | None:
        """The map counts as the image tower."""
        return "image"

    def projection_names(self, tower: TowerName) -> list[str]:
        """The map."""
        if tower == "text":
            self._none()
        return ["map.weight"]

    @property
    def input_identity(self) -> str:
        """The vectors' hash."""
        return self.vectors.fingerprint if self.vectors is not None else ""

    def write(self, folder: Path) -> None:
        """Writes the map, d×d."""
        write_tensors(folder / WEIGHTS, {"weight": self.network.map.weight})


def load_vectors(spec: str) -> VectorModel:
    """The model of `vectors:<file>.npy` or `vectors:<folder>`."""
    vectors = StoredVectors(spec)
    return VectorModel(spec, vectors.embed_dim, vectors)


def from_folder(folder: Path, spec: str) -> VectorModel:
    """A saved map, without the vectors it was made for.

    Raises:
        ModelError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weight = load_file(folder / WEIGHTS)["weight"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read ({error}): copy it again") from None
    model = VectorModel(spec, len(weight))
    model.to("cpu", weight.dtype)
    with torch.no_grad():
        model.network.map.weight.copy_(weight)
    return model
