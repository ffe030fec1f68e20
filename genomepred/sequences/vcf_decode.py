"""Kernels that decode records of VCF text and of BCF: alleles and sparse genotypes.

Genotypes that are reference on all copies, nearly all of a panel, are skipped eight bytes at a
time; what remains becomes *carriers*: sample, copy, allele. Both kernels fill the same arrays, so
nothing behind them knows which form a panel has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

# State that outlives a call. RECORD counts records of the file, ON_CONTIG those of this contig;
# COMMON is the ploidy of most samples on it, IRREGULAR the number of samples with another. SAMPLE
# and VALUE describe what stopped a kernel.
STATE_SIZE = 8
RECORD, ON_CONTIG, COMMON, IRREGULAR, SAMPLE, VALUE, NEED = range(7)
# NEED: which of the arrays has no room for a record.
RECORD_ROOM, LETTER_ROOM, ALLELE_ROOM, CARRIER_ROOM = range(4)

# Columns of the table of records. END is the base behind the last that a symbolic allele spans,
# -1 if the record does not say; FILTERED is 1 unless FILTER is PASS or empty; ALLELE and CARRIER
# are where the record's alleles and carriers begin; ID and ID_END where its ID stands in the bytes.
COLUMNS = 7
POS, END, FILTERED, ALLELE, CARRIER, ID, ID_END = range(COLUMNS)

# Columns of carriers. COPY is ALL_COPIES for a genotype that is one dot; GENOTYPE has the bits.
CARRIER_COLUMNS = 4
WHO, COPY, NUMBER, GENOTYPE = range(CARRIER_COLUMNS)
ALL_COPIES = 255
HETEROZYGOUS, UNPHASED = 1, 2
MISSING = -1

# Why a kernel returned. DONE: nothing whole is left; CONTIG: the next record is of another contig.
DONE, CONTIG, FULL, FEW_COLUMNS, MANY_COLUMNS, BAD_POS, NO_GT, BAD_GT, BAD_ALLELE = range(9)
MIXED_PLOIDY, HIGH_PLOIDY, BAD_LENGTH, BAD_TYPE, OTHER_SAMPLES, NO_REF, BAD_END = range(9, 16)

_TAB, _LF, _CR, _COLON, _COMMA, _DOT = 0x09, 0x0A, 0x0D, 0x3A, 0x2C, 0x2E
_SLASH, _BAR, _ZERO, _LESS, _MINUS = 0x2F, 0x7C, 0x30, 0x3C, 0x2D
_TWO_PHASED = np.frombuffer(b"0|0\t0|0\t", np.uint64)[0]
_TWO_UNPHASED = np.frombuffer(b"0/0\t0/0\t", np.uint64)[0]
_REFERENCE, _PHASE_BITS = np.uint64(0x0202020202020202), np.uint64(0xFEFEFEFEFEFEFEFE)
_GREATEST = 1 << 40  # numbers beyond are no coordinates; digits stop before they overflow


@intrinsic
def _word(typing: Any, array: Any, i: Any) -> Any:
    """Eight bytes of an array from ``i`` on, at any alignment."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = make_array(signature.args[0])  # type: ignore[no-untyped-call]
        data = view(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]])
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(array, i), generate


word: Any = _word


@njit(nogil=True, cache=True)
def _genotype(
    s: int,
    p: int,
    gt: Any,
    unphased: bool,
    alleles: int,
    inbred: bool,
    state: Any,
    ploidy: Any,
    dots: Any,
    dotted: Any,
    carriers: Any,
    n: int,
) -> tuple[int, int]:
    """Take one sample's genotype: ``gt[:p]``, -1 missing; (status, carriers).

    What it notes about ploidy stays right if a record is decoded twice.
    """
    if n + p > len(carriers):
        state[NEED] = CARRIER_ROOM
        return FULL, n
    if p == 1 and gt[0] < 0:
        if dotted[s] != state[RECORD]:
            dotted[s] = state[RECORD]
            dots[s] += 1
        carriers[n, WHO], carriers[n, COPY], carriers[n, NUMBER] = s, ALL_COPIES, MISSING
        carriers[n, GENOTYPE] = 0
        return DONE, n + 1
    if state[COMMON] == 0:
        state[COMMON] = p
    if p != state[COMMON] or ploidy[s] != 0:
        if p == state[COMMON] or (ploidy[s] != 0 and ploidy[s] != p):
            return MIXED_PLOIDY, n
        if ploidy[s] == 0:
            if dots[s] != state[ON_CONTIG]:
                return MIXED_PLOIDY, n
            ploidy[s] = p
            state[IRREGULAR] += 1
    known, carried, het = -1, False, False
    for c in range(p):
        if gt[c] >= alleles:
            state[VALUE] = gt[c]
            return BAD_ALLELE, n
        carried |= gt[c] != 0
        if gt[c] >= 0:
            het |= known >= 0 and known != gt[c]
            known = gt[c]
    if not carried:
        return DONE, n
    bits = HETEROZYGOUS * het | UNPHASED * (het and unphased)
    every = het and (unphased or inbred)
    for c in range(1 if inbred and not het else p):
        if gt[c] != 0 or every:
            carriers[n, WHO], carriers[n, COPY] = s, c
            carriers[n, NUMBER], carriers[n, GENOTYPE] = gt[c], bits
            n += 1
    return DONE, n


