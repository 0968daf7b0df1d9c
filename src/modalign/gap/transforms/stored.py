"""Vectors on disk, whoever wrote them: .npy files, parquet columns, stores of features, FAISS indexes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modalign.errors import DataError

if TYPE_CHECKING:
    from modalign.data.feature_store import Rows

FAISS = (".faiss", ".index")


def stored_vectors(source: str | Path | Any) -> NDArray[Any] | Rows:
    """Opens N×d vectors; no model is needed.

    Args:
        source: one of

            - `<file>.npy`: an array, memory-mapped;
            - `<file>.parquet`, or `<file>.parquet#<column>`: a column of lists of numbers;
            - a folder that `modalign store ls` shows (root/key): every row in it, in the order they were written, each
              picture or caption once, memory-mapped;
            - `<file>.faiss` or `<file>.index`, or a FAISS index: the vectors it gives back, which are those that were
              added unless it compresses them.

    Returns:
        N×d, as stored.

    Raises:
        DataError: there is no such file, or it holds no vectors.
    """
    if not isinstance(source, str | Path):
        return _reconstructed(source, type(source).__name__)
    name, _, column = str(source).partition("#")
    path = Path(name).expanduser()
    if path.is_dir():
        return _store(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}; name a .npy, .parquet or .faiss file, or a store's folder")
    if path.suffix == ".npy":
        return _array(path)
    if path.suffix == ".parquet":
        return _column(path, column)
    if path.suffix in FAISS:
        try:
            index = _faiss(path).read_index(str(path))
        except RuntimeError as error:
            told = str(error).strip().splitlines()[-1]
            raise DataError(f"{path} is no FAISS index ({told}); write it with faiss.write_index") from None
        return _reconstructed(index, str(path))
    raise DataError(f"{path} is of no kind known here; name a .npy, .parquet or .faiss file, or a store's folder")


def pair_free(source: str | Path) -> bool:
    """Whether a source's rows come in an order of their own, so that row i of two such belong to no pair."""
    return Path(str(source).partition("#")[0]).expanduser().is_dir()


def _array(path: Path) -> NDArray[Any]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # not numpy.load, which takes any other file for a pickle
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a .npy array ({error}); write it with numpy.save") from None
    if array.dtype.kind != "f" or array.ndim != 2:
        told = f"{array.dtype} of shape {array.shape}"
        raise DataError(f"{path} holds {told}; save one N×d array of floating-point numbers")
    return array


def _column(path: Path, column: str) -> NDArray[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        lists = [field.name for field in file.schema_arrow if _is_vectors(field.type)]
        if column and column not in lists:
            raise DataError(f"{path} has no column {column!r} of vectors; there is {', '.join(lists) or 'none'}")
        if not column and len(lists) != 1:
            raise DataError(f"{path} has {len(lists)} columns of vectors ({', '.join(lists)}); write {path}#COLUMN")
        values = file.read(columns=[column or lists[0]]).column(0).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        told = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as parquet ({told}); write it again") from None
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{path}: row {row} of {column or lists[0]} is empty; leave it out")
    flat = values.flatten()
    sizes = np.asarray(values.value_lengths()) if not pa.types.is_fixed_size_list(values.type) else None
    width = values.type.list_size if sizes is None else int(sizes[0]) if len(sizes) else 0
    if sizes is not None and (sizes != width).any():
        row = int(np.flatnonzero(sizes != width)[0])
        raise DataError(f"{path}: row {row} of {column or lists[0]} has {sizes[row]} numbers, row 0 has {width}")
    if flat.null_count:
        row = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0]) // width
        raise DataError(f"{path}: row {row} of {column or lists[0]} lacks a number; leave it out")
    return flat.to_numpy(zero_copy_only=False).reshape(-1, width) if width else np.empty((0, 0), np.float32)


def _is_vectors(kind: Any) -> bool:
    import pyarrow as pa

    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(listed and pa.types.is_floating(kind.value_type))


def _store(path: Path) -> Rows:
    from modalign.data.feature_store import Rows
    from modalign.data.store_folder import RECORD, StoreFolder
    from modalign.data.store_shards import read

    path = path.absolute()
    if not (path / RECORD).is_file():
        raise DataError(f"{path} is no store of features; name one of the folders that `modalign store ls` shows")
    try:
        facts = json.loads((path / RECORD).read_text(encoding="utf-8"))
        title = facts.pop("title")
        folder = StoreFolder(path.parent, facts, title)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path / RECORD} cannot be read ({error}); run `modalign embed` again") from None
    if folder.path != path:
        raise DataError(f"{path} was renamed from {folder.key}; give it its name back")
    keys = [read(path / name).keys for name in folder.files]
    every = np.concatenate(keys) if keys else np.empty((0, 0), np.uint8)
    if not len(every):
        raise DataError(f"{path} holds no rows yet; fill it with `modalign embed`")
    # Contents by first appearance; `places` checks every shard it names and finds the row that counts.
    first = np.sort(np.unique(every, axis=0, return_index=True)[1])
    places = folder.places(every[first])
    if (places < 0).any():
        raise DataError(f"{path} is damaged: {int((places[:, 0] < 0).sum())} rows are gone; run `modalign embed` again")
    return Rows(folder, folder.files, places)


def _faiss(source: object) -> Any:
    try:
        import faiss
    except ImportError:
        raise DataError(f"{source} needs FAISS to be read: pip install faiss-cpu") from None
    return faiss


def _reconstructed(index: Any, name: str) -> NDArray[Any]:
    if not hasattr(index, "reconstruct_n"):
        raise DataError(f"a {name} holds no vectors: pass an array, a file's name or a FAISS index")
    faiss = _faiss(name)
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexIDMap):  # ids say nothing of the order: the rows beneath are asked
        inner = faiss.downcast_index(inner.index)
    try:
        if isinstance(inner, faiss.IndexIVF):
            inner.make_direct_map()
        rows: NDArray[Any] = inner.reconstruct_n(0, inner.ntotal)
    except RuntimeError as error:
        told = str(error).strip().splitlines()[-1]
        raise DataError(f"{name} ({type(inner).__name__}) gives no vectors back ({told}): use the vectors") from None
    return rows
