"""Region tables against NumPy on the rows that each region has."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.cli import cli
from genomepred.errors import (
    GenomepredError,
    OptionError,
    OutputError,
    RegionError,
    SequenceError,
    StoreError,
)
from genomepred.runs.manifest import prediction_files
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store import blocks, cohort_file
from genomepred.store.cohort import CohortStore
from genomepred.store.opening import cohort_of
from genomepred.store.reader import PredictionStore
from genomepred.store.schema import Layout
from genomepred.tables import reduction, table, writing
from genomepred.tables.regions import read_regions
from genomepred.tables.table import RegionTable, region_table, unique_names
from genomepred.tables.writing import write_table
from tests.cohort_files import write_cohort
from tests.helpers import examples
from tests.store_files import random_values, write_store

CONTIGS = {"chr1": 30_000, "empty": 0, "chr2": 641, "short": 3}
HAPLOTYPES = [("a", 1), ("a", 2), ("b.1", 1), ("b.1", 2), ("b", 1), ("c é", 1)]
NAMES = ["a.1", "a.2", "b.1.1", "b.1.2", "b", "c é"]
BED = [
    ("chr2", 600, 700, "end", "-"),  # past the contig's end
    ("chr1", 0, 30_000, "all", "+"),
    ("chr1", 400, 401, "base", "."),
    ("chr1", 400, 401, "base", "+"),  # a name twice
    ("chr9", 5, 10, "unknown", "+"),
    ("chr2", 5_000, 6_000, "outside", "+"),
    ("short", 0, 3, "short\tcontig", "+"),
]
STATS = ("mean", "max", "min", "fraction")


def bed(path: Path, records: list[tuple[str, int, int, str, str]] = BED) -> Path:
    lines = [
        "\t".join([c, str(a), str(b), n.replace("\t", " "), "0", s]) for c, a, b, n, s in records
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    grid = Grid.whole(CONTIGS, Geometry(window=40, stride=20))
    return write_cohort(folder / "panel.h5", grid, HAPLOTYPES, ("one", "two"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three genomes, one of which has another contig's length."""
    folder = tmp_path_factory.mktemp("run")
    for k, name in enumerate(("g1", "g2", "g3")):
        contigs = CONTIGS | ({"chr1": 20_001} if k == 2 else {})
        grid = Grid.whole(contigs, Geometry(window=40, stride=20))
        values = random_values(grid.rows, 2, seed=k)
        values[0] = np.inf if k == 1 else values[0]
        write_store(folder / f"{name}.h5", grid, values, ("one", "two"))
    return folder


def expected(values: np.ndarray, stat: str) -> np.ndarray:
    """[tracks] of one sample's rows [rows, tracks]."""
    out = np.full(values.shape[1], np.nan)
    for t in range(values.shape[1]):
        known = values[:, t][~np.isnan(values[:, t])].astype(np.float64)
        if known.size:
            out[t] = np.mean(known >= 0.25) if stat == "fraction" else getattr(np, stat)(known)
    return out


def rows_of(store: PredictionStore, contig: str, start: int, end: int) -> np.ndarray:
    if contig not in store.contigs:
        return np.empty((0, len(store.tracks)), np.float32)
    return store[contig, start:end].values


def check(found: RegionTable, stores: list[PredictionStore], stat: str) -> None:
    for r, (contig, start, end, _, _) in enumerate(BED):
        for s, store in enumerate(stores):
            of = expected(rows_of(store, contig, start, end), stat)
            np.testing.assert_allclose(found.values[r, s], of, rtol=1e-6, err_msg=f"{r} {s}")


def make(out: Path, regions: Path, stat: str = "mean", **more: Any) -> RegionTable:
    return region_table(out, regions, stat, threshold=0.25 if stat == "fraction" else None, **more)