@njit(nogil=True, cache=True)
def _two_alleles(
    s: Any, a: Any, b: Any, unphased: bool, inbred: bool, carriers: Any, n: int
) -> int:
    """As :func:`_genotype` for two alleles known to be right, on a sample with two copies."""
    het = a != b
    bits = HETEROZYGOUS * het | UNPHASED * (het and unphased)
    every = het and (unphased or inbred)
    if a != 0 or every:
        carrier = carriers[n]
        carrier[WHO], carrier[COPY], carrier[NUMBER], carrier[GENOTYPE] = s, 0, a, bits
        n += 1
    if (het or not inbred) and (b != 0 or every):
        carrier = carriers[n]
        carrier[WHO], carrier[COPY], carrier[NUMBER], carrier[GENOTYPE] = s, 1, b, bits
        n += 1
    return n


@njit(nogil=True, cache=True)
def _number(raw: Any, at: int, end: int) -> tuple[int, int]:
    """Decimal number from ``at`` on; (number or -1, where it ends)."""
    value, start = 0, at
    while at < end and _ZERO <= raw[at] <= _ZERO + 9 and value < _GREATEST:
        value = 10 * value + raw[at] - _ZERO
        at += 1
    return (value if at > start else -1), at


@njit(nogil=True, cache=True)
def _field(raw: Any, at: int) -> int:
    """Where the field that begins at ``at`` ends: at a tab or a line end."""
    while raw[at] != _TAB and raw[at] != _LF:
        at += 1
    return at


@njit(nogil=True, cache=True)
def _info_number(raw: Any, at: int, end: int, key: Any) -> tuple[bool, int]:
    """Number of a key of the INFO column; (whether it is there, number without its sign)."""
    begin = at
    while at + len(key) < end:
        if at == begin or raw[at - 1] == 0x3B:
            same = raw[at + len(key)] == 0x3D
            for k in range(len(key)):
                same &= raw[at + k] == key[k]
            if same:
                at += len(key) + 1
                at += at < end and raw[at] == _MINUS
                return True, _number(raw, at, end)[0]
        at += 1
    return False, -1


_END_KEY = np.frombuffer(b"END", np.uint8)
_LENGTH_KEY = np.frombuffer(b"SVLEN", np.uint8)


@njit(nogil=True, cache=True)
def _text_end(raw: Any, at: int, end: int, pos: int) -> int:
    """Where the symbolic alleles of a record end, by its INFO: -1 unsaid, -2 nonsense."""
    found, value = _info_number(raw, at, end, _END_KEY)
    if found:
        return value if value > pos else -2
    found, value = _info_number(raw, at, end, _LENGTH_KEY)
    if found:
        return pos + 1 + value if value >= 0 else -2
    return -1


@njit(nogil=True, cache=True)
def _gt_place(raw: Any, at: int, end: int) -> int:
    """Place of GT among the keys of the FORMAT column, or -1."""
    place, start = 0, at
    while at <= end:
        if at == end or raw[at] == _COLON:
            if at == start + 2 and raw[start] == 0x47 and raw[start + 1] == 0x54:
                return place
            place += 1
            start = at + 1
        at += 1
    return -1


