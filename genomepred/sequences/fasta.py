"""Genome: contigs, lengths and codes of a FASTA file, however it is compressed or wrapped.

Where an index can address the bases, they are read by arithmetic on lines. Else the codes of the
whole genome are expanded into one file of a cache: the codes of all contigs; the XXH3-128 of each
block of them; a sealed JSON trailer with names, lengths, digest and whose codes they are; the
trailer's size and magic. The file appears under its name only when complete and on disk; a lock
lets one of several processes write it while the others wait. A block is checked when it is first
read, so what has been damaged is never used.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from glob import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xxhash

from genomepred.documents import COUNT, DocumentError, read_document, seal
from genomepred.errors import OutputError, RegionError, SequenceError
from genomepred.files import Claim, discard_abandoned, open_regular, own_folder, publishing
from genomepred.sequences.byte_source import (
    BgzipSource,
    ByteSource,
    PlainSource,
    inflate,
    kind_of,
    stamp_of,
    walk_blocks,
)
from genomepred.sequences.codes import UNKNOWN, Codes
from genomepred.sequences.index import (
    IndexedCodes,
    current_indexes,
    format_fai,
    format_gzi,
    lists_blocks,
    most_fai,
    parse_fai,
    store_index,
)
from genomepred.sequences.names import absent_contig, shown

if TYPE_CHECKING:
    from genomepred.sequences.decode import Scan

_Reader: TypeAlias = "IndexedCodes | ExpandedCodes | _LengthsOnly"

#: Codes of one digest. Small enough for L2, since a part of a block is read by way of all of it.
BLOCK = 1 << 18

_SUFFIX = re.compile(r"(\.(fa|fasta|fna|fas))?(\.(gz|bgz|xz))?$", re.IGNORECASE)
_HASHED = 1 << 20  # codes hashed at once

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


class Genome(AbstractContextManager["Genome"]):
    """A FASTA file as contigs of codes.

    Parameters
    ----------
    path : path
        FASTA: plain, bgzip, gzip or xz, told apart by content.
    name : str, optional
        Name of the genome; by default the file name without .fa, .gz and the like.
    cache : path, optional
        Folder for indexes that cannot be written beside the FASTA and for expanded codes; made if
        absent, no link. Without it a temporary folder that goes with this object is used if needed.
    write : bool
        False writes nothing anywhere; ``codes`` of gzip, xz and unevenly wrapped files are then
        not available, their contigs and lengths are.

    Attributes
    ----------
    path : Path
    name : str
    contigs : dict of str to int
        Length of each contig in file order.
    stamp : tuple of int
        Size in bytes and modification time in nanoseconds of the file when it was opened.

    Raises
    ------
    SequenceError
        If the file is no FASTA of nucleotides; names contig, line and byte offset.
    OutputError
        If the cache cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        cache: str | Path | None = None,
        write: bool = True,
    ) -> None:
        self.path = Path(path)
        self.name = name if name is not None else _SUFFIX.sub("", self.path.name)
        self.stamp = stamp_of(self.path)
        self._cache = None if cache is None else Path(cache)
        self._write = write
        self._private: tempfile.TemporaryDirectory[str] | None = None
        self._digest: str | None = None
        self._lock = threading.Lock()  # readers reuse their buffers
        self._reader: _Reader | None = self._open()
        self.contigs = self._reader.contigs

    def _open(self) -> _Reader:
        kind = kind_of(self.path)
        if kind in ("plain", "bgzip"):
            found = self._open_indexed(bgzip=kind == "bgzip")
            if isinstance(found, IndexedCodes):
                return found
        else:
            found = inflate(self.path, "xz" if kind == "xz" else "gzip")
        if not self._write:
            return _LengthsOnly(self.path, self._scanned(found))
        folder, (size, modified) = self._cache or self._private_folder(), self.stamp
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            own_folder(folder.parent, folder.name)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made: {error.strerror}") from None
        identity = {"path": str(self.path.resolve()), "size": size, "mtime_ns": modified}
        target = _in_cache(self.path, self.stamp, folder, ".codes")
        reader = _open_expanded(target, identity, self.path, found)
        self._digest = reader.digest
        return reader

    def _open_indexed(self, bgzip: bool) -> IndexedCodes | Iterator[Codes]:
        """Codes by arithmetic on lines; where that does not find all bases, the file's bytes."""
        source = self._open_bgzip() if bgzip else PlainSource(self.path)
        if source is None:
            return inflate(self.path, "gzip")
        places = self._index_places(".fai")
        for index in current_indexes(places, self.stamp[1], most_fai(source)):
            if (records := parse_fai(index, source)) is not None:
                return IndexedCodes(self.path, source, records)
        scan = self._scanned(source.pieces(0, source.size))
        if not scan.even:
            return source.pieces(0, source.size)
        if self._write:
            store_index(places, format_fai(scan.records))
        return IndexedCodes(self.path, source, scan.records)

    def _open_bgzip(self) -> ByteSource | None:
        """The blocks of a bgzip file; None if other gzip members are among them."""
        blocks = walk_blocks(self.path)
        if blocks is None:
            return None
        places = self._index_places(".gzi")
        found = current_indexes(places, self.stamp[1], len(format_gzi(blocks)))
        if self._write and not any(lists_blocks(index, blocks) for index in found):
            store_index(places, format_gzi(blocks))
        return BgzipSource(self.path, blocks)

    def _index_places(self, suffix: str) -> list[Path]:
        """Beside the FASTA, or in the cache if it cannot be there."""
        beside = self.path.with_name(self.path.name + suffix)
        if self._cache is None:
            return [beside]
        return [beside, _in_cache(self.path, self.stamp, self._cache, suffix)]

    def _scanned(self, pieces: Iterator[Codes]) -> Scan:
        from genomepred.sequences.decode import Scan  # compiled functions take a while to load

        scan = Scan(self.path, pieces)
        for _ in scan.codes():
            pass
        self._digest = scan.digest
        return scan

    def _private_folder(self) -> Path:
        try:
            self._private = self._private or tempfile.TemporaryDirectory(prefix="genomepred-")
        except OSError as error:
            raise OutputError(
                f"no folder for temporary files: {error.strerror or error}; set TMPDIR, or give a "
                "cache"
            ) from None
        return Path(self._private.name)

    def _expand_again(self) -> _Reader:
        """Another reader in place of one whose codes file proved damaged."""
        damaged, expected = self._reader, self._digest
        assert isinstance(damaged, ExpandedCodes)
        folder = self._cache or self._private_folder()
        try:
            discard_codes(self.path, self.stamp, folder, damaged)
        except OSError as error:
            raise _unwritable(folder, error) from None
        damaged.close()
        self._reader = None
        self._reader = self._open()
        if self._digest != expected:
            raise SequenceError(f"{self.path}: changed while it was open; run again")
        return self._reader

    def codes(self, contig: str, start: int, end: int, out: Codes | None = None) -> Codes:
        """Codes of ``[start, end)``; 4 outside the contig.

        Parameters
        ----------
        contig : str
        start, end : int
            0-based half-open; may reach outside the contig.
        out : uint8 array, [end - start], optional
            C-contiguous buffer to fill.

        Returns
        -------
        uint8 array, [end - start]
            ``out`` if given.

        Raises
        ------
        RegionError
            If there is no such contig or ``end < start``.
        SequenceError
            If the file changed, is damaged or does not fit its index.
        """
        if contig not in self.contigs:
            raise RegionError(f"{self.path}: {absent_contig(contig, self.contigs)}")
        if end < start:
            raise RegionError(f"{self.path}: {shown(contig)}: {start}-{end} ends before it starts")
        out = np.empty(end - start, np.uint8) if out is None else out
        if out.shape != (end - start,) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be a contiguous uint8 array of {end - start} codes")
        first = min(max(start, 0), end)
        last = max(min(end, self.contigs[contig]), first)
        out[: first - start] = out[last - start :] = UNKNOWN
        if first < last:
            inner = out[first - start : last - start]
            with self._lock:
                if self._reader is None:
                    raise ValueError(f"{self.path}: is closed")
                try:
                    self._reader.read(contig, first, inner)
                except DamagedCodesError:
                    self._expand_again().read(contig, first, inner)
        return out

    def digest(self) -> str:
        """XXH3-128 of names, lengths and codes, as 32 hexadecimal digits.

        Compression, line width and case do not matter. Takes a pass over the file unless opening
        it has taken one.
        """
        if self._digest is None:
            digest = xxhash.xxh3_128()
            buffer = np.empty(_HASHED, np.uint8)
            for contig, length in self.contigs.items():
                for start in range(0, length, _HASHED):
                    end = min(start + _HASHED, length)
                    digest.update(self.codes(contig, start, end, buffer[: end - start]).data)
            digest.update("".join(f"{c}\t{n}\n" for c, n in self.contigs.items()).encode())
            self._digest = digest.hexdigest()
        return self._digest

    def discard_cache(self) -> None:
        """Remove this genome's expanded codes from the cache; open readers can go on reading."""
        if self._cache is not None:
            discard_codes(self.path, self.stamp, self._cache)

    def close(self, *_: object) -> None:
        """Close the file; removes a private temporary folder."""
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            if self._private is not None:
                self._private.cleanup()
                self._private = None

    __exit__ = close


