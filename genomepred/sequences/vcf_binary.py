"""Kernels that decode records of BCF version 2."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from genomepred.sequences import vcf_decode as kernel

_LESS = 0x3C
# Bytes that are compared at once, and the first of each two of them.
_MANY, _FIRSTS = 64, np.uint64(0x5555555555555555)
_REFERENCE, _PHASE_BITS = np.uint64(0x0202020202020202), np.uint64(0xFEFEFEFEFEFEFEFE)
# Types of values; of the numbers of keys that are looked up, which is which.
_NONE, _INT8, _INT16, _INT32, _FLOAT, _CHAR = 0, 1, 2, 3, 5, 7
_GT, _END, _SVLEN, _PASS = range(4)
# A record's two lengths, and the fixed part of its shared part.
_LENGTHS, _FIXED = 8, 24


@njit(nogil=True, cache=True)
def bcf_records(raw: Any, at: int, stop: int, contig: int, keys: Any, d: Any) -> tuple[int, int]:
    """Decode whole records of BCF; as :func:`genomepred.sequences.vcf_text.text_records`.

    ``contig`` is the number of the contig, ``keys`` (int64) the numbers of GT, END, SVLEN and PASS
    in the header's dictionary, -1 if absent.
    """
    while at + _LENGTHS + _FIXED <= stop:
        shared, each = _int(raw, at, 4) & 0xFFFFFFFF, _int(raw, at + 4, 4) & 0xFFFFFFFF
        begin, end = at + _LENGTHS, at + _LENGTHS + shared
        if end + each > stop:
            break
        if d.state[kernel.RECORDS] == len(d.records):
            return kernel.FULL, at
        if shared < _FIXED:
            d.state[kernel.RECORD] += 1
            return kernel.BAD_LENGTH, at
        if _int(raw, begin, 4) != contig:
            d.state[kernel.VALUE] = _int(raw, begin, 4)
            return kernel.CONTIG, at
        record = kernel.begin_record(d)
        status = _record(raw, begin, end, each, keys, record, d)
        kernel.end_record(d, status)
        if status != kernel.DONE:
            return status, at
        at = end + each
    return kernel.DONE, at


@njit(nogil=True, cache=True)
def _record(  # noqa: PLR0911 - one of each thing that may be wrong
    raw: Any, at: int, end: int, each: int, keys: Any, record: Any, d: Any
) -> int:
    """Decode a record whose shared part is ``[at, end)``, ``each`` bytes of genotypes behind."""
    record[kernel.POS] = _int(raw, at + 4, 4)
    d.state[kernel.VALUE] = record[kernel.POS] + 1
    if record[kernel.POS] < -1:
        return kernel.BAD_POS
    alleles, infos = _int(raw, at + 18, 2) & 0xFFFF, _int(raw, at + 16, 2) & 0xFFFF
    formats, samples = np.int64(raw[at + 23]), _int(raw, at + 20, 4) & 0xFFFFFF
    sites = len(d.columns) == 0
    if samples != len(d.columns) and not sites:
        d.state[kernel.VALUE] = samples
        return kernel.OTHER_SAMPLES
    kind, size, place = _typed(raw, at + _FIXED, end)  # ID
    if kind not in (_NONE, _CHAR) or place + size > end:
        return kernel.BAD_TYPE
    record[kernel.ID] = place
    place += size if kind == _CHAR else 0
    record[kernel.ID_END] = place
    status, place, symbolic = _alleles(raw, place, end, alleles, d)
    if status != kernel.DONE or sites:
        return status
    kind, size, place = _typed(raw, place, end)  # FILTER
    width = _size(kind)
    if kind < 0 or kind > _INT32 or place + size * width > end:
        return kernel.BAD_TYPE
    record[kernel.FILTERED] = size * width > 0 and (
        size > 1 or _int(raw, place, width) != keys[_PASS]
    )
    if symbolic:
        place += size * width
        status, record[kernel.END] = _symbolic_end(raw, place, end, infos, keys, record[kernel.POS])
        if status != kernel.DONE:
            return status
    return _formats(
        raw, end, end + each, formats, keys[_GT], d.state[kernel.ALLELES] - record[kernel.ALLELE], d
    )


# -- typed values ----------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _int(raw: Any, at: Any, size: Any) -> Any:
    """Signed little-endian integer of 1, 2 or 4 bytes."""
    value = np.int64(0)
    for k in range(size):
        value |= np.int64(raw[at + k]) << (8 * k)
    top = np.int64(1) << (8 * size - 1)
    return (value ^ top) - top


@njit(nogil=True, cache=True)
def _typed(raw: Any, at: Any, end: int) -> tuple[Any, Any, Any]:
    """Descriptor of a typed value; (type, number of values, where they begin), type -1 if bad."""
    if at >= end:
        return -1, 0, at
    kind, count = np.int64(raw[at] & 15), np.int64(raw[at] >> 4)
    at += 1
    if count == 15:
        if at >= end:
            return -1, 0, at
        inner = np.int64(raw[at])
        size = _size(inner & 15)
        if inner >> 4 != 1 or not _INT8 <= inner & 15 <= _INT32 or at + 1 + size > end:
            return -1, 0, at
        count = _int(raw, at + 1, size)
        at += 1 + size
        if count < 0:
            return -1, 0, at
    if kind not in (_NONE, _INT8, _INT16, _INT32, _FLOAT, _CHAR):
        return -1, 0, at
    return kind, count, at


@njit(nogil=True, cache=True)
def _size(kind: Any) -> int:
    """Bytes of one value of a type."""
    if kind == _NONE:
        return 0
    if kind == _INT16:
        return 2
    return 4 if kind in (_INT32, _FLOAT) else 1


@njit(nogil=True, cache=True)
def _key(raw: Any, at: Any, end: int) -> tuple[Any, Any]:
    """Typed integer that names a key; (key or -1, where it ends)."""
    kind, count, at = _typed(raw, at, end)
    size = _size(kind)
    if not _INT8 <= kind <= _INT32 or count != 1 or at + size > end:
        return -1, at
    return _int(raw, at, size), at + size


# -- alleles and INFO ------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _alleles(raw: Any, at: Any, end: int, count: Any, d: Any) -> tuple[int, Any, bool]:
    """Take REF and ALT; (status, where they end, any symbolic)."""
    state = d.state
    first, symbolic = state[kernel.ALLELES], False
    for _ in range(count):
        kind, size, at = _typed(raw, at, end)
        if kind != _CHAR or at + size > end:
            return kernel.BAD_TYPE, at, symbolic
        allele, letter = state[kernel.ALLELES], state[kernel.LETTERS]
        if allele + 1 >= len(d.starts) or letter + size > len(d.bases):
            state[kernel.NEED] = (
                kernel.LETTER_ROOM if letter + size > len(d.bases) else kernel.ALLELE_ROOM
            )
            return kernel.FULL, at, symbolic
        d.starts[allele] = letter
        symbolic |= size > 0 and raw[at] == _LESS
        for k in range(size):
            d.bases[letter + k] = raw[at + k]
        state[kernel.LETTERS] += size
        state[kernel.ALLELES] += 1
        at += size
    return kernel.end_alleles(d, first), at, symbolic


@njit(nogil=True, cache=True)
def _symbolic_end(raw: Any, at: Any, end: int, infos: Any, keys: Any, pos: Any) -> tuple[int, int]:
    """End of symbolic alleles by INFO; (status, end)."""
    length, last = kernel.UNSAID, kernel.UNSAID
    for _ in range(infos):
        key, at = _key(raw, at, end)
        if key < 0:
            return kernel.BAD_TYPE, kernel.UNSAID
        kind, count, at = _typed(raw, at, end)
        width = _size(kind)
        if kind < 0 or at + count * width > end:
            return kernel.BAD_TYPE, kernel.UNSAID
        if _INT8 <= kind <= _INT32 and count >= 1:
            value = _int(raw, at, width)
            if key == keys[_END]:
                last = value if value > pos else kernel.NONSENSE
            elif key == keys[_SVLEN]:
                length = abs(value)
        at += count * width
    if last != kernel.UNSAID:
        return (kernel.DONE if last != kernel.NONSENSE else kernel.BAD_END), last
    return kernel.DONE, (pos + 1 + length if length >= 0 else kernel.UNSAID)


# -- genotypes -------------------------------------------------------------------------------


def _others(_typing: Any, array: Any, i: Any) -> Any:
    """Bits of which of the bytes of an array from ``i`` on are not the reference allele."""
    many = ir.VectorType(ir.IntType(8), _MANY)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = make_array(signature.args[0])  # type: ignore[no-untyped-call]
        place = builder.gep(view(context, builder, arguments[0]).data, [arguments[1]])
        found = builder.load(builder.bitcast(place, many.as_pointer()), align=1)
        allele = builder.and_(found, ir.Constant(many, [0xFE] * _MANY))
        other = builder.icmp_unsigned("!=", allele, ir.Constant(many, [2] * _MANY))
        return builder.bitcast(other, ir.IntType(_MANY))

    return types.uint64(array, i), generate


_others_of: Any = intrinsic(_others)


def _lowest(_typing: Any, _bits: Any) -> Any:
    """Place of the lowest bit that is set; one is."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


