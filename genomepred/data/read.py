"""Training data of every kind, behind one call: tables, FASTA with labels, peaks on genomes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genomepred.data.examples import PARTS, Data
from genomepred.data.labels import open_fasta, open_table
from genomepred.data.peak_files import (
    PeakFiles,
    is_manifest,
    open_peaks,
    open_signals,
    read_manifest,
)
from genomepred.data.source import Source
from genomepred.data.tables import TABLE, Table
from genomepred.errors import DataError


def open_data(source: Source, scratch: Path, *, needed: Sequence[str] = PARTS) -> Data:
    """Read what training and evaluation need of the source's files.

    Parameters
    ----------
    source : Source
        Files, and what to make of them.
    scratch : Path
        Folder for codes that outgrow memory; made if needed.
    needed : sequence of str, optional
        Parts that must have examples: training needs all, an evaluation the one it judges by. With
        none nothing is split, and all are test examples.

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
    name = source.data.name
    table = Table(source.data) if TABLE.search(name) else None
    if table is not None and is_manifest(table):
        files = read_manifest(table)
        _refuse(source, "several genomes with peaks", ("labels", "genome", "bigwig"))
    elif table is not None:
        _refuse(source, "tables", ("labels", "genome", "bigwig", "peak_format"))
        return open_table(source, scratch, needed)
    elif source.labels is not None:
        _refuse(source, "FASTA with labels", ("genome", "bigwig", "peak_format", "sequence"))
        return open_fasta(source, scratch, needed)
    elif source.genome is not None:
        files = [PeakFiles("", source.genome, source.data, source.bigwig)]
    else:
        raise DataError(
            f"{source.data}: give --labels, a table with the names and labels of its sequences, or "
            "--genome, the FASTA that its peaks lie on; a table is told by its name (.csv, .tsv, "
            ".xlsx, .parquet)"
        )
    _refuse(source, "peaks", ("labels", "sequence", "targets", "pad"))
    has_signal = bool(files[0].bigwig)
    if source.task not in ("auto", "regression" if has_signal else "binary"):
        raise DataError(
            f"{source.data}: task {source.task} asked for, but peaks "
            + ("with a bigWig are a regression" if has_signal else "without a bigWig are binary")
        )
    if has_signal:
        return open_signals(files, source, scratch, needed)
    _refuse(source, "peaks without a bigWig", ("transform",))
    return open_peaks(files, source, scratch, needed)


def _refuse(source: Source, what: str, names: Sequence[str]) -> None:
    """Refuse options that would be ignored."""
    for name in names:
        if getattr(source, name) != getattr(Source, name):
            option = {"targets": "target", "peak_format": "peak-format"}.get(name, name)
            raise DataError(f"{source.data}: {what} take no --{option}; leave it out")
