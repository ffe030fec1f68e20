"""The validating pass over a FASTA: bytes in; records, codes and the sequence digest out.

Any line ends (LF, CRLF, lone CR) and any line widths are taken. A small state machine walks the
bytes; lines that repeat the width of their record's first line are decoded in bulk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from genomepred.errors import SequenceError
from genomepred.sequences.codes import CODE_OF_BYTE, INVALID, Codes, decode_lines, decode_run

# Places in the state carried from piece to piece. _BASES and _WIDTH count the current line's bases
# and bytes; _SLOW is the number of lines still to be read byte by byte; _CR says that the last
# byte was a carriage return.
_MODE, _LINE, _BASES, _WIDTH, _RECORDS, _NAMES, _SLOW, _CR = range(8)
# Modes: what the next byte belongs to.
_START, _NAME, _DESCRIPTION, _SEQUENCE = range(4)
# Columns of the table of records.
_HEADER_LINE, _HEADER, _FIRST, _LENGTH, _LINE_BASES, _LINE_WIDTH, _SHAPE = range(7)
# Shapes of a record: all lines full so far; a short or empty line came; samtools cannot index it.
_FULL, _ENDED, _IRREGULAR = range(3)
# Why the kernel returned.
_DONE, _TABLE_FULL, _NO_HEADER, _NO_NAME, _BAD_NAME, _BAD_BYTE = range(6)

# A line longer than this is decoded in runs of this many bases.
_LONG = 1024
# Most lines decoded at once; as many are read byte by byte after one of them was invalid.
_LINES = 256


class Record(NamedTuple):
    """One line of a .fai; ``offset`` is that of the first base in the uncompressed bytes."""

    name: str
    length: int
    offset: int
    line_bases: int
    line_width: int


@dataclass(frozen=True)
class Scan:
    """What a pass over a whole FASTA found.

    Parameters
    ----------
    records : list of Record
        In file order; empty contigs have length, line bases and line width 0.
    indexable : bool
        Whether arithmetic on lines finds every base, so that a .fai can be written.
    digest : str
        See :class:`SequenceDigest`.
    """

    records: list[Record]
    indexable: bool
    digest: str


class SequenceDigest:
    """XXH3-128 of the codes of all contigs in file order, then of their names and lengths."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()

    def update(self, codes: Codes) -> None:
        """Add the next codes."""
        self._hash.update(codes)

    def finish(self, contigs: Iterable[tuple[str, int]]) -> str:
        """Add names and lengths; the digest as 32 hexadecimal digits."""
        for name, length in contigs:
            self._hash.update(f"{name}\t{length}\n".encode())
        return self._hash.hexdigest()


def scan(
    path: Path, pieces: Iterable[Codes], sink: Callable[[Codes], object] | None = None
) -> Scan:
    """Validate a FASTA and decode it in one pass.

    Parameters
    ----------
    path : Path
        Named in errors.
    pieces : iterable of read-only uint8 array
        The uncompressed bytes, in order.
    sink : callable, optional
        Called with the codes of each piece; they are valid only during the call.

    Returns
    -------
    Scan

    Raises
    ------
    SequenceError
        If the bytes are no FASTA of nucleotides, naming contig, line and byte offset.
    """
    scanner, digest = _Scanner(path), SequenceDigest()
    for piece in pieces:
        for codes in scanner.feed(piece):
            digest.update(codes)
            if sink is not None:
                sink(codes)
    records, indexable = scanner.finish()
    return Scan(records, indexable, digest.finish((r.name, r.length) for r in records))


