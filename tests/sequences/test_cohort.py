"""Haplotypes: every rule, against bcftools and against plain Python."""

from __future__ import annotations

import gzip
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from genomepred.errors import RegionError, SequenceError
from genomepred.sequences import panel_cache, vcf
from genomepred.sequences.cohort import Panel, PanelOptions, read_samples
from genomepred.sequences.consensus import write_consensus
from genomepred.sequences.fasta import Genome
from genomepred.sequences.panel_cache import Block
from tests.helpers import seeds
from tests.sequences.panels import (
    RandomPanel,
    bcftools,
    consensus,
    convert,
    random_panel,
    read_fasta,
)

REFERENCE = "ACGTACGTACGTACGTACGT"  # of c1


@pytest.fixture
def fasta(tmp_path: Path) -> Iterator[Genome]:
    (tmp_path / "ref.fa").write_text(f">c1\n{REFERENCE}\n>c2\nACGTNACGTA\n")
    with Genome(tmp_path / "ref.fa") as genome:
        yield genome


def panel(genome: Genome, *lines: str, samples: str = "s1 s2", **options: object) -> Panel:
    """A panel of records ``contig pos ref alt info genotypes...``."""
    records = []
    for line in lines:
        contig, pos, ref, alt, info, *calls = line.split()
        calls += ["0|0"] * (len(samples.split()) - len(calls))
        records.append("\t".join([contig, pos, ".", ref, alt, ".", "PASS", info, "GT", *calls]))
    path = genome.path.with_name("panel.vcf")
    path.write_text(RandomPanel({}, samples.split(), records).text())
    return Panel(genome, path, PanelOptions(**options))  # type: ignore[arg-type]


def text(panel: Panel, sample: str = "s1", copy: int = 1, contig: str = "c1") -> str:
    pieces = [piece.copy() for piece in panel.haplotype(sample, copy).sequence(contig)]
    return "".join("ACGTN"[code] for code in np.concatenate(pieces))


def edited(*edits: tuple[int, int, str]) -> str:
    """The reference with ``[start, end)`` replaced, from the last to the first."""
    found = REFERENCE
    for start, end, alt in sorted(edits, reverse=True):
        found = found[:start] + alt + found[end:]
    return found


# -- the table of rules ----------------------------------------------------------------------


def test_alleles_go_to_their_copies(fasta: Genome) -> None:
    found = panel(fasta, "c1 5 A G,C . 0|1 2|1")
    assert [text(found, *h) for h in found.haplotypes] == [
        REFERENCE,
        edited((4, 5, "G")),
        edited((4, 5, "C")),
        edited((4, 5, "G")),
    ]
    assert found.haplotypes == [("s1", 1), ("s1", 2), ("s2", 1), ("s2", 2)]


@pytest.mark.parametrize("call", [".", "./.", ".|.", ".|0"])
def test_missing_alleles(fasta: Genome, call: str) -> None:
    line = f"c1 5 ACG A . {call} 1|1"
    assert text(panel(fasta, line)) == REFERENCE
    assert text(panel(fasta, line, missing="n")) == edited((4, 5, "N"))
    second = REFERENCE if call == ".|0" else edited((4, 5, "N"))
    assert text(panel(fasta, line, missing="n"), "s1", 2) == second


def test_half_calls_are_taken_allele_by_allele(fasta: Genome) -> None:
    found = panel(fasta, "c1 5 A G . ./1")
    assert [text(found), text(found, "s1", 2)] == [REFERENCE, edited((4, 5, "G"))]


def test_unphased_heterozygotes(fasta: Genome) -> None:
    snp, indel = "c1 5 A G . 0|0 0/1", "c1 9 A ATT . 1/0 0|1"
    with pytest.raises(
        SequenceError,
        match=r"2 heterozygotes without phase, first at record 1 "
        r"\(c1:5\), sample 's2'",
    ):
        panel(fasta, snp, indel)
    found = panel(fasta, snp, indel, unphased="first")
    assert text(found, "s1", 1) == edited((8, 9, "ATT"))
    assert text(found, "s2", 2) == edited((4, 5, "G"), (8, 9, "ATT"))
    found = panel(fasta, snp, indel, unphased="n")
    assert text(found, "s1", 1) == text(found, "s1", 2) == REFERENCE
    assert text(found, "s2", 1) == edited((4, 5, "N"))
    assert text(found, "s2", 2) == edited((4, 5, "N"), (8, 9, "ATT"))


