"""Uncompressed bytes of a file, as ranges (plain, bgzip) or as one stream (gzip, xz)."""

from __future__ import annotations

import errno
import lzma
import mmap
import os
import re
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from isal import igzip_lib, isal_zlib
from numpy.typing import NDArray

from genomepred.errors import SequenceError
from genomepred.files import open_regular
from genomepred.sequences.codes import Codes

Kind = Literal["plain", "bgzip", "gzip", "xz"]

# Bytes of one read or one inflated piece: fits in L2 beside its codes.
PIECE = 1 << 18
# A file of fewer bytes is read into memory that Python has at hand.
_SMALL = 1 << 16
# bgzip blocks inflated after one read of compressed bytes.
_BLOCKS = 32

# The stubs of isal declare an instance.
_IsalError: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]

_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"
# A bgzip block: bytes of its header and its trailer, and the most bases it may hold. Its header
# ends with its size less one; a block has more bytes than header and trailer.
_HEADER, _TRAILER, _MOST = 18, 8, 1 << 16
_BLOCK = re.compile(rb"\x1f\x8b\x08\x04.{6}\x06\0BC\x02\0([\x1a-\xff].|.[^\0])", re.DOTALL)
# Formats people have genomes in that are not FASTA, with what to do about it.
_FOREIGN = {
    b"BZh": "bzip2 data; decompress it with bunzip2",
    b"\x28\xb5\x2f\xfd": "zstd data; decompress it with zstd -d",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\x43\x27\x41\x1a": "a 2bit file; convert it with twoBitToFa",
    b"@": "FASTQ or SAM; convert it with seqtk or samtools fasta",
    b"\xef\xbb\xbf": "text with a byte order mark; save it as plain ASCII",
    b"\xff\xfe": "UTF-16 text; save it as plain ASCII",
    b"\xfe\xff": "UTF-16 text; save it as plain ASCII",
    b"\x89PNG": "a PNG image",
}


