"""Reading by coordinates and rows, against arithmetic done the slow way; refusing other files."""

from __future__ import annotations

import fcntl
import os
import re
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.errors import DependencyError, RegionError, StoreError
from genomepred.sequences.grid import Geometry, Grid, Region
from genomepred.store.reader import PredictionStore
from genomepred.store.schema import Layout
from tests.helpers import examples
from tests.store_files import ATTRIBUTES, CONTIGS, random_values, write_store

NOT_DATA = "This is a netCDF dimension but not a netCDF variable."
SCALAR = Geometry(window=100, stride=20)
REGIONS = [
    Region("chr2", 300, 301),
    Region("chr2", 800, 1003),
    Region("chr10:1-9", 639, 640),
    Region("ctg-é", 0, 57),
]
GRIDS = {
    "scalar": Grid.whole(CONTIGS, SCALAR),
    "odd stride": Grid.whole(CONTIGS, Geometry(window=100, stride=37)),
    "sampling": Grid.whole(CONTIGS, Geometry(window=101, stride=250)),
    "crop": Grid.whole(CONTIGS, Geometry(window=140, stride=20, crop=20)),
    "bins": Grid.whole(CONTIGS, Geometry(window=160, stride=80, crop=40, bins=5)),
    "regions": Grid.of_regions(CONTIGS, SCALAR, REGIONS),
    "regions, bins": Grid.of_regions(
        CONTIGS, Geometry(window=160, stride=80, crop=40, bins=5), REGIONS
    ),
    "centered": Grid.centered(
        CONTIGS, SCALAR, [Region("chr2", 990, 1003, "b"), Region("chr2", 10, 12, "a")]
    ),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    return {
        name: write_store(folder / f"{name}.h5", grid, tracks=("one", "two"))
        for name, grid in GRIDS.items()
    }


def slow_query(grid: Grid, contig: str, start: int, end: int) -> list[tuple[int, int, int]]:
    """(row, start, end) of rows that intersect [start, end), by looking at every row."""
    found, row = [], 0
    for k, count in enumerate(grid.row_counts.tolist()):
        for i in range(count):
            first = int(grid.start[k]) + i * grid.geometry.step
            last = first + grid.geometry.bin_size
            if grid.contigs[k] == contig and first < end and last > start:
                length = CONTIGS[contig]
                found.append((row, max(first, 0), min(last, length)))
            row += 1
    return found


# -- queries -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(data=st.data(), name=st.sampled_from(list(GRIDS)))
def test_queries_return_the_rows_that_intersect(
    stores: dict[str, Path], data: st.DataObject, name: str
) -> None:
    grid = GRIDS[name]
    contig = data.draw(st.sampled_from(sorted(set(grid.contigs.tolist()))))
    start = data.draw(st.integers(0, CONTIGS[contig]))
    end = data.draw(st.integers(start, CONTIGS[contig]))
    expected = [row for row in slow_query(grid, contig, start, end) if start < end]
    values = random_values(grid.rows, 2)
    with PredictionStore(stores[name]) as store:
        found = store[contig, start:end]
    assert list(zip(found.start.tolist(), found.end.tolist(), strict=True)) == [
        (first, last) for _, first, last in expected
    ]
    wanted = values[[row for row, _, _ in expected]]
    assert np.array_equal(found.values, wanted, equal_nan=True)
    assert (found.start.dtype, found.values.dtype) == (np.int64, np.float32)
    assert found.tracks == ("one", "two")


@pytest.mark.parametrize("name", list(GRIDS))
def test_the_grid_comes_back_whole(stores: dict[str, Path], name: str) -> None:
    grid = GRIDS[name]
    with PredictionStore(stores[name]) as store:
        read = store.grid
    assert read.geometry == grid.geometry
    assert read.rows == grid.rows
    for column in ("contigs", "start", "first_row", "length", "first_window", "end"):
        assert np.array_equal(getattr(read, column), getattr(grid, column)), column
    assert (read.names is None) == (grid.names is None)


def test_a_contig_alone_and_open_ends(stores: dict[str, Path]) -> None:
    with PredictionStore(stores["scalar"]) as store:
        assert len(store["chr2"]) == len(store["chr2", :]) == len(store["chr2", 0:1003]) == 47
        assert store["chr2", 1000:].start.tolist() == [920]
        assert len(store["chr2", 2000:]) == 0
        assert len(store["chr2", :1]) == 1
        assert len(store["chr2", 10**9 : 10**9 + 5]) == 0
        assert len(store["empty"]) == len(store["empty", 0:100]) == 0
        assert store["ctg-é"].end.tolist() == [57]


@pytest.mark.parametrize(
    "key", [("chr2", slice(-5, 3)), ("chr2", slice(9, 3)), ("chr2", slice(0, 9, 2))]
)
def test_slices_that_mean_nothing_are_refused(
    stores: dict[str, Path], key: tuple[str, slice]
) -> None:
    with PredictionStore(stores["scalar"]) as store, pytest.raises(RegionError, match="0-based"):
        store[key]


def test_unknown_contigs_and_tracks_are_named(stores: dict[str, Path]) -> None:
    with PredictionStore(stores["scalar"]) as store:
        with pytest.raises(RegionError, match="'chr3'; there are .*'chr2'"):
            store["chr3", 0:5]
        with pytest.raises(StoreError, match="no track 'three'; there are one, two"):
            store.columns(["two", "three"])
        assert store.columns(["two", "one"]) == [1, 0]


def test_region_strings_may_hold_colons(stores: dict[str, Path]) -> None:
    with PredictionStore(stores["scalar"]) as store:
        assert store.region("chr10:1-9")[:3] == ("chr10:1-9", 0, 640)
        assert store.region("chr10:1-9:2-30")[:3] == ("chr10:1-9", 1, 30)


def test_a_table_has_contig_start_end_name_and_tracks(stores: dict[str, Path]) -> None:
    with PredictionStore(stores["centered"]) as store:
        frame = store["chr2"].to_frame()
    assert list(frame.columns) == ["contig", "start", "end", "name", "one", "two"]
    assert frame["name"].tolist() == ["b", "a"]
    assert frame["start"].tolist() == [
        946,
        0,
    ]  # a window centered on base 11 starts before the contig
    assert frame["end"].tolist() == [1003, 61]
    assert frame["one"].dtype == np.float32
    assert isinstance(frame, pd.DataFrame)


def test_one_base_as_an_index(stores: dict[str, Path]) -> None:
    with PredictionStore(stores["scalar"]) as store:
        for base in (0, 640, np.int64(1002)):
            one, slice_ = store["chr2", base], store["chr2", int(base) : int(base) + 1]
            assert one.start.tolist() == slice_.start.tolist()
            assert np.array_equal(one.values, slice_.values, equal_nan=True)
        assert len(store["chr2", 500]) == 5
        for base in (-1, 1003):
            with pytest.raises(RegionError, match="bases 0-1002"):
                store["chr2", base]


@pytest.mark.parametrize("name", ["scalar", "regions, bins", "centered"])
def test_the_whole_store_as_a_table_and_as_an_array(stores: dict[str, Path], name: str) -> None:
    xarray = pytest.importorskip("xarray")
    with PredictionStore(stores[name]) as store:
        frame, array = store.to_frame(), store.to_xarray()
        values = store.read(0, store.rows)
        start, end = store.grid.described(np.arange(store.rows))
        part, cut = store["chr2", :400], store.to_frame("chr2:1-400")
        assert cut.equals(part.to_frame())
        assert np.array_equal(store.to_xarray("chr2:1-400"), part.values, equal_nan=True)
        names = store.grid.names
    assert np.array_equal(frame[["one", "two"]].to_numpy(), values, equal_nan=True)
    assert (frame["start"].tolist(), frame["end"].tolist()) == (start.tolist(), end.tolist())
    assert ("name" in frame) == (names is not None) == ("name" in array.coords)
    assert isinstance(array, xarray.DataArray)
    assert (array.dims, array.attrs["model"]) == (("row", "track"), "ctcf")
    assert np.array_equal(array.sel(track="two"), values[:, 1], equal_nan=True)
    assert array["contig"].values.tolist() == frame["contig"].tolist()


def test_dimensions_have_names_for_other_programs(stores: dict[str, Path]) -> None:
    with h5py.File(stores["scalar"]) as file:
        rows, tracks = file["predictions"].dims
        assert (list(rows.keys()), list(tracks.keys())) == ([f"{NOT_DATA}{76:10d}"], ["track"])
        assert file["track"].asstr()[:].tolist() == ["one", "two"]
        assert file["row"].shape == (76,)
        assert file["row"].id.get_storage_size() == 0
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    with xarray.open_dataset(stores["scalar"], engine="h5netcdf") as data:
        assert dict(data.sizes) == {"row": 76, "track": 2}
        assert data["predictions"].dims == ("row", "track")
        assert data["track"].values.tolist() == [b"one", b"two"]
        expected = random_values(76, 2)
        assert np.array_equal(data["predictions"].values, expected, equal_nan=True)


def test_readers_take_no_locks(stores: dict[str, Path]) -> None:
    """Other code may have the file open and locked, here or in another process."""
    path = stores["scalar"]
    with h5py.File(path), PredictionStore(path) as store, PredictionStore(path) as again:
        assert len(store["chr2"]) == len(again["chr2"]) == 47
    with PredictionStore(path), h5py.File(path) as file:
        assert file["predictions"].shape == (76, 2)
    with open(path, "rb") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        with PredictionStore(path) as store:
            assert len(store["chr2"]) == 47


# -- rows ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=examples(30))
@given(first=st.integers(0, 300), count=st.integers(0, 300))
def test_blocks_cover_a_range_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, first: int, count: int
) -> None:
    grid = Grid.whole({"c": 20 * 599 + 100}, SCALAR)
    values = random_values(600, 500)
    path = tmp_path_factory.getbasetemp() / "blocks.h5"
    if not path.exists():  # 128 rows a chunk
        write_store(path, grid, values, tuple(f"t{i}" for i in range(500)), Layout(500))
    with PredictionStore(path) as store:
        blocks = list(store.blocks(first, first + count))
        assert np.array_equal(store.read(first, first + count), values[first : first + count], True)
    assert np.array_equal(
        np.concatenate([np.empty((0, 500)), *(block for _, block in blocks)]),
        values[first : first + count],
        equal_nan=True,
    )
    row = first
    for begin, block in blocks:
        assert begin == row
        assert block.size <= 65536
        row += len(block)


