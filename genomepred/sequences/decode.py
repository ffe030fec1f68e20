"""Kernels that turn bytes of a FASTA into codes; all release the GIL.

`decode` reads a range of a record whose lines are known. `scan` walks over a file byte by byte,
finds the records and says where `decode` can go on faster. Both check every byte: `decode`
translates with packed compares and selects and looks closer only where a code is not one of 0-3.

The kernels that call each other stand in one file because Numba's cache does not notice changes in
other files. They are few, call each other little and are inlined before they are compiled: LLVM
works through the code of a function again in whatever calls it, and a first start waits for that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from genomepred.sequences.codes import AMBIGUOUS, CODE_OF_BYTE, GAPS, INVALID, UNKNOWN
from genomepred.sequences.names import MOST_NAME

# Bytes translated at once. Lines of 60 bases in L2 decode at 34 GB/s with 64; chunks of 32 and of
# 128 take 1.4 times as long (Zen 5).
CHUNK = 64
_VECTOR = ir.VectorType(ir.IntType(8), CHUNK)
# Bases decoded before they are checked, few enough to be still in L1.
_GROUP = 1 << 14

_LF, _CR, _HEADER_MARK = 0x0A, 0x0D, 0x3E


def _chunk_decoder(strict: bool) -> Any:
    """A kernel that decodes ``raw[i : i + CHUNK]`` into ``out[o : o + CHUNK]``, unchecked.

    Its vector instructions are spelled out; left to find them in a loop over bytes, LLVM needs 1.2
    times as long, or ten times if an operand is wider than a byte. ``strict`` means `CODE_OF_BYTE`;
    otherwise all that is not one of ACGTU becomes `UNKNOWN`, in less than half the time.
    """

    def all_of(value: int) -> ir.Constant:
        return ir.Constant(_VECTOR, [value] * CHUNK)

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
                return builder.bitcast(place, _VECTOR.as_pointer())

            codes = translate(builder, builder.load(address(0, 1), align=1))
            builder.store(codes, address(2, 3), align=1)
            return context.get_dummy_value()

        return types.void(raw, i, out, o), generate

    return chunk


_decode_chunk = _chunk_decoder(strict=False)
_decode_chunk_strictly = _chunk_decoder(strict=True)


@njit(nogil=True, error_model="numpy", cache=True)
def _lines(raw: Any, out: Any, lines: int, bases: int, width: int, strict: bool) -> bool:
    """Decode whole lines in chunks, whose surplus past a line's end the next line overwrites.

    Returns whether each line ends with LF, or with CRLF if its end has two bytes, or with its last
    base if it has none.
    """
    wrong = np.uint8(0)
    ends = np.uint8(0 if width == bases else 0xFF)
    before, byte = (1, np.uint8(_CR)) if width - bases == 2 else (0, np.uint8(_LF))
    for line in range(lines):
        for column in range(0, bases, CHUNK):
            if strict:
                _decode_chunk_strictly(raw, line * width + column, out, line * bases + column)
            else:
                _decode_chunk(raw, line * width + column, out, line * bases + column)
        last = line * width + width - 1
        wrong |= (raw[last] ^ np.uint8(_LF)) | (raw[last - before] ^ byte)
    return bool(wrong & ends == 0)


def _or_of_chunks(_typing: Any, codes: Any, chunks: Any) -> Any:
    """Bitwise or of the first codes, `CHUNK` at once: 200 GB/s in L1, in a loop over bytes 45.

    Written out because a view as wider words takes Numba longer to compile than all of `decode`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = make_array(signature.args[0])(context, builder, arguments[0])  # type: ignore[no-untyped-call]
        total = builder.alloca(_VECTOR)
        builder.store(ir.Constant(_VECTOR, [0] * CHUNK), total)
        first = builder.bitcast(view.data, _VECTOR.as_pointer())
        with cgutils.for_range(builder, arguments[1]) as loop:
            chunk = builder.load(builder.gep(first, [loop.index]), align=1)
            builder.store(builder.or_(builder.load(total), chunk), total)
        kind = ir.FunctionType(ir.IntType(8), [_VECTOR])
        name = f"llvm.vector.reduce.or.v{CHUNK}i8"
        reduce = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(reduce, [builder.load(total)])

    return types.uint8(codes, chunks), generate


_union_of_chunks: Any = intrinsic(_or_of_chunks)


@njit(nogil=True, error_model="numpy", cache=True)
def _union(codes: Any) -> Any:
    """Bitwise or of all codes: below 4 if all are known bases, 8 or more if any is invalid."""
    chunks = len(codes) // CHUNK
    union = _union_of_chunks(codes, chunks)
    for j in range(chunks * CHUNK, len(codes)):
        union |= codes[j]
    return union


