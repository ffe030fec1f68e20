"""From bytes of a FASTA to codes, by compiled functions that release the GIL.

`decode` reads a range of a record whose lines are known. `scan` walks over a file byte by byte,
finds the records and says where `decode` can go on faster. Both check every byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genomepred.machine_code import entry
from genomepred.sequences.codes import Codes

_decode = entry("genomepred.sequences.decode_code:decode")
_scan = entry("genomepred.sequences.decode_code:scan")

# State of `scan` between pieces. BASES and WIDTH count the current line's bases and bytes, in a
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
# Why `scan` returned: at the end of what it was given; for want of room; where many equal lines or
# a long one follow, which `decode` takes faster; or because of what it found.
DONE, TABLE_FULL, LINES, LONG, NO_HEADER, NO_NAME, BAD_NAME, LONG_NAME, BAD_BYTE = range(9)

# So many bytes must follow for `decode` to be worth its call from Python.
MANY = 1 << 13


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


def _place(array: Any) -> int:
    """Address of a contiguous array."""
    if not array.flags.c_contiguous:
        raise ValueError("bytes and codes must be contiguous")
    return int(array.ctypes.data)


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
    found = np.empty(1, np.int64)
    lines = column, bases, width
    _decode()(_place(raw), len(raw), *lines, _place(out), len(out), _place(found))
    return int(found[0])


def scan(
    raw: Codes, offset: int, state: Any, records: Any, names: Codes, out: Codes
) -> tuple[int, int, int]:
    """Walk byte by byte over the next piece of a FASTA.

    Parameters
    ----------
    raw : contiguous uint8 array
    offset : int
        Place of ``raw[0]`` in the file.
    state : int64 array, [STATE_SIZE]
        Zeros before the first piece, but ``LINE`` 1.
    records : int64 array, [most, COLUMNS]
        Receives the records; zeros before.
    names : uint8 array
        Receives the contigs' names, each followed by a line feed; as long as ``raw``.
    out : uint8 array
        Receives the codes of all contigs; as long as ``raw``.

    Returns
    -------
    status, taken, count : int
        One of ``DONE`` ... ``BAD_BYTE``; bytes taken, also the place of what stopped it; codes
        written.
    """
    found = np.empty(3, np.int64)
    into = _place(state), _place(records), len(records), _place(names), _place(out)
    _scan()(_place(raw), len(raw), offset, *into, _place(found))
    status, taken, count = found.tolist()
    return status, taken, count
