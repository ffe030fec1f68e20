"""bigWig files taken apart: what zoom levels claim is what the values say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyBigWig
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.errors import StoreError
from genomepred.sequences.grid import Geometry, Grid, Region
from genomepred.store.bigwig import BigWigWriter
from genomepred.store.export import export_bigwig
from genomepred.store.reader import PredictionStore
from tests.bigwig_files import Line, read_bigwig, read_zooms
from tests.helpers import examples
from tests.store_files import write_store


def write(path: Path, contigs: dict[str, int], lines: list[Line], width: int) -> None:
    with open(path, "wb") as file, BigWigWriter(file, path.parent, contigs, width) as bigwig:
        for contig, start, end, value in lines:
            bigwig.add(contig, np.array([start]), np.array([end]), np.array([value], np.float32))
        bigwig.finish()


def check_zooms(path: Path, lines: list[Line], contigs: list[str]) -> None:
    """Every level against its definition, bin by bin, from the values alone."""
    zooms = read_zooms(path)
    assert zooms
    assert [zoom.size for zoom in zooms] == sorted(zoom.size for zoom in zooms)
    for zoom in zooms:
        bins: dict[tuple[int, int], list[tuple[int, int, float]]] = {}
        for contig, start, end, value in lines:
            for bin_ in range(start // zoom.size, (end - 1) // zoom.size + 1):
                piece = max(start, bin_ * zoom.size), min(end, (bin_ + 1) * zoom.size), value
                bins.setdefault((contigs.index(contig), bin_), []).append(piece)
        assert len(zoom.records) == len(bins)
        for record, ((contig, _), pieces) in zip(zoom.records, sorted(bins.items()), strict=True):
            weights = [end - start for start, end, _ in pieces]
            values = [value for *_, value in pieces]
            assert record["contig"] == contig
            assert record["start"] == min(start for start, *_ in pieces)
            assert record["end"] == max(end for _, end, _ in pieces)
            assert record["count"] == sum(weights)
            assert record["low"] == np.float32(min(values))
            assert record["high"] == np.float32(max(values))
            assert record["sum"] == pytest.approx(np.dot(weights, values), rel=1e-5, abs=1e-4)
            assert record["squares"] == pytest.approx(np.dot(weights, np.square(values)), rel=1e-5)


@settings(deadline=None, max_examples=examples(40))
@given(
    pieces=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 90), st.integers(1, 60), st.floats(-9, 9)),
        min_size=1,
        max_size=40,
    ),
    width=st.integers(1, 30),
)
def test_values_and_zoom_levels(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[str, int, int, float]],
    width: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "values.bw"
    lines: list[Line] = []
    ends = dict.fromkeys("abc", 0)
    for contig, gap, size, value in sorted(pieces, key=lambda piece: piece[0]):
        start = ends[contig] + gap
        ends[contig] = start + size
        lines.append((contig, start, start + size, float(np.float32(value))))
    contigs = {contig: end + 7 for contig, end in ends.items()}
    write(path, contigs, lines, width)
    assert read_bigwig(path) == lines
    check_zooms(path, lines, sorted(contigs))


def test_many_values_pass_every_boundary_of_the_format(tmp_path: Path) -> None:
    """More values than a batch, more sections than a node of the index, several contigs."""
    path, n = tmp_path / "x.bw", 300_000
    contigs = {"long": 10 * n + 3, "short": 50, "z": 4096 * 10}
    values = np.random.default_rng(0).normal(size=n).astype(np.float32)
    start = np.arange(n) * 10 + 2 * (np.arange(n) > 150_000)
    with open(path, "wb") as file, BigWigWriter(file, tmp_path, contigs, 10) as bigwig:
        for first in range(0, n, 999):
            part = slice(first, first + 999)
            bigwig.add("long", start[part], start[part] + 10, values[part])
        bigwig.add("short", np.array([3]), np.array([4]), np.array([7], np.float32))
        bigwig.add("z", start[:4096], start[:4096] + 10, values[:4096])
        bigwig.finish()
    with pyBigWig.open(str(path)) as file:
        assert file.chroms() == contigs
        found = np.array(file.intervals("long"))
        assert np.array_equal(found[:, 0], start)
        assert np.array_equal(found[:, 2].astype(np.float32), values)
        assert file.intervals("short") == ((3, 4, 7.0),)
        assert len(file.intervals("z")) == 4096
        assert file.header()["nBasesCovered"] == 10 * n + 1 + 40_960
        for first in (0, 1_200_000, 2_998_400):  # whole bins of the level that is used
            (exact,) = file.stats("long", first, first + 1600, exact=True)
            assert file.stats("long", first, first + 1600) == [pytest.approx(exact, abs=1e-5)]
    for zoom in read_zooms(path):
        assert zoom.records["count"].sum(dtype=np.int64) == 10 * n + 1 + 40_960


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_thousands_of_contigs_are_found_by_name(tmp_path: Path, every: int) -> None:
    path = tmp_path / "x.bw"
    contigs = {f"scaffold_{i}" + "x" * (i % 40): 100 + i for i in range(66_000)}
    lines = [(name, 5, 25, float(contigs[name])) for name in sorted(list(contigs)[::every])]
    write(path, contigs, lines, 20)
    with pyBigWig.open(str(path)) as file:
        assert file.chroms() == contigs
        for name in list(contigs)[:: 143 * every]:
            assert file.intervals(name) == ((5, 25, contigs[name]),)
            assert file.stats(name) == [contigs[name]]


@pytest.mark.parametrize("regions", [False, True])
def test_zoom_levels_of_predictions_cover_what_their_rows_do(tmp_path: Path, regions: bool) -> None:
    contigs, geometry = {"chr1": 400_000, "chr2": 90_000}, Geometry(window=100, stride=20)
    grid = Grid.whole(contigs, geometry)
    if regions:
        asked = [Region("chr1", 5_000, 9_000), Region("chr1", 300_000, 300_100)]
        grid = Grid.of_regions(contigs, geometry, [*asked, Region("chr2", 80_000, 90_000)])
    values = np.random.default_rng(0).random((grid.rows, 1), np.float32)
    values[grid.rows // 3 : grid.rows // 2] = np.nan  # as over a run of N
    values[::97] = np.nan
    with PredictionStore(write_store(tmp_path / "g.h5", grid, values)) as store:
        export_bigwig(store, tmp_path / "x.bw")
    start, end = grid.drawn(np.arange(grid.rows))
    covered = int((end - start)[~np.isnan(values[:, 0])].sum())
    zooms = read_zooms(tmp_path / "x.bw")
    assert len(zooms) >= 6
    lines = read_bigwig(tmp_path / "x.bw")
    assert sum(end - start for _, start, end, _ in lines) == covered
    for zoom in zooms:
        assert zoom.records["count"].sum() == covered
    check_zooms(tmp_path / "x.bw", lines, ["chr1", "chr2"])


def test_contigs_that_the_format_cannot_number_are_refused(tmp_path: Path) -> None:
    grid = Grid.whole({"small": 1000, "huge": 1 << 32}, Geometry(window=10**8, stride=10**8))
    values = np.ones((grid.rows, 1), np.float32)
    with (
        PredictionStore(write_store(tmp_path / "g.h5", grid, values)) as store,
        pytest.raises(StoreError, match="'huge' has 4,294,967,296 bases.*bedgraph or tsv"),
    ):
        export_bigwig(store, tmp_path / "x.bw")
    assert not list(tmp_path.glob("x*"))
    grid = Grid.whole({"c": (1 << 32) - 1}, Geometry(window=10**8, stride=10**8))
    with PredictionStore(write_store(tmp_path / "h.h5", grid, values[: grid.rows])) as store:
        export_bigwig(store, tmp_path / "y.bw")
    for zoom in read_zooms(tmp_path / "y.bw"):
        assert zoom.records["end"][-1] == (1 << 32) - 1
