"""One published file of a run, and its shards: those of a genome.

All state is on disk: parts in ``OUT/.parts/<name>/``, beside them the genome's *identity*, what it
was when its first shard was computed, then the published file and its sidecar. Nothing here knows
who computes which part; any number of processes may look, write and publish at once. Where locks do
not work, two may publish the same file; the bytes are the same. Identities and parts carry a digest
of their own content: a damaged identity is made again from the sequence, a damaged part is computed
again.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

from genomepred.documents import COUNT, DocumentError, read_document, seal
from genomepred.errors import (
    GenomepredError,
    OutputError,
    SequenceError,
    SignatureError,
    StoreError,
)
from genomepred.files import Claim, own_folder, sync, write_whole
from genomepred.runs.folder import CACHE, PARTS, RunTerms, check_regions, files_in, make_grid, now
from genomepred.sequences.byte_source import stamp_of
from genomepred.sequences.fasta import Genome, discard_codes
from genomepred.sequences.grid import Grid
from genomepred.sequences.source import SequenceSource
from genomepred.store.hdf5 import DamagedPartError, join, write_part
from genomepred.store.schema import encode_chunk, read_sidecar

#: What the parts beside it were computed from.
IDENTITY = "genome.json"
# Ten million contigs with names of 80 letters.
_LARGEST = 1 << 30
# What stands at an identity's place and is no file that we wrote: it is replaced, or refused there.
_NO_FILE = {errno.ELOOP, errno.EINVAL, errno.EFBIG, errno.EISDIR, errno.ENXIO}
# A part that proves damaged so often is not worth computing once more.
_MOST_DAMAGES = 3
Rows = tuple[int, int]


@dataclass(frozen=True)
class GenomeResult:
    """Outcome of one genome: ``finished``, ``failed``, or ``partial`` (other shares are open)."""

    name: str
    outcome: str
    path: Path
    rows: int = 0
    bases: int = 0
    error: str = ""


class Work:
    """A genome of a run: one file to be published, and its shards.

    Another kind of file says what it is by the methods that read its source or its parts.

    Parameters
    ----------
    name : str
        Of the file, and of the folder of its parts.
    path : Path
        Sequence file.
    terms : RunTerms
        The run.
    number : int
        Its number in the run; spreads the shares.
    """

    #: What its identity must hold.
    schema: ClassVar[dict[str, Any]] = {
        "name": str,
        "path": str,
        "size": COUNT,
        "mtime_ns": int,
        "digest": str,
        "started": str,
        "contigs": [str],
        "lengths": [COUNT],
    }

    #: Once prepared: what it was when its first shard was computed, the grid of what is computed,
    #: paths of the parts of all shards, and what its sidecar is to say of it.
    identity: dict[str, Any]
    grid: Grid
    parts: dict[Rows, Path]
    facts: dict[str, Any]

    def __init__(self, name: str, path: Path, terms: RunTerms, number: int = 0) -> None:
        self.name, self.path, self.terms, self.number = name, path, terms, number
        self.folder = terms.out / PARTS / name
        self.final = terms.out / f"{name}.h5"
        self.sidecar = terms.out / f"{name}.h5.json"
        #: Whether identity, grid, parts and facts are known; they are never altered.
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

    # -- the sequence ------------------------------------------------------------------------

    def source(self) -> SequenceSource:
        """The opened genome."""
        if self._opened is None:
            self._opened = Genome(self.path, name=self.name, cache=self.terms.out / CACHE)
        return self._opened

    def close(self, forget: bool = False) -> None:
        """Close the sequence file; it is opened again when needed.

        ``forget`` what was prepared too, for it grows with the number of contigs.
        """
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        if forget and self.prepared:
            self.prepared = False
            del self.identity, self.grid, self.parts, self.facts

    def accept(self, noted: dict[str, Any]) -> None:
        """Refuse a finished file whose genome has since become another."""
        recorded = noted["genome"]
        if stamp_of(self.path) == (recorded["size"], recorded["mtime_ns"]):
            return
        with Genome(self.path, cache=self.terms.out / CACHE) as genome:
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
        prepared = self.identity["size"], self.identity["mtime_ns"]
        opened = prepared if self._opened is None else self._opened.stamp
        if not opened == prepared == stamp_of(self.path):
            raise SequenceError(
                f"{self.path} changed while it was being predicted: restore it and run again, or "
                f"remove {self.folder} to start this genome again"
            )

    # -- its identity ------------------------------------------------------------------------

    def prepare(self) -> bool:
        """Digest the genome and lay out its grid; False while another process is at it.

        With its claim the identity is looked at again: another process may have made it meanwhile.
        """
        if self.prepared:
            return True
        own_folder(self.terms.out, PARTS, self.name)
        claim, identity = None, None
        try:
            while identity is None:
                before = None
                with suppress(StoreError):  # parts of another sequence are found out
                    before = self.read_identity()
                if before and stamp_of(self.path) == (before["size"], before["mtime_ns"]):
                    identity = before
                elif claim is not None:
                    identity = self._make_identity(before)
                elif (claim := Claim.take(self.folder / "genome.lock")) is None:
                    return False
        finally:
            if claim is not None:
                claim.release()
        self.adopt(identity)
        return True

    def _make_identity(self, before: dict[str, Any] | None) -> dict[str, Any]:
        genome = self.source()
        (size, mtime_ns), digest = genome.stamp, genome.digest()
        if before is not None and before["digest"] != digest:
            raise SequenceError(
                f"{self.path} changed since its first shards were computed (sequence digest "
                f"{before['digest'][:12]}, now {digest[:12]}): restore it, or "
                f"remove {self.folder} to start this genome again"
            )
        identity = {
            "name": self.name,
            "path": str(self.path),
            "size": size,
            "mtime_ns": mtime_ns,
            "digest": digest,
            "started": now() if before is None else before["started"],
            "contigs": list(genome.contigs),
            "lengths": list(genome.contigs.values()),
        }
        write_whole(self.folder / IDENTITY, seal(identity), entry=False)
        return identity

    def read_identity(self) -> dict[str, Any] | None:
        """Return what it was when its first shard was computed, or None if none was.

        Raises
        ------
        StoreError
            If the identity is damaged.
        """
        path = self.folder / IDENTITY
        try:
            identity = read_document(path, self.schema, sealed=True, limit=_LARGEST, follow=False)
            if identity["name"] != self.name:
                raise DocumentError(f"of another genome, {identity['name'][:40]!r}")
            lengths = identity["lengths"]
            if len(set(identity["contigs"])) != len(lengths) or sum(lengths) >> 62:
                raise DocumentError("contigs and lengths do not fit each other")
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            raise StoreError(
                f"{path}: cannot be read ({error.strerror}); run predict again"
            ) from error
        except DocumentError as error:
            raise StoreError(f"{path} is damaged ({error}); run predict again") from error
        return identity

    def adopt(self, identity: dict[str, Any]) -> None:
        """Be prepared by an identity, without reading the source.

        Raises
        ------
        OutputError
            If the run's copy of the BED is not what the run was started with.
        """
        terms, signature = self.terms, self.terms.signature
        if terms.regions is not None:
            check_regions(terms.regions, signature.regions)
        contigs = dict(zip(identity["contigs"], identity["lengths"], strict=True))
        grid = make_grid(contigs, terms.geometry, terms.regions, terms.center, terms.regions_called)
        count, step, origin = self.division(identity, grid)
        ranges = [(k, min(k + step, count)) for k in range(0, count, step)]
        self.parts = {(a, b): self.folder / f"{a}-{b}.h5" for a, b in ranges}
        self.facts = {
            "rows": grid.rows,
            "bases": sum(identity["lengths"]),
            "genome": {key: origin[key] for key in ("path", "size", "mtime_ns", "digest")},
            "started": identity["started"],
        }
        self.identity, self.grid, self.prepared = identity, grid, True

    def division(self, identity: dict[str, Any], grid: Grid) -> tuple[int, int, dict[str, Any]]:
        """Units that shards are ranges of, how many a shard has, and the sequence file of them."""
        layout, batch = self.terms.layout, self.terms.signature.compute_batch
        return grid.rows, layout.shard_rows(batch), identity

    # -- where it stands: nothing is changed -------------------------------------------------

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
            if noted["signature"] != self.terms.signature.to_json():
                raise SignatureError(
                    f"{self.final} was computed with another signature than {self.terms.out} has "
                    "now: remove the file to compute it again, or use another --out"
                )
            self.accept(noted)
            self.published = noted
        elif noted is not None and noted["session"] == self.terms.session:
            self.error = GenomepredError(noted["error"])
        return self.published is not None or self.error is not None

    def has(self, first: int, last: int) -> bool:
        """Whether a shard is on disk; links and pipes are no parts."""
        with suppress(OSError):
            return stat.S_ISREG(os.lstat(self.parts[first, last]).st_mode)
        return False

    def missing(self) -> list[Rows]:
        """Shards that are not on disk, in one look at the folder; links and pipes are no parts."""
        there = files_in(self.folder)
        return [shard for shard, part in self.parts.items() if part.name not in there]

    def result(self) -> GenomeResult:
        """The outcome, as far as this process knows."""
        if self.error is not None:
            return GenomeResult(self.name, "failed", self.final, error=str(self.error))
        if (noted := self.published) is not None:
            return GenomeResult(self.name, "finished", self.final, noted["rows"], noted["bases"])
        return GenomeResult(self.name, "partial", self.final)

    # -- parts and file ----------------------------------------------------------------------

    def write(self, first: int, last: int, values: Any) -> None:
        """Compress and write a shard durably, unless its part is there: float32 [rows, tracks]."""
        terms = self.terms
        encode = partial(encode_chunk, layout=terms.layout)
        starts = range(0, len(values), terms.layout.chunk_rows)
        pieces = [values[row : row + terms.layout.chunk_rows] for row in starts]
        chunks = list(_compressors(terms.compressors).map(encode, pieces))
        self.check_source()
        if self.has(first, last):
            self.duplicates += 1  # locks keep nobody out here; equal work gives equal bytes
            return
        attributes = self._attributes(first, last)
        try:
            write_part(self.parts[first, last], chunks, len(values), terms.layout, attributes)
        except FileNotFoundError:
            if not self.settled():  # published by others, who computed the same shard
                raise

    def _attributes(self, first: int, last: int) -> dict[str, str | int]:
        """Attributes of a part: enough to tell it from any other."""
        return {
            "genome": self.name,
            "first_row": first,
            "last_row": last,
            "sequence_digest": self.identity["digest"],
            "signature": self.terms.signature.text,
        }

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
        joined, signature = self.folder / "joined.h5", self.terms.signature.to_json()
        try:
            noted = {"outcome": "finished", "sha256": self.join(joined), **self.facts}
            os.rename(joined, self.final)
            sync(self.terms.out, folder=True)
            noted |= {"bytes": self.final.stat().st_size, "signature": signature, "finished": now()}
            write_whole(self.sidecar, seal(noted))
            self.published = noted
        except DamagedPartError as error:
            self._damages[error.path] += 1
            if self._damages[error.path] > _MOST_DAMAGES:
                raise StoreError(
                    f"{error.path}: damaged again whenever it was computed ({error.reason}); "
                    f"check the disk of {self.terms.out}"
                ) from error
            error.path.unlink(missing_ok=True)
            return False
        except FileNotFoundError:  # without locks two publish, and one clears away first
            return self.outcome("finished") is not None
        return True

    def join(self, joined: Path) -> str:
        """Join all parts; the sequence is digested again if its file was touched."""
        identity = self.identity
        stamp = identity["size"], identity["mtime_ns"]
        if os.path.exists(self.path) and stamp_of(self.path) != stamp:  # merging needs none
            with Genome(self.path, cache=self.terms.out / CACHE) as genome:
                digest = genome.digest()
            if digest != identity["digest"]:
                raise SequenceError(
                    f"{self.path} changed while it was being predicted; restore it and run again, "
                    f"or remove {self.folder} to start this genome again"
                )
        return join(
            list(self.parts.values()),
            joined,
            self.terms.layout,
            self.grid,
            self.terms.tracks,
            self.terms.signature.attributes(self.name, identity["digest"]),
            [self._attributes(*shard) for shard in self.parts],
        )

    def clear(self) -> None:
        """Remove the parts and the expanded sequence; links are not followed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        genome = (self.facts if self.published is None else self.published)["genome"]
        discard_codes(self.path, (genome["size"], genome["mtime_ns"]), self.terms.out / CACHE)

    def fail(self, error: GenomepredError) -> None:
        """Record that it cannot be finished; parts stay for another try."""
        self.error = error  # the reader may be reading the sequence: it closes it, not we
        if self.outcome("finished") is None:  # a published file stays what it is
            noted = {
                "outcome": "failed",
                "error": str(error),
                "session": self.terms.session,
                "genome": {"path": str(self.path)},
                "signature": self.terms.signature.to_json(),
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
    landed : callable
        Called with these rows at the end, good or bad, on the thread that has written the part.
    """

    def __init__(
        self,
        work: Work,
        first: int,
        last: int,
        landed: Callable[[Rows], object] = lambda rows: None,
    ) -> None:
        self.work, self.first, self.last, self._landed = work, first, last, landed
        self.genome, self.grid = work.source(), work.grid

    def finish(self, values: Any) -> None:
        """Write the part."""
        try:
            with failing_alone(self.work):
                self.work.write(self.first, self.last, values)
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
        f"{error.filename or work.terms.out}: {error.strerror or error} while working on "
        f"{work.name}; finished shards are kept: mend it and run the same command again"
    )


@cache
def _compressors(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="compress")
