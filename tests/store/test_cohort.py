"""Cohort files: reading by sample, region and matrix; refusing what is damaged."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from genomepred.errors import DependencyError, RegionError, StoreError
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store import cohort_file
from genomepred.store.cohort import CohortStore
from genomepred.store.cohort_writing import join_cohort, padded, write_cohort_part
from genomepred.store.hdf5 import DamagedPartError
from genomepred.store.opening import is_cohort, open_store
from genomepred.store.reader import PredictionStore
from genomepred.store.schema import Layout

CONTIGS = {"chr1": 30_000, "empty": 0, "chr2": 641, "short": 3}
HAPLOTYPES = [("a", 1), ("a", 2), ("b.1", 1), ("b.1", 2), ("b", 1), ("c é", 1)]
TRACKS = [("one", "first"), ("two", "second")]
GRID = Grid.whole(CONTIGS, Geometry(window=40, stride=20))
SHARD = 512


def classes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Leaders of all haplotypes and windows, and values of all, [haplotypes, windows(, tracks)]."""
    rng = np.random.default_rng(seed)
    windows = GRID.rows
    groups = rng.integers(0, 3, (len(HAPLOTYPES), windows))
    index = np.empty(groups.shape, np.uint16)
    for h in range(len(HAPLOTYPES)):
        index[h] = np.argmax(groups == groups[h], axis=0)
    values = rng.normal(size=(len(HAPLOTYPES), windows, 2)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    values = np.take_along_axis(values, index[..., None].astype(np.int64), axis=0)
    index[3, -40:], values[3, -40:] = 65_535, np.nan
    leads = (index == 3).any(axis=0)
    index[3, leads & (np.arange(windows) >= windows - 40)] = 65_535
    index[index[:, :] == 3] = 3
    late = np.arange(windows) >= windows - 40
    for h in range(4, len(HAPLOTYPES)):
        moved = late & (index[h] == 3)
        values[h, moved], index[h, moved] = values[h, moved], h
    return index, values


def write(path: Path, layout: Layout | None = None) -> Path:
    layout = layout or Layout(2)
    index, values = classes()
    parts, told = [], []
    for first in range(0, GRID.rows, SHARD):
        part = index[:, first : first + SHARD]
        rows, counts, leaders = [], [], []
        for w in range(part.shape[1]):
            found = np.unique(part[:, w][part[:, w] != 65_535])
            leaders += found.tolist()
            counts.append(len(found))
            rows.append(values[found, first + w])
        parts.append(path.parent / f"{first}.part")
        told.append({"first": first})
        write_cohort_part(
            parts[-1],
            np.concatenate(rows),
            np.array(counts),
            np.array(leaders, np.uint16),
            np.ascontiguousarray(part),
            layout,
            told[-1],
        )
    join_cohort(parts, path, layout, GRID, TRACKS, HAPLOTYPES, {"genome": "panel"}, told)
    with pytest.raises(DamagedPartError, match="another run"):
        join_cohort(parts, path, layout, GRID, TRACKS, HAPLOTYPES, {}, [{}] * len(parts))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("store") / "panel.h5")


@pytest.mark.parametrize("layout", [Layout(2), Layout(2, "float16", "none")])
def test_haplotypes_read_as_prediction_files(tmp_path: Path, layout: Layout) -> None:
    _, values = classes()
    with CohortStore(write(tmp_path / "panel.h5", layout)) as store:
        assert store.samples == ["a", "b.1", "b", "c é"]
        for h, (sample, copy) in enumerate(HAPLOTYPES):
            with store.haplotype(sample, copy) as one:
                expected = values[h].astype(layout.dtype).astype(np.float32)
                np.testing.assert_array_equal(one.read(0, one.rows), expected)
                np.testing.assert_array_equal(one.read(77, 1201), expected[77:1201])
                blocks = np.concatenate([block for _, block in one.blocks()])
                np.testing.assert_array_equal(blocks, expected)
                found = one["chr2", 100:200]
                assert found.start[0] == 80
                row = int(GRID.first_row[2]) + found.start[0] // 20
                np.testing.assert_array_equal(found.values, expected[row : row + len(found)])
        assert store.problems() == []


