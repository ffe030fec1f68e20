"""Kernels that turn bytes of a FASTA into codes; all release the GIL.

`decode` reads a range of a record whose lines are known from an index. `scan` walks a whole file
and finds the records on the way. Both check every byte: `decode_lines` and `decode_run` translate
with packed compares and selects and look closer only where a code is not one of 0-3.

The kernels that call each other stand in one file because Numba's cache does not notice changes in
other files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from genomepred.sequences.names import MOST_NAME

UNKNOWN = 4
INVALID = 8  # in place of a code: a byte that is no sequence
AMBIGUOUS = "BDHKMNRSVWXY"  # the IUPAC letters, and X, which masks in many assemblies
GAPS = "-.*"

CODE_OF_BYTE = np.full(256, INVALID, np.uint8)
for _letter in [*AMBIGUOUS, *GAPS]:
    CODE_OF_BYTE[[ord(_letter), ord(_letter.lower())]] = UNKNOWN
CODE_OF_BYTE[list(b"ACGTUacgtu")] = [0, 1, 2, 3, 3] * 2
ALPHABET = bytes(np.flatnonzero(CODE_OF_BYTE < INVALID).tolist())

# Bytes translated at once. Lines of 60 bases in L2 decode at 34 GB/s with 64; chunks of 32 and of
# 128 take 1.4 times as long (Zen 5).
CHUNK = 64
# Bases decoded before they are checked, few enough to be still in L1.
_GROUP = 1 << 14

_LF, _CR, _HEADER_MARK = 0x0A, 0x0D, 0x3E


def _chunk_decoder(strict: bool) -> Any:
    """A kernel that decodes ``raw[i : i + CHUNK]`` into ``out[o : o + CHUNK]``, unchecked.

    Its vector instructions are spelled out; left to find them in a loop over bytes, LLVM needs 1.2
    times as long, or ten times if an operand is wider than a byte. ``strict`` means `CODE_OF_BYTE`;
    otherwise all that is not one of ACGTU becomes `UNKNOWN`, in less than half the time.
    """
    vector = ir.VectorType(ir.IntType(8), CHUNK)

    def all_of(value: int) -> ir.Constant:
        return ir.Constant(vector, [value] * CHUNK)

    def translate(builder: Any, raw: Any) -> Any:
        upper = builder.and_(raw, all_of(0xDF))
        codes = all_of(INVALID if strict else UNKNOWN)
        cases = [(upper, letter, UNKNOWN) for letter in AMBIGUOUS if strict]
        cases += [(raw, letter, UNKNOWN) for letter in GAPS if strict]
        # U differs from T in the last bit. A comes last because its code 0 makes that select a
        # mask; in another order this takes 1.3 times as long.
        cases += [(builder.and_(upper, all_of(0xFE)), "T", 3)]
        cases += [(upper, "G", 2), (upper, "C", 1), (upper, "A", 0)]
        for value, letter, code in cases:
            equal = builder.icmp_unsigned("==", value, all_of(ord(letter)))
            codes = builder.select(equal, all_of(code), codes)
        return codes

    @intrinsic
    def chunk(typing: Any, raw: Any, i: Any, out: Any, o: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            def address(array: int, offset: int) -> Any:
                view = make_array(signature.args[array])  # type: ignore[no-untyped-call]
                struct = view(context, builder, arguments[array])
                place = builder.gep(struct.data, [arguments[offset]])
                return builder.bitcast(place, vector.as_pointer())

            codes = translate(builder, builder.load(address(0, 1), align=1))
            builder.store(codes, address(2, 3), align=1)
            return context.get_dummy_value()

        return types.void(raw, i, out, o), generate

    return chunk


_decode_chunk = _chunk_decoder(strict=False)
_decode_chunk_strictly = _chunk_decoder(strict=True)


# Not cached by itself, but with what calls it: processes that start together could take the code
# for one value of ``strict`` for the other's.
@njit(nogil=True)
def _run(raw: Any, out: Any, strict: bool) -> None:
    """Decode ``raw`` into the equally long ``out``."""
    chunks = len(out) // CHUNK * CHUNK
    for at in range(0, chunks, CHUNK):
        if strict:
            _decode_chunk_strictly(raw, at, out, at)
        else:
            _decode_chunk(raw, at, out, at)
    for at in range(chunks, len(out)):
        out[at] = CODE_OF_BYTE[raw[at]]


@njit(nogil=True)  # as above
def _lines(raw: Any, out: Any, lines: int, bases: int, width: int, strict: bool) -> bool:
    """Decode whole lines in chunks, whose surplus past a line's end the next line overwrites.

    Returns whether each line ends with LF, or with CRLF if its end has two bytes.
    """
    wrong = np.uint8(0)
    before, byte = (1, np.uint8(_CR)) if width - bases == 2 else (0, np.uint8(_LF))
    for line in range(lines):
        for column in range(0, bases, CHUNK):
            if strict:
                _decode_chunk_strictly(raw, line * width + column, out, line * bases + column)
            else:
                _decode_chunk(raw, line * width + column, out, line * bases + column)
        last = line * width + width - 1
        wrong |= (raw[last] ^ np.uint8(_LF)) | (raw[last - before] ^ byte)
    return bool(wrong == 0)


@njit(nogil=True, cache=True)
def _union(codes: Any) -> Any:
    """Bitwise or of all codes: below 4 if all are known bases, 8 or more if any is invalid."""
    words = codes[: len(codes) // 8 * 8].view(np.uint64)  # 200 GB/s; as bytes 45 GB/s
    union = np.uint64(0)
    for j in range(len(words)):
        union |= words[j]
    for j in range(8 * len(words), len(codes)):
        union |= np.uint64(codes[j])
    for shift in (32, 16, 8):
        union |= union >> np.uint64(shift)
    return np.int64(union & np.uint64(0xFF))


@njit(nogil=True, cache=True)
def decode_run(raw: Any, out: Any) -> bool:
    """Decode bytes without line ends into the equally long ``out``; whether all were valid."""
    _run(raw, out, False)
    if _union(out) < UNKNOWN:
        return True
    _run(raw, out, True)
    return bool(_union(out) < INVALID)


@njit(nogil=True, cache=True)
def decode_lines(raw: Any, out: Any, lines: int, bases: int, width: int) -> int:
    """Decode whole lines of equal length; how many, all of them and their ends valid.

    Stops early at a group with an invalid byte, and where the surplus of a line's last chunk would
    pass the end of ``raw`` or ``out``.
    """
    surplus = -(-bases // CHUNK) * CHUNK
    safe = min((len(raw) - surplus) // width, (len(out) - surplus) // bases) + 1
    lines = min(lines, max(safe, 0))
    done = 0
    while done < lines:
        count = min(max(_GROUP // bases, 1), lines - done)
        source, target = raw[done * width :], out[done * bases :]
        even = _lines(source, target, count, bases, width, False)
        if _union(target[: count * bases]) >= UNKNOWN:
            _lines(source, target, count, bases, width, True)
            if _union(target[: count * bases]) >= INVALID:
                break
        if not even:
            break
        done += count
    return done


@njit(nogil=True, cache=True)
def decode(raw: Any, column: int, bases: int, width: int, out: Any) -> int:
    """Decode bytes of one record whose lines are known.

    Parameters
    ----------
    raw : uint8 array, read-only
        Any piece of the record's lines.
    column : int
        Place of ``raw[0]`` in its line; ``column >= bases`` is in the line end.
    bases, width : int
        Bases and bytes of a line, the latter with its line end.
    out : uint8 array
        Receives the codes; at least as long as there are bases in ``raw``.

    Returns
    -------
    int
        Number of codes written, or ``-1 - i`` if ``raw[i]`` is not what it should be: sequence, or
        LF or CRLF where a line ends.
    """
    at, done = 0, 0
    while at < len(raw):
        if column == 0:
            lines = decode_lines(raw[at:], out[done:], (len(raw) - at) // width, bases, width)
            at += lines * width
            done += lines * bases
        count = max(min(bases - column, len(raw) - at), 0)
        if not decode_run(raw[at : at + count], out[done : done + count]):
            for j in range(count):
                if out[done + j] >= INVALID:
                    return -1 - at - j
        at += count
        done += count
        column += count
        while column >= bases and at < len(raw):
            if raw[at] != (_LF if column == width - 1 else _CR):
                return -1 - at
            at += 1
            column += 1
            if column == width:
                column = 0
    return done


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
# Why `scan` returned.
DONE, TABLE_FULL, NO_HEADER, NO_NAME, BAD_NAME, LONG_NAME, BAD_BYTE = range(7)

# From this length on a line is decoded in runs of as many bases.
_LONG = 1 << 10
# Most lines decoded at once; after a failure as many are read byte by byte.
_MOST_LINES = 1 << 8


@njit(nogil=True, cache=True)
def _equal_lines(raw: Any, width: int, ends: int) -> int:
    """How many of the next lines have this width, the last ``ends`` bytes being the line end."""
    lines = min(_MOST_LINES, len(raw) // width)
    for line in range(lines):
        last = line * width + width - 1
        if raw[line * width] == _HEADER_MARK or raw[last] != _LF:
            return line
        if ends == 2 and raw[last - 1] != _CR:
            return line
    return lines


@njit(nogil=True, cache=True)
def _full_lines(raw: Any, state: Any, record: Any, out: Any) -> int:
    """Decode the next lines that repeat the record's first; how many."""
    bases, width = record[LINE_BASES], record[LINE_WIDTH]
    if bases == 0 or record[SHAPE] != FULL or state[SLOW] > 0:
        return 0
    equal = _equal_lines(raw, width, width - bases)
    lines = decode_lines(raw, out, equal, bases, width)
    state[SLOW] = equal - lines
    state[LINE] += lines
    record[LENGTH] += lines * bases
    return lines


