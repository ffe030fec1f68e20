"""Panel: one reference genome and the haplotypes that a VCF or BCF describes on it.

What a haplotype is, is settled once, in one pass over the file: byte for byte what ``bcftools
consensus -H`` writes, but for the cases that the documentation marks. The accepted edits are kept
haplotype by haplotype in blocks of reference bases, so that any stretch of any haplotype can be
read without the VCF and without an index.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np
import xxhash
from isal import isal_zlib
from numpy.typing import NDArray

from genomepred.documents import COUNT, DocumentError, read_document, seal
from genomepred.errors import OutputError, RegionError, SequenceError
from genomepred.files import Claim, publishing, write_all, write_whole
from genomepred.sequences import edits as kernel
from genomepred.sequences import vcf_decode
from genomepred.sequences.byte_source import stamp_of
from genomepred.sequences.codes import Codes
from genomepred.sequences.fasta import Genome
from genomepred.sequences.haplotypes import Region, expand
from genomepred.sequences.source import SequenceSource
from genomepred.sequences.vcf import Batch, VariantFile

Int64 = NDArray[np.int64]

# Reference bases of a block of the cache. For 3,000 haplotypes at 33 sites a kb a block is
# 120 kB, so that a shard of some 100 kb reads little that it does not need.
BLOCK = 1 << 16
_VERSION = 1
# Share of a sample's records that are skipped as in conflict from which on it is worth a hint.
WORTH_A_HINT = 1e-3
_SUFFIX = re.compile(r"(\.(vcf|bcf))?(\.(gz|bgz))?$", re.IGNORECASE)
_MOST_INDEX = 1 << 28
_LETTERS = np.frombuffer(b"ACGTN", np.uint8)


@dataclass(frozen=True)
class PanelOptions:
    """How genotypes become haplotypes.

    Parameters
    ----------
    missing : {"reference", "n"}
        What a missing allele is: the reference, or N at the record's position.
    unphased : {"error", "first", "n"}
        What heterozygotes without phase are: refused, taken as written, or N (indels: reference).
    inbred : bool
        One haplotype a sample; every heterozygote follows ``unphased``.
    samples : tuple of str, optional
        Selected samples in this order; all by default.
    """

    missing: Literal["reference", "n"] = "reference"
    unphased: Literal["error", "first", "n"] = "error"
    inbred: bool = False
    samples: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.missing not in ("reference", "n"):
            raise SequenceError(f"--missing {self.missing!r}: one of reference, n")
        if self.unphased not in ("error", "first", "n"):
            raise SequenceError(f"--unphased {self.unphased!r}: one of error, first, n")


def missing_contig(contig: str, reference: SequenceSource) -> str:
    """What is said of a contig of a variant file that the reference does not have."""
    other = contig.removeprefix("chr") if contig.startswith("chr") else f"chr{contig}"
    hint = "give the FASTA that the variants were called on"
    if other in reference.contigs:
        hint = f"the FASTA has {other!r}: rename one of them"
    return f"contig {contig!r} is not in {reference.path}; {hint}"


def read_samples(text: str) -> tuple[str, ...]:
    """Samples of a comma list, or of a file with one a line.

    Raises
    ------
    SequenceError
        If the list is empty or the file cannot be read.
    """
    path = Path(text)
    if not path.is_file():
        names = [name.strip() for name in text.split(",")]
    else:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SequenceError(f"--samples {path}: cannot be read: {error}") from None
        names = [line.strip() for line in lines if not line.startswith("#")]
    names = [name for name in names if name]
    if not names:
        raise SequenceError(f"--samples {text!r}: names no sample")
    return tuple(names)


@dataclass(frozen=True)
class Counts:
    """What the pass over a panel met.

    Parameters
    ----------
    records : int
    accepted : int
        Alleles that became part of a haplotype.
    missing, unphased, filtered : int
        Missing alleles, heterozygotes without phase, and carried alleles of records whose FILTER
        is not PASS.
    skipped : tuple of int
        Per sample, records skipped because they overlap an accepted one.
    """

    records: int
    accepted: int
    missing: int
    unphased: int
    filtered: int
    skipped: tuple[int, ...]


class Panel:
    """Haplotypes of a reference and a VCF or BCF.

    Parameters
    ----------
    reference : Genome
        Stays the caller's to close.
    path : path
        VCF or BCF: plain, gzip or bgzip, with or without an index.
    options : PanelOptions, optional
    cache : path, optional
        Folder for the accepted edits; by default one that goes with this object.

    Attributes
    ----------
    name : str
        File name without .vcf.gz and the like.
    contigs : dict of str to int
        Of the reference.
    samples : list of str
    haplotypes : list of (str, int)
        Sample and copy, counted from 1; the position is the haplotype's number.
    digest : str
        XXH3-128 of sites, alleles and the selected genotypes: the same for VCF and BCF.
    counts : Counts

    Raises
    ------
    SequenceError
        If the file is no panel of this reference; names record, place and sample.
    OutputError
        If the cache cannot be written.
    """

    def __init__(
        self,
        reference: Genome,
        path: str | Path,
        options: PanelOptions | None = None,
        *,
        cache: str | Path | None = None,
    ) -> None:
        self.reference, self.path = reference, Path(path)
        self.options = options or PanelOptions()
        self.name = _SUFFIX.sub("", self.path.name)
        self.contigs = reference.contigs
        self.stamp = stamp_of(self.path)
        self._private: tempfile.TemporaryDirectory[str] | None = None
        if cache is None:
            self._private = tempfile.TemporaryDirectory(prefix="genomepred-")
            cache = self._private.name
        self._cache = _Cache(Path(cache), f"{self.name[:80]}-{self._key()}")
        self._load(self._cache.open(self._make))

    def _key(self) -> str:
        facts = (_VERSION, BLOCK, self.stamp, self.reference.digest(), self.options)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def _make(self, sink: BinaryIO) -> dict[str, Any]:
        document = _Pass(self.reference, self.path, self.options, sink).run()
        if stamp_of(self.path) != self.stamp:
            raise SequenceError(f"{self.path} changed while it was being read; run again")
        return document

    def _load(self, document: dict[str, Any]) -> None:
        self.samples: list[str] = document["samples"]
        self.digest: str = document["digest"]
        counts = document["counts"]
        self.counts = Counts(**{**counts, "skipped": tuple(counts["skipped"])})
        copies = document["copies"]
        self.haplotypes = [
            (s, c + 1) for s, k in zip(self.samples, copies, strict=True) for c in range(k)
        ]
        self._sample = np.repeat(np.arange(len(copies)), copies)
        self._copy = np.concatenate([np.arange(k) for k in copies])
        self._ploidy = [np.array(row, np.int64) for row in document["ploidies"]]
        self._ploidy_of: dict[str, int] = document["contigs"]
        self._blocks: dict[str, list[_BlockPlace]] = {}
        for contig, *place in document["blocks"]:
            self._blocks.setdefault(contig, []).append(_BlockPlace(*place))

    @cached_property
    def numbers(self) -> dict[tuple[str, int], int]:
        """Number of each (sample, copy)."""
        return {haplotype: h for h, haplotype in enumerate(self.haplotypes)}

    def absent(self, contig: str) -> NDArray[np.bool_]:
        """Which haplotypes do not have this contig, as the second X of a male, [haplotypes]."""
        if contig not in self._ploidy_of:
            return np.zeros(len(self.haplotypes), np.bool_)
        ploidy = self._ploidy[self._ploidy_of[contig]][self._sample]
        return (ploidy > 0) & (self._copy >= ploidy)

    def warnings(self) -> list[str]:
        """What a user should know about the panel, a line each."""
        counts, lines = self.counts, []
        if counts.accepted == 0:
            lines.append("no selected sample carries anything: every haplotype is the reference")
        skipped = sum(counts.skipped)
        if skipped > WORTH_A_HINT * max(counts.accepted, 1):
            worst = int(np.argmax(counts.skipped))
            lines.append(
                f"{skipped:,} alleles overlap an earlier one of their haplotype and are skipped "
                f"(most in {self.samples[worst]!r}: {counts.skipped[worst]:,}); "
                "`bcftools norm` may help"
            )
        if counts.missing and self.options.missing == "n":
            lines.append(
                f"{counts.missing:,} missing alleles become N, which makes sequences differ; "
                "impute them, or use --missing reference"
            )
        if counts.filtered:
            lines.append(f"{counts.filtered:,} carried alleles are of records that did not PASS")
        return lines

    def region(self, contig: str, start: int, end: int, numbers: Int64 | None = None) -> Region:
        """Accepted edits in whole blocks around ``[start, end)``, haplotype by haplotype.

        Parameters
        ----------
        contig : str
        start, end : int
        numbers : int64 array, optional
            Haplotypes to load; all by default.
        """
        if contig not in self.contigs:
            raise RegionError(f"{self.reference.path}: no contig {contig!r}")
        numbers = np.arange(len(self.haplotypes)) if numbers is None else numbers
        places = self._blocks.get(contig, [])
        length = self.contigs[contig]
        low, high = max(start, 0) // BLOCK, -(-min(end, length) // BLOCK)
        wanted = [p for p in places if low <= p.number < high]
        # An edit that reaches into the first block from before it must be known too.
        while any(p.reach > low * BLOCK and p.number < low for p in places):
            low = min(p.number for p in places if p.reach > low * BLOCK and p.number < low)
            wanted = [p for p in places if low <= p.number < high]
        blocks = []
        for place in wanted:
            block = self._cache.block(place)
            slots = self._sample[numbers] * block.most + self._copy[numbers]
            slots[self._copy[numbers] >= block.most] = -1
            blocks.append((block, slots))
        return expand(blocks, len(numbers), low * BLOCK, min(high * BLOCK, length), length)

    def haplotype(self, sample: str, copy: int = 1) -> Haplotype:
        """One haplotype as a sequence source.

        Raises
        ------
        RegionError
            If the panel has no such sample or copy.
        """
        number = self.numbers.get((sample, copy))
        if number is None:
            has = sum(s == sample for s, _ in self.haplotypes)
            what = f"sample {sample!r} has copies 1-{has}" if has else f"no sample {sample!r}"
            raise RegionError(f"{self.path}: {sample}.{copy} asked for, but {what}")
        return Haplotype(self, number)

    def named(self, text: str) -> Haplotype:
        """Haplotype of ``SAMPLE`` or ``SAMPLE.COPY``; an exact name of a sample wins."""
        sample, dot, copy = text.rpartition(".")
        if text not in self.samples and dot and copy.isdecimal():
            return self.haplotype(sample, int(copy))
        if (text, 2) in self.numbers:
            raise RegionError(f"{self.path}: sample {text!r} has several copies: say {text}.COPY")
        return self.haplotype(text)

    def close(self) -> None:
        """Close the cache; removes a private one."""
        self._cache.close()
        if self._private is not None:
            self._private.cleanup()
            self._private = None

    def __enter__(self) -> Panel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
            start = place.number * BLOCK
            region = self.panel.region(contig, start, min(start + BLOCK, length), numbers)
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


def _pieces(reference: Genome, contig: str, start: int, end: int) -> Iterator[Codes]:
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
            rest = np.concatenate([rest, _LETTERS[piece]])
            if len(rest) >= 1 << 16:
                whole = len(rest) // width * width
                _write_lines(fasta, rest[:whole], width)
                rest = rest[whole:]
        _write_lines(fasta, rest, width)
        if chain is not None:
            _write_chain(haplotype, contig, length, number, chain)


def export_consensus(haplotype: Haplotype, fasta: Path, chain: Path | None = None) -> None:
    """Publish a haplotype as a FASTA file, and its chain file if one is named.

    Raises
    ------
    OutputError
        If they cannot be written; nothing half-written is left.
    """
    with publishing(fasta, follow=True) as temporary, temporary.open("xb") as sequences:
        if chain is None:
            write_consensus(haplotype, sequences)
            return
        with publishing(chain, follow=True) as other, other.open("xb") as blocks:
            write_consensus(haplotype, sequences, blocks)


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


# -- the pass --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _BlockPlace:
    """Where a block lies in the cache, and how far what it and those before hold reaches."""

    number: int
    offset: int
    size: int
    sha256: str
    reach: int


@dataclass(frozen=True, eq=False)
class Block:
    """Edits of one block: its events, and which of them each slot has.

    A slot is a sample times ``most`` plus a copy.
    """

    number: int
    most: int
    first: Int64  # [slots + 1]
    events: NDArray[np.int32]
    first_edit: NDArray[np.int32]  # [events + 1]
    edits: Int64  # [edits, 2]
    alt_first: NDArray[np.int32]  # [edits + 1]
    letters: Codes

    _HEAD = struct.Struct("<6q")

    def to_bytes(self) -> bytes:
        """The block, compressed."""
        few = len(self.first_edit) <= 1 << 16
        events = self.events.astype(np.uint16 if few else np.int32)
        head = self._HEAD.pack(
            self.number,
            self.most,
            len(self.first) - 1,
            len(events),
            len(self.first_edit) - 1,
            len(self.edits),
        )
        counts = np.diff(self.first).astype(np.int32)
        arrays = (counts, self.first_edit, self.edits, self.alt_first, events, self.letters)
        return bytes(isal_zlib.compress(head + b"".join(a.tobytes() for a in arrays), 1))

    @classmethod
    def of_bytes(cls, data: bytes) -> Block:
        """The block of what :meth:`to_bytes` made."""
        raw = isal_zlib.decompress(data)
        number, most, slots, pairs, events, edits = cls._HEAD.unpack_from(raw)
        at = cls._HEAD.size

        def array(count: int, kind: Any) -> NDArray[Any]:
            nonlocal at
            found = np.frombuffer(raw, kind, count, at)
            at += found.nbytes
            return found

        counts = array(slots, np.int32)
        first_edit = array(events + 1, np.int32)
        table = array(2 * edits, np.int64).reshape(-1, 2)
        alt_first = array(edits + 1, np.int32)
        # One place more than events: the same rule as in writing.
        who = array(pairs, np.uint16 if events + 1 <= 1 << 16 else np.int32)
        letters = np.frombuffer(raw, np.uint8, offset=at)
        first = np.zeros(slots + 1, np.int64)
        np.cumsum(counts, out=first[1:])
        return cls(number, most, first, who.astype(np.int32), first_edit, table, alt_first, letters)


class _Pass:
    """The one pass over a panel: checks, conflicts, digest, blocks."""

    def __init__(
        self, reference: Genome, path: Path, options: PanelOptions, sink: BinaryIO
    ) -> None:
        self._reference, self._path, self._options, self._sink = reference, path, options, sink
        self._file = VariantFile(path, options.samples, inbred=options.inbred)
        samples = len(self._file.samples)
        self._most = 1 if options.inbred else 2
        self._state = np.zeros(kernel.STATE_SIZE, np.int64)
        self._skipped = np.zeros(samples, np.int64)
        self._room = _Room()
        self._block = -1
        self._offset = 0
        self._places: list[list[Any]] = []
        self._contig = ""
        self._ploidies: dict[bytes, int] = {}
        self._ploidy_of: dict[str, int] = {}
        self._copies = np.zeros(samples, np.int64)
        self._records = self._mismatches = 0
        self._first_mismatch = self._first_unphased = ""
        self._digest = _PanelDigest()
        ascending = bool(np.all(np.diff(self._file._columns[self._file._columns >= 0]) > 0))
        self._sort = not ascending
        self._new_contig()

    def run(self) -> dict[str, Any]:
        """Read everything; what the cache's index says."""
        before = -1
        for batch in self._file.batches():
            if batch.contig != self._contig:
                self._finish_contig()
                self._begin_contig(batch)
                before = -1
            before = self._take(batch, before)
            self._records += len(batch.records)
        self._finish_contig()
        self._file.close()
        self._refuse_what_was_found()
        fallback = 1 if self._options.inbred else 2
        copies = np.where(self._copies > 0, self._copies, fallback)
        counts = self._state
        return {
            "version": _VERSION,
            "samples": self._file.samples,
            "copies": copies.tolist(),
            "ploidies": [np.frombuffer(row, np.int64).tolist() for row in self._ploidies],
            "contigs": self._ploidy_of,
            "digest": self._digest.finish(self._file.samples, self._options),
            "blocks": self._places,
            "counts": {
                "records": self._records,
                "accepted": int(counts[kernel.ACCEPTED]),
                "missing": int(counts[kernel.MISSING_COUNT]),
                "unphased": int(counts[kernel.UNPHASED_COUNT]),
                "filtered": int(counts[kernel.FILTERED_COUNT]),
                "skipped": self._skipped.tolist(),
            },
        }

    def _refuse_what_was_found(self) -> None:
        if self._mismatches:
            raise SequenceError(
                f"{self._path}: REF is not the reference at {self._mismatches:,} of "
                f"{self._records:,} records, first at {self._first_mismatch}; give the FASTA that "
                "the panel was called on"
            )
        unphased = int(self._state[kernel.UNPHASED_COUNT])
        if unphased and self._options.unphased == "error":
            what = (
                "heterozygotes of inbred samples"
                if self._options.inbred
                else ("heterozygotes without phase")
            )
            raise SequenceError(
                f"{self._path}: {unphased:,} {what}, first at {self._first_unphased}; phase the "
                "panel, or say --unphased first (as written) or n"
            )

    def _begin_contig(self, batch: Batch) -> None:
        contig = self._contig = batch.contig
        where = f"{self._path}: record {batch.first} ({contig}:{batch.records[0, 0] + 1})"
        if contig in self._ploidy_of:
            raise SequenceError(
                f"{where}: the records of contig {contig!r} do not stand together; sort the file "
                "with `bcftools sort`"
            )
        if contig not in self._reference.contigs:
            raise SequenceError(f"{where}: {missing_contig(contig, self._reference)}")
        self._new_contig()

    def _new_contig(self) -> None:
        shape = (len(self._file.samples), self._most)
        self._frozen = np.full(shape, -1, np.int64)
        self._inserted = np.zeros(shape, np.bool_)
        self._state[kernel.REACH] = 0
        self._block = -1

    def _finish_contig(self) -> None:
        if not self._contig:
            return
        self._flush()
        ploidy = self._file_ploidy
        self._copies = np.maximum(self._copies, ploidy)
        number = self._ploidies.setdefault(ploidy.tobytes(), len(self._ploidies))
        self._ploidy_of[self._contig] = number
        self._digest.end_contig(self._contig, self._reference.contigs[self._contig], ploidy)

    def _take(self, batch: Batch, before: int) -> int:
        """Settle the records of a batch; position of the last."""
        records, carriers = batch.records, batch.carriers
        if self._options.inbred:
            self._file_ploidy = np.minimum(self._file.ploidy, 1)
        else:
            self._file_ploidy = self._file.ploidy.copy()
        if self._sort:
            carriers = _sorted(records, carriers)
        self._digest.update(batch, carriers)
        self._make_room_for_copies(batch, carriers)
        position = records[:, vcf_decode.POS]
        wrong = np.flatnonzero(np.diff(position, prepend=before) < 0)
        if len(wrong):
            self._refuse(batch, int(wrong[0]), "stands behind a later position; sort the file")
        table = np.zeros((len(batch.starts), kernel.ALLELE_COLUMNS), np.int64)
        hidden = np.full((len(records), 2), -1, np.int32)
        self._state[[kernel.AT_RECORD, kernel.AT_CARRIER]] = 0
        first = 0
        while first < len(records):
            block = int(position[first]) // BLOCK
            if block != self._block:
                self._flush()
                self._block = block
            last = int(np.searchsorted(position, (block + 1) * BLOCK))
            self._check(batch, first, last, table)
            self._settle(batch, carriers, last, table, hidden)
            first = last
        return int(position[-1])

    def _make_room_for_copies(self, batch: Batch, carriers: NDArray[np.int32]) -> None:
        if self._options.inbred or not len(carriers):
            return
        copies = carriers[:, vcf_decode.COPY]
        most = int(copies[copies < vcf_decode.ALL_COPIES].max(initial=-1)) + 1
        most = max(most, int(self._file_ploidy.max(initial=0)))
        if most <= self._most:
            return
        if self._options.missing == "n" and (copies == vcf_decode.ALL_COPIES).any():
            self._refuse(
                batch,
                0,
                "more than two copies beside genotypes of one dot: write the "
                "missing ones with as many dots, or use --missing reference",
            )
        pairs = self._room.pairs[: self._state[kernel.PAIRS]]
        pairs[:, 0] = pairs[:, 0] // self._most * most + pairs[:, 0] % self._most
        more = ((0, 0), (0, most - self._most))
        self._frozen = np.pad(self._frozen, more, constant_values=-1)
        self._inserted = np.pad(self._inserted, more)
        self._most = most

    def _check(self, batch: Batch, first: int, last: int, table: Int64) -> None:
        """Compare REF with the reference and classify alleles."""
        records, length = batch.records, self._reference.contigs[batch.contig]
        allele = records[first:last, vcf_decode.ALLELE]
        reach = records[first:last, vcf_decode.POS] + np.diff(batch.starts)[allele]
        start = max(int(records[first, vcf_decode.POS]), 0)
        end = min(int(reach.max()), length)
        codes = self._reference.codes(batch.contig, start, max(end, start))
        mismatches = np.zeros(2, np.int64)
        status, r = kernel.classify(
            records,
            first,
            last,
            batch.bases,
            batch.starts,
            -1,
            length,
            codes,
            start,
            table,
            mismatches,
        )
        if mismatches[0] and not self._mismatches:
            wrong = int(mismatches[1])
            ref, pos = batch.alleles(wrong)[0], int(records[wrong, vcf_decode.POS])
            has = _LETTERS[self._reference.codes(batch.contig, pos, pos + min(len(ref), 20))]
            self._first_mismatch = (
                f"record {batch.first + wrong} ({batch.contig}:{pos + 1}: REF {ref[:20]}, the "
                f"reference has {has.tobytes().decode()})"
            )
        self._mismatches += int(mismatches[0])
        if status == kernel.OUTSIDE:
            self._refuse(batch, r, f"reaches outside its contig, which has bases 1-{length}")
        if status == kernel.BAD_LETTER:
            shown = ",".join(batch.alleles(r))[:60]
            self._refuse(batch, r, f"alleles {shown!r} are no sequence and no symbol of VCF")

    def _settle(
        self,
        batch: Batch,
        carriers: NDArray[np.int32],
        last: int,
        table: Int64,
        hidden: NDArray[np.int32],
    ) -> None:
        options, state = self._options, self._state
        missing = kernel.AS_N if options.missing == "n" else kernel.FIRST
        unphased = kernel.AS_N if options.unphased == "n" else kernel.FIRST
        found = int(state[kernel.UNPHASED_COUNT])
        while True:
            status = kernel.settle(
                batch.records,
                last,
                batch.bases,
                batch.starts,
                carriers,
                table,
                missing,
                unphased,
                options.inbred,
                self._frozen,
                self._inserted,
                state,
                *self._room.arrays(),
                hidden,
                self._room.pairs,
                self._skipped,
            )
            if status == kernel.MORE_ROOM:
                self._room.grow()
                continue
            if status == kernel.UNUSABLE:
                r, who = int(state[kernel.AT_RECORD]), int(state[kernel.BAD_SAMPLE])
                allele = batch.alleles(r)[int(state[kernel.BAD_NUMBER])][:40]
                why = "needs INFO/END" if allele.upper() == "<DEL>" else "gives no sequence"
                self._refuse(
                    batch, r, f"allele {allele} {why}; remove such records, or the sample", who
                )
            break
        if not found and state[kernel.UNPHASED_COUNT]:
            r = int(state[kernel.FIRST_RECORD])
            sample = self._file.samples[int(state[kernel.FIRST_SAMPLE])]
            self._first_unphased = f"{self._place(batch, r)}, sample {sample!r}"

    def _flush(self) -> None:
        """Write the block that is complete."""
        state, room = self._state, self._room
        count = int(state[kernel.PAIRS])
        if count:
            events, edits = int(state[kernel.EVENTS]), int(state[kernel.EDITS])
            first = np.zeros(len(self._file.samples) * self._most + 1, np.int64)
            order = np.empty(count, np.int32)
            kernel.by_haplotype(room.pairs[:count], first, order)
            block = Block(
                self._block,
                self._most,
                first,
                order,
                room.first_edit[: events + 1],
                room.edits[:edits],
                room.alt_first[: edits + 1],
                room.letters[: int(state[kernel.LETTER_COUNT])],
            )
            data = block.to_bytes()
            self._sink.write(data)
            sha256 = hashlib.sha256(data).hexdigest()
            reach = int(state[kernel.REACH])
            place = [self._contig, self._block, self._offset, len(data), sha256, reach]
            self._places.append(place)
            self._offset += len(data)
        state[[kernel.EVENTS, kernel.EDITS, kernel.LETTER_COUNT, kernel.PAIRS]] = 0

    def _place(self, batch: Batch, r: int) -> str:
        position = int(batch.records[r, vcf_decode.POS]) + 1
        return f"record {batch.first + r} ({batch.contig}:{position})"

    def _refuse(self, batch: Batch, r: int, what: str, who: int | None = None) -> NoReturn:
        sample = "" if who is None else f", sample {self._file.samples[who]!r}"
        raise SequenceError(f"{self._path}: {self._place(batch, r)}{sample}: {what}")


