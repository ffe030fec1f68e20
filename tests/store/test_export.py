"""Exports against arithmetic done row by row, and read back by another library."""

from __future__ import annotations

import gzip
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyBigWig
import pytest

from genomepred.errors import OutputError, StoreError
from genomepred.sequences.grid import Geometry, Grid, Region
from genomepred.store.export import export_bedgraph, export_bigwig, export_tsv
from genomepred.store.reader import PredictionStore
from genomepred.store.schema import Layout
from tests.bigwig_files import read_bigwig
from tests.store_files import CONTIGS, random_values, write_store

GEOMETRIES = {
    "even stride": Geometry(window=100, stride=20),
    "odd stride": Geometry(window=100, stride=37),
    "odd window": Geometry(window=101, stride=20),
    "stride of one window": Geometry(window=100, stride=100),
    "sampling": Geometry(window=50, stride=75),
    "crop": Geometry(window=140, stride=20, crop=20),
    "bins": Geometry(window=160, stride=80, crop=40, bins=5),
}
BED = [Region("chr2", 300, 320), Region("chr2", 800, 1003), Region("chr10:1-9", 0, 640)]

Line = tuple[str, int, int, float]


def slow_lines(grid: Grid, values: np.ndarray) -> list[Line]:
    """Lines as drawn row by row: the stride's bases centered on those a scalar row describes."""
    g, row, lines = grid.geometry, 0, []
    for k, count in enumerate(grid.row_counts.tolist()):
        for i in range(count):
            start = int(grid.start[k]) + i * g.step
            width = g.bin_size if g.bins > 1 else min(g.stride, g.bin_size)
            start += (g.bin_size - width) // 2
            length = int(grid.length[k])
            first, last = max(start, 0), min(start + width, length)
            if first < last and not np.isnan(values[row]):
                lines.append((str(grid.contigs[k]), first, last, float(values[row])))
            row += 1
    return sorted(lines)


def read_bedgraph(text: bytes) -> list[Line]:
    fields = [line.split("\t") for line in text.decode().splitlines()]
    return [(c, int(s), int(e), float(np.float32(v))) for c, s, e, v in fields]


@pytest.fixture(params=list(GEOMETRIES))
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> PredictionStore:
    grid = Grid.whole(CONTIGS, GEOMETRIES[request.param])
    with PredictionStore(write_store(tmp_path / "genome.h5", grid)) as store:
        yield store


def test_bedgraph_and_bigwig_hold_what_is_drawn(whole: PredictionStore, tmp_path: Path) -> None:
    expected = slow_lines(whole.grid, random_values(whole.rows)[:, 0])
    assert len(expected) > 10
    export_bedgraph(whole, tmp_path / "x.bedgraph")
    assert read_bedgraph((tmp_path / "x.bedgraph").read_bytes()) == expected
    assert export_bigwig(whole, tmp_path / "x.bw") == [tmp_path / "x.bw"]
    assert read_bigwig(tmp_path / "x.bw") == expected
    for (contig, _, end, _), (other, start, _, _) in itertools.pairwise(expected):
        assert contig != other or end <= start, "a base would have two values"


def test_regions_keep_what_is_drawn_on_them(whole: PredictionStore, tmp_path: Path) -> None:
    everything = slow_lines(whole.grid, random_values(whole.rows)[:, 0])
    region = Region("chr2", 333, 712)
    expected = [x for x in everything if x[0] == "chr2" and x[1] < 712 and x[2] > 333]
    assert 0 < len(expected) < len(everything)
    export_bedgraph(whole, tmp_path / "x.bedgraph", region=region)
    assert read_bedgraph((tmp_path / "x.bedgraph").read_bytes()) == expected
    export_bigwig(whole, tmp_path / "x.bw", region=region)
    assert read_bigwig(tmp_path / "x.bw") == expected


