"""Random panels of everything that VCF allows, against bcftools and against strings in Python.

Panels of rows that the documentation marks, where bcftools differs, go to the strings alone.

    python -m pytest tests/sequences/test_nasty.py -m slow    # 1,000 panels
"""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from genomepred.sequences import panel_cache
from genomepred.sequences.cohort import Panel, PanelOptions
from genomepred.sequences.fasta import Genome
from tests.sequences import by_hand
from tests.sequences.panels import RandomPanel, bcftools, consensus, convert, random_panel
from tests.sequences.test_distinct import GEOMETRIES, check

FEW, MANY = 12, 1000


@dataclass
class Nasty:
    """A panel, the options it is read with, and whether bcftools has the same opinion."""

    panel: RandomPanel
    options: dict[str, object]
    marked: bool
    text: str


def nasty(seed: int) -> Nasty:
    """One of each kind of panel, by turns; what is turned on is decided by the seed."""
    rng = random.Random(f"nasty {seed}")
    phased = seed % 2 == 0
    panel = random_panel(
        seed,
        samples=rng.choice((1, 2, 3, 5)),
        length=rng.choice((60, 150, 300, 700)),
        rate=rng.choice((0.02, 0.1, 0.3)),
        phased=phased,
        missing=rng.choice((0, 0.05, 0.3)),
        header_contigs=seed % 7 != 0,
    )
    options: dict[str, object] = {"unphased": "first"}
    if seed % 4 > 1:
        options["missing"] = "n"
    marked = seed % 5 == 4
    if marked:
        panel.lines = [_marked(rng, line) for line in panel.lines]
        options["unphased"] = rng.choice(("first", "n"))
        options["inbred"] = rng.random() < 0.5
    if rng.random() < 0.2:  # one copy, or four, on the second contig
        copies = rng.choice((1, 4))
        panel.lines = [_with_copies(line, copies) for line in panel.lines]
    if marked and rng.random() < 0.3:
        panel.lines = [_small(rng, line) for line in panel.lines]
    if rng.random() < 0.1:
        panel.lines = []
    text = panel.text()
    return Nasty(panel, options, marked, text.replace("\n", "\r\n") if seed % 6 == 1 else text)


def _marked(rng: random.Random, line: str) -> str:
    """A record as bcftools reads otherwise: `*`, a deletion by its length, many alleles."""
    fields = line.split("\t")
    alts, kind = fields[4].split(","), rng.random()
    if alts == ["<DEL>"] and kind < 0.5:
        fields[7] = f"SVLEN=-{int(fields[7][4:]) - int(fields[1])}"
    elif alts != ["<DEL>"] and kind < 0.2:
        alts[rng.randrange(len(alts))] = "*"
    elif alts != ["<DEL>"] and kind < 0.3:
        more = ["".join(rng.choice("ACGT") for _ in range(5 + k % 9)) for k in range(200)]
        alts += [alt for alt in dict.fromkeys(more) if alt not in (*alts, fields[3])]
        place = fields[8].split(":").index("GT")
        for k in range(9, len(fields)):
            called = fields[k].split(":")
            if "." not in called[place] and len(alts) > 128:
                called[place] = f"{rng.randint(120, len(alts))}|{rng.randint(0, len(alts))}"
            fields[k] = ":".join(called)
    fields[4] = ",".join(alts)
    return "\t".join(fields)


def _with_copies(line: str, copies: int) -> str:
    """A record of the second contig with other copies of the same alleles."""
    fields = line.split("\t")
    if fields[0] != "c2":
        return line
    place = fields[8].split(":").index("GT")
    for k in range(9, len(fields)):
        called = fields[k].split(":")
        numbers = by_hand._call([called[place]])[0]
        if len(numbers) == 2:
            numbers = (numbers * 2)[:copies]
            called[place] = "|".join("." if n is None else str(n) for n in numbers)
        elif copies > 2:
            called[place] = "|".join("." * copies)
        fields[k] = ":".join(called)
    return "\t".join(fields)


def _small(rng: random.Random, line: str) -> str:
    """A record with alleles in lower case."""
    fields = line.split("\t")
    if rng.random() < 0.5 and "<" not in fields[4]:
        fields[3], fields[4] = fields[3].lower(), fields[4].lower()
    return "\t".join(fields)


