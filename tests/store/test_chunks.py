"""Chunks: exactly the bytes that HDF5's filters define, for any shape, type and compression."""

from __future__ import annotations

import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from genomepred.errors import DependencyError, OutputError, PrecisionError
from genomepred.store.schema import CHUNK_VALUES, Layout, encode_chunk, fletcher32
from tests.store_files import random_values

COMPRESSIONS = ("deflate", "deflate-1", "deflate-9", "none", "zstd")


def fletcher32_reference(data: bytes) -> int:
    """The definition: sums of big-endian 16-bit words, carries folded back in."""
    padded = data + b"\0" * (len(data) % 2)
    first = second = 0
    for i in range(0, len(padded), 2):
        first += int.from_bytes(padded[i : i + 2], "big")
        first = (first & 0xFFFF) + (first >> 16)
        second += first
        second = (second & 0xFFFF) + (second >> 16)
    return second << 16 | first


def is_whole(chunk: bytes) -> bool:
    """Whether a chunk ends with the checksum of the bytes before it."""
    return fletcher32(chunk[:-4]) == int.from_bytes(chunk[-4:], "little")


def decode(chunk: bytes, layout: Layout) -> NDArray[np.floating]:
    """The inverse of encode_chunk, from the definition of the filters."""
    body = chunk[:-4]
    if layout.compression == "zstd":
        zstandard = pytest.importorskip("zstandard")
        body = zstandard.decompress(body)
    elif layout.compression != "none":
        body = zlib.decompress(body)
    size = np.dtype(layout.dtype).itemsize
    planes = np.frombuffer(body, np.uint8).reshape(size, -1)
    values = np.ascontiguousarray(planes.T).view(f"<f{size}")
    return values.reshape(layout.chunk_rows, layout.tracks)


@given(tracks=st.integers(1, 200_000), bins=st.integers(1, 20_000))
def test_rows_of_shards_and_windows_begin_at_chunks(tracks: int, bins: int) -> None:
    layout = Layout(tracks, bins=bins)
    chunk, shard = layout.chunk_rows, layout.shard_rows(1)
    assert shard % chunk == 0
    assert shard % bins == 0
    assert chunk % bins == 0 or bins % chunk == 0
    if bins * tracks <= CHUNK_VALUES:
        assert CHUNK_VALUES / 2 < chunk * tracks <= CHUNK_VALUES
        assert shard == 2 * chunk


@pytest.mark.parametrize(
    ("tracks", "bins", "rows"),
    [
        (1, 1, 65536),
        (3, 1, 16384),
        (70_000, 1, 1),
        (3, 5000, 20_000),  # four windows of a splice-site model
        (5313, 896, 14),  # a 64th of a window
        (1, 65_537, 65_537),  # a prime number of bins stays whole
    ],
)
def test_chunk_rows_of_known_models(tracks: int, bins: int, rows: int) -> None:
    assert Layout(tracks, bins=bins).chunk_rows == rows


@settings(deadline=None)  # the first example compiles
@given(
    shape=st.tuples(st.integers(0, 50), st.sampled_from([1, 3, 5, 2000])),
    dtype=st.sampled_from(["float32", "float16"]),
    compression=st.sampled_from(COMPRESSIONS),
    seed=st.integers(0, 99),
)
def test_a_chunk_holds_its_rows_and_then_missing_ones(
    shape: tuple[int, int], dtype: str, compression: str, seed: int
) -> None:
    layout = Layout(shape[1], dtype=dtype, compression=compression)
    values = random_values(*shape, seed)[: layout.chunk_rows]
    values[1:2] = [np.inf]
    chunk = encode_chunk(values, layout)
    decoded = decode(chunk, layout)
    assert is_whole(chunk)
    assert decoded[: len(values)].tobytes() == values.astype(dtype).tobytes()
    assert np.isnan(decoded[len(values) :]).all()


def test_every_nan_is_stored_as_the_same_bits() -> None:
    layout = Layout(1)
    odd = np.array([0xFFC00000, 0x7F800001], np.uint32).view(np.float32)[:, None]
    assert encode_chunk(odd, layout) == encode_chunk(np.full((2, 1), np.nan), layout)