def test_unphased_homozygotes_need_no_phase(fasta: Genome) -> None:
    assert text(panel(fasta, "c1 5 A G . 1/1")) == edited((4, 5, "G"))


def test_inbred_samples_have_one_haplotype(fasta: Genome) -> None:
    found = panel(fasta, "c1 5 A G . 1|1 0|0", inbred=True)
    assert found.haplotypes == [("s1", 1), ("s2", 1)]
    assert text(found) == edited((4, 5, "G"))
    assert found.haplotype("s1").name == "s1"
    with pytest.raises(SequenceError, match="1 heterozygote of inbred samples"):
        panel(fasta, "c1 5 A G . 0|1", inbred=True)
    line = "c1 5 A G . 0|1 1|0"
    found = panel(fasta, line, inbred=True, unphased="first")
    assert [text(found, s) for s in ("s1", "s2")] == [REFERENCE, edited((4, 5, "G"))]
    found = panel(fasta, line, inbred=True, unphased="n")
    assert text(found, "s1") == text(found, "s2") == edited((4, 5, "N"))
    found = panel(fasta, "c1 5 A GG . 0|1", inbred=True, unphased="n")
    assert text(found, "s1") == REFERENCE


@pytest.mark.parametrize(
    ("lines", "expected", "skipped"),
    [
        (["c1 5 A G . 1|0", "c1 5 A C . 1|0"], [(4, 5, "G")], 1),
        (["c1 5 ACG A . 1|0", "c1 6 C T . 1|0"], [(5, 7, "")], 1),
        (["c1 5 ACG A . 1|0", "c1 7 G GTT . 1|0"], [(5, 7, ""), (7, 7, "TT")], 0),
        (["c1 5 ACG A . 1|0", "c1 7 G C . 1|0"], [(5, 7, "")], 1),
        (["c1 5 A G . 1|0", "c1 5 ACG A . 1|0"], [(4, 5, "G"), (5, 7, "")], 0),
        (
            ["c1 5 A G . 1|0", "c1 5 A ATT . 1|0", "c1 5 A ACC . 1|0"],
            [(4, 5, "G"), (5, 5, "TT")],
            1,
        ),
        (["c1 5 A ATT . 1|0", "c1 5 A G . 1|0"], [(5, 5, "TT")], 1),
        (["c1 5 ACGT A . 0|1", "c1 6 C T . 1|0"], [(5, 6, "T")], 0),
    ],
)
def test_the_first_of_overlapping_records_wins(
    fasta: Genome, lines: list[str], expected: list[tuple[int, int, str]], skipped: int
) -> None:
    found = panel(fasta, *lines)
    assert text(found) == edited(*expected)
    assert found.counts.skipped == (skipped, 0)
    assert any("bcftools norm" in line for line in found.warnings()) == (skipped > 0)


def test_an_asterisk_is_no_edit(fasta: Genome) -> None:
    found = panel(fasta, "c1 5 A *,G . 1|2", "c1 5 A C . 1|0")
    assert [text(found), text(found, "s1", 2)] == [edited((4, 5, "C")), edited((4, 5, "G"))]


@pytest.mark.parametrize("info", ["END=8", "SVLEN=-3", "SVTYPE=DEL;END=8;SVLEN=-90"])
def test_symbolic_deletions(fasta: Genome, info: str) -> None:
    found = panel(fasta, f"c1 5 A <DEL> {info} 1|0", "c1 7 G T . 1|1")
    assert text(found) == edited((5, 8, ""))
    assert text(found, "s1", 2) == edited((6, 7, "T"))


@pytest.mark.parametrize("allele", ["<*>", "<NON_REF>"])
def test_blocks_of_reference_are_no_edit(fasta: Genome, allele: str) -> None:
    assert text(panel(fasta, f"c1 5 A {allele} END=9 1|1")) == REFERENCE


@pytest.mark.parametrize("allele", ["<INS>", "<DUP>", "A[c2:4[", "]c2:4]A", "A.", "<DEL>"])
def test_alleles_without_sequence_are_refused_where_carried(fasta: Genome, allele: str) -> None:
    with pytest.raises(SequenceError, match=r"record 1 \(c1:5\), sample 's2': allele "):
        panel(fasta, f"c1 5 A {allele} . 0|0 0|1")
    assert text(panel(fasta, f"c1 5 A {allele},G . 0|2")) == REFERENCE


@pytest.mark.parametrize("allele", ["A1", "A-", "<DEL", "C,,G"])
def test_alleles_that_are_none_are_refused(fasta: Genome, allele: str) -> None:
    with pytest.raises(SequenceError, match=r"record 1 \(c1:5\): alleles"):
        panel(fasta, f"c1 5 A {allele} . 0|0 0|0")


