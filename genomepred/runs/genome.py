"""One genome of a run: what it was when its first shard was computed, its parts and its file.

What it was is noted in ``OUT/.parts/<genome>/genome.json``, beside its parts. Records and parts
carry a digest of their own content: a damaged record is made again from the sequence, a damaged
part is computed again.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from genomepred.documents import COUNT, seal
from genomepred.errors import SequenceError, StoreError
from genomepred.files import Claim, open_regular, own_folder, write_whole
from genomepred.runs.folder import CACHE, PARTS, now
from genomepred.runs.work import RECORD, Work
from genomepred.sequences.byte_source import stamp_of
from genomepred.sequences.fasta import Genome, discard_codes
from genomepred.sequences.source import SequenceSource
from genomepred.store.hdf5 import encode_chunk, join, write_part


class GenomeWork(Work):
    """A genome of a run."""

    schema: ClassVar = {
        "name": str,
        "path": str,
        "size": COUNT,
        "mtime_ns": int,
        "digest": str,
        "started": str,
        "contigs": [str],
        "lengths": [COUNT],
    }

    # -- the sequence ------------------------------------------------------------------------

    def source(self) -> SequenceSource:
        """The opened genome."""
        if self._opened is None:
            self._opened = Genome(self.path, name=self.name, cache=self.plan.out / CACHE)
        return self._opened

    def accept(self, noted: dict[str, Any]) -> None:
        """Refuse a finished file whose genome has since become another."""
        recorded = noted["genome"]
        if stamp_of(self.path) == (recorded["size"], recorded["mtime_ns"]):
            return
        with Genome(self.path, cache=self.plan.out / CACHE) as genome:
            digest = genome.digest()
            genome.discard_cache()
        if digest != recorded["digest"]:
            raise SequenceError(
                f"{self.path} changed after {self.final.name} was computed from it (sequence "
                f"digest {recorded['digest'][:12]}, now {digest[:12]}): remove {self.final} to "
                "compute it again, or restore the sequence"
            )

    def check_source(self) -> None:
        """Refuse a sequence file that was changed, before or after it was opened."""
        prepared = self.record["size"], self.record["mtime_ns"]
        opened = prepared if self._opened is None else self._opened.stamp
        if not opened == prepared == stamp_of(self.path):
            raise SequenceError(
                f"{self.path} changed while it was being predicted: restore it and run again, or "
                f"remove {self.folder} to start this genome again"
            )

    def may_have(self, share: tuple[int, int]) -> bool:
        """False if the file is so small that its shards are those of other shares."""
        (i, n), plan = share, self.plan
        most = None if plan.center else self._most_rows()
        step = plan.layout.shard_rows(plan.signature.compute_batch)
        return most is None or (i - self.number) % n * step < most

    def _most_rows(self) -> int | None:
        """More rows the genome cannot have; None if its file does not tell.

        A record of plain FASTA takes three bytes or more, and has two windows beside those that its
        bases fill at the stride, at most.
        """
        try:
            with open(open_regular(self.path), "rb") as file:
                if file.read(1) != b">":
                    return None
                size = os.fstat(file.fileno()).st_size
        except OSError:
            return None
        return (size // self.plan.geometry.stride + size) * self.plan.geometry.bins

    # -- its record --------------------------------------------------------------------------

    def prepare(self) -> bool:
        """Digest the genome and lay out its grid; False while another process is at it.

        With its claim the record is looked at again: another process may have made it meanwhile.
        """
        if self.prepared:
            return True
        own_folder(self.plan.out, PARTS, self.name)
        claim, record = None, None
        try:
            while record is None:
                before = None
                with suppress(StoreError):  # parts of another sequence are found out
                    before = self.read_record()
                if before and stamp_of(self.path) == (before["size"], before["mtime_ns"]):
                    record = before
                elif claim is not None:
                    record = self._make_record(before)
                elif (claim := Claim.take(self.folder / "genome.lock")) is None:
                    return False
        finally:
            if claim is not None:
                claim.release()
        self.adopt(record)
        return True

    def _make_record(self, before: dict[str, Any] | None) -> dict[str, Any]:
        genome = self.source()
        (size, mtime_ns), digest = genome.stamp, genome.digest()
        if before is not None and before["digest"] != digest:
            raise SequenceError(
                f"{self.path} changed since its first shards were computed (sequence digest "
                f"{before['digest'][:12]}, now {digest[:12]}): restore it, or "
                f"remove {self.folder} to start this genome again"
            )
        record = {
            "name": self.name,
            "path": str(self.path),
            "size": size,
            "mtime_ns": mtime_ns,
            "digest": digest,
            "started": now() if before is None else before["started"],
            "contigs": list(genome.contigs),
            "lengths": list(genome.contigs.values()),
        }
        write_whole(self.folder / RECORD, seal(record), entry=False)
        return record

    # -- parts and file ----------------------------------------------------------------------

    def write(self, first: int, last: int, values: NDArray[np.float32]) -> None:
        """Compress and write a shard, unless its part is there."""
        plan = self.plan
        encode = partial(encode_chunk, layout=plan.layout)
        starts = range(0, len(values), plan.layout.chunk_rows)
        pieces = [values[row : row + plan.layout.chunk_rows] for row in starts]
        chunks = list(_compressors(plan.compressors).map(encode, pieces))
        self.check_source()
        if self.has(first, last):
            self.duplicates += 1  # locks keep nobody out here; equal work gives equal bytes
            return
        attributes = self._attributes(first, last)
        try:
            write_part(self.parts[first, last], chunks, len(values), plan.layout, attributes)
        except FileNotFoundError:
            if not self.settled():  # published by others, who computed the same shard
                raise

    def _attributes(self, first: int, last: int) -> dict[str, str | int]:
        """Attributes of a part: enough to tell it from any other."""
        return {
            "genome": self.name,
            "first_row": first,
            "last_row": last,
            "sequence_digest": self.record["digest"],
            "signature": self.plan.signature.text,
        }

    def join(self, joined: Path) -> str:
        """Join all parts; the sequence is digested again if its file was touched."""
        record = self.record
        stamp = record["size"], record["mtime_ns"]
        if os.path.exists(self.path) and stamp_of(self.path) != stamp:  # merging needs none
            with Genome(self.path, cache=self.plan.out / CACHE) as genome:
                digest = genome.digest()
            if digest != record["digest"]:
                raise SequenceError(
                    f"{self.path} changed while it was being predicted; restore it and run again, "
                    f"or remove {self.folder} to start this genome again"
                )
        return join(
            list(self.parts.values()),
            joined,
            self.plan.layout,
            self.grid,
            self.plan.tracks,
            self.plan.signature.attributes(self.name, record["digest"]),
            [self._attributes(*shard) for shard in self.parts],
        )

    def clear(self) -> None:
        """Remove the parts and the expanded sequence; links are not followed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        genome = (self.facts if self.published is None else self.published)["genome"]
        discard_codes(self.path, (genome["size"], genome["mtime_ns"]), self.plan.out / CACHE)


@cache
def _compressors(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="compress")