@pytest.mark.parametrize(("first", "last"), [(-1, 2), (0, 10_000), (5, 4)])
def test_rows_outside_the_file_are_refused(stores: dict[str, Path], first: int, last: int) -> None:
    with PredictionStore(stores["scalar"]) as store, pytest.raises(RegionError, match="rows"):
        store.read(first, last)


def test_float16_is_read_as_float32(tmp_path: Path) -> None:
    path = write_store(tmp_path / "half.h5", layout=Layout(1, dtype="float16"))
    with PredictionStore(path) as store:
        values = store.read(0, store.rows)
    assert values.dtype == np.float32
    expected = random_values(store.rows).astype(np.float16).astype(np.float32)
    assert np.array_equal(values, expected, equal_nan=True)


def test_summary_counts_what_is_missing(stores: dict[str, Path]) -> None:
    values = random_values(GRIDS["scalar"].rows, 2)
    with PredictionStore(stores["scalar"]) as store:
        summary = store.summary()
    assert summary["missing"] == np.isnan(values).mean()
    assert summary["attributes"]["genome"] == ATTRIBUTES["genome"]
    assert (summary["contigs"], summary["bases"], summary["rows"]) == (4, 1700, len(values))
    assert summary["compression"] == "deflate-4"
    assert summary["tracks"][1] == {"name": "two", "description": "two occupancy"}