class _Scanner:
    """State of a pass between pieces."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = np.zeros(8, np.int64)
        self._state[_LINE] = 1
        self._records = np.zeros((1024, 7), np.int64)
        self._names = bytearray()
        self._offset = 0
        self._codes = self._name_bytes = np.empty(0, np.uint8)

    def feed(self, piece: Codes) -> Iterable[Codes]:
        """Codes of the next piece, in one or more parts."""
        if len(self._codes) < len(piece):
            self._codes = np.empty(len(piece), np.uint8)
            self._name_bytes = np.empty(len(piece), np.uint8)
        while len(piece):
            status, taken, count = _scan(
                piece, self._offset, self._state, self._records, self._name_bytes, self._codes
            )
            self._names += self._name_bytes[: self._state[_NAMES]].tobytes()
            self._state[_NAMES] = 0
            self._offset += taken
            if status == _TABLE_FULL:
                self._records = np.concatenate([self._records, np.zeros_like(self._records)])
            elif status != _DONE:
                raise self._error(status, piece[taken : taken + 1].tobytes())
            yield self._codes[:count]
            piece = piece[taken:]

    def finish(self) -> tuple[list[Record], bool]:
        """All records, and whether samtools could index them."""
        state, count = self._state, int(self._state[_RECORDS])
        if count == 0:
            raise SequenceError(f"{self._path}: no FASTA header in {self._offset} bytes")
        if state[_MODE] == _NAME and state[_WIDTH] == 0:
            raise self._error(_NO_NAME, b"")
        if state[_MODE] == _NAME:
            self._names += b"\n"
        # A missing last line end is as good as a line feed.
        state[_WIDTH] += 1 - state[_CR]
        _end_line(state, self._records[count - 1], 1 - state[_CR])
        table = self._records[:count]
        records = [
            Record(
                name,
                int(row[_LENGTH]),
                int(row[_FIRST]),
                int(row[_LINE_BASES]),
                int(row[_LINE_WIDTH]),
            )
            for name, row in zip(self._decoded_names(), table, strict=True)
        ]
        return records, bool(np.all(table[:, _SHAPE] != _IRREGULAR))

    def _decoded_names(self) -> list[str]:
        names: dict[str, int] = {}
        for index, raw in enumerate(bytes(self._names).split(b"\n")[:-1]):
            try:
                name = raw.decode()
            except UnicodeDecodeError:
                raise SequenceError(
                    f"{self._path}: {self._header(index)}: the name {raw!r} is not UTF-8; rename it"
                ) from None
            if name in names:
                raise SequenceError(
                    f"{self._path}: {self._header(index)}: a second contig named {name!r}, the first "
                    f"is at {self._header(names[name])}; contig names must be unique"
                )
            names[name] = index
        return list(names)

    def _header(self, index: int) -> str:
        row = self._records[index]
        return f"line {row[_HEADER_LINE]}, byte offset {row[_HEADER]}"

    def _error(self, status: int, byte: bytes) -> SequenceError:
        where = f"{self._path}: line {self._state[_LINE]}, byte offset {self._offset}"
        if status == _NO_HEADER:
            return SequenceError(f"{where}: found {byte!r} where a FASTA begins with '>'")
        if status == _NO_NAME:
            return SequenceError(f"{where}: a header without a name; write it directly after '>'")
        if status == _BAD_NAME:
            return SequenceError(f"{where}: byte {byte!r} in a contig name; this is no text file")
        contig = bytes(self._names).split(b"\n")[-2].decode(errors="replace")
        return SequenceError(
            f"{where}: byte {byte!r} in contig {contig!r} is no nucleotide; allowed are the IUPAC "
            "letters, X and the gaps - . *"
        )


@njit(nogil=True, cache=True)
def _equal_lines(raw: Any, width: int, ends: int) -> int:
    """How many of the next lines have this width, the last ``ends`` bytes being the line end."""
    most = min(_LINES, len(raw) // width)
    for line in range(most):
        end = (line + 1) * width
        if (
            raw[line * width] == 0x3E
            or raw[end - 1] != 0x0A
            or (ends == 2 and raw[end - 2] != 0x0D)
        ):
            return line
    return most


@njit(nogil=True, cache=True)
def _end_line(state: Any, record: Any, ends: int) -> None:
    """Close a line that ends with LF (1), CRLF (2) or a lone CR (0)."""
    bases, width = state[_BASES], state[_WIDTH]
    sequence = state[_MODE] == _SEQUENCE or state[_MODE] == _START
    state[_LINE] += 1
    state[_SLOW] = max(state[_SLOW] - 1, 0)
    state[_MODE], state[_BASES], state[_WIDTH] = _START, 0, 0
    if ends == 0 or (sequence and bases + ends != width):
        record[_SHAPE] = _IRREGULAR
    elif not sequence or record[_SHAPE] == _IRREGULAR:
        return
    elif bases > 0 and (
        record[_SHAPE] == _ENDED or (record[_LINE_BASES] > 0 and bases > record[_LINE_BASES])
    ):
        record[_SHAPE] = _IRREGULAR
    elif bases > 0 and record[_LINE_BASES] == 0:
        record[_LINE_BASES], record[_LINE_WIDTH] = bases, width
    elif width != record[_LINE_WIDTH]:
        record[_SHAPE] = _ENDED


@njit(nogil=True, cache=True)
def _header_byte(byte: int, state: Any, names: Any) -> int:
    """Take a byte of a header line, its end included; the status."""
    if state[_MODE] == _DESCRIPTION:
        return _DONE
    blank = byte == 0x20 or 0x09 <= byte <= 0x0D
    if blank and state[_WIDTH] == 0:
        return _NO_NAME
    if not blank and (byte < 0x20 or byte == 0x7F):
        return _BAD_NAME
    names[state[_NAMES]] = 0x0A if blank else byte
    state[_NAMES] += 1
    state[_WIDTH] += 1
    if blank:
        state[_MODE] = _DESCRIPTION
    return _DONE


@njit(nogil=True, cache=True)
def _bulk(raw: Any, state: Any, record: Any, out: Any) -> int:
    """Decode the next lines that repeat the record's first; how many."""
    bases, width = record[_LINE_BASES], record[_LINE_WIDTH]
    if bases == 0 or record[_SHAPE] != _FULL or state[_SLOW] > 0:
        return 0
    equal = _equal_lines(raw, width, width - bases)
    lines = decode_lines(raw, out, equal, bases, width)
    state[_SLOW] = equal - lines
    state[_LINE] += lines
    record[_LENGTH] += lines * bases
    return lines


