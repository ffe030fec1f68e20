"""One genome of a run: its shards, who computes them, and how they become a published file.

All state is on disk, in ``OUT/.parts/<genome>/``: ``genome.json`` (what the genome was when its
first shard was computed), one file per finished shard, and empty lock files. A lock is held by the
process that computes a shard and released by the kernel when that process ends, however it ends.
Where the file system has no locks, two processes may compute the same shard; the bytes are the
same, so whoever renames last changes nothing.

Records and parts carry a digest of their own content. A damaged record is made again from the
sequence, a damaged part is computed again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property, partial
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genomepred.documents import COUNT, DocumentError, read_document, seal
from genomepred.errors import (
    GenomepredError,
    OutputError,
    SequenceError,
    SignatureError,
    StoreError,
)
from genomepred.files import (
    Claim,
    own_folder,
    sha256_of,
    sweep_abandoned,
    sync_folder,
    write_whole,
)
from genomepred.runs.inputs import GenomePath
from genomepred.sequences.bed import read_bed
from genomepred.sequences.expanded import discard
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Geometry, Grid
from genomepred.sequences.index import IndexFiles
from genomepred.store.hdf5 import (
    DamagedPartError,
    Layout,
    encode_chunk,
    join,
    read_sidecar,
    sidecar_path,
    write_part,
    write_sidecar,
)

PARTS, CACHE = ".parts", ".cache"
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
# A part that proves damaged so often is not worth computing once more.
_MOST_DAMAGES = 3


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

    @cached_property
    def signature_text(self) -> str:
        """The signature as parts carry it."""
        return json.dumps(self.signature, sort_keys=True)

    def grid(self, contigs: dict[str, int]) -> Grid:
        """Grid of a genome with the given contig lengths.

        Raises
        ------
        OutputError
            If the run's copy of the BED is not what the run was started with.
        """
        if self.regions is not None:
            check_regions(self.regions, self.signature["regions"])
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


def regions_path(out: Path, sha256: str) -> Path:
    """Where a run keeps its copy of a BED: at a name that no genome's folder can have."""
    return out / PARTS / f".regions-{sha256[:16]}.bed"


def check_regions(path: Path, sha256: str) -> None:
    """Raise an OutputError unless a run's copy of its BED is what the run was started with."""
    with suppress(OSError):
        if sha256_of(path, follow=False) == sha256:
            return
    raise OutputError(f"{path}: the run's copy of the BED is missing or altered; run predict again")


def refuse_links(out: Path) -> None:
    """Refuse a folder whose own places are links or no folders: they would lead out of it."""
    for name in (PARTS, CACHE):
        if os.path.lexists(out / name):
            own_folder(out, name)