def test_ref_must_be_the_reference(fasta: Genome) -> None:
    with pytest.raises(
        SequenceError,
        match=r"REF is not the reference at 2 of 3 records, first at "
        r"record 2 \(c1:6: REF G, the reference has C\)",
    ):
        panel(fasta, "c1 5 A G . 0|0", "c1 6 G A . 0|0", "c1 7 T A . 1|1")
    panel(fasta, "c2 5 A G . 1|1")  # the reference has N there
    assert text(panel(fasta, "c1 5 a g . 1|1")) == edited((4, 5, "G"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["c1 20 TA T . 1|1"], r"record 1 \(c1:20\): reaches outside"),
        (["c1 21 A T . 1|1"], "reaches outside"),
        (["c1 0 A T . 1|1"], "reaches outside"),
        (["c1 5 A <DEL> END=21 0|0"], "reaches outside"),
        (["c1 5 A G . 1|1", "c1 4 T G . 1|1"], r"record 2 \(c1:4\): stands behind a later"),
        (["c1 5 A G . 1|1", "c2 1 A G . 1|1", "c1 6 C G . 1|1"], "do not stand together"),
        (["chrc1 5 A G . 1|1"], "there it is named 'c1'"),
        (["other 5 A G . 1|1"], "no contig 'other' in"),
        (["c1 5 A G . 1|1", "c1 9 A G . 1 1"], "another number of copies"),
    ],
)
def test_records_that_do_not_fit_the_reference(
    fasta: Genome, lines: list[str], message: str
) -> None:
    with pytest.raises(SequenceError, match=message) as caught:
        panel(fasta, *lines)
    assert "\n" not in str(caught.value)


def test_a_copy_absent_on_a_contig(fasta: Genome) -> None:
    found = panel(fasta, "c1 5 A G . 1|0 1", "c2 1 A T . 0|1 1|1")
    assert found.haplotypes[-1] == ("s2", 2)
    assert found.absent("c1").tolist() == [False, False, False, True]
    assert not found.absent("c2").any()
    assert list(found.haplotype("s2", 2).contigs) == ["c2"]


def test_any_ploidy(fasta: Genome) -> None:
    found = panel(fasta, "c1 5 A G,C,T . 0|1|2|3 .|.|.|1")
    assert [text(found, "s1", c)[4] for c in (1, 2, 3, 4)] == list("AGCT")
    assert len(found.haplotypes) == 8


def test_no_records_and_nothing_carried(fasta: Genome) -> None:
    for lines in ([], ["c1 5 A G . 0|0"]):
        found = panel(fasta, *lines)
        assert text(found, "s2", 2) == REFERENCE
        assert "every haplotype is the reference" in found.warnings()[0]
        assert len(found.haplotypes) == 4


def test_carriers_of_records_that_did_not_pass_are_counted(fasta: Genome) -> None:
    path = fasta.path.with_name("f.vcf")
    line = "c1\t5\t.\tA\tG\t.\tq10\t.\tGT\t1|1\t0|0"
    path.write_text(RandomPanel({}, ["s1", "s2"], [line]).text())
    found = Panel(fasta, path)
    assert found.counts.filtered == 2
    assert text(found) == edited((4, 5, "G"))


@pytest.mark.parametrize(
    ("count", "hints"),
    [(1, True), (998, True), (1200, False)],
)
def test_skipped_alleles_are_a_hint_above_a_thousandth(
    tmp_path: Path, count: int, hints: bool
) -> None:
    (tmp_path / "ref.fa").write_text(f">c1\n{'A' * 2 * count}\n")
    lines = [f"c1 {2 * k + 1} A G . 1|0" for k in range(count)]
    with Genome(tmp_path / "ref.fa") as genome:
        found = panel(genome, lines[0].replace("G", "C"), *lines)
    assert found.counts.skipped == (1, 0)
    assert any("bcftools norm" in line for line in found.warnings()) == hints


def test_contigs_of_the_header_are_not_needed(fasta: Genome) -> None:
    path = fasta.path.with_name("plain.vcf")
    head = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\n"
    path.write_text("##fileformat=VCFv4.2\n" + head + "c1\t5\t.\tA\tG\t.\t.\t.\tGT\t1|0\n")
    with Panel(fasta, path) as found:
        assert text(found) == edited((4, 5, "G"))
        assert text(found, "s1", 2) == REFERENCE
        assert text(found, contig="c2") == "ACGTNACGTA"  # a contig without records


