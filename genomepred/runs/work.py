"""The source of one published file of a run, and its shards: a genome, or a cohort's haplotypes.

All state is on disk: parts in ``OUT/.parts/<name>/``, the published file and its sidecar. Nothing
here knows who computes which part; any number of processes may look, write and publish at once.
Where locks do not work, two may publish the same file; the bytes are the same.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from genomepred.documents import DocumentError, read_document, seal
from genomepred.errors import (
    GenomepredError,
    OutputError,
    SequenceError,
    SignatureError,
    StoreError,
)
from genomepred.files import Claim, sync, write_whole
from genomepred.runs.folder import PARTS, RunPlan, check_regions, make_grid, now
from genomepred.sequences.grid import Grid
from genomepred.sequences.source import SequenceSource
from genomepred.store.hdf5 import DamagedPartError
from genomepred.store.schema import read_sidecar

#: What the parts beside it were computed from.
RECORD = "genome.json"
# Ten million contigs with names of 80 letters.
_LARGEST = 1 << 30
# What stands at a record's place and is no file that we wrote: it is replaced, or refused there.
_NO_RECORD = {errno.ELOOP, errno.EINVAL, errno.EFBIG, errno.EISDIR, errno.ENXIO}
# A part that proves damaged so often is not worth computing once more.
_MOST_DAMAGES = 3
Rows = tuple[int, int]
Then = Callable[[Rows], object]


def _nothing(rows: Rows) -> None:
    """Do nothing more."""


@dataclass(frozen=True)
class GenomeResult:
    """Outcome of one genome: ``finished``, ``failed``, or ``partial`` (other shares are open)."""

    name: str
    outcome: str
    path: Path
    rows: int = 0
    bases: int = 0
    error: str = ""


class Work(ABC):
    """One file to be published, and its shards.

    Parameters
    ----------
    name : str
        Of the file, and of the folder of its parts.
    path : Path
        Sequence file.
    plan : RunPlan
        The run.
    number : int
        Its number in the run; spreads the shares.
    """

    #: What its record must hold.
    schema: ClassVar[dict[str, Any]]

    #: Once prepared: what it was when its first shard was computed, the grid of what is computed,
    #: paths of the parts of all shards, and what its sidecar is to say of it.
    record: dict[str, Any]
    grid: Grid
    parts: dict[Rows, Path]
    facts: dict[str, Any]

    def __init__(self, name: str, path: Path, plan: RunPlan, number: int = 0) -> None:
        self.name, self.path, self.plan, self.number = name, path, plan, number
        self.folder = plan.out / PARTS / name
        self.final = plan.out / f"{name}.h5"
        self.sidecar = plan.out / f"{name}.h5.json"
        #: Whether all of these are known; they are never altered.
        self.prepared = False
        #: What this object has opened to read codes from.
        self._opened: SequenceSource | None = None
        #: Why this command, or a worker of it, has given it up.
        self.error: GenomepredError | None = None
        #: The published file's sidecar, once it has been seen or written.
        self.published: dict[str, Any] | None = None
        #: Shards that another process computed at the same time, as locks should prevent.
        self.duplicates = 0
        self._publishing, self._damages = threading.Lock(), Counter[Path]()

    # -- what each kind of work says ---------------------------------------------------------

    @abstractmethod
    def prepare(self) -> bool:
        """Find out what it is and what its shards are; False while another process is at it."""

    @abstractmethod
    def source(self) -> SequenceSource:
        """The source of codes; opened when needed."""

    @abstractmethod
    def check_source(self) -> None:
        """Raise a SequenceError if what is read is not, or no longer, what was prepared."""

    @abstractmethod
    def accept(self, noted: dict[str, Any]) -> None:
        """Raise a SequenceError if a published file's source has since become another."""

    @abstractmethod
    def write(self, first: int, last: int, values: Any) -> None:
        """Encode and write a part, durably; one that is there stays, and is counted."""

    @abstractmethod
    def join(self, joined: Path) -> str:
        """Join all parts into a synced file; its sha256.

        Raises
        ------
        DamagedPartError
            If a part is not what was written.
        SequenceError
            If the source has changed.
        """

    @abstractmethod
    def clear(self) -> None:
        """Remove what a published file needs no more; links are not followed."""

    # -- what follows from its record --------------------------------------------------------

    def adopt(self, record: dict[str, Any]) -> None:
        """Be prepared by a record, without reading the source.

        Raises
        ------
        OutputError
            If the run's copy of the BED is not what the run was started with.
        """
        plan, signature = self.plan, self.plan.signature
        if plan.regions is not None:
            check_regions(plan.regions, signature.regions)
        contigs = dict(zip(record["contigs"], record["lengths"], strict=True))
        grid = make_grid(contigs, plan.geometry, plan.regions, plan.center, plan.regions_called)
        count, step, origin = grid.rows, plan.layout.shard_rows(signature.compute_batch), record
        if "reference" in record:  # a panel's, whose shards are ranges of windows
            count, step = grid.rows // grid.geometry.bins, record["shard_windows"]
            origin = {**record["reference"], "digest": signature.reference}
        ranges = [(k, min(k + step, count)) for k in range(0, count, step)]
        self.parts = {(a, b): self.folder / f"{a}-{b}.h5" for a, b in ranges}
        self.facts = {
            "rows": grid.rows,
            "bases": sum(record["lengths"]),
            "genome": {key: origin[key] for key in ("path", "size", "mtime_ns", "digest")},
            "started": record["started"],
        }
        self.record, self.grid, self.prepared = record, grid, True

    def close(self, forget: bool = False) -> None:
        """Close the sequence file; it is opened again when needed.

        ``forget`` what was prepared too, for it grows with the number of contigs.
        """
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        if forget and self.prepared:
            self.prepared = False
            del self.record, self.grid, self.parts, self.facts

    # -- where it stands: nothing is changed -------------------------------------------------

    def read_record(self) -> dict[str, Any] | None:
        """Return what it was when its first shard was computed, or None if none was.

        Raises
        ------
        StoreError
            If the record is damaged.
        """
        path = self.folder / RECORD
        try:
            record = read_document(path, self.schema, sealed=True, limit=_LARGEST, follow=False)
            if record["name"] != self.name:
                raise DocumentError(f"of another genome, {record['name'][:40]!r}")
            lengths = record["lengths"]
            if len(set(record["contigs"])) != len(lengths) or sum(lengths) >> 62:
                raise DocumentError("contigs and lengths do not fit each other")
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _NO_RECORD:
                raise
            raise StoreError(f"{path}: no record ({error.strerror}); run predict again") from error
        except DocumentError as error:
            raise StoreError(f"{path} is damaged ({error}); run predict again") from error
        return record

    def outcome(self, only: str = "") -> dict[str, Any] | None:
        """Content of the sidecar; None if there is none, a damaged one, or another than wanted.

        Of one that is finished, only if the file of that size is there too.
        """
        with suppress(StoreError, OSError):
            noted = read_sidecar(self.sidecar)
            if noted["outcome"] != "finished" or self.final.stat().st_size == noted["bytes"]:
                return noted if only in ("", noted["outcome"]) else None
        return None

    def settled(self) -> bool:
        """Whether it is published, or this command or a worker of it has given it up.

        Raises
        ------
        SignatureError, SequenceError
            If it was published by another run, or from another sequence.
        """
        if self.published is not None or self.error is not None:
            return True
        noted = self.outcome()
        if noted is not None and noted["outcome"] == "finished":
            if noted["signature"] != self.plan.signature.to_json():
                raise SignatureError(
                    f"{self.final} was computed with another signature than {self.plan.out} has "
                    "now: remove the file to compute it again, or use another --out"
                )
            self.accept(noted)
            self.published = noted
        elif noted is not None and noted["session"] == self.plan.session:
            self.error = GenomepredError(noted["error"])
        return self.published is not None or self.error is not None

    def has(self, first: int, last: int) -> bool:
        """Whether a shard is on disk; links and pipes are no parts."""
        with suppress(OSError):
            return stat.S_ISREG(os.lstat(self.parts[first, last]).st_mode)
        return False

    def missing(self) -> list[Rows]:
        """Shards that are not on disk, in one look at the folder; links and pipes are no parts."""
        there = set[str]()
        try:
            with os.scandir(self.folder) as entries:
                there = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        return [shard for shard, part in self.parts.items() if part.name not in there]

    def may_have(self, share: tuple[int, int]) -> bool:
        """Whether a share may have shards of it, as far as that is known before it is prepared."""
        return True

    def result(self) -> GenomeResult:
        """The outcome, as far as this process knows."""
        if self.error is not None:
            return GenomeResult(self.name, "failed", self.final, error=str(self.error))
        if (noted := self.published) is not None:
            return GenomeResult(self.name, "finished", self.final, noted["rows"], noted["bases"])
        return GenomeResult(self.name, "partial", self.final)

    # -- outcome -----------------------------------------------------------------------------

    def publish(self) -> bool:
        """Join all parts into the published file, and clear away.

        Returns
        -------
        bool
            False if another process or thread is at it, or if a part proved damaged: that part is
            removed, to be computed again.

        Raises
        ------
        SequenceError
            If the source has changed since it was prepared.
        StoreError
            If the same part has proved damaged again and again.
        """
        if not self._publishing.acquire(blocking=False):
            return False
        claim = None
        try:
            claim = Claim.take(self.folder / "publish.lock")
            done = self.outcome("finished") is not None
            if claim is not None and (done := done or self._publish()):
                self.clear()
            return done
        finally:
            if claim is not None:
                claim.release()
            self._publishing.release()

    def _publish(self) -> bool:
        joined, signature = self.folder / "joined.h5", self.plan.signature.to_json()
        try:
            noted = {"outcome": "finished", "sha256": self.join(joined), **self.facts}
            os.rename(joined, self.final)
            sync(self.plan.out, folder=True)
            noted |= {"bytes": self.final.stat().st_size, "signature": signature, "finished": now()}
            write_whole(self.sidecar, seal(noted))
            self.published = noted
        except DamagedPartError as error:
            self._damages[error.path] += 1
            if self._damages[error.path] > _MOST_DAMAGES:
                raise StoreError(
                    f"{error.path}: damaged again whenever it was computed ({error.reason}); "
                    f"check the disk of {self.plan.out}"
                ) from error
            error.path.unlink(missing_ok=True)
            return False
        except FileNotFoundError:  # without locks two publish, and one clears away first
            return self.outcome("finished") is not None
        return True

    def fail(self, error: GenomepredError) -> None:
        """Record that it cannot be finished; parts stay for another try."""
        self.error = error  # the reader may be reading the sequence: it closes it, not we
        if self.outcome("finished") is None:  # a published file stays what it is
            noted = {
                "outcome": "failed",
                "error": str(error),
                "session": self.plan.session,
                "genome": {"path": str(self.path)},
                "signature": self.plan.signature.to_json(),
                "finished": now(),
            }
            write_whole(self.sidecar, seal(noted))


