"""Sites: the records of a VCF or BCF in blocks, checked against the genome.

A block is so many consecutive records of one contig, whatever pieces the file is read in, so that
what is computed of a block depends on the records alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from genomepred.errors import SequenceError
from genomepred.sequences import edits as kernel
from genomepred.sequences.codes import Codes, letters
from genomepred.sequences.names import absent_contig
from genomepred.sequences.source import SequenceSource
from genomepred.sequences.vcf import Batch, VariantFile
from genomepred.sequences.vcf_decode import ALLELE, POS

Int64 = NDArray[np.int64]

# Records of a block: what a kill costs, and a part of the result on disk.
BLOCK_RECORDS = 2048
# Bases between records that are read along with them; further apart, they are skipped.
_GAP = 1 << 12
_SHOWN = 20


@dataclass(frozen=True, eq=False)
class Sites:
    """Consecutive records of one contig, as a variant file has them.

    Attributes
    ----------
    contig : str
    first : int
        Number of the first record in the file, from 1.
    records, bases, starts
        As of :class:`genomepred.sequences.vcf.Batch`, numbered from this block's beginning.
    ids : list of str
    """

    contig: str
    first: int
    records: Int64
    bases: Codes
    starts: Int64
    ids: list[str]

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def ref(self) -> Int64:
        """Number of each record's REF among all alleles, and behind the last the alleles' count."""
        return np.append(self.records[:, ALLELE], len(self.starts) - 1)

    @cached_property
    def alts(self) -> Int64:
        """Numbers of the alternatives among all alleles."""
        alleles = np.arange(len(self.starts) - 1)
        return np.delete(alleles, self.ref[:-1])

    @cached_property
    def record(self) -> Int64:
        """Number in the block of the record that each alternative is of."""
        return np.repeat(np.arange(len(self)), np.diff(self.ref) - 1)

    @property
    def position(self) -> Int64:
        """First base of each record, 0-based."""
        return self.records[:, POS]

    @property
    def end(self) -> Int64:
        """Behind the last base of each record's REF."""
        return self.position + np.diff(self.starts)[self.ref[:-1]]

    def text(self, allele: int) -> str:
        """Letters of an allele, by its number among all."""
        return self.bases[self.starts[allele] : self.starts[allele + 1]].tobytes().decode()

    def place(self, record: int) -> str:
        """A record of this block for messages."""
        where = f"{self.contig}:{int(self.position[record]) + 1}"
        return f"record {self.first + record} ({where})"

    def digest(self) -> str:
        """sha256 of all that a result of this block depends on, beside the genome."""
        hashed = hashlib.sha256(f"{self.contig}\t{self.first}\n{self.ids}\n".encode())
        for part in (self.position, self.ref, self.starts, self.bases):
            hashed.update(np.ascontiguousarray(part).data)
        return hashed.hexdigest()


def read_blocks(
    path: Path, size: int = BLOCK_RECORDS, reference: SequenceSource | None = None
) -> Iterator[Sites]:
    """All records of a file in blocks of one contig each.

    Parameters
    ----------
    path : Path
    size : int
        Records of a block.
    reference : SequenceSource, optional
        Its contigs must be as long as the file's header says.

    Raises
    ------
    SequenceError
        If the file is no VCF or BCF, or a record is malformed.
    """
    file = VariantFile(path, sites=True, reference=reference)
    waiting: list[Sites] = []
    for batch in file.batches():
        if waiting and waiting[0].contig != batch.contig:
            yield _joined(waiting)
            waiting = []
        at = 0
        while at < len(batch.records):
            count = min(size - sum(map(len, waiting)), len(batch.records) - at)
            waiting.append(_cut(batch, at, at + count))
            at += count
            if sum(map(len, waiting)) == size:
                yield _joined(waiting)
                waiting = []
    if waiting:
        yield _joined(waiting)
    file.close()


def _cut(batch: Batch, first: int, last: int) -> Sites:
    """Records ``[first, last)`` of a batch, copied."""
    records = batch.records[first:last].copy()
    alleles = np.append(batch.records[:, ALLELE], len(batch.starts) - 1)[[first, last]]
    starts = batch.starts[alleles[0] : alleles[1] + 1]
    records[:, ALLELE] -= alleles[0]
    bases = batch.bases[starts[0] : starts[-1]].copy()
    ids = batch.ids(first, last)
    return Sites(batch.contig, batch.first + first, records, bases, starts - starts[0], ids)


def _joined(parts: list[Sites]) -> Sites:
    records = np.concatenate([part.records for part in parts])
    alleles = np.cumsum([0, *(len(part.starts) - 1 for part in parts)])
    ends = np.cumsum([0, *(len(part.bases) for part in parts)])
    records[:, ALLELE] += np.repeat(alleles[:-1], [len(part) for part in parts])
    starts = [part.starts[:-1] + at for part, at in zip(parts, ends[:-1], strict=True)]
    return Sites(
        parts[0].contig,
        parts[0].first,
        records,
        np.concatenate([part.bases for part in parts]),
        np.concatenate([*starts, ends[-1:]]),
        [name for part in parts for name in part.ids],
    )


