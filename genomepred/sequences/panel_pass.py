"""The one pass over a panel: checks, conflicts, digest, and blocks of accepted edits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np
import xxhash
from numpy.typing import NDArray

from genomepred.errors import SequenceError
from genomepred.messages import counted
from genomepred.sequences import edits as kernel
from genomepred.sequences import panel_cache, vcf_decode
from genomepred.sequences.codes import letters
from genomepred.sequences.names import absent_contig
from genomepred.sequences.panel_cache import VERSION, Block
from genomepred.sequences.source import SequenceSource
from genomepred.sequences.vcf import Batch, VariantFile

if TYPE_CHECKING:
    from genomepred.sequences.cohort import PanelOptions

Int64 = NDArray[np.int64]


class PanelPass:
    """The one pass over a panel: checks, conflicts, digest, blocks."""

    def __init__(
        self, reference: SequenceSource, path: Path, options: PanelOptions, sink: BinaryIO
    ) -> None:
        self._reference, self._path, self._options, self._sink = reference, path, options, sink
        self._file = VariantFile(path, options.samples, inbred=options.inbred, reference=reference)
        samples = len(self._file.samples)
        self._most = 1 if options.inbred else 2
        self._state = np.zeros(kernel.STATE_SIZE, np.int64)
        self._skipped = np.zeros(samples, np.int64)
        self._room = _room(1)
        self._room_size = 1
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
            "version": VERSION,
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
            kind = "of inbred samples" if self._options.inbred else "without phase"
            found = f"{counted(unphased, 'heterozygote')} {kind}"
            raise SequenceError(
                f"{self._path}: {found}, first at {self._first_unphased}; phase the "
                "panel, or say --unphased first (as written) or n"
            )

    def _begin_contig(self, batch: Batch) -> None:
        contig = self._contig = batch.contig
        if contig in self._ploidy_of:
            what = f"the records of contig {contig!r} do not stand together"
            self._refuse(batch, 0, f"{what}; sort the file with `bcftools sort`")
        if contig not in (contigs := self._reference.contigs):
            hint = "give the FASTA of these records"
            self._refuse(batch, 0, absent_contig(contig, contigs, self._reference.path, hint))
        self._new_contig()

    def _new_contig(self) -> None:
        shape = (len(self._file.samples), self._most)
        self._frozen = np.full(shape, -1, np.int64)
        self._inserted = np.zeros(shape, np.bool_)
        self._state[kernel.REACH], self._state[kernel.HELD] = 0, -1
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
        taken = kernel.Records(records, batch.bases, batch.starts, carriers, table, hidden)
        self._state[kernel.AT_RECORD] = 0
        first, size = 0, panel_cache.BLOCK
        while first < len(records):
            block = int(position[first]) // size
            if block != self._block:
                self._flush()
                self._block = block
            last = int(np.searchsorted(position, (block + 1) * size))
            self._check(batch, first, last, table)
            self._settle(batch, taken, last)
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
            length,
            codes,
            start,
            table,
            mismatches,
        )
        if mismatches[0] and not self._mismatches:
            wrong = int(mismatches[1])
            ref, pos = batch.alleles(wrong)[0], int(records[wrong, vcf_decode.POS])
            has = letters(self._reference.codes(batch.contig, pos, pos + min(len(ref), 20)))
            self._first_mismatch = (
                f"record {batch.first + wrong} ({batch.contig}:{pos + 1}: REF {ref[:20]}, the "
                f"reference has {has})"
            )
        self._mismatches += int(mismatches[0])
        if status == kernel.OUTSIDE:
            self._refuse(batch, r, f"reaches outside its contig, which has bases 1-{length}")
        if status == kernel.BAD_LETTER:
            shown = ",".join(batch.alleles(r))[:60]
            self._refuse(batch, r, f"alleles {shown!r} are no sequence and no symbol of VCF")

    def _settle(self, batch: Batch, taken: kernel.Records, last: int) -> None:
        """Accept or skip what the records before ``last`` carry."""
        options, state = self._options, self._state
        found = int(state[kernel.UNPHASED_COUNT])
        while True:
            status = kernel.settle(
                taken,
                last,
                options.missing == "n",
                options.unphased == "n",
                options.inbred,
                self._frozen,
                self._inserted,
                self._skipped,
                self._room,
                state,
            )
            if status != kernel.MORE_ROOM:
                break
            self._room_size *= 2
            self._room = _room(self._room_size, self._room)
        if status == kernel.UNUSABLE:
            r, who = int(state[kernel.AT_RECORD]), int(state[kernel.BAD_SAMPLE])
            allele = batch.alleles(r)[int(state[kernel.BAD_NUMBER])][:40]
            why = "needs INFO/END" if allele.upper() == "<DEL>" else "gives no sequence"
            what = f"allele {allele} {why}; remove such records, or the sample"
            self._refuse(batch, r, what, who)
        if not found and state[kernel.UNPHASED_COUNT]:
            r = int(state[kernel.FIRST_RECORD])
            sample = self._file.samples[int(state[kernel.FIRST_SAMPLE])]
            self._first_unphased = f"{self._place(batch, r)}, sample {sample!r}"

    def _flush(self) -> None:
        """Write the block that is complete."""
        state = self._state
        count = int(state[kernel.PAIRS])
        if count:
            data = self._block_of(count).to_bytes()
            self._sink.write(data)
            sha256 = hashlib.sha256(data).hexdigest()
            reach = int(state[kernel.REACH])
            place = [self._contig, self._block, self._offset, len(data), sha256, reach]
            self._places.append(place)
            self._offset += len(data)
        state[[kernel.EVENTS, kernel.EDITS, kernel.LETTER_COUNT, kernel.PAIRS]] = 0

    def _block_of(self, count: int) -> Block:
        """The accepted edits so far, of so many pairs of haplotype and event."""
        state, room = self._state, self._room
        edits = int(state[kernel.EDITS])
        first = np.zeros(len(self._file.samples) * self._most + 1, np.int64)
        order = np.empty(count, np.int32)
        kernel.by_haplotype(room.pairs[:count], first, order)
        return Block(
            self._block,
            self._most,
            first,
            order,
            room.first_edit[: int(state[kernel.EVENTS]) + 1],
            room.edits[:edits],
            room.alt_first[: edits + 1],
            room.letters[: int(state[kernel.LETTER_COUNT])],
        )

    def _place(self, batch: Batch, r: int) -> str:
        position = int(batch.records[r, vcf_decode.POS]) + 1
        return f"record {batch.first + r} ({batch.contig}:{position})"

    def _refuse(self, batch: Batch, r: int, what: str, who: int | None = None) -> NoReturn:
        sample = "" if who is None else f", sample {self._file.samples[who]!r}"
        raise SequenceError(f"{self._path}: {self._place(batch, r)}{sample}: {what}")


def _room(size: int, kept: kernel.Room | None = None) -> kernel.Room:
    """Arrays of one block, ``size`` times as long as at first; what they held is kept."""
    room = kernel.Room(
        np.zeros(size << 12, np.int32),
        np.zeros((size << 12, 2), np.int64),
        np.zeros((size << 12) + 1, np.int32),
        np.zeros(size << 14, np.uint8),
        np.zeros((size << 20, 2), np.int32),
    )
    for new, old in zip(room, kept or (), strict=False):
        new[: len(old)] = old
    return room


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
