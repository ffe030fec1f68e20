"""One genome of a run: its shards, who computes them, and how they become a published file.

All state is on disk, in ``OUT/.parts/<genome>/``: ``genome.json`` (what the genome was when its
first shard was computed), one file per finished shard, and empty lock files. A lock is held by the
process that computes a shard and released by the kernel when that process ends, however it ends.
Where the file system has no locks, two processes may compute the same shard; the bytes are the
same, so whoever renames last changes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import (
    GenomepredError,
    OutputError,
    SequenceError,
    SignatureError,
    StoreError,
)
from genomepred.files import discard_abandoned, sync_folder, write_whole
from genomepred.inference.inputs import GenomePath
from genomepred.sequences.expanded import discard
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Geometry, Grid, read_bed
from genomepred.sequences.index import IndexFiles
from genomepred.store.hdf5 import (
    DamagedPartError,
    Layout,
    encode_chunk,
    join,
    read_part_attributes,
    read_sidecar,
    sidecar_path,
    write_part,
    write_sidecar,
)

PARTS, CACHE = ".parts", ".cache"
# What a sidecar must hold to say that a genome is finished.
_FINISHED = {"outcome", "signature", "genome", "sha256", "rows", "bases", "bytes"}
_RECORDED = {"name", "path", "size", "mtime_ns", "digest", "started", "contigs"}
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


@dataclass(frozen=True)
class RunPlan:
    """What all genomes of a run have in common.

    ``regions`` is the run's own copy of a BED that messages call ``regions_called``.
    ``share`` is ``(i, n)``: of every genome, this process computes the shards whose number plus
    the genome's number is ``i`` modulo ``n``. ``session`` tells failures of this command, its
    workers included, from those of an earlier one.
    """

    out: Path
    geometry: Geometry
    layout: Layout
    regions: Path | None
    centre: bool
    signature: dict[str, Any]
    tracks: tuple[tuple[str, str], ...]
    regions_called: str | None = None
    share: tuple[int, int] = (0, 1)
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def shard_rows(self) -> int:
        """Rows of a shard."""
        return shard_rows(self.layout, self.signature["compute_batch"])

    @property
    def cache(self) -> Path:
        """Folder of indexes and expanded sequences."""
        return self.out / CACHE

    def grid(self, contigs: dict[str, int]) -> Grid:
        """Grid of a genome with the given contig lengths."""
        return make_grid(contigs, self.geometry, self.regions, self.centre, self.regions_called)


def shard_rows(layout: Layout, compute_batch: int) -> int:
    """Rows of a shard: whole chunks, windows and compute batches.

    A compute batch that two shards cut would be computed twice.
    """
    return lcm(layout.shard_rows, compute_batch * layout.bins)


def make_grid(
    contigs: dict[str, int],
    geometry: Geometry,
    regions: Path | None,
    centre: bool,
    called: str | None = None,
) -> Grid:
    """Grid of a genome: all of it, the rows that meet a BED's regions, or one window a record."""
    if regions is None:
        return Grid.whole(contigs, geometry)
    records = read_bed(regions, contigs, called)
    make = Grid.centred if centre else Grid.of_regions
    return make(contigs, geometry, records)


