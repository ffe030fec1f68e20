"""Random panels for tests, and what other programs make of them."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class RandomPanel:
    """A reference and records, as text."""

    contigs: dict[str, str]
    samples: list[str]
    lines: list[str] = field(default_factory=list)
    header_contigs: bool = True

    def fasta(self, path: Path) -> Path:
        """Write the reference."""
        path.write_text("".join(f">{name}\n{text}\n" for name, text in self.contigs.items()))
        return path

    def text(self, lines: Sequence[str] | None = None) -> str:
        """The VCF."""
        head = ["##fileformat=VCFv4.3"]
        if self.header_contigs:
            head += [f"##contig=<ID={name},length={len(t)}>" for name, t in self.contigs.items()]
        head += [
            '##FILTER=<ID=q10,Description="low">',
            '##INFO=<ID=END,Number=1,Type=Integer,Description="end">',
            '##INFO=<ID=SVLEN,Number=A,Type=Integer,Description="length">',
            '##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">',
            '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="depth">',
            '##ALT=<ID=DEL,Description="deletion">',
            "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t" + "\t".join(self.samples),
        ]
        return "\n".join([*head, *(self.lines if lines is None else lines)]) + "\n"

    def vcf(self, path: Path) -> Path:
        """Write the VCF."""
        path.write_bytes(self.text().encode())
        return path


def random_panel(
    seed: int,
    *,
    samples: int = 3,
    length: int = 300,
    rate: float = 0.12,
    phased: bool = True,
    missing: float = 0.05,
    symbolic: bool = True,
    header_contigs: bool = True,
) -> RandomPanel:
    """Records of all kinds at random places, many of them in conflict."""
    rng = random.Random(seed)

    def sequence(count: int) -> str:
        return "".join(rng.choice("ACGT") for _ in range(count))

    contigs = {"c1": sequence(length), "c2": sequence(length // 2), "empty3": sequence(40)}
    if seed % 3 == 0:
        contigs["c1"] = contigs["c1"][:50] + "N" * 9 + contigs["c1"][59:]
    panel = RandomPanel(contigs, [f"s{i}" for i in range(samples)], [], header_contigs)
    for name in ("c1", "c2"):
        text = contigs[name]
        position = 0
        while position < len(text):
            if rng.random() < rate:
                for _ in range(rng.choice((1, 1, 1, 2, 3))):
                    panel.lines.append(
                        _record(rng, name, text, position, samples, phased, missing, symbolic)
                    )
            position += 1
    return panel


def _record(
    rng: random.Random,
    name: str,
    text: str,
    at: int,
    samples: int,
    phased: bool,
    missing: float,
    symbolic: bool,
) -> str:
    ref = text[at : at + rng.choice((1, 1, 1, 1, 2, 3, 6, 30))]
    info = "."
    alts: list[str] = []
    if symbolic and rng.random() < 0.05 and at + 2 < len(text):
        ref = text[at]
        info = f"END={rng.randint(at + 2, min(at + 40, len(text)))}"
        alts = ["<DEL>"]
        missing = 0.0  # bcftools takes such a record's END for the length of every allele
    while not alts or (alts[0] != "<DEL>" and len(alts) < rng.choice((1, 1, 2, 3))):
        kind, alt = rng.random(), ""
        some = "".join(rng.choice("ACGT") for _ in range(rng.choice((1, 1, 2, 5, 40))))
        if kind < 0.4:
            alt = "".join(rng.choice("ACGT") for _ in ref)
        elif kind < 0.6:
            alt = ref + some
        elif kind < 0.8:
            alt = ref[:1]
        elif kind < 0.9:
            alt = ref[0] + some + ref[1:]
        else:
            alt = some
        if alt != ref and alt not in alts:
            alts.append(alt)
    genotypes = []
    for _ in range(samples):
        numbers = [
            "." if rng.random() < missing else str(rng.choice((0, 0, rng.randint(0, len(alts)))))
            for _ in range(2)
        ]
        if rng.random() < missing / 2:
            genotypes.append(".")
            continue
        separator = "|" if phased or rng.random() < 0.5 else "/"
        genotypes.append(separator.join(numbers))
    fields = [
        name,
        str(at + 1),
        ".",
        ref,
        ",".join(alts),
        "50",
        rng.choice(("PASS", "q10", ".")),
        info,
    ]
    if rng.random() < 0.3:
        fields.append("DP:GT")
        fields += [f"7:{genotype}" for genotype in genotypes]
    else:
        fields.append("GT")
        fields += genotypes
    return "\t".join(fields)


def bcftools() -> str:
    """The program, or a skip."""
    program = shutil.which("bcftools")
    if program is None:
        pytest.skip("needs bcftools, the other opinion on what a haplotype is")
    return program


def convert(source: Path, target: Path, form: str) -> Path:
    """A file in another form of bcftools: z (bgzip), b (BCF), u (BCF as it is)."""
    command = [bcftools(), "view", "-O", form, "-o", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def consensus(
    fasta: Path, indexed: Path, sample: str, copy: int, *more: str, chain: Path | None = None
) -> tuple[dict[str, str], str]:
    """Output of bcftools for a haplotype: sequences in upper case, and the chain file."""
    chain = chain or fasta.with_suffix(".chain")
    command = [
        bcftools(),
        "consensus",
        "-f",
        str(fasta),
        "-H",
        str(copy),
        "-s",
        sample,
        "-c",
        str(chain),
        *more,
        str(indexed),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return read_fasta(done.stdout), chain.read_text()


def read_fasta(text: str) -> dict[str, str]:
    """Sequences by name, upper case, N for what is none of ACGT."""
    found: dict[str, str] = {}
    for part in text.split(">")[1:]:
        name, _, letters = part.partition("\n")
        upper = letters.replace("\n", "").upper()
        found[name.split()[0]] = "".join(c if c in "ACGT" else "N" for c in upper)
    return found
