"""Uncompressed bytes of a VCF or BCF, plain, gzip or bgzip, of which a part is taken at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from genomepred.errors import SequenceError
from genomepred.sequences.byte_source import PlainSource, inflate
from genomepred.sequences.codes import Codes

_GZIP = b"\x1f\x8b"
# The empty block that ends a bgzip file.
_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
# Bytes of a header that are taken.
MOST_HEADER = 1 << 26
# Bytes that are read on at a time, from blocks of bgzip of 64 kB: fewer, and calls cost more than
# records of 3,000 samples; more, and they leave the cache.
_PIECE = 1 << 19
_PADDING = 64  # readable bytes behind the last record, for loads of many at once


class RecordStream:
    """Uncompressed bytes of a file, in one buffer that holds at least a record."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pieces = self._open()
        self.data = np.zeros(2 * _PIECE, np.uint8)
        self.at = self.end = 0
        self.closed_line = False

    def _open(self) -> Iterator[Codes]:
        try:
            if self._path.exists() and not self._path.is_file():
                raise SequenceError(f"{self._path}: is not a regular file; give a VCF or BCF file")
            with self._path.open("rb") as file:
                head = file.read(18)
                file.seek(max(file.seek(0, 2) - len(_BGZIP_END), 0))
                tail = file.read(len(_BGZIP_END))
        except OSError as error:
            raise SequenceError(
                f"{self._path}: cannot be read: {error.strerror or error}"
            ) from None
        if not head:
            raise SequenceError(f"{self._path}: is empty; give a VCF or BCF file")
        if not head.startswith(_GZIP):
            source = PlainSource(self._path)
            return source.pieces(0, source.size)
        if head[:4] == b"\x1f\x8b\x08\x04" and head[12:14] == b"BC" and tail != _BGZIP_END:
            raise SequenceError(
                f"{self._path}: bgzip's end-of-file block is missing, so the file is truncated; "
                "copy it again"
            )
        return inflate(self._path, "gzip")

    def fill(self) -> bool:
        """Read on; False at the end."""
        size = 0
        while size < _PIECE and (piece := next(self._pieces, None)) is not None:
            self._append(piece)
            size += len(piece)
        return size > 0

    def _append(self, piece: Codes) -> None:
        rest = self.end - self.at
        need = rest + len(piece) + _PADDING
        if need > len(self.data):
            grown = np.zeros(max(2 * len(self.data), need), np.uint8)
            grown[:rest] = self.data[self.at : self.end]
            self.data = grown
            self.at, self.end = 0, rest
        elif self.end + len(piece) + _PADDING > len(self.data):
            self.data[:rest] = self.data[self.at : self.end].copy()
            self.at, self.end = 0, rest
        self.data[self.end : self.end + len(piece)] = piece
        self.end += len(piece)

    def need(self, size: int) -> bytes:
        """The next bytes, fewer at the end of the file; they stay."""
        while self.end - self.at < size and self.fill():
            pass
        return self.data[self.at : min(self.at + size, self.end)].tobytes()

    def take(self, size: int) -> bytes:
        """The next bytes, fewer at the end of the file."""
        found = self.need(size)
        self.at += len(found)
        return found

    def line(self) -> bytes | None:
        """The next line without its end; None at the end of the file, or if it has no end."""
        searched = 0
        while True:
            view = self.data[self.at : self.end].data
            found = bytes(view[searched:]).find(b"\n")
            if found >= 0:
                line = bytes(view[: searched + found])
                self.at += len(line) + 1
                return line.rstrip(b"\r")
            searched = len(view)
            if searched > MOST_HEADER:
                raise SequenceError(f"{self._path}: a header line of over {MOST_HEADER:,} bytes")
            if not self.fill():
                if self.closed_line or not searched:
                    return None
                self.close_line()

    def last_line(self) -> int:
        """End of the last whole line."""
        step, end = 1 << 16, self.end
        while end > self.at:
            begin = max(end - step, self.at)
            found = self.data[begin:end].tobytes().rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
        return self.at

    def close_line(self) -> None:
        """Give the last line the end that the file lacks."""
        self.data[self.end] = 0x0A
        self.end += 1
        self.closed_line = True

    def close(self) -> None:
        """Stop reading."""
        self._pieces = iter(())
