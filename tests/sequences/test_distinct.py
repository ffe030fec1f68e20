"""Distinct windows against windows cut from whole haplotypes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from genomepred.sequences import distinct, panel_cache
from genomepred.sequences.cohort import Panel, PanelOptions
from genomepred.sequences.distinct import distinct_windows, leader_type
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Geometry
from tests.helpers import seeds
from tests.sequences.panels import RandomPanel, random_panel

GEOMETRIES = [
    Geometry(window=40, stride=7),
    Geometry(window=30, stride=30, crop=5),
    Geometry(window=16, stride=25),
    Geometry(window=64, stride=32, crop=16, bins=4),
]


def windows_of(panel: Panel, number: int, contig: str, g: Geometry) -> NDArray[np.uint8]:
    """Every window of a haplotype, from its whole sequence and its chain."""
    haplotype = panel.haplotype(*panel.haplotypes[number])
    codes = np.concatenate([piece.copy() for piece in haplotype.sequence(contig)])
    length, place = panel.contigs[contig], {}
    here, there = 0, 0
    for size, gap, other in haplotype.chain(contig):
        place.update({here + k: there + k for k in range(size)})
        here, there = here + size + gap, there + size + other
    found = []
    for i in range(int(g.windows(length))):
        x = i * g.stride + g.span // 2
        kept = next((k for k in range(x, length) if k in place), None)
        middle = place[kept] if kept is not None else len(codes) + max(x - length, 0)
        start = middle - g.crop - g.span // 2
        window = np.full(g.window, 4, np.uint8)
        first, last = max(start, 0), min(start + g.window, len(codes))
        if first < last:
            window[first - start : last - start] = codes[first:last]
        found.append(window)
    return np.array(found)


def check(panel: Panel, g: Geometry, step: int = 10**9) -> tuple[int, int]:
    """Compare everything; numbers of distinct rows, found and needed."""
    found = needed = 0
    for contig, length in panel.contigs.items():
        count = int(g.windows(length))
        absent = panel.absent(contig)
        expected = {
            h: windows_of(panel, h, contig, g)
            for h in range(len(panel.haplotypes))
            if not absent[h]
        }
        none = np.iinfo(leader_type(len(absent))).max
        done = 0
        for begin in range(0, count, step):
            for chunk in distinct_windows(panel, g, contig, begin, min(begin + step, count)):
                assert chunk.first == done
                codes = chunk.codes()
                for w in range(len(chunk.begin) - 1):
                    rows = slice(chunk.begin[w], chunk.begin[w + 1])
                    leaders = chunk.leader[rows].tolist()
                    assert leaders == sorted(set(leaders))
                    index = chunk.index[:, w]
                    assert (index[absent] == none).all()
                    assert set(index[~absent].tolist()) == set(leaders)
                    for h, windows in expected.items():
                        mine = codes[rows][leaders.index(index[h])]
                        assert mine.tobytes() == windows[done].tobytes(), (contig, done, h)
                        assert index[h] <= h
                    needed += len({windows[done].tobytes() for windows in expected.values()})
                    done += 1
                found += len(chunk.leader)
        assert done == count
    return found, needed


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("seed", seeds(4, 6))
def test_windows_are_cut_from_haplotypes(
    tmp_path: Path, geometry: Geometry, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel_cache, "BLOCK", 128)
    text = random_panel(seed, samples=4, length=700, rate=(0.03, 0.12)[seed % 2])
    with Genome(text.fasta(tmp_path / "ref.fa")) as genome:
        options = PanelOptions(missing="n" if seed % 3 else "reference")
        with Panel(genome, text.vcf(tmp_path / "p.vcf"), options) as panel:
            found, needed = check(panel, geometry, step=9 if seed % 2 else 10**9)
            assert needed <= found <= needed * 1.2 + 2


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("seed", seeds(4, 8))
def test_haplotypes_that_are_alike_for_a_while(
    tmp_path: Path, geometry: Geometry, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few windows are looked at together, so that most haplotypes are found equal in many."""
    monkeypatch.setattr(distinct, "_CHUNK", 1 + seed % 3)
    text = random_panel(seed, samples=6, length=900, rate=(0.01, 0.03)[seed % 2], missing=0.3)
    with (
        Genome(text.fasta(tmp_path / "ref.fa")) as genome,
        Panel(genome, text.vcf(tmp_path / "p.vcf")) as panel,
    ):
        found, needed = check(panel, geometry)
        assert needed <= found <= needed * 1.2 + 2


