"""Compiled functions that turn bytes of a FASTA into codes.

`decode` translates with packed compares and selects and looks closer only where a code is not one
of 0-3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from genomepred.compiling import bytes_at, entry, inlined, integers_at, piece
from genomepred.sequences.codes import AMBIGUOUS, CODE_OF_BYTE, GAPS, INVALID, UNKNOWN
from genomepred.sequences.decode import (
    BAD_BYTE,
    BAD_NAME,
    BASES,
    COLUMNS,
    DESCRIPTION,
    DONE,
    FIRST,
    FULL,
    HEADER,
    HEADER_LINE,
    LENGTH,
    LINE,
    LINE_WIDTH,
    LINES,
    LONG,
    LONG_NAME,
    MANY,
    MODE,
    NAME,
    NAMES,
    NO_HEADER,
    NO_NAME,
    RECORDS,
    RETURN,
    SEQUENCE,
    SHAPE,
    SLOW,
    START,
    STATE_SIZE,
    TABLE_FULL,
    WIDTH,
    end_line,
)
from genomepred.sequences.names import MOST_NAME

# Bytes translated at once. Lines of 60 bases in L2 decode at 34 GB/s with 64; chunks of 32 and of
# 128 take 1.4 times as long (Zen 5).
CHUNK = 64
_VECTOR = ir.VectorType(ir.IntType(8), CHUNK)
# Bases decoded before they are checked, few enough to be still in L1.
_GROUP = 1 << 14
_LF, _CR, _HEADER_MARK = 0x0A, 0x0D, 0x3E
_WRONG_END = 0x80  # beside the bits of codes


def _chunk_decoder(strict: bool) -> Any:
    """A kernel that decodes `CHUNK` bytes at one address to another one, unchecked.

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
    def chunk(_typing: Any, raw: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            raw, out = (builder.inttoptr(place, _VECTOR.as_pointer()) for place in arguments)
            builder.store(translate(builder, builder.load(raw, align=1)), out, align=1)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    return chunk


_decode_chunk = _chunk_decoder(strict=False)
_decode_chunk_strictly = _chunk_decoder(strict=True)


def _or_of_chunks(_typing: Any, codes: Any, chunks: Any) -> Any:
    """Bitwise or of the first codes, `CHUNK` at once: 200 GB/s in L1, in a loop over bytes 45."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        total = cgutils.alloca_once(builder, _VECTOR)  # type: ignore[no-untyped-call]
        builder.store(ir.Constant(_VECTOR, [0] * CHUNK), total)
        first = builder.inttoptr(arguments[0], _VECTOR.as_pointer())
        with cgutils.for_range(builder, arguments[1]) as loop:
            chunk = builder.load(builder.gep(first, [loop.index]), align=1)
            builder.store(builder.or_(builder.load(total), chunk), total)
        kind = ir.FunctionType(ir.IntType(8), [_VECTOR])
        name = f"llvm.vector.reduce.or.v{CHUNK}i8"
        reduce = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(reduce, [builder.load(total)])

    return types.uint8(types.intp, types.intp), generate


_union_of_chunks: Any = intrinsic(_or_of_chunks)


@piece(f"void({', '.join(7 * ['int64'])})")
def decode_lines(
    raw: int, out: int, lines: int, bases: int, width: int, strict: int, found: int
) -> None:
    """Decode whole lines in chunks, whose surplus past a line's end the next line overwrites.

    ``found[0]`` becomes the bitwise or of all codes: below `UNKNOWN` if all are known bases, from
    `INVALID` on if any is invalid or a line does not end with LF, with CRLF if its end has two
    bytes, or with its last base if it has none.
    """
    given = bytes_at(raw, lines * width)
    wrong = np.uint8(0)
    ends = np.uint8(0 if width == bases else 0xFF)
    before, byte = (1, np.uint8(_CR)) if width - bases == 2 else (0, np.uint8(_LF))
    for line in range(lines):
        for column in range(0, bases, CHUNK):
            source, target = raw + line * width + column, out + line * bases + column
            if strict:
                _decode_chunk_strictly(source, target)
            else:
                _decode_chunk(source, target)
        last = line * width + width - 1
        wrong |= (given[last] ^ np.uint8(_LF)) | (given[last - before] ^ byte)
    codes, chunks = bytes_at(out, lines * bases), lines * bases // CHUNK
    union = _union_of_chunks(out, chunks)
    for j in range(chunks * CHUNK, lines * bases):
        union |= codes[j]
    integers_at(found, 1)[0] = union | (_WRONG_END if wrong & ends else 0)


@entry(f"void({', '.join(8 * ['int64'])})")
def decode(
    raw: int, size: int, column: int, bases: int, width: int, out: int, room: int, found: int
) -> None:
    """See :func:`genomepred.sequences.decode.decode`; ``found[0]`` receives what that returns."""
    given, codes = bytes_at(raw, size), bytes_at(out, room)
    union = integers_at(found, 1)
    at, done = 0, 0
    while at < size:
        # Whole lines, or pieces of one: as many as have room for the surplus of their last chunk.
        whole = column == 0 and size - at >= width and bases <= _GROUP
        unit, step = (bases, width) if whole else (CHUNK, CHUNK)
        surplus = -(-unit // CHUNK) * CHUNK
        lines = min((size - at - surplus) // step, (room - done - surplus) // unit) + 1
        lines = min(lines, (size - at if whole else min(bases - column, size - at)) // step)
        while lines > 0:
            count = min(_GROUP // unit, lines)
            decode_lines(raw + at, out + done, count, unit, step, 0, found)
            if union[0] >= UNKNOWN:
                decode_lines(raw + at, out + done, count, unit, step, 1, found)
            if union[0] >= INVALID:
                break
            at += count * step
            done += count * unit
            column += 0 if whole else count * unit
            lines -= count
        # The rest of a line, or the one where something is wrong.
        while at < size:
            code = CODE_OF_BYTE[given[at]]
            if column < bases and code < INVALID:
                codes[done] = code
                done += 1
            elif column < bases or given[at] != (_LF if column == width - 1 else _CR):
                union[0] = -1 - at
                return
            at += 1
            column += 1
            if column == width:
                column = 0
                break
    union[0] = done


_end_line = inlined(end_line)


@inlined
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


@inlined
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


@inlined
def _line_end(byte: int, state: Any, record: Any) -> int:
    """Take LF or CR, or close a line whose CR was not followed by LF; bytes taken."""
    lone = state[RETURN] == 1 and byte != _LF
    if not lone:
        state[WIDTH] += 1
    if lone or byte == _LF:
        _end_line(state, record, 0 if lone else 1 + state[RETURN])
    state[RETURN] = byte == _CR and not lone
    return 0 if lone else 1


@inlined
def _record(records: int, index: int) -> Any:
    """A row of the table of records."""
    return integers_at(records + 8 * COLUMNS * index, COLUMNS)


@inlined
def _begin_record(offset: int, state: Any, records: int, most: int) -> int:
    """Take the mark of a header; the status."""
    if state[RECORDS] == most:
        return TABLE_FULL
    record = _record(records, state[RECORDS])
    record[HEADER_LINE], record[HEADER], record[SHAPE] = state[LINE], offset, FULL
    state[RECORDS] += 1
    state[MODE] = NAME
    return DONE


@inlined
def _are_equal(raw: Any, at: int, width: int) -> bool:
    """Whether lines of this width fill the next `MANY` bytes, or at least one such line does."""
    behind = at
    while 0 < width <= len(raw) - behind and behind - at < MANY and raw[behind + width - 1] == _LF:
        behind += width
    return behind - at >= MANY


@inlined
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


@entry(f"void({', '.join(9 * ['int64'])})")
def scan(
    piece: int,
    size: int,
    offset: int,
    state_at: int,
    records: int,
    most: int,
    names_at: int,
    out: int,
    found: int,
) -> None:
    """Walk byte by byte over the next piece of a FASTA.

    Parameters
    ----------
    piece, size : int
        Address of the bytes, and how many there are.
    offset : int
        Place of the first of them in the file.
    state_at : int
        Of int64, [STATE_SIZE]: zeros before the first piece, but ``LINE`` 1.
    records, most : int
        Of int64, [most, COLUMNS]: receives the records; zeros before.
    names_at : int
        Receives the contigs' names, each followed by a line feed; room for ``size`` bytes.
    out : int
        Receives the codes of all contigs; room for ``size`` bytes.
    found : int
        Of int64, [3]: receives one of ``DONE`` ... ``BAD_BYTE``; the bytes taken, also the place of
        what stopped it; the number of codes.
    """
    raw, codes = bytes_at(piece, size), bytes_at(out, size)
    names = bytes_at(names_at, size)
    state = integers_at(state_at, STATE_SIZE)
    result = integers_at(found, 3)
    at, done, status = 0, 0, DONE
    while at < size:
        byte = raw[at]
        record = _record(records, max(state[RECORDS] - 1, 0))
        if state[MODE] == NAME:
            status = _name_byte(byte, state, names)
            if status != DONE:
                break
        if byte in (_LF, _CR) or state[RETURN] == 1:
            at += _line_end(byte, state, record)
        elif state[MODE] == NAME or state[MODE] == DESCRIPTION:
            at += 1
        elif state[MODE] == START and byte == _HEADER_MARK:
            status = _begin_record(offset + at, state, records, most)
            at += status == DONE
        else:
            status = _sequence(raw, at, offset, state, record)
            if status == DONE:
                behind, count = _rest_of_line(raw, at, codes, done)
                state[BASES] += count - done
                state[WIDTH] += behind - at
                record[LENGTH] += count - done
                status = BAD_BYTE if behind == at else DONE
                at, done = behind, count
        if status != DONE:
            break
    result[0], result[1], result[2] = status, at, done
