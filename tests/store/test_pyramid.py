"""Pyramids: every bin of every level against plain NumPy; damage is found; blocks are whole."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.errors import StoreError
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store import pyramid, pyramid_writer
from genomepred.store.blocks import _words, classes, distinct_lines, open_blocks, spans_of
from genomepred.store.cohort_writing import INDEX_CHUNK
from genomepred.store.pyramid import BLOCK, INNER, Pyramid, Shape
from genomepred.store.pyramid_writer import write_pyramid
from genomepred.store.scale import MOST, Scale, scales_of
from genomepred.store.schema import fletcher32
from genomepred.store.stored import checksum
from tests.founders import write_cohort
from tests.helpers import examples
from tests.store_files import write_store

CONTIGS = {"chr1": 30_000, "empty": 0, "chr2": 120_000, "short": 3}
GEOMETRY = Geometry(window=40, stride=20)
HAPLOTYPES = [(f"s{k // 2}", k % 2 + 1) for k in range(13)]


@pytest.fixture
def more_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Highest levels of few bins, so that short contigs have some above the block; segments."""
    monkeypatch.setattr(pyramid, "TOP_BINS", 8)
    monkeypatch.setattr(pyramid_writer, "_SEGMENT", 20_000)


def expected(values: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and highest of each bin, [lines, bins, tracks], by plain NumPy."""
    starts, missing = np.arange(0, values.shape[1], 1 << level), np.isnan(values)
    total = np.add.reduceat(np.where(missing, 0, values.astype(np.float64)), starts, axis=1)
    count = np.add.reduceat(~missing, starts, axis=1, dtype=np.int64)
    high = np.fmax.reduceat(values, starts, axis=1)
    with np.errstate(invalid="ignore"):
        return (total / count).astype(np.float32), high


def check(opened: Pyramid, grid: Grid, values: np.ndarray) -> None:
    """Compare all levels with the values of all lines, [lines, rows, tracks]."""
    for interval, (first, count) in enumerate(
        zip(grid.first_row.tolist(), grid.row_counts.tolist(), strict=True)
    ):
        rows = values[:, first : first + count]
        for level in range(int(opened.shape.tops[interval]) + 1 if count else 0):
            bins = opened.shape.bins(interval, level)
            assert bins == -(-count >> level)
            for statistic, wanted in enumerate(expected(rows, level)):
                for track in range(values.shape[2]):
                    scale = Scale(opened.scales[track])
                    found = opened.codes(track, statistic, level, interval, 0, bins)
                    codes = scale.encode(np.ascontiguousarray(wanted[..., track]))
                    off = np.abs(found.astype(int) - codes)
                    # A mean that lies on a bound to the last bit may fall to either side.
                    assert off.max(initial=0) <= (1 if statistic == 0 and level else 0)
                    assert (off > 0).mean() < 1e-3
                    assert ((found == 0) == np.isnan(wanted[..., track])).all()
                    check_tiles(opened, track, statistic, level, interval, found)


def check_tiles(
    opened: Pyramid, track: int, statistic: int, level: int, interval: int, codes: np.ndarray
) -> None:
    size = pyramid.TILE
    for number in range(-(-codes.shape[1] // size)):
        data = opened.tile(track, statistic, level, interval, number)
        assert (unpack(data) == codes[:, number * size : (number + 1) * size]).all()
    with pytest.raises(LookupError):
        opened.tile(track, statistic, level, interval, -(-codes.shape[1] // size))


def unpack(data: bytes) -> np.ndarray:
    """Codes [lines, bins] of a tile, read as its documentation says."""
    blocks, lines, bins = np.frombuffer(data, "<u4", 3)
    if not blocks:
        return np.frombuffer(data, "u1", offset=12).reshape(bins, lines).T
    facts = np.frombuffer(data, "<u4", 3 * blocks, 12).reshape(-1, 3)
    at, parts = 12 + 12 * int(blocks), []
    for distinct, width, size in facts.tolist():
        index = np.frombuffer(data, f"<u{size}", lines, at)
        at += index.nbytes
        parts.append(
            np.frombuffer(data, "u1", distinct * width, at).reshape(distinct, width)[index]
        )
        at += distinct * width
    assert at == len(data)
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("tracks", [("CTCF",), ("one", "two")])
def test_levels_of_a_cohort(tmp_path: Path, tracks: tuple[str, ...], more_levels: None) -> None:
    values = write_cohort(tmp_path / "p.h5", CONTIGS, GEOMETRY, HAPLOTYPES, tracks=tracks)
    source = open_blocks([tmp_path / "p.h5"])
    told: list[float] = []
    write_pyramid(source, tmp_path / "p.pyramid", {"sha256": "ab"}, told.append)
    assert source.lines[:3] == ("s0.1", "s0.2", "s1.1")
    assert source.lines[-1] == "s6"
    source.close()
    assert told == sorted(told)
    assert 0 < told[-1] <= 1
    with Pyramid(tmp_path / "p.pyramid") as opened:
        assert opened.identity == {"sha256": "ab"}
        assert opened.tracks == tracks
        assert opened.shape.top == 10
        check(opened, source.grid, values)


def test_levels_of_bins(tmp_path: Path, more_levels: None) -> None:
    geometry = Geometry(window=30 * 10 + 20, stride=300, crop=10, bins=30)
    values = write_cohort(tmp_path / "p.h5", CONTIGS, geometry, HAPLOTYPES[:5], founders=2)
    source = open_blocks([tmp_path / "p.h5"])
    write_pyramid(source, tmp_path / "p.pyramid", {})
    source.close()
    with Pyramid(tmp_path / "p.pyramid") as opened:
        check(opened, source.grid, values)


def test_levels_of_genomes_with_a_reference(tmp_path: Path) -> None:
    grid = Grid.whole({"chr1": 90_000, "chr2": 6000}, Geometry(window=100, stride=20))
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, grid.rows, 1)).astype(np.float32)
    values[1, :3000] = values[0, :3000]
    paths = [tmp_path / f"{name}.h5" for name in ("a", "b", "c", "ref")]
    for path, rows in zip(paths, values, strict=True):
        write_store(path, grid, rows)
    source = open_blocks(paths[:3], paths[3])
    assert source.lines == ("a", "b", "c", "reference")
    assert len(next(iter(source.blocks([(0, BLOCK)]))).values) == 3
    write_pyramid(source, tmp_path / "x.pyramid", {})
    source.close()
    with Pyramid(tmp_path / "x.pyramid") as opened:
        check(opened, grid, values)
    other = write_store(tmp_path / "other.h5", tracks=("CTCF",))
    with pytest.raises(StoreError, match=r"other\.h5: other contigs"):
        open_blocks(paths[:3], other)


def test_one_line_and_all_missing(tmp_path: Path) -> None:
    grid = Grid.whole({"chr1": 20 * 700}, Geometry(window=20, stride=20))
    path = write_store(tmp_path / "a.h5", grid, np.full((grid.rows, 1), np.nan, np.float32))
    source = open_blocks([path])
    write_pyramid(source, tmp_path / "a.pyramid", {})
    source.close()
    with Pyramid(tmp_path / "a.pyramid") as opened:
        assert not opened.codes(0, 1, 3, 0, 0, opened.shape.bins(0, 3)).any()
        assert opened.scales[0].tolist() == [0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("pyramid")
    write_cohort(folder / "p.h5", {"c": 3000}, GEOMETRY, HAPLOTYPES[:3], founders=2)
    source = open_blocks([folder / "p.h5"])
    write_pyramid(source, folder / "p.pyramid", {})
    source.close()
    return (folder / "p.pyramid").read_bytes()


def test_what_is_damaged_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.pyramid"
    rng = np.random.default_rng(0)
    cuts = [small[:n] for n in (0, 7, 8, 100, len(small) - 1)]
    places = rng.integers(0, len(small), 200).tolist()
    flips = [small[:at] + bytes([small[at] ^ 1 << at % 8]) + small[at + 1 :] for at in places]
    for data in [*cuts, *flips, b"\x00" * 1000, small + b"x"]:
        path.write_bytes(data)
        with pytest.raises(StoreError, match="pyramid"):
            Pyramid(path)
    with pytest.raises(StoreError, match="cannot be read"):
        Pyramid(tmp_path)


def test_a_pyramid_that_nobody_reads_any_more_is_closed(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.pyramid").write_bytes(small)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert Pyramid(tmp_path / "p.pyramid").lines
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_cohort(tmp_path / "p.h5", {"c": 30_000}, GEOMETRY, HAPLOTYPES[:3], founders=2)
    data = bytearray((tmp_path / "p.h5").read_bytes())
    import h5py

    with h5py.File(tmp_path / "p.h5") as file:
        chunk = file["cohort/index"].id.get_chunk_info(2)
    data[chunk.byte_offset + chunk.size // 2] ^= 255
    (tmp_path / "p.h5").write_bytes(data)
    source = open_blocks([tmp_path / "p.h5"])
    with pytest.raises(StoreError, match=r"p\.h5"):
        write_pyramid(source, tmp_path / "p.pyramid", {})
    source.close()
    assert not (tmp_path / "p.pyramid").exists()


@given(st.binary(max_size=70_000))
def test_the_checksum_is_that_of_the_store(data: bytes) -> None:
    assert checksum(np.frombuffer(data, np.uint8)) == fletcher32(data)


def test_the_checksum_of_the_largest_numbers_is_that_of_the_store() -> None:
    data = b"\xff" * (1 << 20)
    assert checksum(np.frombuffer(data, np.uint8)) == fletcher32(data)


@settings(deadline=None, max_examples=examples(60))
@given(
    seed=st.integers(0, 999),
    lines=st.sampled_from([1, 2, 255, 256, 257, 600]),
    kind=st.sampled_from(["u1", "<u2", "<u4"]),
    first=st.integers(0, INDEX_CHUNK - 1),
    windows=st.integers(1, INDEX_CHUNK),
    founders=st.integers(1, 300),
)
def test_distinct_lines_are_those_of_numpy(
    seed: int, lines: int, kind: str, first: int, windows: int, founders: int
) -> None:
    """Windows begin and end anywhere within one or two columns of chunks."""
    rng = np.random.default_rng(seed)
    largest = np.iinfo(kind).max
    every = rng.integers(0, largest, (founders, 2 * INDEX_CHUNK), dtype=kind, endpoint=True)
    index = every[rng.integers(0, founders, lines)]
    columns = [
        [_words(index[at : at + INDEX_CHUNK, w : w + INDEX_CHUNK]) for at in range(0, lines, 256)]
        for w in (0, INDEX_CHUNK)
    ]
    last = first + windows
    found, label = distinct_lines(columns[: 1 + (last > INDEX_CHUNK)], lines, first, last)
    wanted = index[:, first:last]
    assert (found[label] == wanted).all()
    assert len(np.unique(found, axis=0)) == len(found) == len(np.unique(wanted, axis=0))
    _, begun = np.unique(label, return_index=True)
    assert (np.diff(begun) > 0).all()  # numbered as they come


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 40), st.integers(1, 6))
@settings(max_examples=examples(50))
def test_classes_are_those_of_numpy(seed: int, lines: int, width: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 60_000, (kinds, width)).astype(np.uint16)[rng.integers(0, kinds, lines)]
    label, leads = classes(rows)
    assert (rows[leads][label] == rows).all()
    assert len(leads) == len(np.unique(rows, axis=0))
    assert (leads == [np.flatnonzero(label == k)[0] for k in range(len(leads))]).all()


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=False), max_size=80))
def test_codes_are_of_the_nearest_value(values: list[float]) -> None:
    array = np.array(values, np.float32).reshape(-1, 1)
    (scale,) = scales_of([array[:3], array[3:]], 1)
    assert 1 <= len(scale.values) <= MOST
    assert (np.diff(scale.values) > 0).all()
    codes = scale.encode(array[:, 0])
    decoded = scale.decode(codes)
    assert ((codes == 0) == np.isnan(array[:, 0])).all()
    for value, near in zip(array[~np.isnan(array)].astype(float), decoded[codes > 0], strict=True):
        best = np.abs(scale.values.astype(float) - value).min()
        assert abs(float(near) - value) <= best * (1 + 1e-5) + 1e-30


def test_a_sample_is_even_over_all_rows() -> None:
    values = np.arange(1_000_000, dtype=np.float32)[:, None]
    (scale,) = scales_of(np.split(values, 1000), 1)
    assert scale.values[[0, -1]].tolist() == [0, 999_999]
    assert np.abs(np.diff(scale.values)).max() < 12_000


def test_spans_begin_at_their_interval() -> None:
    grid = Grid.whole({"a": 10_000, "b": 200}, Geometry(window=10, stride=10))
    assert spans_of(grid) == [(0, 256), (256, 512), (512, 768), (768, 1000), (1000, 1020)]
    assert spans_of(grid, 300, 1001) == [(256, 512), (512, 768), (768, 1000), (1000, 1020)]
    assert spans_of(grid, 5, 5) == []
    shape = Shape(grid.row_counts, 1, 1)
    assert shape.first_block.tolist() == [0, 4, 5]
    assert shape.block_rows.tolist() == [256, 256, 256, 232, 20]
    assert shape.top == INNER