@pytest.mark.parametrize("stat", STATS)
@pytest.mark.parametrize("small", [False, True])
def test_cohort(
    cohort: Path, tmp_path: Path, stat: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:  # many blocks, many groups
        monkeypatch.setattr(cohort_file, "_ENTRIES", 1)
        monkeypatch.setattr(table, "_GROUP_VALUES", 25)
    found = make(cohort, bed(tmp_path / "r.bed"), stat)
    assert found.samples == NAMES
    assert found.absent == 1
    with CohortStore(cohort) as store:
        check(found, [store.haplotype(*pair) for pair in HAPLOTYPES], stat)


@pytest.mark.parametrize("stat", STATS)
@pytest.mark.parametrize("small", [False, True])
def test_genomes(
    run: Path, tmp_path: Path, stat: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        monkeypatch.setattr(reduction, "_BLOCK_VALUES", 64)
        monkeypatch.setattr(table, "_GROUP_VALUES", 12)
    found = make(run, bed(tmp_path / "r.bed"), stat)
    assert found.samples == ["g1", "g2", "g3"]
    assert found.absent == 3
    check(found, [PredictionStore(run / f"{name}.h5") for name in found.samples], stat)


def test_a_file_a_track_has_its_limit() -> None:
    names = [f"t{k}" for k in range(201)]
    assert len(writing._outputs(Path("x.tsv"), ".tsv", names[:200])) == 200
    with pytest.raises(OutputError, match=r"201 tracks .* --track, or write \.h5"):
        writing._outputs(Path("x.tsv"), ".tsv", names)


def test_several_bins(tmp_path: Path) -> None:
    grid = Grid.whole(CONTIGS, Geometry(window=60, stride=40, crop=10, bins=4))
    path = write_cohort(tmp_path / "bins.h5", grid, HAPLOTYPES, ("one", "two"))
    for stat in STATS:
        with CohortStore(path) as store:
            stores: list[PredictionStore] = [store.haplotype(*pair) for pair in HAPLOTYPES]
            check(make(path, bed(tmp_path / "r.bed"), stat), stores, stat)


@settings(max_examples=examples(20))
@given(st.integers(0, 1 << 16))
def test_any_regions_of_any_cohort(seed: int) -> None:
    """Random classes, blocks and regions: as from the matrix of all haplotypes."""
    rng = np.random.default_rng(seed)
    haplotypes = [(f"s{k}", 1) for k in range(int(rng.integers(1, 9)))]
    grid = Grid.whole({"c": int(rng.integers(1, 9_000)), "d": 100}, Geometry(50, 10))
    start = rng.integers(0, 9_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        path = write_cohort(Path(folder) / "p.h5", grid, haplotypes, ("t",), seed=seed)
        regions = [
            ("c", int(a), int(a + n), f"r{a}", "+")
            for a, n in zip(start, rng.integers(1, 4_000, 5), strict=True)
        ]
        found = make(path, bed(Path(folder) / "r.bed", regions))
        with CohortStore(path) as store:
            for k, (contig, first, last, _, _) in enumerate(regions):
                matrix = store.matrix(contig, first, last)[:, :, 0].astype(np.float64)
                for h, rows in enumerate(matrix):
                    of = np.nan if np.isnan(rows).all() else np.nanmean(rows)
                    np.testing.assert_allclose(found.values[k, h, 0], of, rtol=1e-5, atol=1e-7)


def test_widths_of_regions_leave_nothing_behind() -> None:
    for width in range(1, 50):
        assert len(blocks.factors(width)) == width
    assert blocks.factors.cache_info().currsize == 1


def test_a_damaged_index_is_told(cohort: Path, tmp_path: Path) -> None:
    copy = tmp_path / "damaged.h5"
    copy.write_bytes(cohort.read_bytes())
    with h5py.File(copy, "r+") as file:
        file["cohort/index"][2, 400:410] = 5  # leads none of them everywhere
        file["cohort/index"][2, 405] = 9
    with pytest.raises(StoreError, match="names no leader; check the file"):
        make(copy, bed(tmp_path / "r.bed")).values  # noqa: B018


# -- regions --------------------------------------------------------------------------------------


def test_promoters_follow_the_strand(tmp_path: Path) -> None:
    path = bed(tmp_path / "g.bed", [("c", 500, 900, "f", "+"), ("c", 500, 900, "r", "-")])
    first, second = read_regions(path, upstream=200, downstream=50)
    assert (first.start, first.end) == (300, 550)
    assert (second.start, second.end) == (850, 1100)
    assert read_regions(path, upstream=600)[0][2:4] == (0, 500)
    assert read_regions(path, downstream=5)[1][2:4] == (895, 900)
    assert read_regions(path)[0][2:4] == (500, 900)
    with pytest.raises(OptionError, match="leave no bases"):
        read_regions(path, upstream=0, downstream=0)
    with pytest.warns(UserWarning, match="1 of 1 regions have no strand"):
        read_regions(bed(tmp_path / "n.bed", [("c", 5, 9, "x", ".")]), upstream=3)


def test_regions_of_annotation_and_of_bed_without_names(tmp_path: Path) -> None:
    gff = tmp_path / "g.gff3.gz"
    text = "chr2\tx\tgene\t11\t20\t.\t-\t.\tID=g1\nchr2\tx\tmRNA\t12\t20\t.\t-\t.\tID=t1\n"
    gff.write_bytes(gzip.compress(text.encode()))
    assert read_regions(gff) == [("g1", "chr2", 10, 20, "-")]
    assert read_regions(gff, "mRNA") == [("t1", "chr2", 11, 20, "-")]
    with pytest.raises(RegionError, match="no feature 'CDS'"):
        read_regions(gff, "CDS")
    plain = tmp_path / "p.bed"
    plain.write_text("chr2\t10\t20\n")
    assert read_regions(plain)[0].name == "chr2:11-20"
    plain.write_text("# nothing\n")
    with pytest.raises(RegionError, match="no BED records"):
        read_regions(plain)


def test_names_of_contigs_are_explained(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="no contig '1' in .*; there it is named 'chr1'"):
        make(run, bed(tmp_path / "r.bed", [("1", 5, 9, "x", "+")]))
    with pytest.raises(RegionError, match="no contig 'scaffold' in .*; there are 'chr1', 'empty'"):
        make(run, bed(tmp_path / "r.bed", [("scaffold", 5, 9, "x", "+")]))


def test_regions_of_each_genome_are_matched_by_name(run: Path, tmp_path: Path) -> None:
    bed(tmp_path / "1.bed", [("chr1", 100, 900, "x", "+"), ("chr1", 2_000, 2_100, "y", "+")])
    bed(tmp_path / "2.bed", [("chr1", 500, 700, "y", "+"), ("chr2", 0, 90, "z", "-")])
    manifest = tmp_path / "m.tsv"
    manifest.write_text("name\tpath\tregions\ng1\tx.fa\t1.bed\ng2\ty.fa\t2.bed\ng3\tz.fa\t\n")
    with pytest.warns(UserWarning, match="no regions for 1 of 3 genomes"):
        found = make(run, manifest)
    assert found.names == ["x", "y", "z"]
    assert found.absent == 2 + 3
    with PredictionStore(run / "g1.h5") as one, PredictionStore(run / "g2.h5") as two:
        for row, column, store, place in (
            (0, 0, one, ("chr1", 100, 900)),
            (1, 0, one, ("chr1", 2_000, 2_100)),
            (1, 1, two, ("chr1", 500, 700)),
            (2, 1, two, ("chr2", 0, 90)),
        ):
            of = expected(rows_of(store, *place), "mean")
            np.testing.assert_allclose(found.values[row, column], of, rtol=1e-6)
    assert np.isnan(found.values[[0, 2, 0, 1, 2], [1, 0, 2, 2, 2]]).all()
    write_table(found, tmp_path / "t.h5")
    assert list(h5py.File(tmp_path / "t.h5")["regions"]) == ["name"]
    bed(tmp_path / "2.bed", [("chr1", 500, 700, "y", "+"), ("chr2", 0, 90, "y", "-")])
    with (
        pytest.warns(UserWarning, match="no regions for 1"),
        pytest.raises(RegionError, match="'y' stands in it twice"),
    ):
        make(run, manifest)
    manifest.write_text("name\tpath\ng1\tx.fa\n")  # no regions
    with pytest.raises(SequenceError, match="columns name and regions"):
        make(run, manifest)
    manifest.write_text("name\tregions\nother\t1.bed\n")
    with pytest.raises(RegionError, match="names no regions for any"):
        make(run, manifest)


def test_wrong_choices(run: Path, cohort: Path, tmp_path: Path) -> None:
    regions = bed(tmp_path / "r.bed")
    with pytest.raises(OptionError, match="needs a threshold"):
        region_table(run, regions, "fraction")
    with pytest.raises(OptionError, match="takes no threshold"):
        region_table(run, regions, "mean", threshold=1)
    with pytest.raises(OptionError, match="unknown"):
        region_table(run, regions, "median")
    with pytest.raises(StoreError, match="no track 'three'"):
        make(run, regions, tracks=["three"])
    manifest = tmp_path / "m.tsv"
    manifest.write_text("name\tregions\npanel\tr.bed\n")
    with pytest.raises(RegionError, match="one reference"):
        make(cohort, manifest)
    with pytest.raises(StoreError, match="without prediction files"):
        make(tmp_path, regions)
    with pytest.raises(StoreError, match="no such file"):
        make(tmp_path / "absent.h5", regions)


def test_files_of_both_kinds_or_of_other_tracks(run: Path, cohort: Path, tmp_path: Path) -> None:
    for path in (cohort, run / "g1.h5"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(StoreError, match="name the file"):
        cohort_of(prediction_files(tmp_path))
    (tmp_path / "panel.h5").unlink()
    write_store(tmp_path / "other.h5", tracks=("else",))
    with pytest.raises(StoreError, match="one table is of one model"):
        make(tmp_path, bed(tmp_path / "r.bed"))


# -- files ----------------------------------------------------------------------------------------


def test_tsv_and_parquet(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_GROUP_VALUES", 25)
    found = make(cohort, bed(tmp_path / "r.bed"))
    for suffix in (".tsv", ".tsv.gz", ".parquet"):
        files = write_table(found, tmp_path / f"t{suffix}")
        assert [file.name for file in files] == [f"t.one{suffix}", f"t.two{suffix}"]
        for k, file in enumerate(files):
            read = pd.read_parquet if suffix == ".parquet" else pd.read_csv
            frame = read(file, **({} if suffix == ".parquet" else {"sep": "\t"}))
            assert frame.columns.tolist() == ["name", "contig", "start", "end", "strand", *NAMES]
            assert frame["name"].tolist() == found.names
            assert frame["start"].tolist() == [record[1] for record in BED]
            values = frame[NAMES].to_numpy(np.float32)
            np.testing.assert_array_equal(values, found.values[:, :, k])
    frame = found.to_frame("two")
    np.testing.assert_array_equal(frame["c é"], found.values[:, 5, 1])
    with pytest.raises(StoreError, match="several tracks"):
        found.to_frame()
    with pytest.raises(StoreError, match="several tracks"):
        write_table(found, None)


def test_hdf5(run: Path, tmp_path: Path) -> None:
    found = make(run, bed(tmp_path / "r.bed"), "fraction", tracks=["two"])
    write_table(found, tmp_path / "t.hdf5")
    with h5py.File(tmp_path / "t.hdf5") as file:
        np.testing.assert_array_equal(file["values"][:], found.values)
        assert file["values"].shape == (len(BED), 3, 1)
        assert file["regions/name"].asstr()[:].tolist() == found.names
        assert file["regions/end"][:].tolist() == [record[2] for record in BED]
        assert file["samples/name"].asstr()[:].tolist() == found.samples
        assert dict(file.attrs)["threshold"] == 0.25


def test_h5ad_as_its_format_says(cohort: Path, tmp_path: Path) -> None:
    found = make(cohort, bed(tmp_path / "r.bed"))
    write_table(found, tmp_path / "t.h5ad")
    with h5py.File(tmp_path / "t.h5ad") as file:
        assert dict(file.attrs) == {"encoding-type": "anndata", "encoding-version": "0.1.0"}
        np.testing.assert_array_equal(file["X"][:], found.values[:, :, 0].T)
        np.testing.assert_array_equal(file["layers/two"][:], found.values[:, :, 1].T)
        assert file["var"].attrs["_index"] == "_index"
        assert file["var"].attrs["column-order"].tolist() == [
            "name", "contig", "start", "end", "strand",
        ]  # fmt: skip
        assert file["obs/_index"].asstr()[:].tolist() == NAMES


def test_h5ad_reads_as_anndata(cohort: Path, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata", reason="needs anndata, which wants an older pandas")
    found = make(cohort, bed(tmp_path / "r.bed"), "fraction")
    write_table(found, tmp_path / "t.h5ad")
    read, made = anndata.read_h5ad(tmp_path / "t.h5ad"), found.to_anndata()
    for data in (read, made):
        assert data.obs_names.tolist() == NAMES
        assert data.var_names.tolist() == unique_names(found.names)
        assert data.var["start"].tolist() == [record[1] for record in BED]
        np.testing.assert_array_equal(data.X, found.values[:, :, 0].T)
        np.testing.assert_array_equal(data.layers["two"], found.values[:, :, 1].T)
    assert read.uns["statistic"] == "fraction"
    assert read.uns["threshold"] == 0.25


def test_unique_names() -> None:
    assert unique_names(["a", "b", "a", "a-1", "a"]) == ["a", "b", "a-2", "a-1", "a-3"]
    assert unique_names([]) == []


def test_outputs_that_cannot_be(run: Path, tmp_path: Path) -> None:
    found = make(run, bed(tmp_path / "r.bed"), tracks=["one"])
    with pytest.raises(OutputError, match="name the table"):
        write_table(found, tmp_path / "t.xlsx")
    with pytest.raises(OutputError, match="is an input of this command"):
        write_table(found, run / "g1.h5")
    with pytest.raises(OutputError, match="there is no folder"):
        write_table(found, tmp_path / "absent" / "t.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.bed"]


@pytest.mark.parametrize("suffix", [".h5", ".h5ad"])
def test_a_disk_that_fills_up_meanwhile(
    run: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(writing, "require_space", lambda folder, size: None)
    test_a_full_disk_is_one_line(run, small_disk, tmp_path, suffix)


@pytest.mark.parametrize("suffix", [".h5", ".h5ad"])
def test_a_quota_is_one_line_and_no_crash_at_the_end(
    run: Path, tmp_path: Path, suffix: str
) -> None:
    """HDF5 would try to write what it could not when the process ends."""
    bed(tmp_path / "r.bed", [("chr1", 100 * k, 100 * k + 40, f"r{k}", "+") for k in range(290)])
    code = (
        "import resource, sys; from genomepred.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))\n"
        f"sys.argv = ['genomepred', 'table', {str(run)!r}, '--regions', 'r.bed', '-o', 't{suffix}']"
        "; main()"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == OutputError.exit_code, (done.returncode, done.stderr)
    assert f"t{suffix}: the disk or quota" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["r.bed"]


@pytest.mark.parametrize("suffix", [".h5", ".h5ad", ".parquet", ".tsv"])
def test_a_full_disk_is_one_line(run: Path, small_disk: Path, tmp_path: Path, suffix: str) -> None:
    (small_disk / "other").write_bytes(bytes(4_000_000))  # of 4 MiB
    start = np.random.default_rng(0).integers(0, 29_000, 12_000).tolist()
    regions = [("chr1", a, a + 40, f"r{k}", "+") for k, a in enumerate(start)]
    found = make(run, bed(tmp_path / "many.bed", regions))
    with pytest.raises(OutputError, match=r"is full|MB are needed"):
        write_table(found, small_disk / f"t{suffix}")
    assert [path.name for path in small_disk.iterdir()] == ["other"]


# -- the command ----------------------------------------------------------------------------------


def call(*words: object) -> Any:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if isinstance(result.exception, GenomepredError):
        raise result.exception
    return result


def test_command(run: Path, tmp_path: Path) -> None:
    regions = bed(tmp_path / "r.bed")
    result = call("table", run, "--regions", regions, "--track", "two")
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0] == ["name", "contig", "start", "end", "strand", "g1", "g2", "g3"]
    assert lines[5][5:] == ["NaN"] * 3
    assert "3 pairs of region and genome without a place" in result.stderr
    out = tmp_path / "t.parquet"
    told = json.loads(call("table", run, "--regions", regions, "-o", out, "--json").stdout)
    assert told["ok"]
    assert told["result"]["samples"] == 3
    assert [Path(file).name for file in told["result"]["files"]] == [
        "t.one.parquet",
        "t.two.parquet",
    ]
    assert call("table", run, "--regions", regions, "--json").exit_code == 2
    assert call("table", run, "--regions", tmp_path / "none.bed").exit_code == 2


@pytest.mark.parametrize("layout", [Layout(2, "float16")])
def test_half_precision(tmp_path: Path, layout: Layout) -> None:
    grid = Grid.whole(CONTIGS, Geometry(window=40, stride=20))
    write_store(tmp_path / "g.h5", grid, random_values(grid.rows, 2), ("one", "two"), layout)
    found = make(tmp_path, bed(tmp_path / "r.bed"))
    check(found, [PredictionStore(tmp_path / "g.h5")], "mean")


def test_a_table_takes_no_inputs_place(cohort: Path, tmp_path: Path) -> None:
    regions = bed(tmp_path / "r.tsv.gz")
    with pytest.raises(OptionError, match="NaN counts nothing"):
        region_table(cohort, regions, "fraction", threshold=np.nan)
    found = make(cohort, regions, "mean", tracks=["two", "two"])
    assert found.tracks == ("two",)
    before = regions.read_bytes()
    with pytest.raises(OutputError, match="is an input of this command"):
        write_table(found, regions)
    assert regions.read_bytes() == before