_lowest_of: Any = intrinsic(_lowest)


@njit(nogil=True, cache=True)
def _formats(raw: Any, at: int, end: int, formats: Any, key: int, alleles: int, d: Any) -> int:
    """Find the genotypes among a record's formats and take them."""
    count = len(d.columns)
    for _ in range(formats):
        found, at = _key(raw, at, end)
        kind, width, at = _typed(raw, at, end)
        size = _size(kind)
        if found < 0 or kind < 0 or at + width * size * count > end:
            return kernel.BAD_TYPE
        if found == key:
            if not _INT8 <= kind <= _INT32:
                return kernel.BAD_TYPE
            if width > len(d.gt):
                return kernel.HIGH_PLOIDY
            return kernel.NO_GT if width == 0 else _samples(raw, at, width, size, alleles, d)
        at += width * size * count
    return kernel.NO_GT


@njit(nogil=True, cache=True)
def _samples(raw: Any, at: int, width: int, size: int, alleles: int, d: Any) -> int:
    """Take the genotypes of all samples, ``width`` integers of ``size`` bytes each."""
    columns, gt, seen, state, carriers = d.columns, d.gt, d.seen, d.state, d.carriers
    count, column, irregular = len(columns), 0, 0
    step = 0  # samples in eight bytes
    if size == 1 and width in (1, 2, 4, 8):
        step = 8 // width
    most = min(2 * alleles + 2, 128)
    while column < count:
        if step == 4 and state[kernel.COMMON] == 2:
            column = _pairs(raw, at, column, most, columns, seen, state, carriers)
        elif step > 0 and state[kernel.COMMON] == width:
            column = _reference(raw, at, column, count, width, step)
        if column == count:
            break
        s = columns[column]
        if s >= 0:
            here = at + column * width * size
            status = _sample(raw, here, width, size, s, alleles, gt, seen, state, carriers)
            irregular += seen[s, kernel.PLOIDY] != 0
            if status != kernel.DONE:
                state[kernel.SAMPLE] = column
                return status
        column += 1
    if irregular < state[kernel.IRREGULAR] and step > 0 and state[kernel.COMMON] == width:
        return kernel.MIXED_PLOIDY
    return kernel.DONE