@njit(nogil=True, cache=True)
def _text_genotype(raw: Any, at: int, gt: Any) -> tuple[int, int, bool, int]:
    """Parse one GT; (status, ploidy, whether any separator is /, where it ends)."""
    p, unphased = 0, False
    if raw[at] == _BAR or raw[at] == _SLASH:  # the phase of the first allele, as VCF 4.4 has it
        at += 1
    while True:
        if p == len(gt):
            return HIGH_PLOIDY, p, unphased, at
        if raw[at] == _DOT:
            gt[p] = MISSING
            at += 1
        elif _ZERO <= raw[at] <= _ZERO + 9:
            value = 0
            while _ZERO <= raw[at] <= _ZERO + 9:
                value = min(10 * value + raw[at] - _ZERO, 1 << 30)
                at += 1
            gt[p] = value
        else:
            return BAD_GT, p, unphased, at
        p += 1
        if raw[at] == _SLASH:
            unphased = True
        elif raw[at] != _BAR:
            return DONE, p, unphased, at
        at += 1


@njit(nogil=True, cache=True)
def _text_samples(
    raw: Any,
    at: int,
    place: int,
    only_gt: bool,
    columns: Any,
    alleles: int,
    inbred: bool,
    state: Any,
    ploidy: Any,
    dots: Any,
    dotted: Any,
    gt: Any,
    carriers: Any,
    n: int,
) -> tuple[int, int, int]:
    """Parse the genotypes of a line; (status, where the line ends, carriers)."""
    count, column, irregular = len(columns), 0, 0
    few = min(alleles, 10)  # allele numbers of one digit
    while column < count:
        if only_gt and state[COMMON] == 2:
            while column + 2 < count:
                pair = word(raw, at)
                if pair not in (_TWO_PHASED, _TWO_UNPHASED):
                    break
                at += 8
                column += 2
        if only_gt and state[COMMON] == 2 and column + 1 < count and raw[at + 3] == _TAB:
            s, a, b = columns[column], np.int64(raw[at]) - _ZERO, np.int64(raw[at + 2]) - _ZERO
            if 0 <= a < few and 0 <= b < few and (raw[at + 1] == _BAR or raw[at + 1] == _SLASH):
                if s < 0 or (ploidy[s] == 0 and n + 2 <= len(carriers)):
                    if s >= 0:
                        n = _two_alleles(s, a, b, raw[at + 1] == _SLASH, inbred, carriers, n)
                    column += 1
                    at += 4
                    continue
        for _ in range(place):
            while raw[at] != _COLON and raw[at] != _TAB and raw[at] != _LF:
                at += 1
            if raw[at] != _COLON:
                break
            at += 1
        s = columns[column]
        # Fields may be dropped from the end, also the one with the genotype.
        if raw[at] == _TAB or raw[at] == _LF or raw[at] == _CR:
            p, unphased, gt[0] = 1, False, MISSING
            if place == 0:
                state[SAMPLE] = column
                return BAD_GT, at, n
        else:
            status, p, unphased, at = _text_genotype(raw, at, gt)
            if status != DONE:
                state[SAMPLE] = column
                return status, at, n
        if s >= 0:
            status, n = _genotype(
                s, p, gt, unphased, alleles, inbred, state, ploidy, dots, dotted, carriers, n
            )
            irregular += ploidy[s] != 0
            if status != DONE:
                state[SAMPLE] = column
                return status, at, n
        if raw[at] == _COLON:
            at = _field(raw, at)
        column += 1
        if column < count:
            if raw[at] != _TAB:
                state[SAMPLE] = column
                return (BAD_GT if raw[at] != _LF and raw[at] != _CR else FEW_COLUMNS), at, n
            at += 1
    at += raw[at] == _CR
    if raw[at] == _TAB:
        return MANY_COLUMNS, at, n
    if raw[at] != _LF:
        at = _field(raw, at)
        if raw[at - 1] != _CR or raw[at] != _LF:
            state[SAMPLE] = count - 1
            return BAD_GT, at, n
    # Samples with another ploidy than most must not have been skipped as reference on both copies.
    if only_gt and irregular < state[IRREGULAR] and state[COMMON] == 2:
        return MIXED_PLOIDY, at, n
    return DONE, at + 1, n