@dataclass(frozen=True, eq=False)
class Checked:
    """A block of variants, checked against the genome.

    Attributes
    ----------
    kind : int64 array, [alternatives]
        What each alternative is, as :mod:`genomepred.sequences.edits` numbers kinds.
    mismatch : bool array, [records]
        Whether REF is not the genome.
    """

    kind: Int64
    mismatch: NDArray[np.bool_]


def check(sites: Sites, genome: SequenceSource, path: Path) -> Checked:
    """Compare a block with the genome and classify its alleles.

    Raises
    ------
    SequenceError
        If the genome does not have the contig, a record reaches outside it, or an allele is
        neither sequence nor a symbol of VCF.
    """
    if sites.contig not in genome.contigs:
        what = absent_contig(
            sites.contig, genome.contigs, genome.path, "give the FASTA of these records"
        )
        raise SequenceError(f"{path}: {sites.place(0)}: {what}")
    length = genome.contigs[sites.contig]
    outside = np.flatnonzero((sites.position < 0) | (sites.end > length))
    if len(outside):
        raise SequenceError(
            f"{path}: {sites.place(int(outside[0]))}: reaches outside its contig, which has bases "
            f"1-{length}"
        )
    place = Placed.of(genome, sites.contig, sites.position, sites.end, _GAP)
    table = np.zeros((len(sites.starts) - 1, kernel.ALLELE_COLUMNS), np.int64)
    mismatch = np.zeros(len(sites), np.bool_)
    status, record = _classify(
        sites.records, sites.bases, sites.starts, length, place.codes, place.shift, table, mismatch
    )
    if status == kernel.BAD_LETTER:
        a, b = sites.ref[[record, record + 1]].tolist()
        shown = ",".join(sites.text(allele) for allele in range(a, b))[:60]
        raise SequenceError(
            f"{path}: {sites.place(record)}: alleles {shown!r} are no sequence and no symbol of VCF"
        )
    return Checked(table[sites.alts, kernel.KIND], mismatch)


def describe_mismatch(sites: Sites, record: int, genome: SequenceSource) -> str:
    """A record whose REF is not the genome: its place and both alleles."""
    ref, start = sites.text(int(sites.ref[record])), int(sites.position[record])
    has = letters(genome.codes(sites.contig, start, start + min(len(ref), _SHOWN)))
    more = "..." if len(ref) > _SHOWN else ""
    return f"{sites.place(record)}: REF is {ref[:_SHOWN]}{more}, the genome has {has}{more}"


@dataclass(frozen=True, eq=False)
class Placed:
    """Stretches of a contig laid end to end in one buffer.

    Attributes
    ----------
    codes : uint8 array
        The buffer.
    shift : int64 array, [places]
        What is added to a base of each place for its index in the buffer.
    """

    codes: Codes
    shift: Int64

    @classmethod
    def of(
        cls, genome: SequenceSource, contig: str, start: Int64, end: Int64, gap: int = 0
    ) -> Placed:
        """Stretches that hold ``[start, end)`` of each place; unknown bases outside the contig.

        Places at most ``gap`` bases apart are in one stretch.
        """
        order = np.argsort(start, kind="stable")
        reach = np.maximum.accumulate(end[order])
        new = np.append(True, start[order][1:] > reach[:-1] + gap)[: len(order)]
        stretch = np.cumsum(new) - 1
        low = start[order][new]
        high = reach[np.append(np.flatnonzero(new)[1:], len(order)) - 1]
        offset = np.cumsum(high - low) - (high - low)
        codes = np.empty(int((high - low).sum()), np.uint8)
        for a, b, at in zip(low.tolist(), high.tolist(), offset.tolist(), strict=True):
            genome.codes(contig, a, b, out=codes[at : at + b - a])
        shift = np.empty(len(order), np.int64)
        shift[order] = (offset - low)[stretch]
        return cls(codes, shift)


@njit(nogil=True, cache=True)
def _classify(
    records: Any,
    bases: Any,
    starts: Any,
    length: int,
    codes: Any,
    shift: Any,
    table: Any,
    mismatch: Any,
) -> tuple[int, int]:
    """Classify each record by itself, on its place in a buffer; (status, record)."""
    found = np.zeros(2, np.int64)
    for r in range(len(records)):
        found[:] = 0
        status, _ = kernel.classify(
            records, r, r + 1, bases, starts, length, codes, -shift[r], table, found
        )
        if status != kernel.FINE:
            return status, r
        mismatch[r] = found[0] > 0
    return kernel.FINE, len(records)
