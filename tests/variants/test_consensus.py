"""Sequences and effects of real records against those of ``bcftools consensus``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pysam
import pysam.bcftools
from numpy.testing import assert_allclose, assert_array_equal

import genomepred
from genomepred import Genome, Predictor
from genomepred.variants.sites import read_blocks
from genomepred.variants.windows import Haplotypes
from tests.checkpoints import make_checkpoint
from tests.variants import plain

AROUND, EACH = 400, 100


def some_records(path: Path) -> list[tuple[int, str, str]]:
    """Substitutions and as many indels, the longest among them, in order."""
    with pysam.VariantFile(str(path)) as file:
        found = [(r.start, r.ref, r.alts[0]) for r in file if r.alts and len(r.alts) == 1]
    indels = sorted((r for r in found if len(r[1]) != len(r[2])), key=lambda r: -len(r[1] + r[2]))
    snvs = [r for r in found if len(r[1]) == len(r[2]) == 1]
    return sorted(indels[: EACH // 2] + indels[-EACH // 2 :] + snvs[:: len(snvs) // EACH][:EACH])


def a_contig_each(folder: Path, genome: Path, records: list[tuple[int, str, str]]) -> list[Path]:
    """FASTA with the surroundings of each record, and a VCF with a record for each contig."""
    fasta, vcf = folder / "g.fa", folder / "v.vcf"
    contigs, head, lines = [], ["##fileformat=VCFv4.2"], []
    with Genome(genome) as whole:
        (name,) = whole.contigs
        for k, (start, ref, alt) in enumerate(records):
            codes = whole.codes(name, start - AROUND, start + len(ref) + AROUND)
            contigs.append(f">r{k}\n{''.join('ACGTN'[c] for c in codes.tolist())}\n")
            head.append(f"##contig=<ID=r{k},length={len(codes)}>")
            lines.append(f"r{k}\t{AROUND + 1}\t.\t{ref}\t{alt}\t.\t.\t.")
    fasta.write_text("".join(contigs))
    vcf.write_text("\n".join([*head, "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO", *lines, ""]))
    return [fasta, vcf]


def consensus_of(fasta: Path, vcf: Path) -> dict[str, str]:
    packed = pysam.tabix_index(str(vcf), preset="vcf", keep_original=True)
    out = fasta.with_name("consensus.fa")
    pysam.bcftools.consensus("-f", str(fasta), "-o", str(out), packed, catch_stdout=False)
    with pysam.FastxFile(str(out)) as file:
        return {record.name: record.sequence for record in file}


def test_against_bcftools_consensus(tmp_path: Path, shared_data: Path):
    records = some_records(shared_data / "variants" / "unphased.bcf")
    assert len(records) == 2 * EACH
    genome = shared_data / "genomes" / "hs37_chr20.fa.gz"
    fasta, vcf = a_contig_each(tmp_path, genome, records)
    consensus = consensus_of(fasta, vcf)
    with Genome(fasta) as contigs:
        for k, sites in enumerate(read_blocks(vcf)):
            codes = contigs.codes(f"r{k}", 0, contigs.contigs[f"r{k}"])
            alts = Haplotypes.of(sites, sites.alts, codes, np.zeros(1, np.int64))
            length = len(codes) + int(alts.net[0])
            built = alts.build(np.zeros(1, np.int64), np.zeros(1, np.int64), length)[0]
            text = consensus[f"r{k}"]
            assert_array_equal(built, plain.window(text, 0, len(text)), err_msg=str(records[k]))
    check_effects(fasta, vcf, consensus, records)


def check_effects(
    fasta: Path, vcf: Path, consensus: dict[str, str], records: list[tuple[int, str, str]]
) -> None:
    """Predict the window of each consensus sequence that is centered on its record."""
    model = make_checkpoint(fasta.with_name("tiny"))
    out = fasta.with_name("out.tsv")
    genomepred.effects(fasta, vcf, model, out)
    predictor = Predictor(model, device="cpu")
    left, windows = predictor.window // 2, []
    for k, (_, ref, alt) in enumerate(records):
        with_place = plain.edited("N" * AROUND + ref, AROUND, ref, alt)
        middle = with_place.kept((with_place.start + with_place.end) // 2)
        windows.append(plain.window(consensus[f"r{k}"], middle - left, predictor.window))
    expected = predictor.predict(np.stack(windows))[:, 0, 0]
    table = pd.read_csv(out, sep="\t")
    assert len(table) == len(records)
    assert_allclose(table["score.alternative"], expected, rtol=0, atol=1e-5)