@njit(nogil=True, cache=True)
def text_records(
    raw: Any,
    at: int,
    stop: int,
    name: Any,
    columns: Any,
    inbred: bool,
    state: Any,
    ploidy: Any,
    dots: Any,
    dotted: Any,
    gt: Any,
    records: Any,
    bases: Any,
    starts: Any,
    carriers: Any,
) -> tuple[int, int, int, int, int, int]:
    """Decode whole lines of VCF.

    Parameters
    ----------
    raw : uint8 array
        Lines from ``at`` to ``stop``, which is behind a line feed; eight bytes more are readable.
    at, stop : int
    name : uint8 array
        The contig the lines are expected on.
    columns : int32 array, [samples of the file]
        Number of each selected sample, -1 for others; none to read the
        first five columns of records alone.
    inbred : bool
        Emit the first copy alone, but all copies of heterozygotes.
    state : int64 array, [STATE_SIZE]
    ploidy, dots, dotted : int64 array, [selected samples]
        On this contig: another ploidy than COMMON (or 0), lines with a single dot, the last such.
    gt : int64 array, [highest ploidy]
        Scratch.
    records : int64 array, [most, COLUMNS]
    bases : uint8 array
        Letters of all alleles, one after the other.
    starts : int64 array
        Where each allele begins in ``bases``.
    carriers : int32 array, [most, CARRIER_COLUMNS]

    Returns
    -------
    status, at, count, alleles, letters, carried : int
        One of ``DONE`` ...; where the first record begins that was not taken; how many were, with
        how many alleles, letters and carriers.
    """
    count, allele, letter, n = 0, 0, 0, 0
    while at < stop:
        if count == len(records):
            return FULL, at, count, allele, letter, n
        begin = at
        while at - begin < len(name) and raw[at] == name[at - begin]:
            at += 1
        if at - begin < len(name) or raw[at] != _TAB:
            return CONTIG, begin, count, allele, letter, n
        state[RECORD] += 1
        state[SAMPLE] = -1
        status, at, allele_end, letter_end, n_end = _text_record(
            raw,
            at + 1,
            columns,
            inbred,
            state,
            ploidy,
            dots,
            dotted,
            gt,
            records[count],
            bases,
            letter,
            starts,
            allele,
            carriers,
            n,
        )
        if status != DONE:
            if status == FULL:
                state[RECORD] -= 1
            return status, begin, count, allele, letter, n
        state[ON_CONTIG] += 1
        count += 1
        allele, letter, n = allele_end, letter_end, n_end
    return DONE, at, count, allele, letter, n