def test_tables_hold_what_is_described(whole: PredictionStore, tmp_path: Path) -> None:
    export_tsv(whole, tmp_path / "x.tsv")
    table = pd.read_csv(tmp_path / "x.tsv", sep="\t", dtype={"CTCF": np.float32})
    assert list(table.columns) == ["contig", "start", "end", "CTCF"]
    values = random_values(whole.rows)[:, 0]
    rows = np.arange(whole.rows)
    k = whole.grid.interval_of(rows)
    start = whole.grid.starts(rows)
    end = np.minimum(start + whole.grid.geometry.bin_size, whole.grid.length[k])
    kept = start < whole.grid.length[k]
    assert table["contig"].tolist() == whole.grid.contigs[k][kept].tolist()
    assert table["start"].tolist() == start[kept].tolist()
    assert table["end"].tolist() == end[kept].tolist()
    assert np.array_equal(table["CTCF"].to_numpy(), values[kept], equal_nan=True)


def test_text_is_the_shortest_that_reads_back(tmp_path: Path) -> None:
    values = np.array([[0.1], [np.nan], [1e-45], [-3.4028235e38], [0.25], [np.inf]], np.float32)
    grid = Grid.whole({"c": 200}, Geometry(window=100, stride=20))
    with PredictionStore(write_store(tmp_path / "g.h5", grid, values)) as store:
        export_tsv(store, tmp_path / "x.tsv")
    texts = [line.split("\t")[3] for line in (tmp_path / "x.tsv").read_text().splitlines()[1:]]
    assert texts == ["0.1", "NaN", "1e-45", "-3.4028235e+38", "0.25", "inf"]


def test_contigs_are_sorted_by_name_with_their_lengths(tmp_path: Path) -> None:
    with PredictionStore(write_store(tmp_path / "g.h5")) as store:
        export_bigwig(store, tmp_path / "x.bw")
    with pyBigWig.open(str(tmp_path / "x.bw")) as file:
        contigs = file.chroms()
        covered = file.header()["nBasesCovered"]
    assert list(contigs.items()) == [("chr10:1-9", 640), ("chr2", 1003), ("ctg-é", 57)]
    assert covered == sum(e - s for _, s, e, _ in read_bigwig(tmp_path / "x.bw"))


def test_other_programs_sort_contigs_by_name_too(shared_data: Path) -> None:
    """Browsers search the list of contigs by bisection."""
    with pyBigWig.open(str(shared_data / "labels" / "hg38_real.bigWig")) as file:
        chroms = list(file.chroms())
    assert chroms == sorted(chroms)
    assert chroms.index("chr10") < chroms.index("chr2")


def test_intervals_of_a_bed_are_drawn_like_the_whole_genome(tmp_path: Path) -> None:
    grid = Grid.of_regions(CONTIGS, Geometry(window=100, stride=20), BED)
    assert len(grid.contigs) == 3
    with PredictionStore(write_store(tmp_path / "g.h5", grid)) as store:
        export_bigwig(store, tmp_path / "x.bw")
        assert read_bigwig(tmp_path / "x.bw") == slow_lines(grid, random_values(grid.rows)[:, 0])


def test_centered_records_are_sorted_where_they_must_be(tmp_path: Path) -> None:
    records = [Region("chr2", 990, 1003, "b"), Region("chr2", 10, 12, "a"), BED[2]]
    grid = Grid.centered(CONTIGS, Geometry(window=100, stride=20), records)
    values = np.array([[1.5], [2.5], [3.5]], np.float32)
    with PredictionStore(write_store(tmp_path / "g.h5", grid, values)) as store:
        export_bedgraph(store, tmp_path / "x.bedgraph")
        export_bigwig(store, tmp_path / "x.bw")
        export_tsv(store, tmp_path / "x.tsv")
    lines = [("chr10:1-9", 310, 330, 3.5), ("chr2", 1, 21, 2.5), ("chr2", 986, 1003, 1.5)]
    assert read_bedgraph((tmp_path / "x.bedgraph").read_bytes()) == lines
    assert read_bigwig(tmp_path / "x.bw") == lines
    assert (tmp_path / "x.tsv").read_text().splitlines() == [
        "contig\tstart\tend\tname\tCTCF",
        "chr2\t946\t1003\tb\t1.5",
        "chr2\t0\t61\ta\t2.5",
        "chr10:1-9\t270\t370\t\t3.5",
    ]