def one_edit(length: int, pos: int, ref: int, alt: str) -> RandomPanel:
    """One record on a random contig: ``ref`` bases become the first of them and ``alt``."""
    rng = np.random.default_rng(length)
    sequence = "".join("ACGT"[k] for k in rng.integers(0, 4, length))
    before = sequence[pos : pos + ref]
    line = f"c1\t{pos + 1}\t.\t{before}\t{before[0] + alt}\t.\t.\t.\tGT\t0|1\t1|1"
    return RandomPanel({"c1": sequence}, ["s1", "s2"], [line])


@pytest.mark.parametrize(
    ("pos", "ref", "alt"),
    [
        (10, 31, ""),
        (100, 120, ""),
        (0, 90, ""),
        (150, 150, ""),
        (100, 1, "G" * 90),
        (100, 1, "C" * 15),
        (0, 300, ""),
        (299, 1, "ACGT" * 5),
        (20, 200, "TTTT"),
        (0, 1, "A" * 200),
    ],
)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_one_large_edit(
    tmp_path: Path,
    geometry: Geometry,
    pos: int,
    ref: int,
    alt: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(panel_cache, "BLOCK", 32)
    text = one_edit(300, pos, ref, alt)
    with (
        Genome(text.fasta(tmp_path / "ref.fa")) as genome,
        Panel(genome, text.vcf(tmp_path / "p.vcf")) as panel,
    ):
        check(panel, geometry)
        check(panel, geometry, step=3)
        monkeypatch.setattr(distinct, "_CHUNK", 2)
        check(panel, geometry)


def test_a_panel_without_variation_has_one_class(tmp_path: Path) -> None:
    text = random_panel(1, samples=5, rate=0)
    with (
        Genome(text.fasta(tmp_path / "ref.fa")) as genome,
        Panel(genome, text.vcf(tmp_path / "p.vcf")) as panel,
    ):
        for chunk in distinct_windows(panel, GEOMETRIES[0], "c1", 0, 30):
            assert (chunk.leader == 0).all()
            assert len(chunk.leader) == 30


def test_absent_copies_have_no_leader(tmp_path: Path) -> None:
    text = random_panel(2, samples=2)
    text.lines = ["c1\t1\t.\t" + text.contigs["c1"][0] + "\t<*>\t.\t.\t.\tGT\t0|0\t0"]
    with (
        Genome(text.fasta(tmp_path / "ref.fa")) as genome,
        Panel(genome, text.vcf(tmp_path / "p.vcf"), PanelOptions(samples=("s1", "s0"))) as panel,
    ):
        assert panel.absent("c1").tolist() == [False, False, False]
        found, needed = check(panel, GEOMETRIES[0])
        assert found == needed


@pytest.mark.slow
def test_real_windows(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "variants" / "unphased.bcf"
    g = Geometry(window=3000, stride=104)
    with (
        Genome(shared_data / "genomes" / "hs37_chr20.fa.gz", cache=tmp_path) as genome,
        Panel(genome, path, PanelOptions(unphased="first")) as panel,
    ):
        contig = next(iter(genome.contigs))
        first, last = 2_000_000 // 104, 2_100_000 // 104
        rows = 0
        for chunk in distinct_windows(panel, g, contig, first, last):
            codes = chunk.codes()
            unique = np.unique(codes, axis=0)
            assert len(unique) >= 0.9 * len({c.tobytes() for c in codes})
            rows += len(codes)
        assert 5 < rows / (last - first) < 40