@njit(nogil=True, cache=True)
def _text_record(
    raw: Any,
    at: int,
    columns: Any,
    inbred: bool,
    state: Any,
    ploidy: Any,
    dots: Any,
    dotted: Any,
    gt: Any,
    record: Any,
    bases: Any,
    letter: int,
    starts: Any,
    allele: int,
    carriers: Any,
    n: int,
) -> tuple[int, int, int, int, int]:
    """Decode one line from its POS on; (status, at, alleles, letters, carriers)."""
    record[ALLELE], record[CARRIER] = allele, n
    first = allele
    pos, at = _number(raw, at, _field(raw, at))
    state[VALUE] = pos
    if raw[at] == _LF and pos >= 0:
        return FEW_COLUMNS, at, allele, letter, n
    if raw[at] != _TAB or pos < 0:
        return BAD_POS, at, allele, letter, n
    record[POS] = pos - 1
    record[ID] = at + 1
    at = record[ID_END] = _field(raw, at + 1)
    if raw[at] != _TAB:
        return FEW_COLUMNS, at, allele, letter, n
    end = _field(raw, at + 1)
    if raw[end] != _TAB:
        return FEW_COLUMNS, at, allele, letter, n
    if end == at + 1:
        return NO_REF, at, allele, letter, n
    end = _field(raw, end + 1)
    if raw[end] != _TAB:
        if len(columns) > 0:
            return FEW_COLUMNS, at, allele, letter, n
        end -= raw[end - 1] == _CR
    if letter + end - at > len(bases):
        state[NEED] = LETTER_ROOM
        return FULL, at, allele, letter, n
    symbolic = False
    at += 1
    while at < end:  # REF and ALT, whose alleles are separated by one byte each
        if allele + 1 >= len(starts):
            state[NEED] = ALLELE_ROOM
            return FULL, at, allele, letter, n
        starts[allele] = letter
        symbolic |= raw[at] == _LESS
        depth = 0
        while at < end and raw[at] != _TAB and (raw[at] != _COMMA or depth > 0):
            depth += (raw[at] == _LESS) - (raw[at] == 0x3E)
            bases[letter] = raw[at]
            letter += 1
            at += 1
        allele += 1
        at += 1
    starts[allele] = letter
    if allele - first == 2 and starts[allele - 1] + 1 == letter and bases[letter - 1] == _DOT:
        allele -= 1  # ALT is a dot: no alternative
        letter -= 1
    if allele == first:
        return NO_REF, at, allele, letter, n
    if len(columns) == 0:
        record[FILTERED], record[END], at = 0, -1, end
        while raw[at] != _LF:
            at += 1
        return DONE, at + 1, allele, letter, n
    at = _field(raw, end + 1)  # over QUAL
    if raw[at] != _TAB:
        return FEW_COLUMNS, at, allele, letter, n
    begin = at + 1
    at = _field(raw, begin)
    passes = at == begin + 4 and raw[begin] == 0x50 and raw[begin + 1] == 0x41
    passes = passes and raw[begin + 2] == 0x53 and raw[begin + 3] == 0x53
    record[FILTERED] = not (passes or (at == begin + 1 and raw[begin] == _DOT))
    if raw[at] != _TAB:
        return FEW_COLUMNS, at, allele, letter, n
    begin = at + 1
    at = _field(raw, begin)
    record[END] = _text_end(raw, begin, at, pos - 1) if symbolic else -1
    if record[END] == -2:
        return BAD_END, at, allele, letter, n
    if raw[at] != _TAB:
        return FEW_COLUMNS, at, allele, letter, n
    begin = at + 1
    at = _field(raw, begin)
    place = _gt_place(raw, begin, at)
    if place < 0:
        return NO_GT, at, allele, letter, n
    if raw[at] != _TAB:
        return FEW_COLUMNS, at, allele, letter, n
    status, at, n = _text_samples(
        raw,
        at + 1,
        place,
        at == begin + 2,
        columns,
        allele - first,
        inbred,
        state,
        ploidy,
        dots,
        dotted,
        gt,
        carriers,
        n,
    )
    return status, at, allele, letter, n


# ---- BCF ------------------------------------------------------------------------------------


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
        if inner >> 4 != 1 or not 1 <= inner & 15 <= 3 or at + 1 + size > end:
            return -1, 0, at
        count = _int(raw, at + 1, size)
        at += 1 + size
        if count < 0:
            return -1, 0, at
    if kind not in (0, 1, 2, 3, 5, 7):
        return -1, 0, at
    return kind, count, at


@njit(nogil=True, cache=True)
def _size(kind: Any) -> int:
    """Bytes of one value of a type."""
    if kind == 0:
        return 0
    if kind == 2:
        return 2
    return 4 if kind in (3, 5) else 1


@njit(nogil=True, cache=True)
def _key(raw: Any, at: Any, end: int) -> tuple[Any, Any]:
    """Typed integer that names a key; (key or -1, where it ends)."""
    kind, count, at = _typed(raw, at, end)
    size = _size(kind)
    if not 1 <= kind <= 3 or count != 1 or at + size > end:
        return -1, at
    return _int(raw, at, size), at + size


@njit(nogil=True, cache=True)
def bcf_records(
    raw: Any,
    at: int,
    stop: int,
    contig: int,
    keys: Any,
    columns: Any,
    inbred: bool,
    state: Any,
    ploidy: Any,
    dots: Any,
    dotted: Any,
    gt: Any,
    records: Any,
    bases: Any,
    starts: Any,
    carriers: Any,
) -> tuple[int, int, int, int, int, int]:
    """Decode whole records of BCF; as :func:`text_records`.

    ``contig`` is the number of the contig, ``keys`` (int64) the numbers of GT, END, SVLEN and PASS
    in the header's dictionary, -1 if absent.
    """
    count, allele, letter, n = 0, 0, 0, 0
    while at + 32 <= stop:
        shared, each = _int(raw, at, 4) & 0xFFFFFFFF, _int(raw, at + 4, 4) & 0xFFFFFFFF
        if at + 8 + shared + each > stop:
            break
        if count == len(records):
            return FULL, at, count, allele, letter, n
        if shared < 24:
            state[RECORD] += 1
            return BAD_LENGTH, at, count, allele, letter, n
        if _int(raw, at + 8, 4) != contig:
            state[VALUE] = _int(raw, at + 8, 4)
            return CONTIG, at, count, allele, letter, n
        state[RECORD] += 1
        state[SAMPLE] = -1
        status, allele_end, letter_end, n_end = _bcf_record(
            raw,
            at + 8,
            at + 8 + shared,
            each,
            keys,
            columns,
            inbred,
            state,
            ploidy,
            dots,
            dotted,
            gt,
            records[count],
            bases,
            letter,
            starts,
            allele,
            carriers,
            n,
        )
        if status != DONE:
            if status == FULL:
                state[RECORD] -= 1
            return status, at, count, allele, letter, n
        state[ON_CONTIG] += 1
        count += 1
        at += 8 + shared + each
        allele, letter, n = allele_end, letter_end, n_end
    return DONE, at, count, allele, letter, n