@njit(nogil=True, cache=True)
def _rest_of_line(raw: Any, state: Any, record: Any, out: Any) -> tuple[int, int, int]:
    """Take sequence up to the end of its line; (status, bytes taken, codes written)."""
    at, done = 0, 0
    status, runs = DONE, True
    while at < len(raw) and raw[at] != _LF and raw[at] != _CR:
        if runs and state[BASES] + done >= _LONG and len(raw) - at >= _LONG:
            runs = decode_run(raw[at : at + _LONG], out[done : done + _LONG])
            if runs:
                at += _LONG
                done += _LONG
                continue
        code = CODE_OF_BYTE[raw[at]]
        if code < INVALID:
            out[done] = code
            done += 1
        elif raw[at] != 0x20 and not 0x09 <= raw[at] <= 0x0C:  # blanks are skipped
            status = BAD_BYTE
            break
        at += 1
    state[BASES] += done
    state[WIDTH] += at
    record[LENGTH] += done
    return status, at, done


@njit(nogil=True, cache=True)
def _sequence(raw: Any, offset: int, state: Any, record: Any, out: Any) -> tuple[int, int, int]:
    """Take full lines, or one line as far as it goes; (status, bytes taken, codes written)."""
    if state[MODE] == START:
        lines = _full_lines(raw, state, record, out)
        if lines > 0:
            return DONE, lines * record[LINE_WIDTH], lines * record[LINE_BASES]
        if record[LENGTH] == 0:
            record[FIRST] = offset
        state[MODE] = SEQUENCE
    return _rest_of_line(raw, state, record, out)