@njit(nogil=True, cache=True)
def _rest_of_line(raw: Any, state: Any, record: Any, out: Any) -> tuple[int, int, int]:
    """Take sequence bytes up to the line's end; (status, bytes taken, codes written)."""
    at, done, status = 0, 0, _DONE
    runs = True
    while at < len(raw) and raw[at] != 0x0A and raw[at] != 0x0D:
        if runs and state[_BASES] + done >= _LONG and len(raw) - at >= _LONG:
            runs = decode_run(raw[at : at + _LONG], out[done : done + _LONG])
            if runs:
                at += _LONG
                done += _LONG
                continue
        code = CODE_OF_BYTE[raw[at]]
        if code < INVALID:
            out[done] = code
            done += 1
        elif raw[at] != 0x20 and not 0x09 <= raw[at] <= 0x0C:
            status = _BAD_BYTE
            break
        at += 1
    state[_BASES] += done
    state[_WIDTH] += at
    record[_LENGTH] += done
    return status, at, done


@njit(nogil=True, cache=True)
def _scan(
    raw: Any, offset: int, state: Any, records: Any, names: Any, out: Any
) -> tuple[int, int, int]:
    """Walk over a piece at a byte offset; (status, bytes taken, codes written)."""
    at, done, status = 0, 0, _DONE
    while at < len(raw) and status == _DONE:
        byte = raw[at]
        record = records[max(state[_RECORDS] - 1, 0)]
        if state[_MODE] == _NAME or state[_MODE] == _DESCRIPTION:
            status = _header_byte(byte, state, names)
            if status != _DONE:
                break
        if state[_CR] == 1 and byte != 0x0A:
            state[_CR] = 0
            _end_line(state, record, 0)
        elif byte == 0x0A:
            state[_WIDTH] += 1
            _end_line(state, record, 1 + state[_CR])
            state[_CR] = 0
            at += 1
        elif byte == 0x0D:
            state[_CR] = 1
            state[_WIDTH] += 1
            at += 1
        elif state[_MODE] == _NAME or state[_MODE] == _DESCRIPTION:
            at += 1
        elif state[_MODE] == _START and byte == 0x3E:
            if state[_RECORDS] == len(records):
                status = _TABLE_FULL
                break
            record = records[state[_RECORDS]]
            record[:] = 0
            record[_HEADER_LINE], record[_HEADER] = state[_LINE], offset + at
            state[_RECORDS] += 1
            state[_MODE] = _NAME
            at += 1
        elif state[_RECORDS] == 0:
            status = _NO_HEADER
        else:
            if state[_MODE] == _START:
                lines = _bulk(raw[at:], state, record, out[done:])
                at += lines * record[_LINE_WIDTH]
                done += lines * record[_LINE_BASES]
                if lines > 0:
                    continue
                state[_MODE] = _SEQUENCE
                if record[_LENGTH] == 0:
                    record[_FIRST] = offset + at
            status, taken, count = _rest_of_line(raw[at:], state, record, out[done:])
            at += taken
            done += count
    return status, at, done
