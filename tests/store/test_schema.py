"""Prediction files that somebody has built or rebuilt: refused in one line, or read in full."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.errors import RegionError, StoreError
from genomepred.sequences.grid import Geometry, Grid, Region
from genomepred.store.export import export_bedgraph, export_bigwig, export_tsv
from genomepred.store.reader import PredictionStore
from tests.helpers import examples
from tests.store_files import CONTIGS, write_store

Change = Callable[[h5py.File], object]

TABLES = ["start", "end", "first_row", "first_window", "contig_length", "contig"]
NUMBERS = [-(1 << 63), -(1 << 40), -101, -1, 0, 1, 20, 999, 1 << 34, 1 << 62, (1 << 63) - 1]


def replace(file: h5py.File, name: str, data: Any, **options: Any) -> None:
    """Another dataset in the place of one, in one chunk unless told otherwise."""
    del file[name]
    array = np.asarray(data)
    if array.shape and "chunks" not in options:
        options |= {"chunks": tuple(max(n, 1) for n in array.shape)}
        options |= {"maxshape": (None,) * array.ndim}
    file.create_dataset(name, data=array, **options)


def external(file: h5py.File) -> None:
    other = file.filename + ".other"
    with h5py.File(other, "w") as target:
        file.copy("predictions", target)
    del file["predictions"]
    file["predictions"] = h5py.ExternalLink(other, "predictions")


def soft(file: h5py.File) -> None:
    file.move("predictions", "elsewhere")
    file["predictions"] = h5py.SoftLink("/elsewhere")


def linked_group(file: h5py.File) -> None:
    file.move("intervals", "elsewhere")
    file["intervals"] = h5py.SoftLink("/elsewhere")


def stored_outside(file: h5py.File) -> None:
    shape = file["predictions"].shape
    del file["predictions"]
    outside = [("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("predictions", shape, "<f4", external=outside)


def virtual(file: h5py.File) -> None:
    shape = file["predictions"].shape
    del file["predictions"]
    layout = h5py.VirtualLayout(shape, "<f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "predictions", shape)
    file.create_virtual_dataset("predictions", layout)


def sparse(rows: int, chunk: int) -> Change:
    def change(file: h5py.File) -> None:
        del file["predictions"]
        file.create_dataset("predictions", (rows, 1), "<f4", chunks=(chunk, 1), maxshape=(None, 1))

    return change


def many_intervals(file: h5py.File) -> None:
    for name in TABLES:
        kind = file[f"intervals/{name}"].dtype
        del file[f"intervals/{name}"]
        file.create_dataset(f"intervals/{name}", (1 << 34,), kind, chunks=(65536,))


def foreign_filter(file: h5py.File) -> None:
    del file["predictions"]
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((4, 1))
    created.set_filter(307, h5py.h5z.FLAG_OPTIONAL)  # bzip2, of a plug-in
    space = h5py.h5s.create_simple((4, 1))
    h5py.h5d.create(file.id, b"predictions", h5py.h5t.IEEE_F32LE, space, dcpl=created)


CHANGES: dict[str, tuple[Change, str]] = {
    "external link": (external, "/predictions is a link"),
    "soft link": (soft, "/predictions is a link"),
    "link to a group": (linked_group, "/intervals is a link"),
    "external storage": (stored_outside, "/predictions"),
    "virtual dataset": (virtual, "/predictions"),
    "contiguous": (
        lambda f: (f.pop("predictions"), f.create_dataset("predictions", (76, 1), "f4")),
        "pred",
    ),
    "a group": (lambda f: (f.pop("predictions"), f.create_group("predictions")), "no dataset"),
    "a dataset for a group": (
        lambda f: (f.pop("tracks"), f.create_dataset("tracks", (1,), "f4")),
        "no group",
    ),
    "sparse": (sparse(1 << 40, 65536), "more chunks"),
    "one absent chunk": (sparse(76, 76), "0 chunks of 1"),
    "huge chunks": (sparse(1 << 34, 1 << 29), "chunks of 2,147,483,648 bytes"),
    "three dimensions": (lambda f: replace(f, "predictions", np.zeros((76, 1, 1), "f4")), "shape"),
    "no dimension": (lambda f: replace(f, "predictions", 1.0), "shape"),
    "no track": (lambda f: replace(f, "predictions", np.zeros((76, 0), "f4")), "chunks"),
    "float64": (lambda f: replace(f, "predictions", np.zeros((76, 1))), "float64"),
    "complex": (lambda f: replace(f, "predictions", np.zeros((76, 1), complex)), "type"),
    "references": (
        lambda f: (
            f.pop("predictions"),
            f.create_dataset("predictions", (76, 1), h5py.ref_dtype, chunks=(76, 1)),
        ),
        "type",
    ),
    "variable-length values": (
        lambda f: (
            f.pop("predictions"),
            f.create_dataset("predictions", (76, 1), h5py.vlen_dtype("f4"), chunks=(76, 1)),
        ),
        "type",
    ),
    "variable-length names": (
        lambda f: (
            f.pop("tracks/name"),
            f.create_dataset("tracks/name", data=["CTCF"], dtype=h5py.string_dtype(), chunks=(1,)),
        ),
        "variable length",
    ),
    "variable-length attribute": (lambda f: f.attrs.__setitem__("note", "text"), "'note'"),
    "array attribute": (lambda f: f.attrs.__setitem__("stride", [20, 20]), "'stride'"),
    "empty attribute": (lambda f: f.attrs.__setitem__("stride", h5py.Empty("i8")), "'stride'"),
    "infinite window": (lambda f: f.attrs.__setitem__("window", np.inf), "window"),
    "window as text": (lambda f: f.attrs.__setitem__("window", np.bytes_("100")), "window"),
    "window as truth": (lambda f: f.attrs.__setitem__("window", True), "window"),
    "huge sizes": (lambda f: f.attrs.update({"window": 1 << 60, "bin_size": 1 << 60}), "window"),
    "no rows told": (lambda f: f.attrs.__delitem__("bins"), "bins"),
    "filter of a plug-in": (foreign_filter, "filters"),
    "2^34 intervals": (many_intervals, "more chunks"),
    "starts as floats": (lambda f: replace(f, "intervals/start", np.full(4, np.nan)), "float64"),
    "starts as int32": (lambda f: replace(f, "intervals/start", np.zeros(4, "i4")), "int32"),
    "short names": (lambda f: replace(f, "intervals/contig", np.array([b"c"])), "differ in length"),
    "names as numbers": (lambda f: replace(f, "intervals/contig", np.arange(4)), "not text"),
    "names not UTF-8": (lambda f: replace(f, "intervals/contig", np.array([b"\xff"] * 4)), "utf-8"),
    "one name twice": (lambda f: replace(f, "intervals/contig", np.array([b"c"] * 4)), "differs"),
    "too many tracks": (
        lambda f: replace(f, "tracks/name", np.array([b"a", b"b"])),
        "not 1 entries",
    ),
    "negative lengths": (
        lambda f: replace(f, "intervals/contig_length", np.array([-5, 640, 0, 57])),
        "contig_length",
    ),
    "falling rows": (
        lambda f: replace(f, "intervals/first_row", np.array([0, 75, 47, 75])),
        "do not add up",
    ),
    "no intervals": (
        lambda f: [replace(f, f"intervals/{t}", f[f"intervals/{t}"][:0]) for t in TABLES],
        "do not add up",
    ),
    "starts far away": (
        lambda f: replace(f, "intervals/start", np.array([1 << 62, 0, 0, 0])),
        "out of bounds",
    ),
    "more rows than bases": (
        lambda f: replace(f, "intervals/contig_length", np.array([9, 640, 0, 57])),
        "room",
    ),
}


def use(path: Path) -> None:
    """Everything that is done with a file."""
    with PredictionStore(path) as store:
        store.summary()
        for contig, length in store.contigs.items():
            assert len(store[contig]) <= store.rows
            assert len(store[contig, : min(length, 100)]) <= store.rows
        target = path.with_suffix(".out")
        export_tsv(store, target)
        export_bedgraph(store, target, store.tracks[0])
        export_bigwig(store, target, store.tracks[0])


@pytest.mark.parametrize(("change", "message"), list(CHANGES.values()), ids=list(CHANGES))
def test_rebuilt_files_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    path = write_store(tmp_path / "g.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(StoreError, match=message) as caught:
        PredictionStore(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


GRIDS = [
    Grid.whole(CONTIGS, Geometry(window=100, stride=20)),
    Grid.whole(CONTIGS, Geometry(window=160, stride=80, crop=40, bins=5)),
    Grid.of_regions(CONTIGS, Geometry(window=100, stride=150), [Region("chr2", 300, 900)]),
    Grid.of_regions(
        CONTIGS, Geometry(window=160, stride=80, crop=40, bins=5), [Region("chr2", 300, 315)]
    ),
    Grid.centered(
        {"c": 30}, Geometry(window=500, stride=3000), [Region("c", 0, 1), Region("c", 29, 30)]
    ),
    Grid.centered({"c": 30}, Geometry(window=500, stride=500, bins=50), [Region("c", 29, 30, "x")]),
    Grid.whole({"c": 1}, Geometry(window=5000, stride=7000)),
    Grid.whole({}, Geometry(window=5, stride=1)),
]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_bounds_let_every_grid_through(tmp_path: Path, grid: Grid) -> None:
    with PredictionStore(write_store(tmp_path / "g.h5", grid)) as store:
        assert store.rows == grid.rows
        assert store.grid.end.tolist() == grid.end.tolist()


@settings(deadline=None, max_examples=examples(150))
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from([*TABLES[:-1], "window", "stride", "crop", "bins", "bin_size"]),
            st.integers(0, 3),
            st.one_of(st.sampled_from(NUMBERS), st.integers(-(1 << 63), (1 << 63) - 1)),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_changed_numbers_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, int]]
) -> None:
    good = tmp_path_factory.getbasetemp() / "good.h5"
    if not good.exists():
        write_store(good)
    path = good.with_name("changed.h5")
    shutil.copyfile(good, path)
    with h5py.File(path, "r+") as file:
        for name, k, value in changes:
            if name in TABLES:
                numbers = file[f"intervals/{name}"][:]
                numbers[k] = value
                replace(file, f"intervals/{name}", numbers)
            else:
                file.attrs[name] = np.int64(value)
    with suppress(StoreError, RegionError):
        use(path)


def test_names_are_held_by_their_own_lengths(tmp_path: Path) -> None:
    """One name of 900 bytes among 100,000 contigs: as fixed-width text they would take 360 MB."""
    contigs = {f"c{i}": 100 for i in range(100_000)} | {"x" * 900: 100}
    grid = Grid.whole(contigs, Geometry(window=100, stride=100))
    path = write_store(tmp_path / "g.h5", grid)
    code = (
        "import resource, sys; from genomepred.store.reader import PredictionStore\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"store = PredictionStore({str(path)!r}); assert len(store.contigs) == 100_001\n"
        "assert len(store['x' * 900]) == 1\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 120_000  # KB
