"""Data of several genomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genomepred.data.examples import TEST, TRAIN, VALIDATION
from genomepred.data.peak_data import PeakData
from genomepred.data.read import open_data
from genomepred.data.source import Source
from genomepred.errors import DataError, GenomepredError
from tests.data.small import (
    GENOME,
    STARTS,
    digest,
    open_peak_data,
    whole,
    write_bigwig,
    write_cohort,
    write_cultivars,
)


def test_every_genome_has_its_own_peaks_and_as_many_negatives(tmp_path: Path) -> None:
    source = Source(
        write_cohort(tmp_path),
        window=20,
        validation=("a:Chr01:8001-12000", "b:Chr11:8001-12000"),
        test=("Chr01:15001-20000", "Chr11:15001-20000"),
    )
    data = open_peak_data(source, tmp_path)
    assert list(data.contigs) == ["a:Chr01", "b:Chr11"]
    assert data.contigs["b:Chr11"].tolist() == np.roll(GENOME, 1000).tolist()
    for part in (VALIDATION, TEST):
        counts = [sum(r.contig == c for r in data.peaks.regions) for c in data.contigs]
        assert counts == [len(STARTS)] * 2
        for kind in data.test().values():
            assert kind.names is not None
            genomes = [name.removeprefix("shuffled ")[0] for name in kind.names]
            assert genomes.count("a") == genomes.count("b") == len(kind) // 2
        assert {r.contig for r in data.regions[part]} == {"a:Chr01", "b:Chr11"}
    assert len(data.facts()["data"]) == 4


def test_a_column_keeps_whole_genomes_for_the_test(tmp_path: Path) -> None:
    manifest = write_cohort(tmp_path, dataset=["train", "test"])
    source = Source(manifest, window=20, validation=("Chr01:8001-12000",))
    data = open_peak_data(source, tmp_path)
    assert len(data.positives(TEST)) == len(STARTS)
    names = data.test()["GC-matched"].names
    assert names is not None
    assert all(name.startswith("b:Chr11:") for name in names)
    assert {region.contig for region in data.regions[TRAIN]} == {"a:Chr01"}


def test_the_same_region_is_held_out_of_all_cultivars_in_any_order(tmp_path: Path) -> None:
    digests = set()
    for order in ("abc", "cab"):
        contigs = {"a": "Chr1", "b": "chr01", "c": "1"}
        manifest = write_cultivars(tmp_path, list(order), [contigs[name] for name in order])
        held_out = {"validation": ("Chr1:8001-12000",), "test": ("Chr1:15001-20000",)}
        data = open_peak_data(Source(manifest, window=20, **held_out), tmp_path)
        assert [r.contig for r in data.regions[TEST]] == ["a:Chr1", "b:chr01", "c:1"]
        facts = data.facts()
        assert facts["held_out"]["test"] == [
            ["Chr1:15001-20000"], ["chr01:15001-20000"], ["1:15001-20000"]
        ]  # fmt: skip
        assert facts["genomes"] == ["a", "b", "c"]
        # Of three equal genomes nothing of the test is trained on.
        assert data.repeats == 0
        digests.add(digest(whole(data.epoch(1))))
    assert len(digests) == 1


def test_a_genome_of_which_nothing_is_held_out_is_refused(tmp_path: Path) -> None:
    manifest = write_cultivars(tmp_path, ["a", "b"], ["Chr1", "scaffold_7"])
    regions = {"validation": ("Chr1:8001-12000",), "test": ("Chr1:15001-20000",)}
    with pytest.raises(
        DataError, match=r"genome 'b' has nothing for validation by --validation Chr1:8001-12000"
    ):
        open_data(Source(manifest, window=20, **regions), tmp_path)
    regions["validation"] = (*regions["validation"], "b:scaffold_7:8001-12000")
    with pytest.raises(
        DataError, match=r"genome 'b' has nothing for test by --test Chr1:15001-20000"
    ):
        open_data(Source(manifest, window=20, **regions), tmp_path)
    regions["test"] = (*regions["test"], "b:scaffold_7:15001-20000")
    assert open_peak_data(Source(manifest, window=20, **regions), tmp_path).repeats == 0


def with_regions(manifest: Path, beds: dict[str, str]) -> Path:
    """The manifest with a column of BEDs; a genome without one has an empty field."""
    header, *rows = manifest.read_text().splitlines()
    lines = [f"{header}\tregions"]
    for row in rows:
        name = row.split("\t")[0]
        if name in beds:
            (manifest.parent / name / "held_out.bed").write_text(beds[name])
        lines.append(f"{row}\t{f'{name}/held_out.bed' if name in beds else ''}")
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


OWN_BED = "{0}\t8000\t12000\tvalidation\n{0}\t15000\t20000\ttest\n"


def test_each_genome_may_have_its_own_bed_of_what_is_held_out(tmp_path: Path) -> None:
    digests = set()
    for order in ("abc", "cab"):
        contigs = {"a": "Chr1", "b": "chr01", "c": "1"}
        manifest = write_cultivars(tmp_path, list(order), [contigs[name] for name in order])
        beds = {"a": OWN_BED.format("chr1"), "b": OWN_BED.format("chr01")}
        beds["c"] = "1\t8000\t12000\tval\nchr1\t15500\t20000\ttest\n"  # its own coordinates
        data = open_peak_data(Source(with_regions(manifest, beds), window=20), tmp_path)
        assert data.facts()["held_out"]["test"] == [
            ["Chr1:15001-20000"], ["chr01:15001-20000"], ["1:15501-20000"]
        ]  # fmt: skip
        digests.add(digest(whole(data.epoch(1))))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("bed", "message"),
    [
        ("Chr9\t1\t5\ttest\n", r"held_out.bed line 1: no contig 'Chr9'; there are 'chr01'"),
        ("chr1\t1\t99999999\ttest\n", r"held_out.bed line 1: region .* outside 'chr01'"),
        ("chr1\t1\t5\n", r"held_out.bed, column 'name': '' is none of train, valid, test"),
        ("# nothing\n", r"held_out.bed: no BED records"),
        (None, r"genome 'b' has nothing for validation by a BED in the column regions"),
    ],
)
def test_beds_of_held_out_regions_that_do_not_fit_are_refused(
    tmp_path: Path, bed: str | None, message: str
) -> None:
    manifest = write_cultivars(tmp_path, ["a", "b"], ["Chr1", "chr01"])
    beds = {"a": OWN_BED.format("Chr1")} | ({"b": bed} if bed is not None else {})
    with pytest.raises(GenomepredError, match=message):
        open_data(Source(with_regions(manifest, beds), window=20), tmp_path)


def test_all_peaks_may_be_for_the_test(tmp_path: Path) -> None:
    manifest = write_cultivars(tmp_path, ["a", "b"], ["Chr1", "Chr1"])
    data = open_data(Source(manifest, window=20), tmp_path, needed=())
    assert isinstance(data, PeakData)
    assert data.facts()["peaks"] == {"training": 0, "validation": 0, "test": 2 * len(STARTS)}
    assert {len(kind) for kind in data.test().values()} == {4 * len(STARTS)}
    signal = write_bigwig(tmp_path / "x.bw", name="Chr1")
    signals = open_data(
        Source(manifest.parent / "a/p.narrowPeak", genome=tmp_path / "a/g.fa", window=20,
               bigwig=(signal,)),
        tmp_path, needed=(),
    )  # fmt: skip
    assert len(signals.test()["test"]) == 2 * len(STARTS)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": ["a", "a"]}, "row 2: the name 'a' is used twice"),
        ({"name": ["a", "b:c"]}, "row 2: the name 'b:c' is empty or has a ':'"),
        ({"peaks": ["a/p.narrowPeak", "b/q.bed"]}, "row 2: no file .*q.bed"),
        ({"dataset": ["train", "tset"]}, "row 2, column 'dataset': 'tset' is none of train"),
    ],
)
def test_bad_manifests_are_refused(
    tmp_path: Path, columns: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_data(Source(write_cohort(tmp_path, **columns), window=20), tmp_path)