class _Room:
    """Arrays of one block that grow as needed."""

    def __init__(self) -> None:
        self.first_edit = np.zeros(1 << 12, np.int32)
        self.edits = np.zeros((1 << 12, 2), np.int64)
        self.alt_first = np.zeros((1 << 12) + 1, np.int32)
        self.letters = np.zeros(1 << 14, np.uint8)
        self.pairs = np.zeros((1 << 20, 2), np.int32)

    def arrays(self) -> tuple[NDArray[np.int32], Int64, NDArray[np.int32], Codes]:
        """All but the pairs, as the kernel takes them."""
        return self.first_edit, self.edits, self.alt_first, self.letters

    def grow(self) -> None:
        """Double all."""
        self.first_edit = np.concatenate([self.first_edit, np.zeros_like(self.first_edit)])
        self.edits = np.concatenate([self.edits, np.zeros_like(self.edits)])
        self.alt_first = np.concatenate([self.alt_first, np.zeros_like(self.alt_first)])
        self.letters = np.concatenate([self.letters, np.zeros_like(self.letters)])
        self.pairs = np.concatenate([self.pairs, np.zeros_like(self.pairs)])


class _PanelDigest:
    """XXH3-128 of what a panel says, however its file is cut, compressed or encoded.

    Every kind of fact has a stream of its own, so that it does not matter how many records are
    decoded at a time.
    """

    def __init__(self) -> None:
        self._streams = [xxhash.xxh3_128() for _ in range(4)]
        self._whole = xxhash.xxh3_128()

    def update(self, batch: Batch, carriers: NDArray[np.int32]) -> None:
        """Add a batch."""
        records = batch.records
        first = records[:, vcf_decode.CARRIER]
        count = np.diff(first, append=len(carriers))
        alleles = np.diff(records[:, vcf_decode.ALLELE], append=len(batch.starts) - 1)
        sites = [records[:, vcf_decode.POS], records[:, vcf_decode.END], count, alleles]
        upper = batch.bases.tobytes().upper()
        parts = [np.stack(sites, 1), np.diff(batch.starts), carriers]
        for stream, part in zip(self._streams, parts, strict=False):
            stream.update(np.ascontiguousarray(part).data)
        self._streams[3].update(upper)

    def end_contig(self, contig: str, length: int, ploidy: Int64) -> None:
        """Close a contig."""
        self._whole.update(f"{contig}\t{length}\n".encode())
        self._whole.update(ploidy.tobytes())
        for k, stream in enumerate(self._streams):
            self._whole.update(stream.digest())
            self._streams[k] = xxhash.xxh3_128()

    def finish(self, samples: Sequence[str], options: PanelOptions) -> str:
        """The digest as 32 hexadecimal digits."""
        asked = replace(options, samples=None)
        self._whole.update(f"{asked}\n".encode())
        self._whole.update("".join(f"{name}\n" for name in samples).encode("utf-8", "replace"))
        return self._whole.hexdigest()