def sweep(out: Path) -> None:
    """Remove temporaries that killed processes have left anywhere in a run, in one pass."""
    sweep_abandoned(out)
    sweep_abandoned(out / PARTS)
    with suppress(OSError), os.scandir(out / PARTS) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                sweep_abandoned(Path(entry.path))


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
        self._damages: Counter[Path] = Counter()
        self._publishing = threading.Lock()

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

    @property
    def published(self) -> dict[str, Any] | None:
        """The published file's sidecar, once :meth:`settled` or :meth:`publish` has seen it."""
        return self._published

    def _accept(self, noted: dict[str, Any]) -> None:
        """Refuse a finished file of another run, or whose genome has since become another."""
        if noted["signature"] != self.plan.signature:
            raise SignatureError(
                f"{self.final} was computed with another signature than {self.plan.out} has "
                "now: remove the file to compute it again, or use another --out"
            )
        recorded = noted["genome"]
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

    def clear(self, stamp: tuple[int, int]) -> None:
        """Remove what a published genome needs no more; links are not followed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.plan.cache.is_dir():
            discard(IndexFiles(self.path, stamp, None).cached(self.plan.cache, ".codes"))

    def _stamp(self) -> tuple[int, int]:
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
        if record is None or self._stamp() != _stamp_of(record):
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
        if before is not None and self._stamp() == _stamp_of(before):
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

    def look(self) -> None:
        """See which shards are on disk, in one look at the folder."""
        assert self.prepared is not None
        there = _files_in(self.folder)
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

    def claim_shards(self) -> Iterator[Shard]:
        """Shards of this process's share that nobody else is computing."""
        own_folder(self.plan.out, PARTS, self.name)
        if self.settled():  # whoever has published it has cleared its folder away
            return
        for first, last in self.missing(self.plan.share):
            if self.error is not None:
                return
            claim = Claim.take(self.folder / f"{first}-{last}.lock")
            if claim is None:
                continue
            if _is_file(self.part(first, last)):
                self._open.discard((first, last))
                claim.release()
                continue
            yield self.assign(first, last, claim)

    def assign(self, first: int, last: int, claim: Claim | None = None) -> Shard:
        """A shard that is this process's to compute, whether by a lock or by order."""
        assert self.prepared is not None
        self._in_flight[first, last] = claim
        return Shard(self, self.prepared, first, last)

    def settle(self) -> bool:
        """Publish if all is there; whether the genome needs no further look by this process."""
        if not self._in_flight:
            self.close()  # all that was claimed has been read
        if self.settled():
            self.forget()
            return True
        if self.prepared is None or self._in_flight:
            return False
        self.look()
        if self.complete():
            self.publish(self.prepared)
            return False  # another process may be at it, or a part may prove damaged
        if self.plan.share[1] > 1 and not self.missing(self.plan.share):
            self.forget()
            return True
        return False

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
                "finished": _now(),
            },
        )

    def publish(self, prepared: Prepared) -> bool:
        """Join all parts into the published file.

        Parameters
        ----------
        prepared : Prepared
            What the parts were computed from.

        Returns
        -------
        bool
            False if another process or thread is at it, or if a part proved damaged: that part is
            removed, to be computed again.

        Raises
        ------
        SequenceError
            If the sequence file has changed since it was digested.
        StoreError
            If the same part has proved damaged again and again.
        """
        if not self._publishing.acquire(blocking=False):
            return False
        try:
            claim = Claim.take(self.folder / "publish.lock")
            if claim is None:
                return self._is_published()
            try:
                if not self._is_published():
                    return self._publish(prepared)
                self.clear(prepared.stamp)
                return True
            finally:
                claim.release()
        finally:
            self._publishing.release()

    def _is_published(self) -> bool:
        noted = self.outcome()
        return noted is not None and noted["outcome"] == "finished"

    def _publish(self, prepared: Prepared) -> bool:
        try:
            self._recheck_digest(prepared)
            joined = self.folder / "joined.h5"
            sha256 = self._join(joined, prepared)
            os.rename(joined, self.final)
            sync_folder(self.plan.out)
            self._write_outcome(sha256, prepared)
        except DamagedPartError as error:
            self._give_up_part(error)
            return False
        except FileNotFoundError:
            return self._is_published()  # without locks two publish, and one clears away first
        self.clear(prepared.stamp)
        return True

    def _give_up_part(self, error: DamagedPartError) -> None:
        """Remove a damaged part, to be computed again."""
        self._damages[error.path] += 1
        if self._damages[error.path] > _MOST_DAMAGES:
            raise StoreError(
                f"{error.path}: damaged again whenever it was computed ({error.reason}); check "
                f"the disk of {self.plan.out}"
            ) from error
        error.path.unlink(missing_ok=True)

    def _recheck_digest(self, prepared: Prepared) -> None:
        if not os.path.exists(self.path):
            return  # merging needs no sequence
        if self._stamp() != prepared.stamp:
            with Genome(self.path, name=self.name, cache=self.plan.cache) as genome:
                digest = genome.digest()
            if digest != prepared.digest:
                raise SequenceError(
                    f"{self.path} changed while it was being predicted; restore it and run again, "
                    f"or remove {self.folder} to start this genome again"
                )

    def _join(self, path: Path, prepared: Prepared) -> str:
        signature = self.plan.signature
        attributes = {
            "genome": self.name,
            "sequence_digest": prepared.digest,
            "model": signature["model"],
            "weights_sha256": signature["weights_sha256"],
            "strand": signature["strand"],
            "precision": signature["precision"],
            "package_version": signature["genomepred"],
        }
        return join(
            [self.part(*shard) for shard in prepared.ranges],
            path,
            self.plan.layout,
            prepared.grid,
            self.plan.tracks,
            attributes,
            [self.part_attributes(prepared, *shard) for shard in prepared.ranges],
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
        if not genome.stamp == prepared.stamp == self._stamp():
            raise SequenceError(
                f"{self.path} changed while it was being predicted: restore it and run again, or "
                f"remove {self.folder} to start this genome again"
            )

    def _write_outcome(self, sha256: str, prepared: Prepared) -> None:
        size, mtime_ns = prepared.stamp
        noted = {
            "outcome": "finished",
            "sha256": sha256,
            "bytes": self.final.stat().st_size,
            "rows": prepared.grid.rows,
            "bases": sum(prepared.contigs.values()),
            "genome": {
                "path": str(prepared.path),
                "size": size,
                "mtime_ns": mtime_ns,
                "digest": prepared.digest,
            },
            "signature": self.plan.signature,
            "started": prepared.started,
            "finished": _now(),
        }
        write_sidecar(self.sidecar, noted)
        self._published = noted


class Shard:
    """A claimed shard on its way through the pipeline (a ``pipeline.ShardJob``)."""

    _compressors = ThreadPoolExecutor(4, thread_name_prefix="compress")

    def __init__(self, work: GenomeWork, prepared: Prepared, first: int, last: int) -> None:
        self.work, self.prepared, self.first, self.last = work, prepared, first, last
        self.genome, self.grid = work.genome(), prepared.grid

    def finish(self, values: NDArray[np.float32]) -> None:
        """Compress and write the shard; the last one of a genome publishes it."""
        work = self.work
        try:
            self._write(self._encode(values), len(values))
            work.written(self.first, self.last)
            if work.complete() and work.error is None:
                work.publish(self.prepared)
        except OutputError:
            raise
        except GenomepredError as error:
            work.fail(error)
        except OSError as error:
            raise output_error(error, work) from error
        finally:
            work.landed(self.first, self.last)

    def _encode(self, values: NDArray[np.float32]) -> list[bytes]:
        layout = self.work.plan.layout
        starts = range(0, len(values), layout.chunk_rows)
        pieces = [values[row : row + layout.chunk_rows] for row in starts]
        return list(self._compressors.map(partial(encode_chunk, layout=layout), pieces))

    def _write(self, chunks: Sequence[bytes], rows: int) -> None:
        work, part = self.work, self.work.part(self.first, self.last)
        work.check_source(self.genome, self.prepared)
        if _is_file(part):
            work.duplicates += 1  # locks keep nobody out here; equal work gives equal bytes
            return
        attributes = work.part_attributes(self.prepared, self.first, self.last)
        try:
            write_part(part, chunks, rows, work.plan.layout, attributes)
        except FileNotFoundError:
            if not work.settled():  # published by others, who computed the same shard
                raise

    def fail(self, error: GenomepredError) -> None:
        """Give the genome up."""
        if isinstance(error, SequenceError):
            try:  # what a file that changes under way looks like to its reader is no explanation
                self.work.check_source(self.genome, self.prepared)
            except SequenceError as changed:
                error = changed
        try:
            self.work.fail(error)
        finally:
            self.work.landed(self.first, self.last)


def _files_in(folder: Path) -> set[str]:
    """Names of the regular files in a folder: links and pipes are no parts."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        return set()


def _is_file(path: Path) -> bool:
    with suppress(OSError):
        return stat.S_ISREG(os.lstat(path).st_mode)
    return False


def _check_record(record: dict[str, Any], name: str) -> None:
    if record["name"] != name:
        raise DocumentError(f"of another genome, {record['name'][:40]!r}")
    if len(set(record["contigs"])) != len(record["lengths"]) or sum(record["lengths"]) >> 62:
        raise DocumentError("contigs and lengths do not fit each other")


def _stamp_of(record: dict[str, Any]) -> tuple[int, int]:
    return record["size"], record["mtime_ns"]


def output_error(error: OSError, work: GenomeWork) -> OutputError:
    """One line for a system error that is no fault of the genome."""
    return OutputError(
        f"{error.filename or work.plan.out}: {error.strerror or error} while working on "
        f"{work.name}; finished shards are kept: mend it and run the same command again"
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
