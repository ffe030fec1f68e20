"""One haplotype of a panel: its sequence, and its chain to the reference; written as FASTA."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from genomepred.errors import OutputError
from genomepred.files import publishing, refuse_inputs
from genomepred.sequences import panel_cache
from genomepred.sequences.codes import LETTERS, Codes
from genomepred.sequences.source import SequenceSource

if TYPE_CHECKING:
    from genomepred.sequences.cohort import Panel


class Haplotype:
    """One haplotype of a panel: sequence, and chain to the reference.

    Attributes
    ----------
    panel : Panel
    number : int
        Place in ``panel.haplotypes``.
    name : str
        ``SAMPLE.COPY``, or the sample alone if it has one copy.
    """

    def __init__(self, panel: Panel, number: int) -> None:
        self.panel, self.number = panel, number
        sample, copy = panel.haplotypes[number]
        single = (sample, 2) not in panel.numbers and copy == 1
        self.name = sample if single else f"{sample}.{copy}"

    @cached_property
    def contigs(self) -> dict[str, int]:
        """Length of each contig of this haplotype; contigs that it does not have are left out."""
        return {
            contig: length + sum(len(alt) - (end - start) for start, end, alt in self.edits(contig))
            for contig, length in self.panel.contigs.items()
            if not self.panel.absent(contig)[self.number]
        }

    def edits(self, contig: str) -> Iterator[tuple[int, int, Codes]]:
        """Accepted edits: start and end on the reference, and the codes that replace it."""
        length = self.panel.contigs[contig]
        numbers = np.array([self.number])
        for place in self.panel._blocks.get(contig, []):
            start = place.number * panel_cache.BLOCK
            end = min(start + panel_cache.BLOCK, length)
            region = self.panel.region(contig, start, end, numbers, whole=True)
            for e in region.edit[region.first[0] : region.first[1]].tolist():
                # Blocks before this one may have been loaded for what reaches into it.
                if region.block[e] == place.number:
                    first, last = region.alt_first[e], region.alt_first[e + 1]
                    yield (int(region.start[e]), int(region.end[e]), region.letters[first:last])

    def sequence(self, contig: str) -> Iterator[Codes]:
        """Codes of a contig of this haplotype, in pieces."""
        reference, at = self.panel.reference, 0
        for start, end, alt in self.edits(contig):
            yield from _pieces(reference, contig, at, start)
            yield alt
            at = end
        yield from _pieces(reference, contig, at, self.panel.contigs[contig])

    def chain(self, contig: str) -> list[tuple[int, int, int]]:
        """Blocks of equal length of reference and haplotype: bases, then the gaps in both.

        As in UCSC chain files: the last block has no gaps.
        """
        blocks: list[list[int]] = []
        last = 0
        for start, end, alt in self.edits(contig):
            if end - start == len(alt):
                continue
            if blocks and start <= last:
                blocks[-1][1] += end - start
                blocks[-1][2] += len(alt)
            else:
                blocks.append([start - last, end - start, len(alt)])
            last = end
        blocks.append([self.panel.contigs[contig] - last, 0, 0])
        return [(size, gap, other) for size, gap, other in blocks]


def _pieces(reference: SequenceSource, contig: str, start: int, end: int) -> Iterator[Codes]:
    for first in range(start, end, 1 << 20):
        yield reference.codes(contig, first, min(first + (1 << 20), end))


def write_consensus(
    haplotype: Haplotype, fasta: BinaryIO, chain: BinaryIO | None = None, *, width: int = 60
) -> None:
    """Write a haplotype as FASTA, and its chain from the reference in UCSC's format.

    Codes are all that is known of the reference, so letters are upper case and N for whatever is
    not one of ACGT.
    """
    for number, (contig, length) in enumerate(haplotype.contigs.items(), 1):
        fasta.write(f">{contig}\n".encode())
        rest = np.empty(0, np.uint8)
        for piece in haplotype.sequence(contig):
            rest = np.concatenate([rest, LETTERS[piece]])
            if len(rest) >= 1 << 16:
                whole = len(rest) // width * width
                _write_lines(fasta, rest[:whole], width)
                rest = rest[whole:]
        _write_lines(fasta, rest, width)
        if chain is not None and length:  # UCSC's programs take no chain without bases
            _write_chain(haplotype, contig, length, number, chain)


@contextmanager
def consensus_files(
    fasta: Path, chain: Path | None, inputs: Sequence[Path]
) -> Iterator[tuple[BinaryIO, BinaryIO | None]]:
    """A FASTA file and a chain file to write, published when the context ends.

    They are made at once, so that what cannot be written is told before a panel is read.

    Parameters
    ----------
    fasta : Path
    chain : Path, optional
    inputs : sequence of Path
        Files that neither may replace.

    Raises
    ------
    OutputError
        If they cannot be written, or are inputs or one file; nothing half-written is left.
    """
    if chain is not None and os.path.realpath(chain) == os.path.realpath(fasta):
        raise OutputError(f"{fasta} is named for the sequence and for the chain; name two files")
    for path in filter(None, (fasta, chain)):
        refuse_inputs(path, inputs)
    with publishing(fasta, follow=True) as temporary, temporary.open("xb") as sequences:
        if chain is None:
            yield sequences, None
            return
        with publishing(chain, follow=True) as other, other.open("xb") as blocks:
            yield sequences, blocks


def _write_lines(file: BinaryIO, letters: Codes, width: int) -> None:
    text = letters.tobytes()
    file.write(b"".join(text[i : i + width] + b"\n" for i in range(0, len(text), width)))


def _write_chain(
    haplotype: Haplotype, contig: str, length: int, number: int, file: BinaryIO
) -> None:
    blocks = haplotype.chain(contig)
    reference = haplotype.panel.contigs[contig]
    score = sum(size for size, _, _ in blocks)
    head = f"chain {score} {contig} {reference} + 0 {reference} {contig} {length} + 0 {length}"
    lines = [f"{head} {number}"]
    lines += [f"{size} {gap} {other}" for size, gap, other in blocks[:-1]]
    lines += [str(blocks[-1][0]), "", ""]
    file.write("\n".join(lines).encode())