def _sorted(records: Int64, carriers: NDArray[np.int32]) -> NDArray[np.int32]:
    """Carriers of each record in order of samples, for files with another order than asked."""
    count = np.diff(records[:, vcf_decode.CARRIER], append=len(carriers))
    record = np.repeat(np.arange(len(records)), count)
    order = np.lexsort((carriers[:, vcf_decode.COPY], carriers[:, vcf_decode.WHO], record))
    return np.ascontiguousarray(carriers[order])


# -- the cache -------------------------------------------------------------------------------

_ROW = object
_INDEX = {
    "version": range(_VERSION, _VERSION + 1),
    "samples": [str],
    "copies": [range(1, 256)],
    "ploidies": [[COUNT]],
    "contigs": {str: COUNT},
    "digest": str,
    "blocks": [[(str, COUNT)]],
    "counts": {
        "records": COUNT,
        "accepted": COUNT,
        "missing": COUNT,
        "unphased": COUNT,
        "filtered": COUNT,
        "skipped": [COUNT],
    },
}


class _Cache:
    """Blocks in one file and their sealed index beside it, made by one process at a time."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._index, self._data = folder / f"{name}.panel.json", folder / f"{name}.panel"
        self._fd = -1
        self._make: Any = None
        self._kept: dict[int, Block] = {}

    def open(self, make: Any) -> dict[str, Any]:
        """The index; made first if there is none that is whole."""
        self._make = make
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            claim = Claim.take(self._folder / f"{self._name}.lock", wait=True)
            try:
                document = self._read()
                if document is None:
                    document = self._build()
                self._fd = os.open(self._data, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                return document
            finally:
                if claim is not None:
                    claim.release()
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"{self._folder}: the panel's edits cannot be kept: {error.strerror or error}"
            ) from None

    def _read(self) -> dict[str, Any] | None:
        try:
            document = read_document(self._index, _INDEX, sealed=True, limit=_MOST_INDEX)
            blocks = document["blocks"]
            ends = [row[2] + row[3] for row in blocks if len(row) == 6]
            whole = len(ends) == len(blocks) and self._data.stat().st_size == max(ends, default=0)
        except (OSError, DocumentError, TypeError):
            return None
        return document if whole else None

    def _build(self) -> dict[str, Any]:
        with publishing(self._data) as temporary, temporary.open("xb", buffering=0) as raw:
            document: dict[str, Any] = self._make(_Sink(raw.fileno()))
        write_whole(self._index, seal(document))
        return document

    def block(self, place: _BlockPlace) -> Block:
        """A block, from the file or from memory; the cache is made anew if it is damaged.

        Raises
        ------
        OutputError
            If it is damaged again at once.
        """
        if place.offset in self._kept:
            return self._kept[place.offset]
        for _ in range(2):
            data = os.pread(self._fd, place.size, place.offset)
            if hashlib.sha256(data).hexdigest() == place.sha256:
                if len(self._kept) >= _KEPT_BLOCKS:
                    del self._kept[next(iter(self._kept))]
                self._kept[place.offset] = Block.of_bytes(data)
                return self._kept[place.offset]
            os.close(self._fd)
            self._index.unlink(missing_ok=True)
            self.open(self._make)
        raise OutputError(f"{self._data}: is damaged whenever it is written; check the disk")

    def close(self) -> None:
        """Close the file of blocks."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


# Decoded blocks kept: a shard and its margins touch a few.
_KEPT_BLOCKS = 4


class _Sink:
    """The part of a binary file that the pass needs, on a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> int:
        """Write all of it."""
        write_all(self._descriptor, data)
        return len(data)
