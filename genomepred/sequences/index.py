"""samtools-compatible indexes: .fai of lines, .gzi of bgzip blocks.

A .fai is checked against the FASTA before it is used. A .gzi is written for other programs only:
the blocks themselves say where they are. samtools leaves contigs without bases out of a .fai; here
they are found again between the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import OutputError, SequenceError
from genomepred.files import discard_abandoned, own_folder, read_small, write_whole
from genomepred.sequences.byte_source import ByteSource
from genomepred.sequences.codes import ALPHABET, Codes
from genomepred.sequences.names import MOST_NAME, shown

Int64 = NDArray[np.int64]

# Most bytes looked at of a contig's first and last line.
_GLANCE = 1 << 12
# Bytes read at once while an index is checked, so that small contigs come many at a time.
_WINDOW = 1 << 14
# More bytes than this between two contigs are no headers.
_MOST_HEADERS = 1 << 24
# Bytes of a .fai for one byte of its FASTA, at most: a contig ">a", "A" has a line of 14 or more.
_FAI_RATE = 16
_MOST_FAI = 1 << 30
_MOST_NUMBER = 1 << 60


class Record(NamedTuple):
    """One line of a .fai; ``offset`` is that of the first base in the uncompressed bytes."""

    name: str
    length: int
    offset: int
    line_bases: int
    line_width: int


def format_fai(records: Iterable[Record]) -> bytes:
    """Text of a .fai."""
    return "".join("\t".join(map(str, r)) + "\n" for r in records if r.length).encode()


def most_fai(source: ByteSource) -> int:
    """Most bytes that a .fai of these bytes can have."""
    return min(_FAI_RATE * source.size + 4096, _MOST_FAI)


def parse_fai(index: bytes, source: ByteSource) -> list[Record] | None:
    """Records of a .fai that describes all bytes of ``source``, empty contigs added.

    Checked are: every header's place and name, the first and last line of every contig, and that
    nothing lies between or after them; what lies in between is checked when it is read. A malformed
    or wrong index gives None.
    """
    try:
        rows = [line.split("\t") for line in index.decode().splitlines()]
        listed = [Record(row[0], *map(int, row[1:])) for row in rows]
    except (ValueError, TypeError, IndexError):
        return None
    if any(not 0 <= number < _MOST_NUMBER for record in listed for number in record[1:]):
        return None
    window = _Window(source)
    records: list[Record] = []
    position = 0
    for record in sorted((r for r in listed if r.length), key=lambda r: r.offset):
        names = _names_between(window, position, record.offset)
        if not names or names[-1] != record.name or not _fits(record, window):
            return None
        records += [Record(name, 0, 0, 0, 0) for name in names[:-1]]
        records.append(record)
        position = _end(record)
    names = _names_between(window, position, source.size, last=True)
    if names is None:
        return None
    records += [Record(name, 0, 0, 0, 0) for name in names]
    distinct = len({r.name for r in records}) == len(records)
    return records if records and distinct else None


class _Window:
    """Reads that share one buffer while they ascend."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._start, self._data = 0, b""

    def read(self, start: int, end: int) -> bytes:
        if not self._start <= start <= end <= self._start + len(self._data):
            stop = min(max(end, start + _WINDOW), self._source.size)
            pieces = self._source.pieces(start, stop)
            self._start, self._data = start, b"".join(piece.tobytes() for piece in pieces)
        return self._data[start - self._start : end - self._start]


def _end(record: Record) -> int:
    """Offset behind a record's last base."""
    lines, rest = divmod(record.length - 1, record.line_bases)
    return record.offset + lines * record.line_width + rest + 1


def _names_between(window: _Window, start: int, end: int, last: bool = False) -> list[str] | None:
    """Names of the headers between two contigs; None if there is anything else.

    A header must lie directly before ``end``, unless that is the end of the file.
    """
    if not 0 <= end - start <= _MOST_HEADERS:
        return None
    lines = window.read(start, end).replace(b"\r\n", b"\n").split(b"\n")
    if start > 0 and lines.pop(0):  # what is left of the last sequence line
        return None
    if not last and (len(lines) < 2 or lines.pop() or not lines[-1]):
        return None
    names = []
    for line in filter(None, lines):
        words = line[1:].split(None, 1)
        if line[:1] != b">" or b"\r" in line or not words or not line.startswith(words[0], 1):
            return None
        name = words[0].decode("utf-8", "replace")
        if len(words[0]) > MOST_NAME or not name.isprintable() or "\ufffd" in name:
            return None
        names.append(name)
    return names


