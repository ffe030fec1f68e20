"""Contigs of codes that are at hand, and those of a genome that peaks lie on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from genomepred.data.contigs import Contigs, match_names
from genomepred.data.examples import Codes
from genomepred.data.peaks import Peaks, check_agreement
from genomepred.sequences.fasta import Genome


def contigs_of(codes: Mapping[str, Codes], margin: int = 0) -> Contigs:
    """Copies of contigs in memory."""
    contigs = Contigs({name: len(array) for name, array in codes.items()}, margin, Path())
    for name, array in codes.items():
        contigs[name][:] = array
    return contigs


def load_contigs(genome: Genome, peaks: Peaks) -> Contigs:
    """Codes of the contigs that have peaks, under the peaks' names, which must agree."""
    names = match_names(peaks.contigs, genome.contigs, peaks.source)
    codes = {label: genome.codes(name, 0, genome.contigs[name]) for label, name in names.items()}
    contigs = contigs_of(codes)
    check_agreement(peaks, contigs)
    return contigs