@njit(nogil=True, cache=True)
def _bcf_record(
    raw: Any,
    at: int,
    end: int,
    each: int,
    keys: Any,
    columns: Any,
    inbred: bool,
    state: Any,
    ploidy: Any,
    dots: Any,
    dotted: Any,
    gt: Any,
    record: Any,
    bases: Any,
    letter: int,
    starts: Any,
    allele: int,
    carriers: Any,
    n: int,
) -> tuple[int, int, int, int]:
    """Decode a record whose shared part is ``[at, end)``; (status, alleles, letters, carriers)."""
    first = allele
    record[ALLELE], record[CARRIER] = allele, n
    record[POS] = _int(raw, at + 4, 4)
    state[VALUE] = record[POS] + 1
    if record[POS] < -1:
        return BAD_POS, allele, letter, n
    alleles, infos = _int(raw, at + 18, 2) & 0xFFFF, _int(raw, at + 16, 2) & 0xFFFF
    formats, samples = np.int64(raw[at + 23]), _int(raw, at + 20, 4) & 0xFFFFFF
    if samples != len(columns) and len(columns) > 0:
        state[VALUE] = samples
        return OTHER_SAMPLES, allele, letter, n
    kind, size, place = _typed(raw, at + 24, end)  # ID
    if kind not in (0, 7) or place + size > end:
        return BAD_TYPE, allele, letter, n
    record[ID] = place
    place += size if kind == 7 else 0
    record[ID_END] = place
    symbolic = False
    for _ in range(alleles):
        kind, size, place = _typed(raw, place, end)
        if kind != 7 or place + size > end:
            return BAD_TYPE, allele, letter, n
        if allele + 1 >= len(starts) or letter + size > len(bases):
            state[NEED] = LETTER_ROOM if letter + size > len(bases) else ALLELE_ROOM
            return FULL, allele, letter, n
        starts[allele] = letter
        symbolic |= size > 0 and raw[place] == _LESS
        bases[letter : letter + size] = raw[place : place + size]
        letter += size
        place += size
        allele += 1
    starts[allele] = letter
    if alleles == 0 or starts[first + 1] == starts[first]:
        return NO_REF, allele, letter, n
    if alleles == 2 and letter == starts[allele - 1] + 1 and bases[letter - 1] == _DOT:
        allele -= 1
        letter -= 1
    if len(columns) == 0:
        record[FILTERED], record[END] = 0, -1
        return DONE, allele, letter, n
    kind, size, place = _typed(raw, place, end)  # FILTER
    width = _size(kind)
    if kind < 0 or kind > 3 or place + size * width > end:
        return BAD_TYPE, allele, letter, n
    record[FILTERED] = size * width > 0 and (size > 1 or _int(raw, place, width) != keys[3])
    place += size * width
    record[END] = -1
    if symbolic:
        status, record[END] = _bcf_end(raw, place, end, infos, keys, record[POS])
        if status != DONE:
            return status, allele, letter, n
        if record[END] == -2:
            return BAD_END, allele, letter, n
    status, n = _bcf_formats(
        raw,
        end,
        end + each,
        formats,
        keys[0],
        columns,
        allele - first,
        inbred,
        state,
        ploidy,
        dots,
        dotted,
        gt,
        carriers,
        n,
    )
    return status, allele, letter, n