# -- files that are not right --------------------------------------------------------------------


def spoilt(path: Path, change: object) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.__delitem__("format"), "not a genomepred prediction file"),
        (lambda f: f.attrs.__setitem__("format_version", 2), "format version 2.*update genomepred"),
        (lambda f: f.__delitem__("predictions"), "predictions"),
        (lambda f: f.__delitem__("tracks/name"), "cannot be read"),
        (lambda f: f.__delitem__("intervals/start"), "cannot be read"),
        (lambda f: f["intervals/start"].resize((1,)), "differ in length"),
        (lambda f: f["predictions"].resize((3, 1)), "do not add up to 3 rows"),
        (lambda f: f.attrs.__setitem__("window", 99), "window 99"),
        (lambda f: f.attrs.__delitem__("stride"), "stride"),
    ],
)
def test_files_that_are_not_whole_are_refused(tmp_path: Path, change: object, message: str) -> None:
    path = spoilt(write_store(tmp_path / "genome.h5"), change)
    with pytest.raises(StoreError, match=message) as caught:
        PredictionStore(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_things_that_are_no_prediction_files(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text(">chr1\nACGT\n")
    (tmp_path / "zero.h5").write_bytes(b"")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1, 2]
    for name, message in [
        ("absent.h5", "no such file"),
        ("", "a folder; give one of its .h5 files"),
        ("text.h5", "no prediction file or a damaged one"),
        ("zero.h5", "no prediction file or a damaged one"),
        ("other.h5", "HDF5, but not a genomepred prediction file"),
    ]:
        with pytest.raises(StoreError, match=message):
            PredictionStore(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write_store(tmp_path / "genome.h5")
    path.chmod(0)
    with pytest.raises(StoreError, match="no permission"):
        PredictionStore(path)


def test_truncated_files_are_refused_at_every_length(tmp_path: Path) -> None:
    path = write_store(tmp_path / "genome.h5")
    good = path.read_bytes()
    for length in [*range(0, len(good), len(good) // 150), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(StoreError):
            PredictionStore(path)


def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """Also without verify: all metadata and all data are checksummed."""
    path = write_store(tmp_path / "genome.h5")
    good, rng = path.read_bytes(), np.random.default_rng(0)

    def contents() -> tuple[object, ...]:
        with PredictionStore(path) as store:
            values = store.read(0, store.rows).tobytes()
            tables = [getattr(store.grid, name).tolist() for name in ("contigs", "start", "length")]
            return store.attributes, store.tracks, store.descriptions, tables, values

    expected, refused, count = contents(), 0, examples(300)
    for position in rng.integers(0, len(good), count).tolist():
        changed = bytearray(good)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            assert contents() == expected
        except StoreError:
            refused += 1
    assert refused > count // 2


def test_zstd_files_name_the_extra_that_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_store(tmp_path / "genome.h5", layout=Layout(1, compression="zstd"))
    with PredictionStore(path) as store:
        assert store.summary()["compression"] == "zstd"
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(DependencyError, match=r"pip install 'genomepred\[zstd\]'"):
        PredictionStore(path)


def test_the_documentation_reads_files_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5netcdf")
    pages = Path(__file__).parents[2] / "docs" / "files.md"
    examples = re.findall(r"```python\n(.*?)```", pages.read_text(), re.DOTALL)
    grid = Grid.whole({"Chr1": 5000, "Chr2": 60_000}, SCALAR)
    (tmp_path / "OUT").mkdir()
    path = write_store(tmp_path / "OUT" / "rice.h5", grid)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for example in examples:
        exec(example, scope)
    with PredictionStore(path) as store:
        expected = store["Chr2", 35_000:36_000]
    assert len(examples) == 3
    assert scope["here"].start.tolist() == [34_920, 34_940, 34_960, 34_980, 35_000]
    assert len(scope["everything"]) == scope["array"].sizes["row"] == grid.rows
    assert scope["table"].equals(expected.to_frame())
    # The h5py example starts at the first row that begins in the region, not at the first to touch.
    assert scope["found"].start[4] == 35_000
    assert np.array_equal(scope["values"][:, 0], expected.values[4:54, 0], equal_nan=True)
