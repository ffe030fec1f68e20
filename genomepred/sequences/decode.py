"""From bytes of a FASTA to codes, by compiled functions that release the GIL.

`decode` reads a range of a record whose lines are known. `Scan` is the validating pass over a whole
file: it walks byte by byte, finds the records, and leaves to `decode` what that takes faster. Both
check every byte. Any line ends (LF, CRLF, lone CR) and line widths, blanks and empty lines are
taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from genomepred.errors import SequenceError
from genomepred.machine_code import entry
from genomepred.sequences.codes import Codes
from genomepred.sequences.index import Record
from genomepred.sequences.names import MOST_NAME, shown

_decode = entry("genomepred.sequences.decode_code:decode")
_scan = entry("genomepred.sequences.decode_code:scan")

# State of a scan between pieces. BASES and WIDTH count the current line's bases and bytes, in a
# name its bytes; SLOW is the number of lines still to be read byte by byte; RETURN says that the
# last byte was a carriage return.
STATE_SIZE = 8
MODE, LINE, BASES, WIDTH, RECORDS, NAMES, SLOW, RETURN = range(STATE_SIZE)
# Modes: what the next byte belongs to.
START, NAME, DESCRIPTION, SEQUENCE = range(4)
# Columns of the table of records; offsets in bytes, FIRST that of the first base.
COLUMNS = 7
HEADER_LINE, HEADER, LENGTH, FIRST, LINE_BASES, LINE_WIDTH, SHAPE = range(COLUMNS)
# Shapes of a record: all lines full so far; a short or empty line came; arithmetic on lines does
# not find its bases.
FULL, ENDED, UNEVEN = range(3)
# Why a walk ended: at the end of what it was given; for want of room; where many equal lines or
# a long one follow, which `decode` takes faster; or because of what it found.
DONE, TABLE_FULL, LINES, LONG, NO_HEADER, NO_NAME, BAD_NAME, LONG_NAME, BAD_BYTE = range(9)

# So many bytes must follow for `decode` to be worth its call from Python.
MANY = 1 << 13
# Bytes of a long line that are looked over for its end, and decoded, at once.
_LONGEST = 1 << 16


def end_line(state: Any, record: Any, ends: int) -> None:
    """Close a line that ends with LF (1), CRLF (2) or a lone CR (0)."""
    bases, width = state[BASES], state[WIDTH]
    header = state[MODE] == NAME or state[MODE] == DESCRIPTION
    state[LINE] += 1
    state[SLOW] -= state[SLOW] > 0
    state[MODE], state[BASES], state[WIDTH] = START, 0, 0
    if ends == 0 or (not header and bases + ends != width):  # a lone CR, blanks in the line
        record[SHAPE] = UNEVEN
    elif header or record[SHAPE] == UNEVEN:
        return
    elif bases == 0:
        record[SHAPE] = ENDED
    elif record[SHAPE] == ENDED or (record[LINE_BASES] > 0 and bases > record[LINE_BASES]):
        record[SHAPE] = UNEVEN
    elif record[LINE_BASES] == 0:
        record[LINE_BASES], record[LINE_WIDTH] = bases, width
    elif bases != record[LINE_BASES] or width != record[LINE_WIDTH]:
        record[SHAPE] = ENDED


def decode(raw: Codes, column: int, bases: int, width: int, out: Codes) -> int:
    """Decode bytes of one record whose lines are known.

    Parameters
    ----------
    raw : contiguous uint8 array
        Any piece of the record's lines.
    column : int
        Place of ``raw[0]`` in its line; ``column >= bases`` is in the line end.
    bases, width : int
        Bases and bytes of a line, the latter with its line end.
    out : contiguous uint8 array
        Receives the codes; at least as long as there are bases in ``raw``.

    Returns
    -------
    int
        Number of codes written, or ``-1 - i`` if ``raw[i]`` is not what it should be: sequence, or
        LF or CRLF where a line ends. All before it are then decoded.
    """
    if not (raw.flags.c_contiguous and out.flags.c_contiguous):
        raise ValueError("bytes and codes must be contiguous")
    found = np.empty(1, np.int64)
    into = out.ctypes.data, len(out), found.ctypes.data
    _decode()(raw.ctypes.data, len(raw), column, bases, width, *into)
    return int(found[0])


class Scan:
    """The validating pass over a FASTA: bytes in; codes, records and the sequence digest out.

    Parameters
    ----------
    path : Path
        Named in errors.
    pieces : iterable of read-only uint8 array
        The uncompressed bytes, in order.

    Attributes
    ----------
    records : list of Record
        In file order, once :meth:`codes` has come to its end, as the others; offset, line bases and
        line width of empty contigs are 0.
    even : bool
        Whether arithmetic on lines finds every base, so that a .fai can be written.
    digest : str
        XXH3-128 of the codes of all contigs, then of the contigs' names and lengths; 32 hexadecimal
        digits.
    """

    records: list[Record]
    even: bool
    digest: str

    def __init__(self, path: Path, pieces: Iterable[Codes]) -> None:
        self._path, self._pieces, self._offset = path, pieces, 0
        self._state = np.zeros(STATE_SIZE, np.int64)
        self._state[LINE] = 1
        self._table = np.zeros((1 << 10, COLUMNS), np.int64)
        self._names = bytearray()
        self._codes = self._name_bytes = np.empty(0, np.uint8)

    def codes(self) -> Iterator[memoryview]:
        """Codes of all contigs, in parts that are valid only until the next.

        Raises
        ------
        SequenceError
            If the bytes are no FASTA of nucleotides, naming contig, line and byte offset.
        """
        digest = xxhash.xxh3_128()
        for piece in self._pieces:
            if len(self._codes) < len(piece):
                self._codes, self._name_bytes = np.empty((2, len(piece)), np.uint8)
            rest, status = piece, DONE
            while len(rest):
                take = {LINES: self._full_lines, LONG: self._long_line}.get(status, self._walk)
                status, taken, count = take(rest)
                self._offset += taken
                rest, codes = rest[taken:], self._codes[:count].data
                digest.update(codes)
                yield codes
        self.records, self.even = self._finish()
        digest.update("".join(f"{r.name}\t{r.length}\n" for r in self.records).encode())
        self.digest = digest.hexdigest()

    def _walk(self, piece: Codes) -> tuple[int, int, int]:
        """Walk byte by byte until `decode` is faster; why it ended, bytes and bases."""
        state, names, found = self._state, self._name_bytes, np.empty(3, np.int64)
        into = [array.ctypes.data for array in (names, self._codes, found)]
        records = self._table.ctypes.data, len(self._table)
        _scan()(piece.ctypes.data, len(piece), self._offset, state.ctypes.data, *records, *into)
        status, taken, count = found.tolist()
        self._names += names[: state[NAMES]].data
        state[NAMES] = 0
        if status == TABLE_FULL:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        elif status not in (DONE, LINES, LONG):
            raise self._error(status, self._offset + taken, piece[taken : taken + 1].tobytes())
        return status, taken, count

    def _full_lines(self, piece: Codes) -> tuple[int, int, int]:
        """Decode the next lines that repeat the record's first; as :meth:`_walk`."""
        state, record = self._state, self._table[self._state[RECORDS] - 1]
        bases, width = int(record[LINE_BASES]), int(record[LINE_WIDTH])
        ends = piece[width - 1 :: width] == ord("\n")
        lines = len(ends) if ends.all() else int(ends.argmin())
        found = decode(piece[: lines * width], 0, bases, width, self._codes)
        if found < 0:
            lines = (-1 - found) // width
        state[SLOW] = 1  # the next line is another or a part of one
        state[LINE] += lines
        record[LENGTH] += lines * bases
        return DONE, lines * width, lines * bases

    def _long_line(self, piece: Codes) -> tuple[int, int, int]:
        """Decode what follows of a long line, up to its end or a blank; as :meth:`_walk`."""
        state, record = self._state, self._table[self._state[RECORDS] - 1]
        end = piece[:_LONGEST].tobytes().find(b"\n")
        piece = piece[: _LONGEST if end < 0 else end]
        found = decode(piece, 0, len(piece), len(piece) + 1, self._codes)
        taken = len(piece) if found >= 0 else -1 - found
        if end >= 0 or found < 0:
            state[SLOW] = 1  # the rest of this line byte by byte
        state[[BASES, WIDTH]] += taken
        record[LENGTH] += taken
        return DONE, taken, taken

    def _finish(self) -> tuple[list[Record], bool]:
        """All records, and whether all of them are even."""
        state, count = self._state, int(self._state[RECORDS])
        if count == 0:
            raise SequenceError(
                f"{self._path}: no header in its {self._offset} bytes; a FASTA begins with '>'"
            )
        if state[MODE] == NAME:
            if state[WIDTH] == 0:
                raise self._error(NO_NAME, self._offset, b"")
            self._names += b"\n"
        # The end of the file ends a line as a line feed does, but not after a carriage return.
        feed = 1 - int(state[RETURN])
        if state[MODE] != START:
            state[WIDTH] += feed
            end_line(state, self._table[count - 1], feed)
        table = self._table[:count]
        numbers = table[:, LENGTH : LINE_WIDTH + 1].tolist()
        rows = zip(self._unique_names(), numbers, strict=True)
        records = [Record(name, *row) for name, row in rows]
        return records, not (table[:, SHAPE] == UNEVEN).any()

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
        row = self._table[index]
        return f"line {row[HEADER_LINE]}, byte offset {row[HEADER]}"

    def _error(self, status: int, offset: int, byte: bytes) -> SequenceError:
        where = f"{self._path}: line {self._state[LINE]}, byte offset {offset}"
        if status == NO_HEADER:
            return SequenceError(f"{where}: found {byte!r} where a FASTA begins with '>'")
        if status == NO_NAME:
            return SequenceError(f"{where}: a header without a name; write one right after '>'")
        if status == BAD_NAME:
            return SequenceError(f"{where}: byte {byte!r} in a contig's name; this is no FASTA")
        if status == LONG_NAME:
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