def compare(folder: Path, seed: int) -> int:
    """Compare every haplotype of a panel with both opinions; how many there were."""
    case = nasty(seed)
    fasta, path = folder / "ref.fa", folder / "p.vcf"
    case.panel.fasta(fasta)
    path.write_bytes(case.text.encode())
    samples, records = by_hand.parse(case.text)
    asked = PanelOptions(**case.options)  # type: ignore[arg-type]
    packed = folder / "p.vcf.gz"
    ask_bcftools = not case.marked
    if ask_bcftools:
        convert(path, packed, "z")
        subprocess.run([bcftools(), "index", "-f", str(packed)], check=True, capture_output=True)
    more = ["-M", "N"] if asked.missing == "n" else []
    with Genome(fasta) as genome, Panel(genome, path, asked) as panel:
        for sample, copy in panel.haplotypes:
            haplotype = panel.haplotype(sample, copy)
            mine = {
                contig: "".join(
                    "ACGTN"[code] for piece in haplotype.sequence(contig) for code in piece
                )
                for contig in haplotype.contigs
            }
            has = [r for r in records if r.contig in mine]
            expected = by_hand.haplotype(
                {contig: case.panel.contigs[contig] for contig in mine},
                has,
                samples.index(sample),
                copy,
                missing=asked.missing,
                unphased=asked.unphased,
                inbred=asked.inbred,
            )
            assert mine == expected, (seed, sample, copy)
            if ask_bcftools:
                found, _ = consensus(fasta, packed, sample, copy, *more)
                assert mine == {contig: found[contig] for contig in mine}, (seed, sample, copy)
        if seed % 10 == 0 and case.panel.contigs["c1"] and len(case.panel.contigs["c1"]) < 400:
            found_rows, needed = check(panel, GEOMETRIES[seed // 10 % len(GEOMETRIES)])
            assert needed <= found_rows
        return len(panel.haplotypes)


@pytest.mark.parametrize("seed", range(FEW))
def test_nasty_panels(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel_cache, "BLOCK", (64, 1 << 16)[seed % 2])
    bcftools()
    compare(tmp_path, seed)


@pytest.mark.slow
def test_a_thousand_nasty_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bcftools()
    haplotypes = 0
    for seed in range(FEW, MANY + FEW):
        monkeypatch.setattr(panel_cache, "BLOCK", (64, 1 << 16)[seed % 2])
        haplotypes += compare(tmp_path, seed)
    print(f"{MANY} panels, {haplotypes} haplotypes: none differs")


def test_seventy_thousand_haplotypes(tmp_path: Path) -> None:
    """Leaders need four bytes, and a sample's columns are far apart."""
    samples, reference = 35_000, "ACGTACGTAC" * 12
    rng = np.random.default_rng(0)
    lines = []
    for pos in range(10, 110, 20):
        calls = np.full(samples, "0|0", object)
        calls[rng.integers(0, samples, 40)] = "0|1"
        calls[-1] = "1|1"
        fields = ["c1", str(pos + 1), ".", reference[pos], "T" if pos % 10 else "G"]
        fields[4] = "ACGT"[("ACGT".index(reference[pos]) + 1) % 4]
        lines.append("\t".join([*fields, ".", ".", ".", "GT", *calls.tolist()]))
    text = RandomPanel({"c1": reference}, [f"s{i}" for i in range(samples)], lines)
    with (
        Genome(text.fasta(tmp_path / "ref.fa")) as genome,
        Panel(genome, text.vcf(tmp_path / "p.vcf")) as panel,
    ):
        assert len(panel.haplotypes) == 2 * samples
        names, records = by_hand.parse(text.text())
        for number in (0, 69_999, *rng.integers(0, 2 * samples, 5).tolist()):
            sample, copy = panel.haplotypes[number]
            expected = by_hand.haplotype(text.contigs, records, names.index(sample), copy)
            pieces = panel.haplotype(sample, copy).sequence("c1")
            assert "".join("ACGTN"[c] for p in pieces for c in p) == expected["c1"]
        from genomepred.sequences.distinct import distinct_windows

        for chunk in distinct_windows(panel, GEOMETRIES[0], "c1", 0, 5):
            assert chunk.leader.dtype == np.uint32
            assert len(chunk.leader) < 400