def headed(genome: Genome, header: str, *records: str) -> Path:
    """A panel whose header has this line; records are ``contig pos``, and insertions."""
    lines = [
        f"{contig}\t{pos}\t.\tA\tAG\t.\t.\t.\tGT\t1|0" for contig, pos in map(str.split, records)
    ]
    text = RandomPanel({}, ["s1"], lines).text()
    path = genome.path.with_name("headed.vcf")
    path.write_text(text.replace("\n", f"\n{header}\n", 1))
    return path


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("##contig=<ID=c1,length=21>", "v"),
        ("##contig=<ID=c1,length=21>", "z"),
        ("##contig=<ID=c1,length=21>", "b"),
        ("##contig=<ID=c1,length=21>", "u"),
        ("##contig=<ID=c1,length=19>", "b"),
        ('##contig=<ID=c1,assembly="a,length=20",length=21>', "v"),
        ('##contig=<length="21",ID=c1>\r', "v"),
        ('##contig=<ID=c1,length=21,assembly="bad "x,ID=c2,length=5" y">', "v"),
        ('##contig=<assembly="a,ID=zz",ID=c1,length=21>', "v"),
        ('##contig=<assembly="a,ID=zz",ID=c1,length=21>', "b"),
        ("##contig=<ID=chrc1,length=21>", "v"),
    ],
)
def test_another_length_in_the_header(fasta: Genome, header: str, form: str) -> None:
    path = headed(fasta, f"{header}\n##contig=<ID=c2>", "c1 5", "c1 9", "c2 1")
    if form != "v":
        path = convert(path, path.with_suffix(".other"), form)
    with pytest.warns(UserWarning, match="its header gives contig") as caught:
        Panel(fasta, path).close()
    (found,) = (text for w in caught if (text := str(w.message)).startswith(f"{path}: its header"))
    assert "gives contig 'c" in found
    assert f"{19 if '19' in header else 21} bases, in {fasta.path} it has 20:" in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "header",
    [
        "##contig=<ID=c1>",
        "##contig=<ID=c1,length=20>",
        '##contig=<ID=c1,length="20">',
        "##contig=<ID=c1,length=20>\n##contig=<ID=c3,length=7>",  # not in the FASTA
        "##contig=<ID=c2,length=7>",  # no records
        "##contig=<ID=c1,length=2147483647>",  # of bcftools convert --hapsample2vcf
        "##contig=<ID=c1,length=0>",
        "##contig=<ID=c1,length=10>",  # of PLINK 1: behind the last record by one
        "##contig=<ID=c2,length=20>\n##contig=<ID=chrc2,length=20>",
    ],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_headers_that_say_nothing_against_the_reference(fasta: Genome, header: str) -> None:
    with Panel(fasta, headed(fasta, header, "c1 5", "c1 9")) as found:
        assert text(found) == edited((4, 5, "AG"), (8, 9, "AG"))


def test_a_contig_without_bases_has_no_chain(tmp_path: Path) -> None:
    (tmp_path / "ref.fa").write_text(">none\n>c1\nACGTA\n")
    sequences, chains = io.BytesIO(), io.BytesIO()
    with Genome(tmp_path / "ref.fa") as genome, panel(genome, "c1 5 A AG . 1|0") as found:
        write_consensus(found.haplotype("s1", 1), sequences, chains)
    assert sequences.getvalue() == b">none\n>c1\nACGTAG\n"
    assert chains.getvalue().startswith(b"chain 5 c1 5 + 0 5 c1 6 + 0 6 ")
    assert chains.getvalue().count(b"chain") == 1


def test_an_alike_name_may_be_another_contig(tmp_path: Path) -> None:
    (tmp_path / "ref.fa").write_text(">1\nACGT\n>chr1\nACGTA\n")
    with Genome(tmp_path / "ref.fa") as genome:
        path = headed(genome, "##contig=<ID=1,length=4>", "chr1 5")
        with Panel(genome, path) as found:
            assert text(found, contig="chr1") == "ACGTAG"


@pytest.mark.parametrize(
    ("form", "calls", "message"),
    [("DP", "3\t4", "no GT"), ("", "", "no samples")],
)
def test_a_panel_needs_genotypes(fasta: Genome, form: str, calls: str, message: str) -> None:
    path = fasta.path.with_name("none.vcf")
    head = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO" + "\tFORMAT\ts1\ts2" * bool(form)
    record = "c1\t5\t.\tA\tG\t.\t.\t." + f"\t{form}\t{calls}" * bool(form)
    path.write_text(f"##fileformat=VCFv4.2\n{head}\n{record}\n")
    with pytest.raises(SequenceError, match=message):
        Panel(fasta, path)