def _in_cache(fasta: Path, stamp: tuple[int, int], cache: Path, suffix: str) -> Path:
    """A path in a cache folder that belongs to this version of a FASTA alone."""
    told = f"{os.fsdecode(fasta.resolve())}\n{stamp}"
    return cache / f"{fasta.name[:40]}.{xxhash.xxh3_64_hexdigest(os.fsencode(told))}{suffix}"


class _LengthsOnly:
    """Contigs of a file whose codes could only be read after writing."""

    def __init__(self, path: Path, scan: Scan) -> None:
        self._path = path
        self.contigs = {record.name: record.length for record in scan.records}

    def read(self, contig: str, start: int, out: Codes) -> None:
        raise SequenceError(
            f"{self._path}: codes of {shown(contig)} need an expanded copy, but it was opened not "
            "to write; open it with write=True"
        )

    def close(self) -> None:
        pass


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

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._fd = open_regular(path, follow=False)
        self.close = weakref.finalize(self, os.close, self._fd)
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

    def _trailer(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        size = os.fstat(self._fd).st_size
        tail = os.pread(self._fd, _TAIL, max(size - _TAIL, 0))
        length = int.from_bytes(tail[:8], "little")
        if tail[8:] != _MAGIC or length > min(size - _TAIL, _MOST_TRAILER):
            raise DamagedCodesError("it has no trailer")
        text = os.pread(self._fd, length, size - _TAIL - length)
        trailer: dict[str, Any] = read_document(text, _TRAILER, sealed=True)
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


def _write_codes(
    file: IO[bytes], path: Path, pieces: Iterator[Codes], identity: Mapping[str, Any]
) -> None:
    """Write the codes of a FASTA, the digest of each block of them, and the trailer."""
    from genomepred.sequences.decode import Scan

    scan, digest, digests, room = Scan(path, pieces), xxhash.xxh3_128(), bytearray(), BLOCK
    for codes in scan.codes():
        file.write(codes)
        rest = codes
        while rest.nbytes:
            digest.update(rest[:room])
            rest, room = rest[room:], max(room - rest.nbytes, 0)
            if room == 0:
                digests += digest.digest()
                digest.reset()
                room = BLOCK
    if room < BLOCK:
        digests += digest.digest()
    names, lengths = [r.name for r in scan.records], [r.length for r in scan.records]
    told = {"contigs": names, "lengths": lengths, "digest": scan.digest, "identity": dict(identity)}
    trailer = seal({**told, "blocks_sha256": hashlib.sha256(digests).hexdigest()})
    file.write(digests + trailer + len(trailer).to_bytes(8, "little") + _MAGIC)


def _open_expanded(
    target: Path, identity: Mapping[str, Any], path: Path, pieces: Iterator[Codes]
) -> ExpandedCodes:
    """Open a codes file; make it first if there is no sound one.

    ``identity`` tells one version of one FASTA from all others. From ``pieces``, the bytes of the
    one at ``path``, the codes are made; the folder exists.
    """
    folder = target.parent
    try:
        claim = Claim.take(target.with_name(f"{target.name}.lock"), wait=True)
        if claim is None:
            raise OutputError(f"{folder}: this folder was removed; run the same command again")
        with claim:
            with suppress(OSError, DamagedCodesError):  # a link, a pipe or a folder is none
                return ExpandedCodes(target, identity)
            # What killed processes have left: under a lock, all temporaries there are.
            if claim.exclusive:
                for leftover in folder.glob(f"{escape(target.stem[:120])}.*.tmp"):
                    leftover.unlink(missing_ok=True)
            else:
                discard_abandoned(target)
            with publishing(target) as temporary, open(temporary, "xb") as file:
                _write_codes(file, path, pieces, identity)
            return ExpandedCodes(target, identity)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{folder}: cannot write expanded codes: {error.strerror or error}; free space or "
        "choose another folder"
    )


def discard_codes(
    path: Path, stamp: tuple[int, int], cache: Path, damaged: ExpandedCodes | None = None
) -> None:
    """Remove a FASTA's expanded codes from a cache; open readers can go on reading.

    Parameters
    ----------
    path : Path
    stamp : tuple of int
        Size and modification time in nanoseconds of the FASTA.
    cache : Path
    damaged : ExpandedCodes, optional
        Remove these alone, not what has taken their place meanwhile.
    """
    target = _in_cache(path, stamp, cache, ".codes")
    if not os.path.lexists(target):
        return
    lock = target.with_name(f"{target.name}.lock")
    claim = Claim.take(lock, wait=True)
    if claim is not None:
        with claim:
            if damaged is None or damaged.is_at(target):
                target.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
