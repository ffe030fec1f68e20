"""Writes a stand-in for the data of rice_story.sh: a reference and a panel of inbred lines.

    python simulated_panel.py FOLDER LINES

The reference is the bundled megabase of human chromosome 22: no plant comes with the package. The
lines are mosaics of 40 founders in stretches of about 20 kb, with 20 sites a kb, one in eight of
them an insertion or deletion; most alternatives are rare, as in real panels.
"""

from __future__ import annotations

import gzip
import shutil
import sys
from pathlib import Path

import numpy as np

from genomepred import Genome
from genomepred.demo import SEQUENCE

FOUNDERS, STRETCH, SITES_A_KB, INDELS = 40, 20_000, 20, 1 / 8
# Lines that the story names, beside every fifteenth.
NAMED = (3, 1500, 2996)


def main(folder: Path, lines: int) -> None:
    """Write FOLDER/reference.fa.gz and FOLDER/panel.vcf.gz."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SEQUENCE, folder / "reference.fa.gz")
    rng = np.random.default_rng(0)
    with Genome(folder / "reference.fa.gz") as genome:
        ((contig, length),) = genome.contigs.items()
        codes = genome.codes(contig, 0, length)
    names = [f"S{number:04d}" for number in sorted({*range(0, 15 * lines, 15), *NAMED})]
    founder = rng.integers(0, FOUNDERS, (length // STRETCH + 1, len(names)))
    with gzip.open(folder / "panel.vcf.gz", "wt", compresslevel=1) as vcf:
        vcf.write(f"##fileformat=VCFv4.2\n##contig=<ID={contig},length={length}>\n")
        vcf.write('##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n')
        columns = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *names]
        vcf.write("\t".join(columns) + "\n")
        end = 0
        for at in np.flatnonzero(rng.random(length - 10) < SITES_A_KB / 1000).tolist():
            ref, alt = alleles(codes[at : at + 5], rng)
            if at < end or "N" in ref:
                continue
            end = at + len(ref)
            carrier = rng.random(FOUNDERS) < rng.beta(0.3, 1.5)
            calls = np.where(carrier[founder[at // STRETCH]], "1|1", "0|0")
            fields = [contig, str(at + 1), ".", ref, alt, ".", "PASS", ".", "GT"]
            vcf.write("\t".join([*fields, *calls]) + "\n")


def alleles(codes: np.ndarray, rng: np.random.Generator) -> tuple[str, str]:
    """REF and ALT at a place: a substitution, or now and then a short insertion or deletion."""
    text = "".join("ACGTN"[code] for code in codes)
    kind = rng.random()
    if kind < INDELS / 2:
        return text[: rng.integers(2, 6)], text[0]
    if kind < INDELS:
        return text[0], text[0] + "".join(rng.choice(list("ACGT"), rng.integers(1, 5)))
    return text[0], str(rng.choice([base for base in "ACGT" if base != text[0]]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
