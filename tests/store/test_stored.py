"""Chunks decoded without HDF5 are what HDF5 reads, and damaged ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from genomepred.store.stored import StoredRows, is_plain

OURS: dict[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": True}


def dataset(path: Path, values: np.ndarray[Any, Any], **how: Any) -> h5py.Dataset:
    chunks = how.pop("chunks", (16, *values.shape[1:]))
    return h5py.File(path, "w").create_dataset("rows", data=values, chunks=chunks, **how)


@pytest.mark.parametrize("kind", ["<f4", "<f2", "<u2", "<u4", "<i8", "u1"])
@pytest.mark.parametrize("width", [(), (1,), (3,)])
def test_rows_are_as_hdf5_reads_them(tmp_path: Path, kind: str, width: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 255, (85, *width)).astype(kind)
    values[7:9] = np.array(np.nan if kind[1] == "f" else 200).astype(kind)
    stored = dataset(tmp_path / "a.h5", values, **OURS)
    rows = StoredRows(stored)
    assert is_plain(stored)
    for first, last in [(0, 85), (3, 5), (16, 32), (15, 33), (80, 85), (85, 85), (0, 0), (20, 21)]:
        found = rows.read(first, last)
        assert found.dtype == values.dtype
        assert np.array_equal(found, values[first:last], equal_nan=kind[1] == "f")


@pytest.mark.parametrize(
    "how",
    [
        {"shuffle": True, "fletcher32": True},
        {"compression": "gzip"},
        {},
        {**OURS, "chunks": (16, 2)},
    ],
)
def test_other_layouts_are_left_to_hdf5(tmp_path: Path, how: dict[str, Any]) -> None:
    values = np.random.default_rng(0).random((40, 3), np.float32)
    found = StoredRows(dataset(tmp_path / "a.h5", values, **how)).read(5, 39)
    assert np.array_equal(found, values[5:39])


def test_damaged_chunks_are_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((48, 3), np.float32)
    stored = dataset(tmp_path / "a.h5", values, **OURS)
    _, whole = stored.id.read_direct_chunk((16, 0))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for chunk, mask in [(bytes(flipped), 0), (whole[:-1], 0), (b"ab", 0), (b"abcd", 0), (whole, 1)]:
        stored.id.write_direct_chunk((16, 0), chunk, filter_mask=mask)
        rows = StoredRows(stored)
        with pytest.raises(ValueError, match="a chunk of /rows"):
            rows.read(0, 48)
        assert np.array_equal(rows.read(0, 16), values[:16])


def test_a_chunk_of_another_size_is_refused(tmp_path: Path) -> None:
    small = dataset(tmp_path / "a.h5", np.zeros((8, 1), np.float32), chunks=(8, 1), **OURS)
    stored = dataset(tmp_path / "b.h5", np.zeros((16, 1), np.float32), **OURS)
    stored.id.write_direct_chunk((0, 0), small.id.read_direct_chunk((0, 0))[1])
    with pytest.raises(ValueError, match="another size"):
        StoredRows(stored).read(0, 4)