@njit(nogil=True, error_model="numpy", cache=True)
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
        LF or CRLF where a line ends. All before it are then decoded.
    """
    at, done = 0, 0
    while at < len(raw):
        # Whole lines, or pieces of one: as many as have room for the surplus of their last chunk.
        whole = column == 0 and len(raw) - at >= width and bases <= _GROUP
        unit, step = (bases, width) if whole else (CHUNK, CHUNK)
        room = -(-unit // CHUNK) * CHUNK
        lines = min((len(raw) - at - room) // step, (len(out) - done - room) // unit) + 1
        span = len(raw) - at if whole else min(bases - column, len(raw) - at)
        lines = min(lines, span // step)
        while lines > 0:
            count = min(_GROUP // unit, lines)
            source, target = raw[at:], out[done : done + count * unit]
            even = _lines(source, out[done:], count, unit, step, False)
            if _union(target) >= UNKNOWN:
                _lines(source, out[done:], count, unit, step, True)
                even = even and _union(target) < INVALID
            if not even:
                break
            at += count * step
            done += count * unit
            column += 0 if whole else count * unit
            lines -= count
        # The rest of a line, or the one where something is wrong.
        while at < len(raw):
            code = CODE_OF_BYTE[raw[at]]
            if column < bases and code < INVALID:
                out[done] = code
                done += 1
            elif column < bases or raw[at] != (_LF if column == width - 1 else _CR):
                return -1 - at
            at += 1
            column += 1
            if column == width:
                column = 0
                break
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
# Why `scan` returned: at the end of what it was given; for want of room; where many equal lines or
# a long one follow, which `decode` takes faster; or because of what it found.
DONE, TABLE_FULL, LINES, LONG, NO_HEADER, NO_NAME, BAD_NAME, LONG_NAME, BAD_BYTE = range(9)

# So many bytes must follow for `decode` to be worth its call from Python.
MANY = 1 << 13


@njit(nogil=True, error_model="numpy", inline="always")
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


@njit(nogil=True, error_model="numpy", inline="always")
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


@njit(nogil=True, error_model="numpy", inline="always")
def _rest_of_line(raw: Any, at: int, out: Any, done: int) -> tuple[int, int]:
    """Take sequence up to the end of its line, a long way or a bad byte; where both then are."""
    stop = at + MANY
    while at < stop and at < len(raw) and raw[at] != _LF and raw[at] != _CR:
        code = CODE_OF_BYTE[raw[at]]
        if code < INVALID:
            out[done] = code
            done += 1
        elif raw[at] != 0x20 and not 0x09 <= raw[at] <= 0x0C:  # blanks are skipped
            break
        at += 1
    return at, done


@njit(nogil=True, error_model="numpy", inline="always")
def _line_end(byte: int, state: Any, record: Any) -> int:
    """Take LF or CR, or close a line whose CR was not followed by LF; bytes taken."""
    lone = state[RETURN] == 1 and byte != _LF
    if not lone:
        state[WIDTH] += 1
    if lone or byte == _LF:
        end_line(state, record, 0 if lone else 1 + state[RETURN])
    state[RETURN] = byte == _CR and not lone
    return 0 if lone else 1


@njit(nogil=True, error_model="numpy", inline="always")
def _begin_record(offset: int, state: Any, records: Any) -> int:
    """Take the mark of a header; the status."""
    if state[RECORDS] == len(records):
        return TABLE_FULL
    record = records[state[RECORDS]]
    record[HEADER_LINE], record[HEADER], record[SHAPE] = state[LINE], offset, FULL
    state[RECORDS] += 1
    state[MODE] = NAME
    return DONE


@njit(nogil=True, error_model="numpy", inline="always")
def _are_equal(raw: Any, at: int, width: int) -> bool:
    """Whether lines of this width fill the next `MANY` bytes, or at least one such line does."""
    behind = at
    while 0 < width <= len(raw) - behind and behind - at < MANY and raw[behind + width - 1] == _LF:
        behind += width
    return behind - at >= MANY


@njit(nogil=True, error_model="numpy", inline="always")
def _sequence(raw: Any, at: int, offset: int, state: Any, record: Any) -> int:
    """Begin or go on with a line of sequence; the status, which may be a faster way."""
    if state[RECORDS] == 0:
        return NO_HEADER
    many = state[SLOW] == 0 and len(raw) - at >= MANY
    if state[MODE] == SEQUENCE:
        return LONG if many and state[BASES] >= MANY else DONE
    if many and record[SHAPE] == FULL and _are_equal(raw, at, record[LINE_WIDTH]):
        return LINES
    if record[LENGTH] == 0:
        record[FIRST] = offset + at
    state[MODE] = SEQUENCE
    return DONE


@njit(nogil=True, error_model="numpy", cache=True)
def scan(
    raw: Any, offset: int, state: Any, records: Any, names: Any, out: Any
) -> tuple[int, int, int]:
    """Walk byte by byte over the next piece of a FASTA.

    Parameters
    ----------
    raw : uint8 array, read-only
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
    at, done, status = 0, 0, DONE
    while at < len(raw):
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
        else:
            status = _sequence(raw, at, offset, state, record)
            if status == DONE:
                behind, count = _rest_of_line(raw, at, out, done)
                state[BASES] += count - done
                state[WIDTH] += behind - at
                record[LENGTH] += count - done
                status = BAD_BYTE if behind == at else DONE
                at, done = behind, count
        if status != DONE:
            break
    return status, at, done
