"""One genome of a run: what its files say of it, and the shards that are still open.

All state is on disk, in ``OUT/.parts/<genome>/``: ``genome.json`` (what the genome was when its
first shard was computed), one file per finished shard, and empty lock files; and in the sidecar
beside the published file. Records and parts carry a digest of their own content: a damaged record
is made again from the sequence, a damaged part is computed again.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from genomepred.documents import COUNT, DocumentError, read_document, seal
from genomepred.errors import (
    GenomepredError,
    SequenceError,
    SignatureError,
    StoreError,
)
from genomepred.files import Claim, own_folder, write_whole
from genomepred.runs.folder import PARTS, RunPlan, now
from genomepred.runs.inputs import GenomePath
from genomepred.sequences.expanded import discard
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Grid
from genomepred.sequences.index import IndexFiles
from genomepred.store.sidecar import read_sidecar, sidecar_path, write_sidecar

_RECORD = {
    "name": str,
    "path": str,
    "size": COUNT,
    "mtime_ns": int,
    "digest": str,
    "started": str,
    "contigs": [str],
    "lengths": [COUNT],
}
# Ten million contigs with names of 80 letters.
_LARGEST_RECORD = 1 << 30
# What stands at a record's place and is no file that we wrote: it is replaced, or refused there.
_NO_RECORD = {errno.ELOOP, errno.EINVAL, errno.EFBIG, errno.EISDIR, errno.ENXIO}


@dataclass(frozen=True)
class GenomeResult:
    """Outcome of one genome: ``finished``, ``failed``, or ``partial`` (other shares are open)."""

    name: str
    outcome: str
    path: Path
    rows: int = 0
    bases: int = 0
    error: str = ""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a genome was when its first shard was computed, and its rows; never altered.

    Whoever works on the genome, on any thread, holds on to this and needs nothing else of it.
    """

    path: Path
    stamp: tuple[int, int]
    digest: str
    started: str
    contigs: dict[str, int]
    grid: Grid
    shard_rows: int

    @cached_property
    def ranges(self) -> list[tuple[int, int]]:
        """Row ranges of all shards."""
        rows, step = self.grid.rows, self.shard_rows
        return [(first, min(first + step, rows)) for first in range(0, rows, step)]