def _fits(record: Record, window: _Window) -> bool:
    """Whether the first and the last line of a record are where they should be."""
    _, length, offset, bases, width = record
    if bases < 1 or width - bases not in (1, 2):
        return False
    first = window.read(offset, offset + min(bases, length, _GLANCE))
    if first.translate(None, ALPHABET):
        return False
    if length <= bases:
        return True
    line_end = b"\n" if width - bases == 1 else b"\r\n"
    if window.read(offset + bases, offset + width) != line_end:
        return False
    last = offset + (length - 1) // bases * width
    tail = window.read(max(last, _end(record) - _GLANCE), _end(record))
    if tail.translate(None, ALPHABET):
        return False
    return window.read(last - len(line_end), last) == line_end


def format_gzi(blocks: Int64) -> bytes:
    """Bytes of a .gzi: all blocks but the first, the empty last one included."""
    rows = blocks[1:-1].astype("<u8")
    return len(rows).to_bytes(8, "little") + rows.tobytes()


def lists_blocks(index: bytes, blocks: Int64) -> bool:
    """Whether a .gzi lists the blocks of a table; samtools leaves out the empty one at the end."""
    right = format_gzi(blocks)
    without = (len(blocks) - 3).to_bytes(8, "little") + right[8:-16]
    return index == right or (len(blocks) > 2 and index == without)


def current_indexes(places: Sequence[Path], modified: int, limit: int) -> Iterator[bytes]:
    """Contents of indexes that are not older than the FASTA, best place first.

    Parameters
    ----------
    places : sequence of Path
        Beside the FASTA, where a link is followed, and after that in a cache folder.
    modified : int
        When the FASTA was, in nanoseconds.
    limit : int
        What is larger, or is no regular file, counts as absent.
    """
    for place in places:
        with suppress(OSError):
            if place.stat().st_mtime_ns >= modified:
                yield read_small(place, limit, follow=place is places[0])


def store_index(places: Sequence[Path], data: bytes) -> None:
    """Write an index where possible; without one the next start only takes longer."""
    for place in places:
        with suppress(OSError, OutputError):
            if place is not places[0]:
                place.parent.parent.mkdir(parents=True, exist_ok=True)
                own_folder(place.parent.parent, place.parent.name)
            # A folder that nobody may write to is left alone by root too.
            if place.parent.stat().st_mode & 0o222:
                discard_abandoned(place)
                write_whole(place, data)
                return


class IndexedCodes:
    """Codes by arithmetic on lines."""

    def __init__(self, path: Path, source: ByteSource, records: list[Record]) -> None:
        self._path, self._source = path, source
        self._records = {record.name: record for record in records}
        self.contigs = {record.name: record.length for record in records}
        self.close = source.close

    def read(self, contig: str, start: int, out: Codes) -> None:
        """Fill ``out`` with the codes of a contig from ``start`` on.

        Raises
        ------
        SequenceError
            If the bytes there are not what the index says.
        """
        _, _, offset, bases, width = self._records[contig]
        line, column = divmod(start, bases)
        last_line, last_column = divmod(start + len(out) - 1, bases)
        position = offset + line * width + column
        if line > 0 and column == 0:  # who reads line after line must see every line end too
            position, column = position - (width - bases), bases
        from genomepred.sequences.decode import decode  # which imports this module

        done = 0
        for piece in self._source.pieces(position, offset + last_line * width + last_column + 1):
            count = decode(piece, column, bases, width, out[done:])
            if count < 0:
                raise SequenceError(
                    f"{self._path}: byte offset {position - 1 - count}, contig {shown(contig)}: no "
                    "nucleotide, or no line end where one must be; the file has changed, or its "
                    ".fai is wrong and must be removed"
                )
            done += count
            position += len(piece)
            column = (column + len(piece)) % width
