"""The validating pass over a FASTA: bytes in; records, codes and the sequence digest out.

Any line ends (LF, CRLF, lone CR) and line widths, blanks and empty lines are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from genomepred.errors import SequenceError
from genomepred.sequences import decode as kernel
from genomepred.sequences.codes import Codes, sequence_digest
from genomepred.sequences.index import Record
from genomepred.sequences.names import MOST_NAME, shown

# Bytes of a long line that are looked over for its end, and decoded, at once.
_LONGEST = 1 << 16


@dataclass(frozen=True)
class Scan:
    """Findings of a pass over a whole FASTA.

    Parameters
    ----------
    records : list of Record
        In file order; offset, line bases and line width of empty contigs are 0.
    even : bool
        Whether arithmetic on lines finds every base, so that a .fai can be written.
    digest : str
        See :func:`genomepred.sequences.codes.sequence_digest`.
    """

    records: list[Record]
    even: bool
    digest: str


def scan(
    path: Path, pieces: Iterable[Codes], sink: Callable[[memoryview], object] | None = None
) -> Scan:
    """Validate and decode a FASTA in one pass.

    Parameters
    ----------
    path : Path
        Named in errors.
    pieces : iterable of read-only uint8 array
        The uncompressed bytes, in order.
    sink : callable, optional
        Is given the codes of all contigs, in parts that are valid only during each call.

    Returns
    -------
    Scan

    Raises
    ------
    SequenceError
        If the bytes are no FASTA of nucleotides, naming contig, line and byte offset.
    """
    scanner, digest = _Scanner(path), xxhash.xxh3_128()
    for piece in pieces:
        for codes in scanner.feed(piece):
            digest.update(codes)
            if sink is not None:
                sink(codes)
    records, even = scanner.finish()
    return Scan(records, even, sequence_digest(digest, ((r.name, r.length) for r in records)))


class _Scanner:
    """State of the kernel between pieces, and its findings in Python's terms."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._state = np.zeros(kernel.STATE_SIZE, np.int64)
        self._state[kernel.LINE] = 1
        self._records = np.zeros((1 << 10, kernel.COLUMNS), np.int64)
        self._names = bytearray()
        self._codes = self._name_bytes = np.empty(0, np.uint8)

    def feed(self, piece: Codes) -> Iterator[memoryview]:
        """Codes of the next piece, in one or more parts."""
        if len(self._codes) < len(piece):
            self._codes = np.empty(len(piece), np.uint8)
            self._name_bytes = np.empty(len(piece), np.uint8)
        while len(piece):
            status, taken, count = kernel.scan(
                piece, self._offset, self._state, self._records, self._name_bytes, self._codes
            )
            self._names += self._name_bytes[: self._state[kernel.NAMES]].data
            self._state[kernel.NAMES] = 0
            self._offset += taken
            if status == kernel.TABLE_FULL:
                self._records = np.concatenate([self._records, np.zeros_like(self._records)])
            elif status not in (kernel.DONE, kernel.LINES, kernel.LONG):
                raise self._error(status, piece[taken : taken + 1].tobytes())
            yield self._codes[:count].data
            piece = piece[taken:]
            if status in (kernel.LINES, kernel.LONG):
                take = self._full_lines if status == kernel.LINES else self._long_line
                taken, count = take(piece)
                self._offset += taken
                yield self._codes[:count].data
                piece = piece[taken:]

    def _full_lines(self, piece: Codes) -> tuple[int, int]:
        """Decode the next lines that repeat the record's first; bytes and bases."""
        state, record = self._state, self._records[self._state[kernel.RECORDS] - 1]
        bases, width = int(record[kernel.LINE_BASES]), int(record[kernel.LINE_WIDTH])
        ends = piece[width - 1 :: width] == ord("\n")
        lines = len(ends) if ends.all() else int(ends.argmin())
        found = kernel.decode(piece[: lines * width], 0, bases, width, self._codes)
        if found < 0:
            lines = (-1 - found) // width
        state[kernel.SLOW] = 1  # the next line is another or a part of one
        state[kernel.LINE] += lines
        record[kernel.LENGTH] += lines * bases
        return lines * width, lines * bases

    def _long_line(self, piece: Codes) -> tuple[int, int]:
        """Decode what follows of a long line, up to its end or a blank; bytes and bases."""
        state, record = self._state, self._records[self._state[kernel.RECORDS] - 1]
        end = piece[:_LONGEST].tobytes().find(b"\n")
        piece = piece[: _LONGEST if end < 0 else end]
        found = kernel.decode(piece, 0, len(piece), len(piece) + 1, self._codes)
        taken = len(piece) if found >= 0 else -1 - found
        if end >= 0 or found < 0:
            state[kernel.SLOW] = 1  # the rest of this line byte by byte
        state[[kernel.BASES, kernel.WIDTH]] += taken
        record[kernel.LENGTH] += taken
        return taken, taken

    def finish(self) -> tuple[list[Record], bool]:
        """All records, and whether all of them are even."""
        state, count = self._state, int(self._state[kernel.RECORDS])
        if count == 0:
            raise SequenceError(
                f"{self._path}: no header in its {self._offset} bytes; a FASTA begins with '>'"
            )
        if state[kernel.MODE] == kernel.NAME:
            if state[kernel.WIDTH] == 0:
                raise self._error(kernel.NO_NAME, b"")
            self._names += b"\n"
        # The end of the file ends a line as a line feed does, but not after a carriage return.
        feed = 1 - int(state[kernel.RETURN])
        if state[kernel.MODE] != kernel.START:
            state[kernel.WIDTH] += feed
            kernel.end_line(state, self._records[count - 1], feed)
        table = self._records[:count]
        numbers = table[:, kernel.LENGTH : kernel.LINE_WIDTH + 1].tolist()
        rows = zip(self._unique_names(), numbers, strict=True)
        records = [Record(name, *row) for name, row in rows]
        return records, not (table[:, kernel.SHAPE] == kernel.UNEVEN).any()

    def _unique_names(self) -> list[str]:
        names: dict[str, int] = {}
        for index, raw in enumerate(bytes(self._names).split(b"\n")[:-1]):
            try:
                name = raw.decode()
            except UnicodeDecodeError:
                raise SequenceError(
                    f"{self._path}: {self._header(index)}: contig name {shown(raw)} is not UTF-8; "
                    "rename it"
                ) from None
            first = names.setdefault(name, index)
            if first != index:
                raise SequenceError(
                    f"{self._path}: {self._header(index)}: contig {shown(name)} a second time "
                    f"after {self._header(first)}; names must be unique"
                )
        return list(names)

    def _header(self, index: int) -> str:
        row = self._records[index]
        return f"line {row[kernel.HEADER_LINE]}, byte offset {row[kernel.HEADER]}"

    def _error(self, status: int, byte: bytes) -> SequenceError:
        where = f"{self._path}: line {self._state[kernel.LINE]}, byte offset {self._offset}"
        if status == kernel.NO_HEADER:
            return SequenceError(f"{where}: found {byte!r} where a FASTA begins with '>'")
        if status == kernel.NO_NAME:
            return SequenceError(f"{where}: a header without a name; write one right after '>'")
        if status == kernel.BAD_NAME:
            return SequenceError(f"{where}: byte {byte!r} in a contig's name; this is no FASTA")
        if status == kernel.LONG_NAME:
            name = bytes(self._names).rpartition(b"\n")[2]
            return SequenceError(
                f"{where}: the contig's name that begins {shown(name[:40])} has more than "
                f"{MOST_NAME:,} bytes; shorten it, or put a blank after its first part"
            )
        contig = shown(bytes(self._names).split(b"\n")[-2].decode(errors="replace"))
        return SequenceError(
            f"{where}: byte {byte!r} in contig {contig} is no nucleotide; allowed are the IUPAC "
            "letters, X, and - . * for gaps"
        )