class Claim:
    """An exclusive lock on a file, held until released or until the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Claim | None:
        """The claim, or None if another holder has it, or has published and cleared the folder."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return None
                raise
        return cls(descriptor)

    def release(self) -> None:
        """Let others have it."""
        os.close(self._descriptor)


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
        self.grid: Grid | None = None
        self._genome: Genome | None = None
        self._record: dict[str, Any] = {}
        self._in_flight: dict[tuple[int, int], Claim] = {}
        self._checked = False
        # Held from a shard's landing to the end of publishing, by the reader or the writer: what
        # publishing needs must not be let go of meanwhile.
        self.landing = threading.RLock()

    # -- where it stands ---------------------------------------------------------------------

    def finished(self) -> bool:
        """Whether the genome is published; leftovers of publication are cleared away."""
        outcome = self._outcome()
        if outcome is None or outcome["outcome"] != "finished" or not self.final.is_file():
            return False
        if not self._checked:
            if self.final.stat().st_size != outcome["bytes"]:
                return False  # not what was published: it is computed again
            if outcome["signature"] != self.plan.signature:
                raise SignatureError(
                    f"{self.final} was computed with another signature than {self.plan.out} has "
                    "now: remove the file to compute it again, or use another --out"
                )
            self._check_unchanged(outcome["genome"])
            self._checked = True
        self._clear(outcome["genome"])
        return True

    def _clear(self, genome: dict[str, Any]) -> None:
        """Remove what a published genome needs no more."""
        shutil.rmtree(self.folder, ignore_errors=True)
        discard_abandoned(self.sidecar)
        if self.plan.cache.exists():
            stamp = (genome["size"], genome["mtime_ns"])
            discard(IndexFiles(self.path, stamp, None).cached(self.plan.cache, ".codes"))

    def failed(self) -> bool:
        """Whether this command, or one of its workers, has given up on the genome."""
        if self.error is None:
            outcome = self._outcome()
            if outcome and outcome["outcome"] == "failed" and self._ours(outcome):
                self.error = GenomepredError(outcome["error"])
        return self.error is not None

    def _ours(self, outcome: dict[str, Any]) -> bool:
        return bool(outcome.get("session") == self.plan.session)

    def _outcome(self) -> dict[str, Any] | None:
        try:
            outcome = read_sidecar(self.sidecar) if self.sidecar.exists() else {}
        except (StoreError, FileNotFoundError):
            return None  # damaged: the genome is computed again, to the same bytes
        whole = set(outcome) >= _FINISHED and isinstance(outcome["genome"], dict)
        return outcome if whole or outcome.get("outcome") == "failed" else None

    def _check_unchanged(self, recorded: dict[str, Any]) -> None:
        """Refuse a finished file whose genome has since become another."""
        if self._stamp() == (recorded["size"], recorded["mtime_ns"]):
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

    def _stamp(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError as error:
            raise SequenceError(f"{self.path}: cannot be read: {error.strerror}") from error
        return status.st_size, status.st_mtime_ns

    # -- shards ------------------------------------------------------------------------------

    def _prepare(self, bar: Any) -> bool:
        """Digest the genome and lay out its grid; False while another process is at it."""
        if self.grid is not None:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.read_record()
        if record is None or not self._is_current(record):
            claim = Claim.take(self.folder / "genome.lock")
            if claim is None:
                return False
            try:
                record = self._make_record()
            finally:
                claim.release()
        self.adopt(record)
        if bar is not None:
            rows = sum(last - first for first, last in self.missing(self.plan.share))
            bar.total += rows * self.plan.geometry.step
        return True

    def adopt(self, record: dict[str, Any]) -> None:
        """Take over what the parts were computed from, without reading the sequence."""
        self._record = record
        self.grid = self.plan.grid(record["contigs"])

    def _is_current(self, record: dict[str, Any]) -> bool:
        return self._stamp() == (record["size"], record["mtime_ns"])

    def read_record(self) -> dict[str, Any] | None:
        """What the genome was when its first shard was computed, or None if none was.

        Raises
        ------
        StoreError
            If the record is damaged.
        """
        path = self.folder / "genome.json"
        try:
            record = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            record = None
        if not isinstance(record, dict) or not set(record) >= _RECORDED:
            raise StoreError(f"{path} is damaged: remove {self.folder} and run predict again")
        return record

    def _make_record(self) -> dict[str, Any]:
        before = self.read_record()
        if before is not None and self._is_current(before):
            return before  # another process has made it meanwhile
        genome = self.genome()
        size, mtime_ns = genome.stamp
        record = {
            "name": self.name,
            "path": str(self.path),
            "size": size,
            "mtime_ns": mtime_ns,
            "digest": genome.digest(),
            "started": _now(),
            "contigs": genome.contigs,
        }
        if before is not None:
            if before["digest"] != record["digest"]:
                raise SequenceError(
                    f"{self.path} changed since its first shards were computed (sequence digest "
                    f"{before['digest'][:12]}, now {str(record['digest'])[:12]}): restore it, or "
                    f"remove {self.folder} to start this genome again"
                )
            record["started"] = before["started"]
        write_whole(self.folder / "genome.json", json.dumps(record).encode())
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

    def ranges(self) -> list[tuple[int, int]]:
        """Row ranges of all shards."""
        assert self.grid is not None
        rows, step = self.grid.rows, self.plan.shard_rows
        return [(first, min(first + step, rows)) for first in range(0, rows, step)]

    def part(self, first: int, last: int) -> Path:
        """Path of a finished shard."""
        return self.folder / f"{first}-{last}.h5"

    def missing(self, share: tuple[int, int] = (0, 1)) -> list[tuple[int, int]]:
        """Row ranges of a share that are neither finished nor being computed in this process."""
        i, n = share
        return [
            shard
            for k, shard in enumerate(self.ranges())
            if (k + self.index) % n == i
            and shard not in self._in_flight
            and not self.part(*shard).exists()
        ]

    def complete(self) -> bool:
        """Whether all shards are finished."""
        return not self._in_flight and not self.missing()

    def claim_shards(self, bar: Any = None) -> Iterator[Shard]:
        """Shards of this process's share that nobody else is computing.

        The first call digests the genome; the rows to come are added to the progress bar's total.
        """
        if self.finished() or self.failed() or not self._prepare(bar):
            return
        for first, last in self.missing(self.plan.share):
            claim = Claim.take(self.folder / f"{first}-{last}.lock")
            if claim is None:
                continue
            try:
                if self.part(first, last).exists() or self.failed() or self.finished():
                    continue
                self._in_flight[first, last] = claim
            finally:
                if (first, last) not in self._in_flight:
                    claim.release()
            yield Shard(self, first, last)

    def settle(self) -> bool:
        """Publish if all is there; whether the genome needs no further look by this process."""
        if not self.landing.acquire(blocking=False):
            return False  # the writer is at it
        try:
            return self._settle()
        finally:
            self.landing.release()

    def _settle(self) -> bool:
        if not self._in_flight:
            self.close()  # all that was claimed has been read
        if self.finished() or self.failed():
            self._forget()
            return True
        if self.grid is None:
            return False
        if self.complete():
            self.publish()
            return False  # another process may be at it, or a part may prove damaged
        others_remain = self.plan.share[1] > 1
        if others_remain and not self._in_flight and not self.missing(self.plan.share):
            self._forget()
            return True
        return False

    def _forget(self) -> None:
        """Let go of what grows with the number of contigs."""
        if not self._in_flight:
            self.close()
            self.grid, self._record = None, {}

    # -- outcome -----------------------------------------------------------------------------

    def landed(self, first: int, last: int) -> None:
        """A shard of this process is on disk, or has been given up."""
        self._in_flight.pop((first, last)).release()

    def abandon(self) -> None:
        """Leave what is not finished to whoever comes next."""
        while self._in_flight:
            self._in_flight.popitem()[1].release()
        self.close()

    def fail(self, error: GenomepredError) -> None:
        """Record that the genome cannot be finished; parts stay for another try."""
        self.error = error  # the reader may be reading the sequence: it closes it, not we
        outcome = self._outcome()
        if outcome is not None and outcome["outcome"] == "finished":
            return  # the published file stays what it is
        write_sidecar(
            self.sidecar,
            {
                "outcome": "failed",
                "error": str(error),
                "session": self.plan.session,
                "genome": {"path": str(self.path)},
                "signature": self.plan.signature,
                "finished": _now(),
            },
        )

    def publish(self) -> bool:
        """Join all parts into the published file.

        Returns
        -------
        bool
            False if another process is at it, or if a part proved damaged: that part is removed,
            to be computed again.

        Raises
        ------
        SequenceError
            If the sequence file has changed since it was digested.
        """
        claim = Claim.take(self.folder / "publish.lock")
        if claim is None:
            return self.finished()
        try:
            if self.finished():
                return True
            self._recheck_digest()
            joined = self.folder / "joined.h5"
            sha256 = self._join(joined)
            os.rename(joined, self.final)
            sync_folder(self.plan.out)
            self._checked = True
            self._write_outcome(sha256)
            self._clear(self._record)
            return True
        except DamagedPartError as error:
            error.path.unlink(missing_ok=True)
            return False
        except FileNotFoundError:
            return self.finished()  # without locks two processes publish, one clears away first
        finally:
            claim.release()

    def _recheck_digest(self) -> None:
        if not self.path.exists():
            return  # merging needs no sequence
        if not self._is_current(self._record):
            with Genome(self.path, name=self.name, cache=self.plan.cache) as genome:
                digest = genome.digest()
            if digest != self._record["digest"]:
                raise SequenceError(
                    f"{self.path} changed while it was being predicted; restore it and run again, "
                    f"or remove {self.folder} to start this genome again"
                )

    def _join(self, path: Path) -> str:
        assert self.grid is not None
        signature = self.plan.signature
        attributes = {
            "genome": self.name,
            "sequence_digest": self._record["digest"],
            "model": signature["model"],
            "weights_sha256": signature["weights_sha256"],
            "strand": signature["strand"],
            "precision": signature["precision"],
            "package_version": signature["genomepred"],
        }
        parts = [self.part(*shard) for shard in self.ranges()]
        for part, shard in zip(parts, self.ranges(), strict=True):
            if read_part_attributes(part) != self.part_attributes(*shard):
                raise DamagedPartError(part, "of another run or another sequence")
        return join(parts, path, self.plan.layout, self.grid, self.plan.tracks, attributes)

    def part_attributes(self, first: int, last: int) -> dict[str, str | int]:
        """What a part says of itself: enough to tell it from any other."""
        return {
            "genome": self.name,
            "first_row": first,
            "last_row": last,
            "sequence_digest": str(self._record["digest"]),
            "signature": json.dumps(self.plan.signature, sort_keys=True),
        }

    def check_source(self, genome: Genome) -> None:
        """Refuse shards of a sequence file that is not, or no longer, the one that was digested.

        Raises
        ------
        SequenceError
            If the file has been changed, before or after it was opened.
        """
        recorded = (self._record["size"], self._record["mtime_ns"])
        if not genome.stamp == recorded == self._stamp():
            raise SequenceError(
                f"{self.path} changed while it was being predicted: restore it and run again, or "
                f"remove {self.folder} to start this genome again"
            )

    def _write_outcome(self, sha256: str) -> None:
        assert self.grid is not None
        identity = {key: self._record[key] for key in ("path", "size", "mtime_ns", "digest")}
        write_sidecar(
            self.sidecar,
            {
                "outcome": "finished",
                "sha256": sha256,
                "bytes": self.final.stat().st_size,
                "rows": self.grid.rows,
                "bases": int(sum(self._record["contigs"].values())),
                "genome": identity,
                "signature": self.plan.signature,
                "started": self._record["started"],
                "finished": _now(),
            },
        )


class Shard:
    """A claimed shard on its way through the pipeline (a ``pipeline.ShardJob``)."""

    _compressors = ThreadPoolExecutor(4, thread_name_prefix="compress")

    def __init__(self, work: GenomeWork, first: int, last: int) -> None:
        assert work.grid is not None
        self.work, self.first, self.last = work, first, last
        self.genome, self.grid = work.genome(), work.grid

    def finish(self, values: NDArray[np.float32]) -> None:
        """Compress and write the shard; the last one of a genome publishes it."""
        work = self.work
        try:
            chunks = self._encode(values)
            with work.landing:
                try:
                    self._write(chunks, len(values))
                finally:
                    work.landed(self.first, self.last)
                if work.complete() and not work.failed():
                    work.publish()
        except OutputError:
            raise
        except GenomepredError as error:
            work.fail(error)
        except OSError as error:
            raise output_error(error, work) from error

    def _encode(self, values: NDArray[np.float32]) -> list[bytes]:
        layout = self.work.plan.layout
        starts = range(0, len(values), layout.chunk_rows)
        pieces = [values[row : row + layout.chunk_rows] for row in starts]
        return list(self._compressors.map(partial(encode_chunk, layout=layout), pieces))

    def _write(self, chunks: Sequence[bytes], rows: int) -> None:
        work, shard = self.work, (self.first, self.last)
        work.check_source(self.genome)
        attributes = work.part_attributes(*shard)
        try:
            write_part(work.part(*shard), chunks, rows, work.plan.layout, attributes)
        except FileNotFoundError:
            if not work.finished():  # published by others, who computed the same shard
                raise

    def fail(self, error: GenomepredError) -> None:
        """Give the genome up."""
        with self.work.landing:
            if isinstance(error, SequenceError):
                try:  # what a file that changes under way looks like to its reader explains nothing
                    self.work.check_source(self.genome)
                except SequenceError as changed:
                    error = changed
            self.work.fail(error)
            self.work.landed(self.first, self.last)


def output_error(error: OSError, work: GenomeWork) -> OutputError:
    """One line for a system error that is no fault of the genome."""
    return OutputError(
        f"{error.filename or work.plan.out}: {error.strerror or error} while working on "
        f"{work.name}; finished shards are kept: mend it and run the same command again"
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