def test_overlapping_records_have_no_bigwig(tmp_path: Path) -> None:
    records = [Region("chr2", 500, 502), Region("chr2", 490, 492)]
    grid = Grid.centered(CONTIGS, Geometry(window=100, stride=20), records)
    with PredictionStore(write_store(tmp_path / "g.h5", grid, np.ones((2, 1), "f4"))) as store:
        for export in (export_bigwig, export_bedgraph):
            with pytest.raises(StoreError, match="overlap at chr2:492.*export tsv instead"):
                export(store, tmp_path / "x.bw")
    assert not list(tmp_path.glob("x*"))


@pytest.fixture
def three_tracks(tmp_path: Path) -> PredictionStore:
    path = write_store(tmp_path / "g.h5", tracks=("H3K4me3", "CTCF/rev", "MRL"))
    with PredictionStore(path) as store:
        yield store


def test_each_of_several_tracks_has_its_file(three_tracks: PredictionStore, tmp_path: Path) -> None:
    values = random_values(three_tracks.rows, 3)
    written = export_bigwig(three_tracks, tmp_path / "rice.v7.bw")
    assert [path.name for path in written] == [
        "rice.v7.H3K4me3.bw",
        "rice.v7.CTCF_rev.bw",
        "rice.v7.MRL.bw",
    ]
    assert read_bigwig(written[2]) == slow_lines(three_tracks.grid, values[:, 2])
    written = export_bedgraph(three_tracks, tmp_path / "rice.bedgraph.gz")
    assert written[0].name == "rice.H3K4me3.bedgraph.gz"
    text = gzip.decompress(written[1].read_bytes())
    assert read_bedgraph(text) == slow_lines(three_tracks.grid, values[:, 1])
    (one,) = export_bigwig(three_tracks, tmp_path / "one.bw", track="MRL")
    assert one.name == "one.bw"
    assert read_bigwig(one) == slow_lines(three_tracks.grid, values[:, 2])


def test_tracks_are_chosen_by_name(three_tracks: PredictionStore, tmp_path: Path) -> None:
    export_tsv(three_tracks, tmp_path / "x.tsv", ["MRL", "H3K4me3"], Region("chr2", 0, 10))
    table = pd.read_csv(tmp_path / "x.tsv", sep="\t")
    assert list(table.columns) == ["contig", "start", "end", "MRL", "H3K4me3"]
    assert len(table) == 1
    with pytest.raises(StoreError, match="no track 'x'; there are H3K4me3, CTCF/rev, MRL"):
        export_bigwig(three_tracks, tmp_path / "x.bw", track="x")
    with pytest.raises(StoreError, match="has 3 tracks, a bedGraph holds one.*--track"):
        export_bedgraph(three_tracks, None)