@njit(nogil=True, cache=True)
def _reference(raw: Any, at: int, column: int, count: int, width: int, step: int) -> int:
    """Skip samples that are reference on all copies, ``step`` at a time."""
    while column + step <= count:
        if (kernel.word(raw, at + column * width) & _PHASE_BITS) != _REFERENCE:
            break
        column += step
    return column


@njit(nogil=True, cache=True)
def _pairs(
    raw: Any, at: int, column: int, most: int, columns: Any, seen: Any, state: Any, carriers: Any
) -> int:
    """Take samples with two alleles of one byte each; the first column that is another."""
    count, n = len(columns), state[kernel.CARRIERS]
    inbred, regular = state[kernel.INBRED] != 0, state[kernel.IRREGULAR] == 0
    while column < count:
        # Bits of the samples that are not reference, a few of 32.
        left = count - column
        some = _others_of(raw, at + 2 * column)
        if left < _MANY // 2:
            some &= (np.uint64(1) << np.uint64(2 * left)) - np.uint64(1)
        some = (some | some >> np.uint64(1)) & _FIRSTS
        while some != 0:
            c = column + (_lowest_of(some) >> 1)
            some &= some - np.uint64(1)
            a, b, s = raw[at + 2 * c], raw[at + 2 * c + 1], columns[c]
            usual = 2 <= a < most and 2 <= b < most and n + 2 <= len(carriers)
            if not usual or (s >= 0 and not (regular or seen[s, kernel.PLOIDY] == 0)):
                state[kernel.CARRIERS] = n
                return int(c)
            x, y = np.int64(a >> 1) - 1, np.int64(b >> 1) - 1
            if s >= 0 and inbred and x == y:  # as `take_two`: 1.2 to 1.7 times as fast
                carrier = carriers[n]
                carrier[kernel.WHO], carrier[kernel.COPY] = s, 0
                carrier[kernel.NUMBER], carrier[kernel.GENOTYPE] = x, 0
                n += 1
            elif s >= 0:
                n = kernel.take_two(s, x, y, b & 1 == 0, inbred, carriers, n)
        column += _MANY // 2
    state[kernel.CARRIERS] = n
    return count


@njit(nogil=True, cache=True)
def _sample(
    raw: Any,
    at: int,
    width: int,
    size: int,
    s: Any,
    alleles: int,
    gt: Any,
    seen: Any,
    state: Any,
    carriers: Any,
) -> int:
    """Take any genotype."""
    ends = -((1 << (8 * size - 1)) - 1)
    p, unphased = 0, False
    for c in range(width):
        value = _int(raw, at + c * size, size)
        if value == ends:
            break
        if value < 0 and value != ends - 1:
            return kernel.BAD_GT
        gt[c] = (value >> 1) - 1 if value >= 0 else kernel.MISSING
        unphased |= c > 0 and value & 1 == 0
        p += 1
    if p == 0:  # all ends: nothing was called
        p, gt[0] = 1, kernel.MISSING
    return kernel.take_genotype(s, p, unphased, alleles, gt, seen, state, carriers)