def test_samples_keep_their_order(fasta: Genome, tmp_path: Path) -> None:
    lines = ["c1 5 A G . 1|0 0|1", "c1 9 A T . 0|1 1|1"]
    found = panel(fasta, *lines)
    chosen = Panel(fasta, found.path, PanelOptions(samples=("s2", "s1")))
    assert [s for s, _ in chosen.haplotypes] == ["s2", "s2", "s1", "s1"]
    assert text(chosen, "s2", 2) == text(found, "s2", 2)
    assert read_samples("b,a") == ("b", "a")
    (tmp_path / "list").write_text("s2\n\ns1\n")
    assert read_samples(str(tmp_path / "list")) == ("s2", "s1")
    many = [f"a-long-name-of-a-sample-{k}" for k in range(1000)]
    assert read_samples(",".join(many)) == tuple(many)  # too long for the name of a file
    with pytest.raises(SequenceError, match="names no sample"):
        read_samples(" , ")
    with pytest.raises(SequenceError, match="'s9'"):
        Panel(fasta, found.path, PanelOptions(samples=("s1", "s9")))
    with pytest.raises(RegionError, match="has copies 1-2"):
        found.haplotype("s1", 3)
    with pytest.raises(RegionError, match="no sample"):
        found.haplotype("s7")


# -- other opinions --------------------------------------------------------------------------


def mine(panel: Panel, sample: str, copy: int) -> tuple[dict[str, str], list[list[str]]]:
    sequences, chain = io.BytesIO(), io.BytesIO()
    write_consensus(panel.haplotype(sample, copy), sequences, chain)
    return read_fasta(sequences.getvalue().decode()), _words(chain.getvalue().decode())


def _words(chain: str) -> list[list[str]]:
    return [line.split() for line in chain.splitlines() if line.strip()]


@pytest.mark.parametrize("seed", seeds(12, 24))
def test_haplotypes_and_chains_are_those_of_bcftools(tmp_path: Path, seed: int) -> None:
    text = random_panel(seed, phased=seed % 2 == 0)
    fasta = text.fasta(tmp_path / "ref.fa")
    packed = convert(text.vcf(tmp_path / "p.vcf"), tmp_path / "p.vcf.gz", "z")
    subprocess.run([bcftools(), "index", "-f", str(packed)], check=True)
    missing = "n" if seed % 4 > 1 else "reference"
    more = ["-M", "N"] if missing == "n" else []
    with (
        Genome(fasta) as genome,
        Panel(genome, packed, PanelOptions(missing=missing, unphased="first")) as panel,
    ):
        for sample, copy in panel.haplotypes:
            sequences, chain = consensus(fasta, packed, sample, copy, *more)
            assert mine(panel, sample, copy) == (sequences, _words(chain))


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_every_form_of_a_panel_is_one_panel(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel_cache, "BLOCK", 64)  # many blocks, and edits that cross them
    text = random_panel(seed, samples=5, length=900)
    plain = text.vcf(tmp_path / "p.vcf")
    (tmp_path / "p.gz").write_bytes(gzip.compress(plain.read_bytes()))
    paths = [plain, tmp_path / "p.gz"]
    paths += [convert(plain, tmp_path / f"p.{form}", form) for form in "zb"]
    shuffled = RandomPanel(text.contigs, list(reversed(text.samples)))
    for line in text.lines:
        fields = line.split("\t")
        shuffled.lines.append("\t".join(fields[:9] + fields[:8:-1]))
    paths.append(shuffled.vcf(tmp_path / "reversed.vcf"))
    options = PanelOptions(samples=tuple(text.samples))
    with Genome(text.fasta(tmp_path / "ref.fa")) as genome:
        panels = [Panel(genome, path, options) for path in paths]
        assert len({panel.digest for panel in panels}) == 1
        for sample, copy in panels[0].haplotypes:
            expected = mine(panels[0], sample, copy)
            assert all(mine(panel, sample, copy) == expected for panel in panels[1:])
        less = Panel(genome, plain, PanelOptions(samples=tuple(text.samples[:4])))
        assert less.digest != panels[0].digest


