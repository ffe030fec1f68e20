"""Codes of a whole genome in one file of the cache, for FASTA that no index can address.

Layout: the codes of all contigs; the XXH3-128 of each block of them; a sealed JSON trailer with
names, lengths, digest and whose codes they are; the trailer's size and magic. The file appears
under its name only when complete and on disk; a lock lets one of several processes write it while
the others wait. A block is checked when it is first read, so what has been damaged is never used.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from genomepred.documents import COUNT, DocumentError, parse_document, seal
from genomepred.errors import OutputError, SequenceError
from genomepred.files import Claim, discard_abandoned, open_regular, publishing
from genomepred.sequences.codes import Codes

if TYPE_CHECKING:
    from genomepred.sequences.scan import Scan

#: Codes of one digest. Small enough for L2, since a part of a block is read by way of all of it.
BLOCK = 1 << 18

_MAGIC = b"gpcodes2"
_TAIL = 16  # bytes of the trailer's size and the magic
_DIGEST = 16  # bytes of a block's digest
_MOST_TRAILER = 1 << 29
_TRAILER = {
    "contigs": [str],
    "lengths": [COUNT],
    "digest": str,
    "blocks_sha256": str,
    "identity": object,
}

Identity = Mapping[str, Any]


class DamagedCodesError(SequenceError):
    """A codes file that is not, or no more, what was written."""


class ExpandedCodes:
    """An open codes file; stays readable after it was removed from the cache.

    Parameters
    ----------
    path : Path
        A complete codes file; a link is refused.
    identity : mapping
        Whose codes they must be, in JSON's terms.

    Attributes
    ----------
    contigs : dict of str to int
        Length of each contig in file order.
    digest : str
        The sequence's digest.

    Raises
    ------
    DamagedCodesError
        If the file is incomplete, altered or of another FASTA.
    OSError
        If it cannot be opened.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self._path = path
        self._fd = open_regular(path, follow=False)
        self._close = weakref.finalize(self, os.close, self._fd)
        try:
            trailer = self._trailer(identity)
        except (DocumentError, DamagedCodesError) as error:
            self.close()
            raise DamagedCodesError(f"{path}: no sound codes file: {error}; remove it") from None
        self.contigs = dict(zip(trailer["contigs"], trailer["lengths"], strict=True))
        self.digest: str = trailer["digest"]
        lengths = np.fromiter(self.contigs.values(), np.int64, len(self.contigs))
        first = np.cumsum(lengths) - lengths
        self._first = dict(zip(self.contigs, first.tolist(), strict=True))
        self._checked = bytearray(len(self._digests) // _DIGEST)
        self._block = memoryview(bytearray(min(BLOCK, self._bases)))

    def _trailer(self, identity: Identity) -> dict[str, Any]:
        size = os.fstat(self._fd).st_size
        tail = os.pread(self._fd, _TAIL, max(size - _TAIL, 0))
        length = int.from_bytes(tail[:8], "little")
        if tail[8:] != _MAGIC or length > min(size - _TAIL, _MOST_TRAILER):
            raise DamagedCodesError("it has no trailer")
        text = os.pread(self._fd, length, size - _TAIL - length)
        trailer: dict[str, Any] = parse_document(text, _TRAILER, sealed=True)
        names, lengths = trailer["contigs"], trailer["lengths"]
        self._bases = sum(lengths)
        table = -(-self._bases // BLOCK) * _DIGEST
        if not len(names) == len(lengths) == len(set(names)):
            raise DamagedCodesError("names and lengths of contigs differ in number")
        if size != self._bases + table + length + _TAIL:
            raise DamagedCodesError(f"{size:,} bytes do not hold {self._bases:,} bases")
        if trailer["identity"] != dict(identity):
            raise DamagedCodesError("it is of another FASTA")
        self._digests = os.pread(self._fd, table, self._bases)
        if hashlib.sha256(self._digests).hexdigest() != trailer["blocks_sha256"]:
            raise DamagedCodesError("its digests are damaged")
        return trailer

    def read(self, contig: str, start: int, out: Codes) -> None:
        """Fill ``out`` with the codes of a contig from ``start`` on.

        Raises
        ------
        DamagedCodesError
            If a block does not match its digest; ``out`` is then of no use.
        """
        view, at = out.data, self._first[contig] + start
        while view.nbytes:
            block, skip = divmod(at, BLOCK)
            count = min(BLOCK - skip, view.nbytes)
            size = min(BLOCK, self._bases - at + skip)
            if self._checked[block]:
                last = (at + view.nbytes - 1) // BLOCK + 1
                unknown = self._checked.find(0, block, last)
                count = min(view.nbytes, (last if unknown < 0 else unknown) * BLOCK - at)
                self._read(view[:count], at)
            else:
                whole, begin = view[:count] if count == size else self._block[:size], at - skip
                self._read(whole, begin)
                expected = self._digests[block * _DIGEST : (block + 1) * _DIGEST]
                if xxhash.xxh3_128_digest(whole) != expected:
                    raise DamagedCodesError(f"{self._path}: damaged in its bytes from {begin} on")
                self._checked[block] = True
                if count < size:
                    view[:count] = whole[skip : skip + count]
            view, at = view[count:], at + count

    def _read(self, view: memoryview, at: int) -> None:
        try:
            while view.nbytes:
                count = os.preadv(self._fd, [view], at)
                if count == 0:
                    raise DamagedCodesError(f"{self._path}: ends at byte {at}")
                view, at = view[count:], at + count
        except OSError as error:
            raise DamagedCodesError(f"{self._path}: cannot be read: {error.strerror}") from None

    def is_at(self, path: Path) -> bool:
        """Whether this file still has the given name."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(path))
        except OSError:
            return False

    def close(self) -> None:
        """Close the file."""
        self._close()


class _Writer:
    """Writes codes to a file and digests them block by block."""

    def __init__(self, file: Any) -> None:
        self._file, self._hash, self._room = file, xxhash.xxh3_128(), BLOCK
        self._digests = bytearray()

    def write(self, codes: memoryview) -> None:
        self._file.write(codes)
        while codes.nbytes:
            part = codes[: self._room]
            self._hash.update(part)
            self._room -= part.nbytes
            if self._room == 0:
                self._digests += self._hash.digest()
                self._hash.reset()
                self._room = BLOCK
            codes = codes[part.nbytes :]

    def finish(self, result: Scan, identity: Identity) -> None:
        """Write the digests and the trailer."""
        if self._room < BLOCK:
            self._digests += self._hash.digest()
        trailer = seal(
            {
                "contigs": [record.name for record in result.records],
                "lengths": [record.length for record in result.records],
                "digest": result.digest,
                "blocks_sha256": hashlib.sha256(self._digests).hexdigest(),
                "identity": dict(identity),
            }
        )
        self._file.write(self._digests + trailer + len(trailer).to_bytes(8, "little") + _MAGIC)


ScanInto = Callable[[Callable[[memoryview], object]], "Scan"]


def open_expanded(target: Path, identity: Identity, scan_into: ScanInto) -> ExpandedCodes:
    """Open a codes file; make it first if there is no sound one.

    Parameters
    ----------
    target : Path
        The file; its folder exists.
    identity : mapping
        Whose codes they are: what tells one version of one FASTA from all others.
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
    claim = _claim(target)
    try:
        with suppress(OSError, DamagedCodesError):  # a link, a pipe or a folder is none
            return ExpandedCodes(target, identity)
        # What killed processes have left: under a lock, all temporaries there are.
        if claim.exclusive:
            for leftover in target.parent.glob(f"{escape(target.stem[:120])}.*.tmp"):
                leftover.unlink(missing_ok=True)
        else:
            discard_abandoned(target)
        with publishing(target) as temporary, open(temporary, "xb") as file:
            writer = _Writer(file)
            writer.finish(scan_into(writer.write), identity)
        return ExpandedCodes(target, identity)
    except OSError as error:
        raise _unwritable(target, error) from None
    finally:
        claim.release()


def _claim(target: Path) -> Claim:
    try:
        claim = Claim.take(target.with_name(f"{target.name}.lock"), wait=True)
    except OSError as error:
        raise _unwritable(target, error) from None
    if claim is None:
        raise OutputError(f"{target.parent}: this folder was removed; run the same command again")
    return claim


def _unwritable(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{target.parent}: cannot write expanded codes: {error.strerror or error}; free space or "
        "choose another folder"
    )


def discard_damaged(target: Path, reader: ExpandedCodes) -> None:
    """Remove a codes file that proved damaged, unless another has taken its place meanwhile."""
    claim = _claim(target)
    try:
        if reader.is_at(target):
            target.unlink(missing_ok=True)
    finally:
        claim.release()


def discard(target: Path) -> None:
    """Remove a codes file and its lock; processes that have it open keep reading."""
    if not os.path.lexists(target):
        return
    lock = target.with_name(f"{target.name}.lock")
    claim = Claim.take(lock, wait=True)
    if claim is None:
        return
    try:
        target.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)
    finally:
        claim.release()
