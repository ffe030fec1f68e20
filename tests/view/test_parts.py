"""Parts of the server: maps, tables of samples, genes, sequence, clusters, the command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import webbrowser
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from genomepred.cli import cli
from genomepred.errors import DataError, GenomepredError, RegionError, StoreError
from genomepred.sequences.grid import Geometry, Grid, Region
from genomepred.view import server
from genomepred.view.genes import Genes
from genomepred.view.jobs import leaves
from genomepred.view.maps import find_maps
from genomepred.view.samples import columns_of, read_samples
from genomepred.view.sequence import Sequence, try_sequence
from genomepred.view.state import Shown
from tests.founders import write_cohort
from tests.store_files import CONTIGS, write_store
from tests.view.serving import prepare, pyramids_made_here

# -- maps -----------------------------------------------------------------------------------------


def test_genomes_of_equal_coordinates_are_one_map(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_store(tmp_path / f"{name}.h5")
    grid = Grid.whole({"chr2": 1004}, Geometry(window=100, stride=20))
    write_store(tmp_path / "c.h5", grid)
    write_store(tmp_path / "d.h5", tracks=("CTCF", "H3K27ac"))
    write_cohort(tmp_path / "e.h5", {"x": 900}, Geometry(window=40, stride=20), [("s", 1)], 1)
    (tmp_path / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\nnothing")
    maps, left = find_maps(tmp_path)
    assert [map.title for map in maps] == ["a and 1 more", "c", "d", "e"]
    assert [map.key for map in maps] == ["0", "1", "2", "3"]
    assert len(left) == 1
    assert left[0].startswith(str(tmp_path / "broken.h5"))
    assert len({map.pyramid() for map in maps}) == 4


def test_a_reference_goes_with_its_own_coordinates(tmp_path: Path) -> None:
    reference = write_store(tmp_path / "ref.h5")
    (tmp_path / "run").mkdir()
    write_store(tmp_path / "run" / "a.h5")
    grid = Grid.whole({"chr2": 1004}, Geometry(window=100, stride=20))
    other = write_store(tmp_path / "run" / "b.h5", grid)
    maps, _ = find_maps(tmp_path / "run", reference)
    assert [map.reference for map in maps] == [reference, None]
    assert maps[0].everything == (tmp_path / "run" / "a.h5", reference)
    with pytest.raises(StoreError, match=r"ref\.h5: other contigs"):
        find_maps(other, reference)


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing to show"):
        find_maps(tmp_path)
    with pytest.raises(StoreError, match="no such file"):
        find_maps(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(StoreError, match=r"text\.h5"):
        find_maps(tmp_path / "text.h5")
    places = [Region("chr2", 100, 200, "x"), Region("chr2", 10, 20, "y")]
    grid = Grid.centered(CONTIGS, Geometry(window=100, stride=20), places)
    with pytest.raises(RegionError, match="--center"):
        find_maps(write_store(tmp_path / "b.h5", grid))


def test_many_genomes_are_one_picture(tmp_path: Path) -> None:
    grid = Grid.whole({"c": 2000}, Geometry(window=100, stride=20))
    for k in range(12):  # "10" stands before "2" in a sorted document
        write_store(tmp_path / f"g{k}.h5", grid, np.full((grid.rows, 1), k, np.float32))
    (map,), _ = find_maps(tmp_path)
    shown = Shown(map, lambda map, share: None)
    with pyramids_made_here():
        prepare(shown)
    pyramid = shown.ready()
    assert pyramid is not None
    assert pyramid.lines[:4] == ("g0", "g1", "g10", "g11")
    codes = pyramid.codes(0, 0, 0, 0, 0, 1)[:, 0]
    assert pyramid.scales[0][codes - 1].tolist() == [0, 1, 10, 11, *range(2, 10)]
    shown.close()


def test_identity_follows_files(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.h5")
    (map,), _ = find_maps(path)
    before = map.identity()
    assert before["0"]["sha256"]
    assert map.identity() == before
    assert map.is_as(before)
    os.utime(path, ns=(1, 1))
    assert map.identity() != before
    assert not map.is_as(before)
    path.unlink()
    assert not map.is_as(before)
    with pytest.raises(StoreError, match="cannot be read"):
        map.identity()


# -- samples --------------------------------------------------------------------------------------


def test_columns_of_samples(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('id\tgroup\tnote\nS1\ta\t"x\ty"\nS2.1\tb\t\nother\tc\td\n')
    found = columns_of(read_samples(path), ["S1.1", "S1.2", "S2.1", "S2.2", "S3"])
    assert found == {"group": ["a", "a", "b", "", ""], "note": ["x\ty", "x\ty", "", "", ""]}
    (tmp_path / "t.csv").write_text("\ufeffid,group\nS1,a\n")
    assert columns_of(read_samples(tmp_path / "t.csv"), ["S1"]) == {"group": ["a"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a header"),
        ("id\n", "needs a header"),
        ("id\tg\nS1\n", "line 2: 1 fields"),
        ("id\tg\nS1\ta\nS1\tb\n", "line 3: sample 'S1' stands there twice"),
        ("id\tg\tg\nS1\ta\tb\n", "one name"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_samples(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(tmp_path)


# -- genes ----------------------------------------------------------------------------------------

GTF = """\
c\tx\texon\t11\t20\t.\t+\t.\tgene_id "G1"; transcript_id "T1"; gene_name "abc";
c\tx\texon\t31\t40\t.\t+\t.\tgene_id "G1"; transcript_id "T1"; gene_name "abc";
c\tx\texon\t15\t35\t.\t+\t.\tgene_id "G1"; transcript_id "T2"; gene_name "abc";
c\tx\texon\t5\t100\t.\t-\t.\tgene_id "G2"; transcript_id "T3";
"""


def test_genes_of_a_gtf_without_gene_lines(tmp_path: Path) -> None:
    path = tmp_path / "g.gtf"
    path.write_text(GTF)
    genes = Genes(path)
    assert [gene[:5] for gene in genes.genes] == [
        ("c", 10, 40, "abc", "+"),
        ("c", 4, 100, "G2", "-"),
    ]
    assert genes.genes[0].exons == ((10, 40),)
    assert [gene.name for gene in genes.named("ABC")] == ["abc"]
    assert [gene.name for gene in genes.named("t2")] == ["abc"]
    assert [gene.name for gene in genes.within("c", 50, 60)] == ["G2"]
    assert [gene.name for gene in genes.within("c", 0, 11)] == ["G2", "abc"]
    assert genes.within("d", 0, 9) == genes.named("") == []
    assert genes.within("chr0C", 50, 60) == genes.within("c", 50, 60)


def test_an_annotation_without_genes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.gff3"
    path.write_text("c\tx\tregion\t1\t9\t.\t.\t.\tID=r\n")
    with pytest.raises(DataError, match="has no gene"):
        Genes(path)
    path.write_text("c\tx\tgene\tone\t9\t.\t.\t.\tID=r\n")
    with pytest.raises(DataError, match="line 1"):
        Genes(path)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)), min_size=1, max_size=20))
def test_genes_within_a_region(tmp_path_factory, places: list[tuple[int, int]]) -> None:
    path = tmp_path_factory.mktemp("genes") / "g.gff3"
    lines = [f"c\tx\tgene\t{a + 1}\t{a + n}\t.\t.\t.\tID=g{k}" for k, (a, n) in enumerate(places)]
    path.write_text("\n".join(lines))
    genes = Genes(path)
    for start, end in ((0, 10), (20, 21), (49, 90)):
        found = {gene.name for gene in genes.within("c", start, end)}
        assert found == {f"g{k}" for k, (a, n) in enumerate(places) if a < end and a + n > start}


# -- sequence -------------------------------------------------------------------------------------


def test_any_range_of_the_virtual_fasta(tmp_path: Path) -> None:
    path = tmp_path / "g.fa"
    path.write_text(">a x\nACGTNNry\nac\n>empty\n>b\nTTTT\n")
    contigs = {"a": 10, "empty": 0, "b": 4}
    whole = b">a\nACGTNNNNAC\n>empty\n\n>b\nTTTT\n"
    sequence = try_sequence(path, contigs)
    assert isinstance(sequence, Sequence)
    assert sequence.size == len(whole)
    for first in range(len(whole) + 3):
        for last in range(first, len(whole) + 5):
            assert sequence.read(first, last) == whole[first:last], (first, last)
    index = [line.split("\t") for line in sequence.index().decode().splitlines()]
    for name, length, first, *_ in index:
        assert (
            whole[int(first) : int(first) + int(length)]
            == {"a": b"ACGTNNNNAC", "empty": b"", "b": b"TTTT"}[name]
        )


def test_another_genome_is_no_sequence(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">a\nACGT\n")
    assert try_sequence(tmp_path / "g.fa", {"a": 5}) is None
    assert try_sequence(tmp_path / "g.fa", {"b": 4}) is None
    assert try_sequence(tmp_path / "absent.fa", {"a": 4}) is None
    assert try_sequence(None, {"a": 4}) is None


# -- clusters -------------------------------------------------------------------------------------


def test_leaves_put_kinds_together() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(4, 30)).astype(np.float32)
    which = rng.integers(0, 4, 100)
    values = kinds[which]
    order = leaves(values)
    assert sorted(order.tolist()) == list(range(100))
    assert (np.diff(which[order]) != 0).sum() == 3
    for kind in range(4):  # equal lines keep their order
        assert (np.diff(order[which[order] == kind]) > 0).all()


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (2, 2)])
def test_leaves_of_few_or_missing(shape: tuple[int, int]) -> None:
    assert sorted(leaves(np.full(shape, np.nan, np.float32)).tolist()) == list(range(shape[0]))
    values = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    values[0, 0] = np.nan
    assert sorted(leaves(values).tolist()) == list(range(shape[0]))


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--samples", "s1,s0.2"), ("--difference", "mean")])
def test_plot_draws_cohorts_and_folders(tmp_path: Path, more: tuple[str, ...]) -> None:
    haplotypes = [("s0", 1), ("s0", 2), ("s1", 1)]
    write_cohort(tmp_path / "p.h5", {"c": 9000}, Geometry(window=40, stride=20), haplotypes, 2)
    for target in (tmp_path / "p.h5", tmp_path):
        picture = tmp_path / "x.png"
        words = ["plot", str(target), "c:1-5000", "-o", str(picture), *more]
        done = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert picture.stat().st_size > 5000
        picture.unlink()
    words = ["plot", str(tmp_path / "p.h5"), "c", "-o", str(picture), "--sample", "s1", *more]
    assert CliRunner().invoke(cli, words).exit_code == (2 if more else 0)


def command(*arguments: object, **options: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "genomepred", "view", *map(str, arguments), "--no-browser"]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_it_tells_its_address_and_stops_on_ctrl_c(tmp_path: Path) -> None:
    process = command(write_store(tmp_path / "a.h5"))
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert (process.returncode, said) == (0, "")


def test_one_line_for_what_cannot_be_shown(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_bytes(b"no")
    (tmp_path / "g.gff3").write_text("no\n")
    (tmp_path / "t.tsv").write_text("no\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = [
            ((path, "--port", port), 2, f"port {port} is in use"),
            ((tmp_path / "b.h5",), 8, "b.h5"),
            ((path, "--genes", tmp_path / "g.gff3"), 11, "g.gff3 line 1"),
            ((path, "--samples-table", tmp_path / "t.tsv"), 11, "t.tsv: needs a header"),
        ]
        started = [(command(*arguments), code, text) for arguments, code, text in cases]
        for process, code, text in started:
            _, said = process.communicate(timeout=300)
            assert process.returncode == code, said
            assert text in said
            assert len(said.splitlines()) == 1


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genomepred.view.server import view

    path = write_store(tmp_path / "a.h5")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "genomepred.view.web", raising=False)
    with pytest.raises(GenomepredError, match=r"pip install 'genomepred\[view\]'"):
        view(path)


@pytest.mark.parametrize("kind", ["cut off", "foreign", "a part", "no files"])
def test_files_that_are_none_are_named(tmp_path: Path, kind: str) -> None:
    path = write_store(tmp_path / "a.h5")
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "foreign":
        with h5py.File(path, "w") as file:
            file["predictions"] = np.zeros(3)
    elif kind == "a part":
        path.rename(tmp_path / "0-100.host.1.tmp")
    else:
        path.unlink()
    target = path if path.exists() else tmp_path
    with pytest.raises(StoreError) as found:
        find_maps(target)
    assert str(target) in str(found.value)
    assert "\n" not in str(found.value)


def test_where_nothing_can_be_written_the_pyramid_lasts_for_the_session(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a" * 248 + ".h5"  # with ".pyramid" it is longer than a name may be
    path = write_store(tmp_path / "a.h5").rename(tmp_path / name)
    shown = Shown(find_maps(path)[0][0], lambda map, share: None)
    with pyramids_made_here():
        prepare(shown)
    assert shown.ready() is not None
    assert [found.name for found in tmp_path.glob("*.pyramid")] == []
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "cannot be written" in said[0]
    folder = Path(shown._folder.name)
    assert folder.is_dir()
    shown.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("display", "opens", "told"),
    [("", True, True), (":0", True, False), (":0", False, True), (":0", None, True)],
)
def test_without_a_browser_the_address_is_all(
    display: str,
    opens: bool | None,
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def opened(url: str) -> bool:
        if opens is None:
            raise webbrowser.Error("none")
        return opens

    for variable in ("WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(webbrowser, "open", opened)
    heard: list[str] = []
    server._tell("http://127.0.0.1:1/", True, heard.append)
    assert heard == ["http://127.0.0.1:1/"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == told
    assert all("no browser" in line for line in said)
