"""The source of training data, as the command line names it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genomepred.errors import DataError
from genomepred.files import open_regular, sha256_of

_CHOICES = {
    "transform": ("none", "log1p", "log2p1"),
    "task": ("auto", "regression", "binary", "profile"),
    "peak_format": ("auto", "bed", "narrowPeak"),
    "pad": ("left", "right", None),
}


@dataclass(frozen=True)
class Source:
    """Files of training data and what to make of them.

    Parameters
    ----------
    data : Path
        A table (.csv, .tsv, either with .gz, .xlsx, .parquet), a FASTA of labeled sequences, peaks
        (BED, narrowPeak, or a FASTA with headers ``CONTIG:START-END``), or a manifest of several
        genomes with their peaks (.tsv with the columns name, genome, peaks; optional are bigwig,
        split, and regions: a BED of what is held out of each).
    labels : Path, optional
        Table with the names of the FASTA's sequences and their labels.
    genome : Path, optional
        FASTA of the genome that peaks lie on.
    bigwig : tuple of Path, optional
        Signals whose means over the windows are the labels, a track each; without them peaks are
        labeled 1 and other windows 0.
    peak_format : {"auto", "bed", "narrowPeak"}, optional
        Of peaks that are no FASTA: whether their tenth column is a summit. ``auto`` is as their
        names (``.narrowPeak``) or a header (``track type=narrowPeak``) say.
    sequence : str, optional
        Column of sequences; by default the first of sequence, seq, seqs, utr.
    targets : tuple of str, optional
        Columns of labels, a track each; by default the first of label, labels, target, rl, mrl,
        TPM.
    transform : {"none", "log1p", "log2p1"}, optional
        Of the labels of a regression: ln(1 + y) or log2(1 + y).
    task : {"auto", "regression", "binary", "profile"}, optional
        ``auto`` is binary if all labels are 0 or 1, else regression. ``profile`` scales the labels
        of each sequence (counts or shares) to the sum 1.
    window : int, optional
        Bases of an example. Peaks: the window is centered on the summit (narrowPeak) or middle.
        Tables: what shorter sequences are padded to; by default the longest one's length.
    pad : {"left", "right"}, optional
        Side on which shorter sequences of a table or FASTA get unknown bases.
    validation, test : tuple of str, optional
        Peaks: regions, ``CONTIG`` or ``CONTIG:START-END`` (1-based inclusive); with several genomes
        those of every genome or, with ``NAME:`` before it, of one. Labeled sequences: rows
        ``FIRST-LAST`` (1-based inclusive), ``COLUMN=VALUE``, or a share such as ``0.1``, drawn by
        the seed from rows that are not asked for otherwise. By default a column dataset or split
        that holds train, valid(ation) or val, and test; else shares of 0.1.
    shuffled, matched, random : int, optional
        Negatives a peak: dinucleotide-shuffled sequences, windows with its GC, and windows from
        anywhere. With a bigWig only ``matched`` counts: the background windows.
    reverse_complement : bool, optional
        Random strands in training; by default on for peaks and off for labeled sequences.
    shift : int, optional
        Most bases by which windows move at random in training. Peaks move on their genome; in other
        sequences unknown bases enter.
    seed : int, optional
        Of shares, negatives, order, strands and shifts.

    Raises
    ------
    DataError
        If a choice is none, or a column of labels is named twice.
    """

    data: Path
    labels: Path | None = None
    genome: Path | None = None
    bigwig: tuple[Path, ...] = ()
    peak_format: str = "auto"
    sequence: str | None = None
    targets: tuple[str, ...] = ()
    transform: str = "none"
    task: str = "auto"
    window: int | None = None
    pad: str | None = None
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    shuffled: int = 1
    matched: int = 1
    random: int = 4
    reverse_complement: bool | None = None
    shift: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                shown = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise DataError(f"{name} {value!r} asked for; choose one of {shown}")
        twice = next((t for i, t in enumerate(self.targets) if t in self.targets[:i]), None)
        if twice is not None:
            raise DataError(f"{self.data}: --target {twice} asked for twice; name each column once")


def file_facts(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Name and sha256 of each file.

    Raises
    ------
    DataError
        If one cannot be read, or is no regular file.
    """
    return [{"file": path.name, "sha256": _sha256(path)} for path in paths]


def _sha256(path: Path) -> str:
    try:
        os.close(open_regular(path))  # a pipe would wait for ever
        return sha256_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
