"""Training data of every kind, behind one call: tables, FASTA with labels, peaks on genomes."""

from __future__ import annotations

from pathlib import Path

from genomepred.training.examples import (
    PARTS,
    TEST,
    TRAIN,
    VALIDATION,
    Codes,
    Data,
    Epoch,
    Examples,
)
from genomepred.training.labelled import LabelledData, open_fasta, open_table
from genomepred.training.peak_data import Mix, PeakData, labelled
from genomepred.training.peaks import Peaks, Split, load_contigs, match_names, read_peaks
from genomepred.training.source import Source
from genomepred.training.tables import TABLE

__all__ = [
    "PARTS",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Codes",
    "Data",
    "Epoch",
    "Examples",
    "LabelledData",
    "Mix",
    "PeakData",
    "Peaks",
    "Source",
    "Split",
    "labelled",
    "load_contigs",
    "match_names",
    "open_data",
    "read_peaks",
]


def open_data(source: Source, scratch: Path) -> Data:
    """Read what training and evaluation need of the source's files.

    Parameters
    ----------
    source : Source
        Files, and what to make of them.
    scratch : Path
        Folder for codes that outgrow memory; made if needed.

    Returns
    -------
    Data

    Raises
    ------
    DataError
        If the files do not hold what is asked; names file, row or contig, and what to do.
    SequenceError
        If a FASTA is none.
    OutputError
        If ``scratch`` cannot be written.
    DependencyError
        If a library for a table's format is not installed.
    """
    if source.labels is not None:
        return open_fasta(source, scratch)
    assert TABLE.search(source.data.name)
    return open_table(source, scratch)