class GenomeWork:
    """A genome's progress within a run, as far as the files tell.

    Parameters
    ----------
    source : GenomePath
        Name and sequence file.
    plan : RunPlan
        The run.
    index : int
        The genome's number in the run; spreads the shares.
    """

    def __init__(self, source: GenomePath, plan: RunPlan, index: int = 0) -> None:
        self.name, self.path = source
        self.plan, self.index = plan, index
        self.folder = plan.out / PARTS / self.name
        self.final = plan.out / f"{self.name}.h5"
        self.sidecar = sidecar_path(self.final)
        self.error: GenomepredError | None = None
        #: Shards that another process computed at the same time, as locks should prevent.
        self.duplicates = 0
        self.prepared: Prepared | None = None
        self._genome: Genome | None = None
        self._published: dict[str, Any] | None = None
        # Shards that are not known to be on disk, and those that this process is at.
        self._open: set[tuple[int, int]] = set()
        self._in_flight: dict[tuple[int, int], Claim | None] = {}
        #: Held by the thread that publishes; how often which part has proved damaged.
        self.publishing, self.damages = threading.Lock(), Counter[Path]()

    # -- where it stands ---------------------------------------------------------------------

    def outcome(self) -> dict[str, Any] | None:
        """What the sidecar says; None if there is none, or a damaged one.

        Of a genome that is finished, only if the file of that size is there too.
        """
        try:
            noted = read_sidecar(self.sidecar)
            if noted["outcome"] != "finished" or self.final.stat().st_size == noted["bytes"]:
                return noted
        except (StoreError, OSError):
            pass
        return None

    def settled(self) -> bool:
        """Whether the genome is published, or this command or a worker of it has given it up.

        Raises
        ------
        SignatureError, SequenceError
            If it was published by another run, or from another sequence.
        """
        if self._published is not None or self.error is not None:
            return True
        noted = self.outcome()
        if noted is not None and noted["outcome"] == "finished":
            self._accept(noted)
            self.clear((noted["genome"]["size"], noted["genome"]["mtime_ns"]))
            self._published = noted
        elif noted is not None and noted["session"] == self.plan.session:
            self.error = GenomepredError(noted["error"])
        return self._published is not None or self.error is not None

    def is_published(self) -> bool:
        """Whether the genome's file and sidecar are there."""
        noted = self.outcome()
        return noted is not None and noted["outcome"] == "finished"

    def note_published(self, noted: dict[str, Any]) -> None:
        """Write the sidecar of a file that is in its place."""
        write_sidecar(self.sidecar, noted)
        self._published = noted

    @property
    def published(self) -> dict[str, Any] | None:
        """The published file's sidecar, once it has been seen or written."""
        return self._published

    def _accept(self, noted: dict[str, Any]) -> None:
        """Refuse a finished file of another run, or whose genome has since become another."""
        if noted["signature"] != self.plan.signature:
            raise SignatureError(
                f"{self.final} was computed with another signature than {self.plan.out} has "
                "now: remove the file to compute it again, or use another --out"
            )
        recorded = noted["genome"]
        if self.stamp() == (recorded["size"], recorded["mtime_ns"]):
            return
        with Genome(self.path, name=self.name, cache=self.plan.cache) as genome:
            digest = genome.digest()
            genome.discard_cache()
        if digest != recorded["digest"]:
            raise SequenceError(
                f"{self.path} changed after {self.final.name} was computed from it (sequence "
                f"digest {recorded['digest'][:12]}, now {digest[:12]}): remove {self.final} to "
                "compute it again, or restore the sequence"
            )

    def clear(self, stamp: tuple[int, int]) -> None:
        """Remove what a published genome needs no more; links are not followed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.plan.cache.is_dir():
            discard(IndexFiles(self.path, stamp, None).cached(self.plan.cache, ".codes"))

    def stamp(self) -> tuple[int, int]:
        """Size and modification time of the sequence file.

        Raises
        ------
        SequenceError
            If it is not there.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            raise SequenceError(f"{self.path}: cannot be read: {error.strerror}") from error
        return status.st_size, status.st_mtime_ns

    # -- what the genome is ------------------------------------------------------------------

    def prepare(self) -> bool:
        """Digest the genome and lay out its grid; False while another process is at it."""
        if self.prepared is not None:
            return True
        own_folder(self.plan.out, PARTS, self.name)
        record = self._sound_record()
        if record is None or self.stamp() != _stamp_of(record):
            claim = Claim.take(self.folder / "genome.lock")
            if claim is None:
                return False
            try:
                record = self._make_record()
            finally:
                claim.release()
        self.adopt(record)
        return True

    def adopt(self, record: dict[str, Any]) -> None:
        """Take over what the parts were computed from, without reading the sequence."""
        contigs = dict(zip(record["contigs"], record["lengths"], strict=True))
        self.prepared = Prepared(
            path=Path(record["path"]),
            stamp=_stamp_of(record),
            digest=record["digest"],
            started=record["started"],
            contigs=contigs,
            grid=self.plan.grid(contigs),
            shard_rows=self.plan.shard_rows,
        )
        self.look()

    def read_record(self) -> dict[str, Any] | None:
        """What the genome was when its first shard was computed, or None if none was.

        Raises
        ------
        StoreError
            If the record is damaged.
        """
        path = self.folder / "genome.json"
        try:
            record = read_document(path, _RECORD, sealed=True, limit=_LARGEST_RECORD, follow=False)
            _check_record(record, self.name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _NO_RECORD:
                raise
            raise StoreError(f"{path}: no record ({error.strerror}); run predict again") from error
        except DocumentError as error:
            raise StoreError(f"{path} is damaged ({error}); run predict again") from error
        return record

    def _sound_record(self) -> dict[str, Any] | None:
        """The record; None if it must be made anew. Parts of another sequence are found out."""
        try:
            return self.read_record()
        except StoreError:
            return None

    def _make_record(self) -> dict[str, Any]:
        before = self._sound_record()
        if before is not None and self.stamp() == _stamp_of(before):
            return before  # another process has made it meanwhile
        genome = self.genome()
        size, mtime_ns = genome.stamp
        record = {
            "name": self.name,
            "path": str(self.path),
            "size": size,
            "mtime_ns": mtime_ns,
            "digest": genome.digest(),
            "started": now(),
            "contigs": list(genome.contigs),
            "lengths": list(genome.contigs.values()),
        }
        if before is not None:
            if before["digest"] != record["digest"]:
                raise SequenceError(
                    f"{self.path} changed since its first shards were computed (sequence digest "
                    f"{before['digest'][:12]}, now {str(record['digest'])[:12]}): restore it, or "
                    f"remove {self.folder} to start this genome again"
                )
            record["started"] = before["started"]
        write_whole(self.folder / "genome.json", seal(record))
        return record

    def genome(self) -> Genome:
        """The opened genome."""
        if self._genome is None:
            self._genome = Genome(self.path, name=self.name, cache=self.plan.cache)
        return self._genome

    def close(self) -> None:
        """Close the sequence file; it is opened again when needed."""
        if self._genome is not None:
            self._genome.close()
            self._genome = None

    # -- shards ------------------------------------------------------------------------------

    def part(self, first: int, last: int) -> Path:
        """Path of a finished shard."""
        return self.folder / f"{first}-{last}.h5"

    def has(self, first: int, last: int) -> bool:
        """Whether a shard is on disk; links and pipes are no parts."""
        with suppress(OSError):
            return stat.S_ISREG(os.lstat(self.part(first, last)).st_mode)
        return False

    def look(self) -> None:
        """See which shards are on disk, in one look at the folder."""
        assert self.prepared is not None
        there = files_in(self.folder)
        ranges = self.prepared.ranges
        self._open = {shard for shard in ranges if self.part(*shard).name not in there}

    def missing(self, share: tuple[int, int] = (0, 1)) -> list[tuple[int, int]]:
        """Row ranges of a share that are neither on disk nor being computed in this process.

        As of the last :meth:`look`, and of what this process has done since.
        """
        assert self.prepared is not None
        i, n = share
        return [
            shard
            for k, shard in enumerate(self.prepared.ranges)
            if (k + self.index) % n == i and shard in self._open and shard not in self._in_flight
        ]

    def complete(self) -> bool:
        """Whether all shards are known to be on disk."""
        return self.prepared is not None and not self._open

    def at_work(self) -> bool:
        """Whether this process computes shards of the genome."""
        return bool(self._in_flight)

    def begin(self, first: int, last: int, claim: Claim | None) -> None:
        """Note that this process computes a shard, by which claim."""
        self._in_flight[first, last] = claim

    def forget(self) -> None:
        """Let go of what grows with the number of contigs."""
        if not self._in_flight:
            self.close()
            self.prepared = None

    # -- outcome -----------------------------------------------------------------------------

    def written(self, first: int, last: int) -> None:
        """A shard of this process is on disk; others may see it, and publish."""
        self._open.discard((first, last))

    def landed(self, first: int, last: int) -> None:
        """Done with a shard of this process: it is on disk, or has been given up."""
        claim = self._in_flight.pop((first, last), None)
        if claim is not None:
            claim.release()

    def abandon(self) -> None:
        """Leave what is not finished to whoever comes next."""
        for shard in list(self._in_flight):
            self.landed(*shard)
        self.close()

    def fail(self, error: GenomepredError) -> None:
        """Record that the genome cannot be finished; parts stay for another try."""
        self.error = error  # the reader may be reading the sequence: it closes it, not we
        noted = self.outcome()
        if noted is not None and noted["outcome"] == "finished":
            return  # the published file stays what it is
        write_sidecar(
            self.sidecar,
            {
                "outcome": "failed",
                "error": str(error),
                "session": self.plan.session,
                "genome": {"path": str(self.path)},
                "signature": self.plan.signature,
                "finished": now(),
            },
        )

    def part_attributes(self, prepared: Prepared, first: int, last: int) -> dict[str, str | int]:
        """What a part says of itself: enough to tell it from any other."""
        return {
            "genome": self.name,
            "first_row": first,
            "last_row": last,
            "sequence_digest": prepared.digest,
            "signature": self.plan.signature_text,
        }

    def check_source(self, genome: Genome, prepared: Prepared) -> None:
        """Refuse shards of a sequence file that is not, or no longer, the one that was digested.

        Raises
        ------
        SequenceError
            If the file has been changed, before or after it was opened.
        """
        if not genome.stamp == prepared.stamp == self.stamp():
            raise SequenceError(
                f"{self.path} changed while it was being predicted: restore it and run again, or "
                f"remove {self.folder} to start this genome again"
            )


def files_in(folder: Path) -> set[str]:
    """Names of the regular files in a folder: links and pipes are no parts."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        return set()


def _check_record(record: dict[str, Any], name: str) -> None:
    if record["name"] != name:
        raise DocumentError(f"of another genome, {record['name'][:40]!r}")
    if len(set(record["contigs"])) != len(record["lengths"]) or sum(record["lengths"]) >> 62:
        raise DocumentError("contigs and lengths do not fit each other")


def _stamp_of(record: dict[str, Any]) -> tuple[int, int]:
    return record["size"], record["mtime_ns"]