def test_matrices_with_names(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xarray = pytest.importorskip("xarray")
    with CohortStore(file) as store:
        found = store.to_xarray("chr2:101-200", ["b", "a"])
        assert isinstance(found, xarray.DataArray)
        assert found.dims == ("haplotype", "row", "track")
        assert found.coords["sample"].values.tolist() == ["b", "a", "a"]
        assert found.coords["copy"].values.tolist() == [1, 1, 2]
        expected = store.matrix("chr2", 100, 200, samples=["b", "a"])
        np.testing.assert_array_equal(found.values, expected)
        rows = store.haplotype("b", 1)["chr2", 100:200]
        np.testing.assert_array_equal(found.coords["start"].values, rows.start)
        one = found.sel(track="two").isel(haplotype=2)
        np.testing.assert_array_equal(
            one.values, store.haplotype("a", 2)["chr2", 100:200].values[:, 1]
        )
        monkeypatch.setitem(sys.modules, "xarray", None)
        with pytest.raises(DependencyError, match=r"genomepred\[xarray\]"):
            store.to_xarray("chr2")


def test_matrices_for_anndata(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CohortStore(file) as store, monkeypatch.context() as patched:
        patched.setitem(sys.modules, "anndata", None)
        with pytest.raises(DependencyError, match=r"genomepred\[anndata\]"):
            store.to_anndata("chr2")
    pytest.importorskip("anndata")
    with CohortStore(file) as store:
        found = store.to_anndata("chr2:101-200", ["b", "a"])
        assert found.obs_names.tolist() == ["b.1", "a.1", "a.2"]
        expected = store.matrix("chr2", 100, 200, samples=["b", "a"])
        np.testing.assert_array_equal(found.X, expected[:, :, 0])
        np.testing.assert_array_equal(found.layers["two"], expected[:, :, 1])
        assert (
            found.var["start"].tolist() == store.haplotype("b", 1)["chr2", 100:200].start.tolist()
        )


@pytest.mark.parametrize("kept", [1, 1 << 26])
def test_blocks_are_kept_and_let_go(file: Path, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort_file, "_KEPT_BYTES", kept)
    monkeypatch.setattr(cohort_file, "_BLOCK", 256)
    _, values = classes()
    rng = np.random.default_rng(0)
    with CohortStore(file) as store:
        for _ in range(30):
            h = int(rng.integers(len(HAPLOTYPES)))
            first, last = np.sort(rng.integers(0, GRID.rows + 1, 2)).tolist()
            found = store.haplotype(*HAPLOTYPES[h]).read(first, last)
            np.testing.assert_array_equal(found, values[h, first:last])
        held = store._base._kept
        assert len(held._read) == 2 if kept == 1 else len(held._read) > 6


def test_matrix_and_samples(file: Path) -> None:
    _, values = classes()
    with CohortStore(file) as store:
        first, last = 40, 99
        found = store.matrix("chr1", first * 20 + 39, last * 20)
        np.testing.assert_array_equal(found, values[:, first:last])
        found = store.matrix("chr1", first * 20 + 39, last * 20, samples=["b", "a"])
        np.testing.assert_array_equal(found, values[[4, 0, 1], first:last])
        np.testing.assert_array_equal(store["a", "short", :], values[:2, -1:])
        assert store.matrix("empty", 0, 0).shape == (6, 0, 2)
        with pytest.raises(RegionError, match="no sample 'x'"):
            store.matrix("chr1", 0, 9, samples=["x"])
        with pytest.raises(RegionError, match="no predictions: no contig"):
            store.matrix("chr9", 0, 9)


def test_names_of_haplotypes(file: Path) -> None:
    with CohortStore(file) as store:
        assert (store.named("a.2").sample, store.named("a.2").copy) == ("a", 2)
        assert (store.named("b").sample, store.named("b.1.2").sample) == ("b", "b.1")
        for text, message in (("a", "say a.COPY"), ("b.1", "say b.1.COPY"), ("z", "no sample 'z'")):
            with pytest.raises(RegionError, match=message):
                store.named(text)
        with pytest.raises(RegionError, match="copies 1, 2"):
            store.haplotype("a", 3)


def test_other_readers_say_what_it_is(file: Path, tmp_path: Path) -> None:
    assert is_cohort(file)
    assert not is_cohort(tmp_path / "absent")
    with pytest.raises(StoreError, match="--sample"):
        open_store(file)
    with pytest.raises(StoreError, match="not a genomepred prediction file"):
        PredictionStore(file)
    with open_store(file, "a.1") as store:
        assert store.attributes["sample"] == "a"
        assert store.summary()["rows"] == GRID.rows
    with h5py.File(file) as raw:
        assert raw["predictions"].dims[1].label or raw["predictions"].dims[1].keys()


def test_padding_fills_chunks() -> None:
    assert padded(1, Layout(2)) == Layout(2).chunk_rows
    assert padded(0, Layout(2)) == 0
    wide = Layout(3, bins=5000)
    assert padded(7, wide) * 5000 % wide.chunk_rows == 0


def _set(name: str, where: object, value: object) -> object:
    def change(file: h5py.File) -> None:
        file[name][where] = value

    return change


def _shape(name: str, values: object) -> object:
    def change(file: h5py.File) -> None:
        del file[name]
        data = np.asarray(values)
        file.create_dataset(name, data=data, chunks=tuple(max(n, 1) for n in data.shape))

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("cohort/first", 5, -1),
        _set("cohort/first", 0, 1 << 60),
        _shape("cohort/first", np.arange(4)),
        _shape("cohort/leader", np.zeros(3, np.uint16)),
        _shape("cohort/leader", np.zeros(3, np.float64)),
        _shape("cohort/index", np.zeros((6, 3), np.uint16)),
        _shape("cohort/index", np.zeros((6, 1534), np.int64)),
        _shape("haplotypes/copy", np.zeros(6, np.float32)),
        _shape("haplotypes/copy", np.ones(5, np.int32)),
        lambda file: file["haplotypes"].pop("sample"),
        lambda file: file.pop("cohort"),
        lambda file: file.attrs.__setitem__("bins", 7),
        lambda file: file.attrs.__setitem__("bins", -1),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    file: Path, tmp_path: Path, change: object
) -> None:
    path = tmp_path / "changed.h5"
    shutil.copy(file, path)
    with h5py.File(path, "r+") as raw:
        change(raw)  # type: ignore[operator]
    with pytest.raises(StoreError) as caught:
        CohortStore(path)
    assert "\n" not in str(caught.value)


def test_an_index_that_names_no_leader_is_found(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "changed.h5"
    with h5py.File(file) as raw:
        leaders = raw["cohort/leader"][:]
    for name, where, value in (
        ("cohort/index", (5, 700), 5_000),
        ("cohort/index", (0, 700), 4_000),
        ("cohort/leader", int(np.argmax(leaders > 0)), 60_000),
    ):
        shutil.copy(file, path)
        with h5py.File(path, "r+") as raw:
            raw[name][where] = value
        with CohortStore(path) as store:
            assert store.problems()
            if name == "cohort/index":
                with pytest.raises(StoreError, match="names no leader"):
                    store.named(".".join(map(str, HAPLOTYPES[where[0]]))).read(600, 800)