@pytest.mark.parametrize("seed", range(6))
def test_conflicts_are_settled_alike_however_records_are_batched(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = random_panel(seed, samples=3, rate=(0.05, 0.2, 0.4)[seed % 3], phased=seed < 3)
    plain = text.vcf(tmp_path / "p.vcf")
    options = PanelOptions(unphased="first", missing="n" if seed % 2 else "reference")
    with Genome(text.fasta(tmp_path / "ref.fa")) as genome:
        with Panel(genome, plain, options) as whole:
            expected = [mine(whole, *h) for h in whole.haplotypes], whole.counts
        for records in (1, 2, 3):
            monkeypatch.setattr(vcf, "_RECORDS", records)
            with Panel(genome, plain, options) as some:
                assert ([mine(some, *h) for h in some.haplotypes], some.counts) == expected
                assert some.digest == whole.digest


def test_the_cache_is_checked_and_made_anew(tmp_path: Path) -> None:
    text = random_panel(1, samples=4)
    plain = text.vcf(tmp_path / "p.vcf")
    with Genome(text.fasta(tmp_path / "ref.fa")) as genome:
        first = Panel(genome, plain, cache=tmp_path / "cache")
        expected = [mine(first, *h) for h in first.haplotypes]
        data, index = (next((tmp_path / "cache").glob(f"*.panel{end}")) for end in ("", ".json"))
        whole = data.read_bytes()
        first.close()
        for damaged in (whole[:-1], b"", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
            data.write_bytes(damaged)
            with Panel(genome, plain, cache=tmp_path / "cache") as again:
                assert [mine(again, *h) for h in again.haplotypes] == expected
            assert data.read_bytes() == whole
        index.write_text(index.read_text().replace('"copies": [\n    2', '"copies": [\n    1'))
        with Panel(genome, plain, cache=tmp_path / "cache") as again:
            assert again.haplotypes == first.haplotypes
        plain.write_text(text.text(text.lines[:-1]))
        with Panel(genome, plain, cache=tmp_path / "cache") as other:
            assert other.digest != first.digest


def test_a_damaged_cache_that_cannot_be_made_anew_is_closed_once(tmp_path: Path) -> None:
    text = random_panel(1, samples=4)
    plain = text.vcf(tmp_path / "p.vcf")
    with Genome(text.fasta(tmp_path / "ref.fa")) as genome:
        Panel(genome, plain, cache=tmp_path / "cache").close()
        data = next((tmp_path / "cache").glob("*.panel"))
        data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
        panel = Panel(genome, plain, cache=tmp_path / "cache")
        plain.unlink()
        with pytest.raises(SequenceError, match="cannot be read"):
            mine(panel, *panel.haplotypes[0])
        panel.close()


@pytest.mark.slow
def test_real_haplotypes_are_those_of_bcftools(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "genomes" / "hs37_chr20.fa.gz"
    path = shared_data / "variants" / "unphased.bcf"
    with Genome(source, cache=tmp_path) as genome:
        options = PanelOptions(unphased="first")
        with Panel(genome, path, options) as panel:
            assert (len(panel.haplotypes), panel.counts.unphased) == (406, 570)
            contig = next(iter(genome.contigs))
            sequences, chain = consensus(
                source, path, panel.samples[7], 2, chain=tmp_path / "chain"
            )
            found, words = mine(panel, panel.samples[7], 2)
            assert words == _words(chain)
            assert found[contig] == sequences[contig]
        with pytest.raises(SequenceError, match="570 heterozygotes without phase"):
            Panel(genome, path)


def test_blocks_of_any_steps_are_read_as_written() -> None:
    rng = np.random.default_rng(0)
    most, count = (1 << 31) - 1, 9
    some = [np.unique(rng.integers(0, most, n)) for n in (0, 1, 3000, 0, 40)]
    some.append(np.array([0, 127, 128, 255, 256, 1 << 14, 1 << 21, 1 << 28, most]))
    start = np.arange(count, dtype=np.int64)
    block = Block(
        7,
        2,
        np.cumsum([0, *map(len, some)]),
        np.concatenate(some).astype(np.int32),
        np.arange(count + 1, dtype=np.int32),
        np.stack([start, start + 1], 1),
        np.arange(count + 1, dtype=np.int32),
        rng.integers(0, 5, count, np.uint8),
    )
    found = Block.of_bytes(block.to_bytes())
    assert (found.number, found.most) == (7, 2)
    for name in ("first", "events", "first_edit", "edits", "alt_first", "letters"):
        assert getattr(found, name).dtype == getattr(block, name).dtype
        assert np.array_equal(getattr(found, name), getattr(block, name))