def stamp_of(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds; changes when the file does.

    Raises
    ------
    SequenceError
        If the file is missing.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return status.st_size, status.st_mtime_ns


def kind_of(path: Path) -> Kind:
    """Compression of a file, by its first bytes.

    Raises
    ------
    SequenceError
        If the file is missing, unreadable, empty, not a regular file or of a foreign format.
    """
    try:
        with open(open_regular(path), "rb", buffering=0) as file:
            head = file.read(_HEADER)
    except OSError as error:
        raise _unreadable(path, error) from None
    if not head:
        raise SequenceError(f"{path}: is empty; a FASTA begins with '>'")
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise SequenceError(f"{path}: line 1, byte offset 0: no FASTA but {what}")
    if _BLOCK.match(head):
        return "bgzip"
    if head.startswith(_GZIP):
        return "gzip"
    return "xz" if head.startswith(_XZ) else "plain"


class PlainSource:
    """An uncompressed file, read into one reused buffer.

    Resident memory stays small, and a file that shrinks or a disk that fails is an error where a
    mapping would end the process. Mapping is slower too: 8.3 ms for the codes of 64 MB, not 5.9.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = _open(path)
        self.close = weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size
        # Memory of whole pages: reading into it is a fifth faster than into a bytearray, but for a
        # small file the kernel takes longer to give it than to fill it.
        small = self.size < _SMALL
        self._view = memoryview(bytearray(self.size) if small else mmap.mmap(-1, PIECE))
        self._buffer = np.frombuffer(self._view.toreadonly(), np.uint8)

    def pieces(self, start: int, end: int) -> Iterator[Codes]:
        """Read-only uint8 arrays that cover ``[start, end)``; each valid until the next."""
        while start < end:
            count = read_at(self._path, self._fd, self._view[: end - start], start)
            yield self._buffer[:count]
            start += count


class BgzipSource:
    """A bgzip file, read through the table of its blocks.

    Parameters
    ----------
    path : Path
    blocks : int64 array, [blocks + 1, 2]
        Compressed and uncompressed offset of every block, and the ends of both.
    """

    def __init__(self, path: Path, blocks: NDArray[np.int64]) -> None:
        self._path = path
        self._fd = _open(path)
        self.close = weakref.finalize(self, os.close, self._fd)
        self._places: list[int] = blocks[:, 0].tolist()
        self._offsets: list[int] = blocks[:, 1].tolist()
        self.size = self._offsets[-1]
        # The last block of a range is also the first of the range that continues it.
        self._last, self._data = -1, np.empty(0, np.uint8)
        self._packed = memoryview(b"")

    def pieces(self, start: int, end: int) -> Iterator[Codes]:
        """As of :class:`PlainSource`."""
        if start >= end:
            return
        first = bisect_right(self._offsets, start) - 1
        stop = bisect_left(self._offsets, end)
        if first == self._last:
            yield self._data[start - self._offsets[first] : end - self._offsets[first]]
            first += 1
        for batch in range(first, stop, _BLOCKS):
            blocks = range(batch, min(batch + _BLOCKS, stop))
            packed = self._read(self._places[batch], self._places[blocks.stop])
            for block in blocks:
                self._last, self._data = block, self._inflate(block, packed, self._places[batch])
                offset = self._offsets[block]
                if start <= offset and self._offsets[block + 1] <= end:
                    yield self._data
                else:
                    yield self._data[max(start - offset, 0) : end - offset]

    def _read(self, start: int, end: int) -> memoryview:
        """Compressed bytes, in a buffer that is used again."""
        if len(self._packed) < end - start:
            self._packed = memoryview(bytearray(end - start))
        packed = self._packed[: end - start]
        while start < end:
            start += read_at(self._path, self._fd, packed[start - end :], start)
        return packed

    def _inflate(self, block: int, packed: memoryview, origin: int) -> Codes:
        start, size = self._places[block], self._offsets[block + 1] - self._offsets[block]
        member = packed[start - origin : self._places[block + 1] - origin]
        return np.frombuffer(_inflate_block(self._path, start, member, size), np.uint8)


#: Uncompressed bytes that can be read anywhere.
ByteSource: TypeAlias = PlainSource | BgzipSource


def read_at(path: Path, fd: int, buffer: memoryview, offset: int) -> int:
    """Read into a buffer; the number of bytes, at least one.

    Raises
    ------
    SequenceError
        If the file cannot be read or ends before ``offset``.
    """
    try:
        count = os.preadv(fd, [buffer], offset)
    except OSError as error:
        raise _unreadable(path, error) from None
    if count == 0:
        raise SequenceError(f"{path}: ends at byte {offset}, where sequence was expected")
    return count


def walk_blocks(path: Path) -> NDArray[np.int64] | None:
    """Table of all blocks of a bgzip file, by way of the sizes in every block.

    Parameters
    ----------
    path : Path
        A file that begins with a bgzip block.

    Returns
    -------
    int64 array, [blocks + 1, 2], or None
        Compressed and uncompressed offsets of all blocks, and the ends of both. None if gzip
        members that are no bgzip blocks are among them: then it is one stream like any gzip file.

    Raises
    ------
    SequenceError
        If something else than a block comes, but for zeros at the end, or the file ends without
        the empty block that marks its end.
    """
    table, fd = [(0, 0)], _open(path)
    try:
        size = os.fstat(fd).st_size
        header, count = os.pread(fd, _HEADER, 0), -1
        while table[-1][0] < size:
            packed, offset = table[-1]
            found = _BLOCK.match(header)
            block = int.from_bytes(found[1], "little") + 1 if found else 0
            if block == 0 and header.startswith(_GZIP):
                return None
            if block == 0 and count == 0 and _only_zeros(fd, packed):
                break
            if block == 0:
                raise _damaged(path, packed, "no bgzip block begins here")
            if packed + block > size:
                raise _damaged(path, packed, "the file is truncated in this block")
            # A block's last word is the size of its data; behind it is the next header.
            tail = os.pread(fd, 4 + _HEADER, packed + block - 4)
            count, header = int.from_bytes(tail[:4], "little"), tail[4:]
            if count == 0:  # such a block is never read: that nothing is in it is seen now
                _inflate_block(path, packed, memoryview(os.pread(fd, block, packed)), 0)
            if count > _MOST:
                raise _damaged(path, packed, f"a block of {count:,} bytes, more than bgzip writes")
            table.append((packed + block, offset + count))
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(fd)
    if count != 0:
        raise _damaged(path, size, "the file is truncated: bgzip's end-of-file block is missing")
    return np.array(table, np.int64)


def _only_zeros(fd: int, start: int) -> bool:
    """Whether nothing but zeros follows."""
    while data := os.pread(fd, PIECE, start):
        if data.strip(b"\0"):
            return False
        start += len(data)
    return True


def _inflate_block(path: Path, place: int, member: memoryview, size: int) -> bytes:
    """Data of a bgzip block, which fill it: a wrong size in it must not swallow the next block."""
    stream = isal_zlib.decompressobj(-15)
    try:
        data = stream.decompress(member[_HEADER : len(member) - _TRAILER], size + 1)
    except _IsalError as error:
        raise _damaged(path, place, error) from None
    told = int.from_bytes(member[-8:-4], "little"), int.from_bytes(member[-4:], "little")
    found = isal_zlib.crc32(data), len(data)
    if not stream.eof or stream.unused_data or told != found or len(data) != size:
        raise _damaged(path, place, "this block's data do not match its CRC and sizes")
    return data


def inflate(path: Path, kind: Literal["gzip", "xz"]) -> Iterator[Codes]:
    """The whole stream of a gzip or xz file with any number of members, as uint8 arrays.

    Raises
    ------
    SequenceError
        If the stream is damaged or truncated, or something else follows it.
    """
    new: Callable[[], Any] = (
        (lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP))
        if kind == "gzip"
        else lzma.LZMADecompressor
    )
    magic = _GZIP if kind == "gzip" else _XZ
    try:
        with open(open_regular(path), "rb", buffering=0) as file:
            member, data = new(), file.read(PIECE)
            while data:
                while not member.eof:
                    inflated = member.decompress(data, PIECE)
                    if inflated:
                        yield np.frombuffer(inflated, np.uint8)
                    data = b""
                    if member.needs_input and not member.eof:
                        data = file.read(PIECE)
                        if not data:
                            raise _damaged(path, file.tell(), f"the {kind} stream is truncated")
                # Zeros pad a stream to whole blocks; anything else must be another member.
                data = member.unused_data.lstrip(b"\0")
                while len(data) < len(magic) and (more := file.read(PIECE)):
                    data = (data + more).lstrip(b"\0")
                if data and not data.startswith(magic):
                    raise _damaged(path, file.tell() - len(data), f"no {kind} data")
                member = new()
    except OSError as error:
        raise _unreadable(path, error) from None
    except (_IsalError, lzma.LZMAError) as error:
        raise SequenceError(f"{path}: the {kind} stream is damaged: {error}") from None


def _open(path: Path) -> int:
    try:
        return open_regular(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> SequenceError:
    if error.errno == errno.EINVAL:  # as `open_regular` says it
        return SequenceError(f"{path}: is not a regular file; give a FASTA file")
    return SequenceError(f"{path}: cannot be read: {error.strerror or error}")


def _damaged(path: Path, offset: int, what: object) -> SequenceError:
    return SequenceError(f"{path}: damaged at byte offset {offset}: {what}; copy the file again")