@njit(nogil=True, cache=True)
def _bcf_end(raw: Any, at: Any, end: int, infos: Any, keys: Any, pos: Any) -> tuple[int, int]:
    """Where symbolic alleles end by INFO; (status, end), -1 unsaid, -2 nonsense."""
    length, last = -1, -1
    for _ in range(infos):
        key, at = _key(raw, at, end)
        if key < 0:
            return BAD_TYPE, -1
        kind, count, at = _typed(raw, at, end)
        width = _size(kind)
        if kind < 0 or at + count * width > end:
            return BAD_TYPE, -1
        if 1 <= kind <= 3 and count >= 1:
            value = _int(raw, at, width)
            if key == keys[1]:
                last = value if value > pos else -2
            elif key == keys[2]:
                length = abs(value)
        at += count * width
    if last != -1:
        return DONE, last
    return DONE, (pos + 1 + length if length >= 0 else -1)


@njit(nogil=True, cache=True)
def _bcf_formats(
    raw: Any,
    at: int,
    end: int,
    formats: Any,
    key: int,
    columns: Any,
    alleles: int,
    inbred: bool,
    state: Any,
    ploidy: Any,
    dots: Any,
    dotted: Any,
    gt: Any,
    carriers: Any,
    n: int,
) -> tuple[int, int]:
    """Find the genotypes among a record's formats and take them; (status, carriers)."""
    for _ in range(formats):
        found, at = _key(raw, at, end)
        kind, width, at = _typed(raw, at, end)
        size = _size(kind)
        if found < 0 or kind < 0 or at + width * size * len(columns) > end:
            return BAD_TYPE, n
        if found == key:
            if not 1 <= kind <= 3:
                return BAD_TYPE, n
            if width > len(gt):
                return HIGH_PLOIDY, n
            if width == 0:
                return NO_GT, n
            return _bcf_samples(
                raw,
                at,
                width,
                size,
                columns,
                alleles,
                inbred,
                state,
                ploidy,
                dots,
                dotted,
                gt,
                carriers,
                n,
            )
        at += width * size * len(columns)
    return NO_GT, n


@njit(nogil=True, cache=True)
def _bcf_samples(
    raw: Any,
    at: int,
    width: int,
    size: int,
    columns: Any,
    alleles: int,
    inbred: bool,
    state: Any,
    ploidy: Any,
    dots: Any,
    dotted: Any,
    gt: Any,
    carriers: Any,
    n: int,
) -> tuple[int, int]:
    """Take the genotypes of all samples, ``width`` integers of ``size`` bytes each."""
    count, column, irregular = len(columns), 0, 0
    ends = -((1 << (8 * size - 1)) - 1)
    step = 0  # samples in eight bytes
    if size == 1 and width in (1, 2, 4, 8):
        step = 8 // width
    while column < count:
        if step > 0 and state[COMMON] == width:
            while column + step <= count:
                if (word(raw, at + column * width) & _PHASE_BITS) != _REFERENCE:
                    break
                column += step
            if column == count:
                break
        s = columns[column]
        if step == 4 and state[COMMON] == 2:
            a, b = raw[at + 2 * column], raw[at + 2 * column + 1]
            most = 2 * alleles + 2
            if 2 <= a < most and 2 <= b < most <= 128:
                if s < 0 or (ploidy[s] == 0 and n + 2 <= len(carriers)):
                    if s >= 0:
                        unphased = b & 1 == 0
                        x, y = np.int64(a >> 1) - 1, np.int64(b >> 1) - 1
                        n = _two_alleles(s, x, y, unphased, inbred, carriers, n)
                    column += 1
                    continue
        if s >= 0:
            p, unphased = 0, False
            for c in range(width):
                value = _int(raw, at + (column * width + c) * size, size)
                if value == ends:
                    break
                gt[c] = (value >> 1) - 1 if value >= 0 else MISSING
                if value < 0 and value != ends - 1:
                    state[SAMPLE] = column
                    return BAD_GT, n
                unphased |= c > 0 and value & 1 == 0
                p += 1
            if p == 0:  # all ends: nothing was called
                p, gt[0] = 1, MISSING
            status, n = _genotype(
                s, p, gt, unphased, alleles, inbred, state, ploidy, dots, dotted, carriers, n
            )
            irregular += ploidy[s] != 0
            if status != DONE:
                state[SAMPLE] = column
                return status, n
        column += 1
    if irregular < state[IRREGULAR] and step > 0 and state[COMMON] == width:
        return MIXED_PLOIDY, n
    return DONE, n