def test_signed_zero_and_subnormals_survive() -> None:
    values = np.array([[-0.0], [1e-45], [-1e-40]], np.float32)
    decoded = decode(encode_chunk(values, Layout(1)), Layout(1))
    assert decoded[:3].tobytes() == values.tobytes()


def test_float64_and_strided_input_are_stored_like_their_float32_copy() -> None:
    layout = Layout(3)
    values = random_values(40, 6)[::2, ::2]
    expected = encode_chunk(np.ascontiguousarray(values), layout)
    assert encode_chunk(values, layout) == expected
    assert encode_chunk(values.astype(np.float64), layout) == expected


def test_float16_refuses_what_it_cannot_hold_but_keeps_infinity() -> None:
    layout = Layout(1, dtype="float16")
    with pytest.raises(PrecisionError, match=r"-70000 does not fit float16.*--store-dtype float32"):
        encode_chunk(np.array([[1.0], [-70000.0], [np.inf]], np.float32), layout)
    decoded = decode(encode_chunk(np.array([[np.inf]], np.float32), layout), layout)
    assert decoded[0, 0] == np.inf


@pytest.mark.parametrize("compression", ["deflate", "deflate-4"])
def test_bytes_do_not_depend_on_threads(compression: str) -> None:
    layout = Layout(2, compression=compression)
    blocks = [random_values(3000, 2, seed) for seed in range(8)]
    alone = [encode_chunk(block, layout) for block in blocks]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda block: encode_chunk(block, layout), blocks)) == alone


@pytest.mark.parametrize("compression", ["deflate-9", "none"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_hdf5_itself_would_have_written_the_same(
    tmp_path: Path, compression: str, dtype: str
) -> None:
    layout = Layout(5, dtype=dtype, compression=compression)
    values = random_values(layout.chunk_rows, 5)
    filters = {} if compression == "none" else {"compression": "gzip", "compression_opts": 9}
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        data = file.create_dataset(
            "x",
            data=values.astype(f"<f{np.dtype(dtype).itemsize}"),
            chunks=values.shape,
            shuffle=True,
            fletcher32=True,
            **filters,
        )
        file.flush()
        _, theirs = data.id.read_direct_chunk((0, 0))
    assert is_whole(theirs)
    ours = encode_chunk(values, layout)
    assert decode(theirs, layout).tobytes() == decode(ours, layout).tobytes()
    if compression == "none":  # HDF5 may be built with another zlib than Python's
        assert theirs == ours


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_fletcher32_is_its_definition(data: bytes) -> None:
    assert fletcher32(data) == fletcher32_reference(data)


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0", b"\xff", b"\xff" * 7, b"\xff" * 3_000_001])
def test_fletcher32_of_sums_that_wrap(data: bytes) -> None:
    assert fletcher32(data) == fletcher32_reference(data)


@given(data=st.binary(min_size=1, max_size=300), where=st.integers(0), bit=st.integers(0, 7))
def test_no_flipped_bit_escapes_the_checksum(data: bytes, where: int, bit: int) -> None:
    chunk = bytearray(data + fletcher32(data).to_bytes(4, "little"))
    assert is_whole(bytes(chunk))
    chunk[where % len(chunk)] ^= 1 << bit
    assert not is_whole(bytes(chunk))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "'float64' is unknown; use float32 or float16"),
        ({"compression": "lz4"}, "'lz4' is unknown; use deflate, deflate-1"),
        ({"compression": "deflate-0"}, "'deflate-0' is unknown"),
        ({"compression": "deflate-10"}, "'deflate-10' is unknown"),
        ({"bins": 0}, "needs tracks and bins"),
    ],
)
def test_layouts_that_do_not_exist_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OutputError, match=message):
        Layout(1, **options)


@pytest.mark.parametrize("module", ["zstandard", "hdf5plugin"])
def test_zstd_names_the_extra_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=rf"needs {module}: pip install 'genomepred\[zstd\]'"):
        Layout(1, compression="zstd")