@njit("void(int64[::1], int64[::1], int64)", nogil=True, cache=True)
def end_line(state: Any, record: Any, ends: int) -> None:
    """Close a line that ends with LF (1), CRLF (2) or a lone CR (0)."""
    bases, width = state[BASES], state[WIDTH]
    header = state[MODE] == NAME or state[MODE] == DESCRIPTION
    state[LINE] += 1
    state[SLOW] = max(state[SLOW] - 1, 0)
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


@njit(nogil=True, cache=True)
def _line_end(byte: int, state: Any, record: Any) -> int:
    """Take LF or CR, or close a line whose CR was not followed by LF; bytes taken."""
    if state[RETURN] == 1 and byte != _LF:
        state[RETURN] = 0
        end_line(state, record, 0)
        return 0
    state[WIDTH] += 1
    if byte == _LF:
        end_line(state, record, 1 + state[RETURN])
    state[RETURN] = byte == _CR
    return 1


@njit(nogil=True, cache=True)
def _name_byte(byte: int, state: Any, names: Any) -> int:
    """Take a byte of a contig's name or the blank or line end after it; the status."""
    blank = byte == 0x20 or 0x09 <= byte <= 0x0D
    if blank and state[WIDTH] == 0:
        return NO_NAME
    if not blank and (byte < 0x20 or byte == 0x7F):
        return BAD_NAME
    if not blank and state[WIDTH] == MOST_NAME:
        return LONG_NAME
    names[state[NAMES]] = _LF if blank else byte
    state[NAMES] += 1
    state[WIDTH] += 1
    if blank:
        state[MODE] = DESCRIPTION
    return DONE


@njit(nogil=True, cache=True)
def _begin_record(offset: int, state: Any, records: Any) -> int:
    """Take the mark of a header; the status."""
    if state[RECORDS] == len(records):
        return TABLE_FULL
    record = records[state[RECORDS]]
    record[:] = 0
    record[HEADER_LINE], record[HEADER] = state[LINE], offset
    state[RECORDS] += 1
    state[MODE] = NAME
    return DONE


@njit(nogil=True, cache=True)
def scan(
    raw: Any, offset: int, state: Any, records: Any, names: Any, out: Any
) -> tuple[int, int, int]:
    """Walk over the next piece of a FASTA.

    Parameters
    ----------
    raw : uint8 array, read-only
    offset : int
        Place of ``raw[0]`` in the file.
    state : int64 array, [STATE_SIZE]
        Zeros before the first piece, but ``LINE`` 1.
    records : int64 array, [most, COLUMNS]
        Receives the records.
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
    at, done, status = 0, 0, DONE
    while at < len(raw) and status == DONE:
        byte = raw[at]
        record = records[max(state[RECORDS] - 1, 0)]
        if state[MODE] == NAME:
            status = _name_byte(byte, state, names)
            if status != DONE:
                break
        if byte in (_LF, _CR) or state[RETURN] == 1:
            at += _line_end(byte, state, record)
        elif state[MODE] == NAME or state[MODE] == DESCRIPTION:
            at += 1
        elif state[MODE] == START and byte == _HEADER_MARK:
            status = _begin_record(offset + at, state, records)
            at += status == DONE
        elif state[RECORDS] == 0:
            status = NO_HEADER
        else:
            status, taken, count = _sequence(raw[at:], offset + at, state, record, out[done:])
            at += taken
            done += count
    return status, at, done