class Shard:
    """A shard that is this process's to compute (a ``pipeline.ShardJob``).

    Parameters
    ----------
    work : Work
        Prepared.
    first, last : int
        One of its ``parts``.
    then : callable
        Called with these rows once the part is on disk, on the thread that has written it.
    landed : callable
        Called with these rows at the end, good or bad.
    """

    def __init__(
        self, work: Work, first: int, last: int, then: Then = _nothing, landed: Then = _nothing
    ) -> None:
        self.work, self.first, self.last = work, first, last
        self._then, self._landed = then, landed
        self.genome, self.grid = work.source(), work.grid

    def finish(self, values: Any) -> None:
        """Write the part."""
        try:
            with failing_alone(self.work):
                self.work.write(self.first, self.last, values)
                self._then((self.first, self.last))
        finally:
            self._landed((self.first, self.last))

    def fail(self, error: GenomepredError) -> None:
        """Give the work up."""
        if isinstance(error, SequenceError):
            try:  # what a file that changes under way looks like to its reader is no explanation
                self.work.check_source()
            except SequenceError as changed:
                error = changed
        try:
            self.work.fail(error)
        finally:
            self._landed((self.first, self.last))


@contextmanager
def failing_alone(work: Work) -> Iterator[None]:
    """Let an error of one work fail it alone; one of the output ends the run."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise disk_error(error, work) from error
    except GenomepredError as error:
        work.fail(error)


def disk_error(error: OSError, work: Work) -> OutputError:
    """One line for a system error that is no fault of the genome."""
    return OutputError(
        f"{error.filename or work.plan.out}: {error.strerror or error} while working on "
        f"{work.name}; finished shards are kept: mend it and run the same command again"
    )
