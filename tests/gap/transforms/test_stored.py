"""Vectors on disk, written by the libraries that write them."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import modalign
from modalign.errors import DataError
from modalign.gap.transforms import Center, stored_vectors
from tests import tiny

ROWS = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path, row_group_size=7)
    return path


def test_npy_is_mapped_and_parquet_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    mapped = stored_vectors(tmp_path / "rows.npy")
    assert isinstance(mapped, np.memmap) and np.array_equal(mapped, ROWS)
    lists = pa.array(list(ROWS), pa.list_(pa.float32()))
    fixed = pa.array(list(2 * ROWS), pa.list_(pa.float32(), 4))
    one = parquet(tmp_path / "one.parquet", id=list(range(30)), vector=lists)
    np.testing.assert_array_equal(stored_vectors(one), ROWS)
    two = parquet(tmp_path / "two.parquet", image=lists, text=fixed)
    np.testing.assert_array_equal(stored_vectors(f"{two}#text"), 2 * ROWS)
    with pytest.raises(DataError, match=r"2 columns of vectors \(image, text\); write .*two.parquet#COLUMN"):
        stored_vectors(two)
    with pytest.raises(DataError, match="no column 'vector' of vectors; there is image, text"):
        stored_vectors(f"{two}#vector")


def test_a_store_gives_every_row_once(tmp_path: Path) -> None:
    tiny.tiny_open_clip(tmp_path / "clip")
    tiny.write_pairs(tmp_path / "pairs", n=12, captions_per_image=2)
    first = modalign.embed(str(tmp_path / "clip"), f"{tmp_path / 'pairs'}", out=tmp_path / "store", silent=True)
    assert first.image is not None and first.text is not None
    for rows in (first.image, first.text):
        found = stored_vectors(rows.folder.path)
        assert sorted(map(bytes, found.numpy())) == sorted({bytes(row) for row in rows.numpy()})
    centre = Center().fit(first.image, first.text[:7])  # a store's rows as they are
    assert centre.rows_ == {"image": 24, "text": 7}
    np.testing.assert_array_equal(
        centre.transform(first.image, "image"), centre.transform(first.image.numpy(), "image")
    )
    with pytest.raises(DataError, match="is no store of features"):
        stored_vectors(tmp_path / "store")


def test_faiss_gives_back_what_was_added(tmp_path: Path) -> None:
    import faiss

    flat = faiss.IndexFlatIP(4)
    flat.add(ROWS)
    faiss.write_index(flat, str(tmp_path / "flat.faiss"))
    np.testing.assert_array_equal(stored_vectors(tmp_path / "flat.faiss"), ROWS)
    inverted = faiss.index_factory(4, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    inverted.train(ROWS)
    inverted.add(ROWS)
    np.testing.assert_array_equal(stored_vectors(inverted), ROWS)
    named = faiss.IndexIDMap(faiss.IndexFlatL2(4))
    named.add_with_ids(ROWS, np.arange(30)[::-1].copy() + 100)
    np.testing.assert_array_equal(stored_vectors(named), ROWS)
    (tmp_path / "bad.faiss").write_bytes(b"no index at all")
    with pytest.raises(DataError, match="is no FAISS index") as told:
        stored_vectors(tmp_path / "bad.faiss")
    assert "\n" not in str(told.value)


def test_without_faiss_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "rows.index").write_bytes(b"x")
    with pytest.raises(DataError, match=r"rows.index needs FAISS to be read: pip install faiss-cpu"):
        stored_vectors(tmp_path / "rows.index")


def test_files_that_hold_no_vectors(tmp_path: Path) -> None:
    ragged = parquet(tmp_path / "ragged.parquet", v=pa.array([[1.0, 2.0], [3.0]]))
    empty = parquet(tmp_path / "empty.parquet", v=pa.array([[1.0, 2.0], None]))
    lacking = parquet(tmp_path / "lacking.parquet", v=pa.array([[1.0, 2.0], [3.0, None]]))
    plain = parquet(tmp_path / "plain.parquet", id=[1, 2])
    np.save(tmp_path / "flat.npy", ROWS[0])
    np.save(tmp_path / "whole.npy", np.ones((2, 2), int))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "rows.csv").write_text("1,2")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for source, told in (
        (ragged, "row 1 of v has 1 numbers, row 0 has 2"),
        (empty, "row 1 of v is empty"),
        (lacking, "row 1 of v lacks a number"),
        (plain, "0 columns of vectors"),
        (tmp_path / "flat.npy", r"float32 of shape \(4,\); save one N×d"),
        (tmp_path / "whole.npy", "int64 of shape"),
        (tmp_path / "text.npy", r"is not a .npy array \((?!.*pickle)"),  # nobody is told to load it as a pickle
        (tmp_path / "broken.parquet", "cannot be read as parquet"),
        (tmp_path / "none.npy", "there is no file"),
        (tmp_path / "rows.csv", "is of no kind known here"),
    ):
        with pytest.raises(DataError, match=told) as error:
            stored_vectors(source)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="a dict holds no vectors"):
        stored_vectors({})
