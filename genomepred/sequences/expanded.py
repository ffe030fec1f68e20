"""Codes of a whole genome in one file of the cache, for FASTA that no index can address.

Layout: the codes of all contigs, a JSON trailer with names, lengths and digest, and the trailer's
size and magic. The file appears under its name only when complete and on disk; a lock lets one of
several processes write it while the others wait.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

import numpy as np

from genomepred.errors import OutputError, SequenceError
from genomepred.sequences.codes import Codes
from genomepred.sequences.scan import Scan
from genomepred.sequences.sources import read_at

_MAGIC = b"gpcodes1"
_TAIL = 16  # bytes of the trailer's size and the magic


class ExpandedCodes:
    """An open codes file; stays readable after it was removed from the cache.

    Parameters
    ----------
    path : Path
        A complete codes file.

    Raises
    ------
    SequenceError
        If the file is not complete.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._fd)
        self.contigs, self.digest = self._trailer()
        lengths = np.fromiter(self.contigs.values(), np.int64, len(self.contigs))
        first = np.cumsum(lengths) - lengths
        self._first = dict(zip(self.contigs, first.tolist(), strict=True))

    def _trailer(self) -> tuple[dict[str, int], str]:
        size = os.fstat(self._fd).st_size
        tail = os.pread(self._fd, _TAIL, max(size - _TAIL, 0))
        if tail[8:] != _MAGIC:
            raise SequenceError(f"{self._path}: is no complete codes file; remove it")
        length = int.from_bytes(tail[:8], "little")
        trailer = json.loads(os.pread(self._fd, length, size - _TAIL - length))
        return dict(trailer["contigs"]), trailer["digest"]

    def read(self, contig: str, start: int, out: Codes) -> None:
        """Fill ``out`` with the codes of a contig from ``start`` on."""
        view, offset = out.data, self._first[contig] + start
        while view.nbytes:
            count = read_at(self._path, self._fd, view, offset)
            view, offset = view[count:], offset + count

    def close(self) -> None:
        """Close the file."""
        self._close()


def open_expanded(
    target: Path, scan_into: Callable[[Callable[[memoryview], object]], Scan]
) -> ExpandedCodes:
    """Open a codes file; make it first if no other process has.

    Parameters
    ----------
    target : Path
        The file; its folder exists.
    scan_into : callable
        Scans the FASTA and passes its codes on to the function it is given.

    Returns
    -------
    ExpandedCodes

    Raises
    ------
    OutputError
        If the cache cannot be written.
    """
    try:
        with _locked(target) as exclusive:
            with suppress(FileNotFoundError, SequenceError):
                return ExpandedCodes(target)
            if exclusive:
                for leftover in target.parent.glob(f"{escape(target.name)}.*.tmp"):
                    leftover.unlink(missing_ok=True)
            _expand(target, scan_into)
            return ExpandedCodes(target)
    except OSError as error:
        raise OutputError(
            f"{target.parent}: cannot write expanded codes: {error.strerror or error}; free space "
            "or choose another folder"
        ) from None


def _expand(target: Path, scan_into: Callable[[Callable[[memoryview], object]], Scan]) -> None:
    temporary = target.with_name(f"{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            result = scan_into(file.write)
            contigs = [(record.name, record.length) for record in result.records]
            trailer = json.dumps({"contigs": contigs, "digest": result.digest}).encode()
            file.write(trailer + len(trailer).to_bytes(8, "little") + _MAGIC)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def discard(target: Path) -> None:
    """Remove a codes file and its lock; processes that have it open keep reading."""
    if not target.exists():
        return
    with _locked(target):
        target.unlink(missing_ok=True)
        _lock_of(target).unlink(missing_ok=True)


def _lock_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.lock")


@contextmanager
def _locked(target: Path) -> Iterator[bool]:
    """Hold the target's lock, which dies with its process; False where files cannot be locked."""
    path = _lock_of(target)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                yield False
                return
            # A lock file removed while we waited excludes nobody: take the one that is there now.
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                yield True
                return
        finally:
            os.close(fd)