def test_standard_output(
    three_tracks: PredictionStore, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert export_bedgraph(three_tracks, None, "MRL") == []
    export_bedgraph(three_tracks, tmp_path / "x", "MRL")
    assert capfdbinary.readouterr().out == (tmp_path / "x").read_bytes()
    export_tsv(three_tracks, None)
    export_tsv(three_tracks, tmp_path / "y")
    assert capfdbinary.readouterr().out == (tmp_path / "y").read_bytes()


def test_a_gzip_table_has_equal_bytes_each_time(whole: PredictionStore, tmp_path: Path) -> None:
    for name in ("one.tsv.gz", "two.tsv.gz", "plain.tsv"):
        export_tsv(whole, tmp_path / name)
    assert (tmp_path / "one.tsv.gz").read_bytes() == (tmp_path / "two.tsv.gz").read_bytes()
    text = gzip.decompress((tmp_path / "one.tsv.gz").read_bytes())
    assert text == (tmp_path / "plain.tsv").read_bytes()


def test_nothing_to_draw(tmp_path: Path) -> None:
    grid = Grid.whole({"c": 500}, Geometry(window=100, stride=20))
    missing = np.full((grid.rows, 1), np.nan, np.float32)
    with PredictionStore(write_store(tmp_path / "g.h5", grid, missing)) as store:
        with pytest.raises(StoreError, match="no value to draw"):
            export_bigwig(store, tmp_path / "x.bw")
        export_bedgraph(store, tmp_path / "x.bedgraph")
    assert not (tmp_path / "x.bw").exists()
    assert (tmp_path / "x.bedgraph").read_bytes() == b""


def test_a_damaged_file_ends_an_export_without_output(tmp_path: Path) -> None:
    grid = Grid.whole({"c": 20 * 99 + 100}, Geometry(window=100, stride=20))
    values = random_values(100, 2000)
    tracks = tuple(f"t{i}" for i in range(2000))
    path = write_store(tmp_path / "g.h5", grid, values, tracks, Layout(2000))
    with PredictionStore(path) as store:  # in the last of four chunks
        chunk = store.predictions.id.get_chunk_info(3)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset + 50)
        file.write(b"damage")
    with PredictionStore(path) as store:
        for export in (export_bigwig, export_bedgraph):
            with pytest.raises(StoreError, match="damaged"):
                export(store, tmp_path / "x.bw", "t0")
        with pytest.raises(StoreError, match="damaged"):
            export_tsv(store, tmp_path / "x.tsv")
    assert not list(tmp_path.glob("x*"))


def test_places_that_cannot_be_written(whole: PredictionStore, tmp_path: Path) -> None:
    for export in (export_bigwig, export_bedgraph, export_tsv):
        with pytest.raises(OutputError, match="there is no folder"):
            export(whole, tmp_path / "absent" / "x.bw")


def test_names_with_tabs_and_line_ends_stay_in_their_column(tmp_path: Path) -> None:
    contigs = {'a\t"b"': 300, "c\nd": 300}
    grid = Grid.whole(contigs, Geometry(window=100, stride=100))
    values = np.arange(6, dtype=np.float32).reshape(6, 1)
    with PredictionStore(write_store(tmp_path / "g.h5", grid, values, ("t\tx",))) as store:
        export_tsv(store, tmp_path / "x.tsv")
        table = pd.read_csv(tmp_path / "x.tsv", sep="\t")
        assert table["contig"].tolist() == [name for name in contigs for _ in range(3)]
        assert table["t\tx"].tolist() == [0, 1, 2, 3, 4, 5]
        for export in (export_bigwig, export_bedgraph):
            with pytest.raises(StoreError, match="no names that are empty or have blanks"):
                export(store, tmp_path / "x.out")
    assert not (tmp_path / "x.out").exists()


@pytest.mark.parametrize("kind", ["bigwig", "bedgraph", "tsv"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    grid = Grid.whole({"c": 400_000}, Geometry(window=100, stride=20))
    path = write_store(tmp_path / "g.h5", grid)
    code = (
        "import resource, sys; from genomepred.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        f"sys.argv = ['genomepred', 'export', {kind!r}, 'g.h5', '-o', 'x.out']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == OutputError.exit_code, done.stderr
    assert "x.out: the disk or quota" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "g.h5.json"]


def test_what_killed_exports_have_left_is_removed(tmp_path: Path) -> None:
    write_store(tmp_path / "g.h5")
    process = subprocess.Popen(["true"])
    process.wait()
    left = tmp_path / f"x.{socket.gethostname()}.{process.pid}.0123abcd.tmp"
    other = tmp_path / f"x.{socket.gethostname()}.{os.getpid()}.0123abcd.tmp"
    left.touch()
    other.touch()  # of a process that lives
    with PredictionStore(tmp_path / "g.h5") as store:
        export_bigwig(store, tmp_path / "x.bw")
    assert not left.exists()
    assert other.exists()
