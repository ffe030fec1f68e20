"""Kernels that decode lines of VCF text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from genomepred.sequences import vcf_decode as kernel

_TAB, _LF, _CR, _COLON, _COMMA, _DOT = 0x09, 0x0A, 0x0D, 0x3A, 0x2C, 0x2E
_SLASH, _BAR, _ZERO, _LESS, _MORE, _MINUS = 0x2F, 0x7C, 0x30, 0x3C, 0x3E, 0x2D
_SEMICOLON, _EQUALS = 0x3B, 0x3D
_TWO_PHASED = np.frombuffer(b"0|0\t0|0\t", np.uint64)[0]
_TWO_UNPHASED = np.frombuffer(b"0/0\t0/0\t", np.uint64)[0]
_GREATEST = 1 << 40  # numbers beyond are no coordinates; digits stop before they overflow
_PASS, _GT = np.frombuffer(b"PASS", np.uint8), np.frombuffer(b"GT", np.uint8)
_END_KEY, _LENGTH_KEY = np.frombuffer(b"END", np.uint8), np.frombuffer(b"SVLEN", np.uint8)
# Columns whose ends are looked up, from POS on.
_POS, _ID, _REF, _ALT, _QUAL, _FILTER, _INFO, _FORMAT = range(8)


@njit(nogil=True, cache=True)
def text_records(raw: Any, at: int, stop: int, name: Any, d: Any) -> tuple[int, int]:
    """Decode whole lines of VCF.

    Parameters
    ----------
    raw : uint8 array
        Lines from ``at`` to ``stop``, which is behind a line feed; eight bytes more are readable.
    at, stop : int
    name : uint8 array
        The contig the lines are expected on.
    d : Decoder

    Returns
    -------
    status, at : int
        One of ``DONE`` ...; where the first record begins that was not taken.
    """
    ends = np.empty(8, np.int64)
    while at < stop:
        if d.state[kernel.RECORDS] == len(d.records):
            return kernel.FULL, at
        begin = at
        while at - begin < len(name) and raw[at] == name[at - begin]:
            at += 1
        if at - begin < len(name) or raw[at] != _TAB:
            return kernel.CONTIG, begin
        record = kernel.begin_record(d)
        status, at = _record(raw, at + 1, ends, record, d)
        kernel.end_record(d, status)
        if status != kernel.DONE:
            return status, begin
    return kernel.DONE, at


@njit(nogil=True, cache=True)
def _record(raw: Any, at: int, ends: Any, record: Any, d: Any) -> tuple[int, int]:
    """Decode one line from its POS on; (status, where the next begins)."""
    pos, stop = _number(raw, at, _field(raw, at))
    d.state[kernel.VALUE] = pos
    if pos < 0 or (raw[stop] != _TAB and raw[stop] != _LF):
        return kernel.BAD_POS, at
    record[kernel.POS] = pos - 1
    sites = len(d.columns) == 0
    for column in range(_ALT if sites else 8):
        at = ends[column] = _field(raw, at)
        if raw[at] != _TAB:
            return kernel.FEW_COLUMNS, at
        at += 1
    record[kernel.ID], record[kernel.ID_END] = ends[_POS] + 1, ends[_ID]
    if sites:
        at = ends[_ALT] = _field(raw, at)
        ends[_ALT] -= raw[at] == _LF and raw[at - 1] == _CR
    status, symbolic = _alleles(raw, ends[_ID] + 1, ends[_ALT], d)
    if sites or status != kernel.DONE:
        return status, _line_end(raw, at) + 1
    begin, end = ends[_QUAL] + 1, ends[_FILTER]
    none = end == begin + 1 and raw[begin] == _DOT
    record[kernel.FILTERED] = not (none or _is(raw, begin, end, _PASS))
    if symbolic:
        record[kernel.END] = _symbolic_end(raw, end + 1, ends[_INFO], pos - 1)
        if record[kernel.END] == kernel.NONSENSE:
            return kernel.BAD_END, at
    place = _gt_place(raw, ends[_INFO] + 1, ends[_FORMAT])
    if place < 0:
        return kernel.NO_GT, at
    only_gt = ends[_FORMAT] - ends[_INFO] == 3
    return _samples(raw, at, place, only_gt, d.state[kernel.ALLELES] - record[kernel.ALLELE], d)


@njit(nogil=True, cache=True)
def _field(raw: Any, at: int) -> int:
    """End of the field that begins at ``at``: a tab or a line end."""
    while raw[at] != _TAB and raw[at] != _LF:
        at += 1
    return at


@njit(nogil=True, cache=True)
def _line_end(raw: Any, at: int) -> int:
    """End of the line that ``at`` is in."""
    while raw[at] != _LF:
        at += 1
    return at


@njit(nogil=True, cache=True)
def _is(raw: Any, at: int, end: int, text: Any) -> bool:
    """Whether ``[at, end)`` is a text."""
    if end - at != len(text):
        return False
    for k in range(len(text)):  # noqa: SIM110 - faster compiled
        if raw[at + k] != text[k]:
            return False
    return True


@njit(nogil=True, cache=True)
def _number(raw: Any, at: int, end: int) -> tuple[int, int]:
    """Decimal number from ``at`` on; (number or -1, where it ends)."""
    value, start = 0, at
    while at < end and _ZERO <= raw[at] <= _ZERO + 9 and value < _GREATEST:
        value = 10 * value + raw[at] - _ZERO
        at += 1
    return (value if at > start else -1), at


# -- alleles, INFO, FORMAT -------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _alleles(raw: Any, at: int, end: int, d: Any) -> tuple[int, bool]:
    """Take REF and ALT, whose alleles are separated by one byte each; (status, any symbolic)."""
    state, bases, starts = d.state, d.bases, d.starts
    first, symbolic = state[kernel.ALLELES], False
    if state[kernel.LETTERS] + end - at > len(bases):
        state[kernel.NEED] = kernel.LETTER_ROOM
        return kernel.FULL, symbolic
    if raw[at] == _TAB:
        return kernel.NO_REF, symbolic
    while at < end:
        if state[kernel.ALLELES] + 1 >= len(starts):
            state[kernel.NEED] = kernel.ALLELE_ROOM
            return kernel.FULL, symbolic
        letter, depth = state[kernel.LETTERS], 0
        starts[state[kernel.ALLELES]] = letter
        symbolic |= raw[at] == _LESS
        while at < end and raw[at] != _TAB and (raw[at] != _COMMA or depth > 0):
            depth += (raw[at] == _LESS) - (raw[at] == _MORE)
            bases[letter] = raw[at]
            letter += 1
            at += 1
        state[kernel.LETTERS] = letter
        state[kernel.ALLELES] += 1
        at += 1
    return kernel.end_alleles(d, first), symbolic


@njit(nogil=True, cache=True)
def _info_number(raw: Any, at: int, end: int, key: Any) -> tuple[bool, int]:
    """Number of a key of the INFO column; (whether it is there, number without its sign)."""
    begin = at
    while at + len(key) < end:
        starts = at == begin or raw[at - 1] == _SEMICOLON
        value = at + len(key) + 1
        if starts and raw[value - 1] == _EQUALS and _is(raw, at, value - 1, key):
            value += value < end and raw[value] == _MINUS
            return True, _number(raw, value, end)[0]
        at += 1
    return False, -1


@njit(nogil=True, cache=True)
def _symbolic_end(raw: Any, at: int, end: int, pos: int) -> int:
    """End of the symbolic alleles of a record, by its INFO."""
    found, value = _info_number(raw, at, end, _END_KEY)
    if found:
        return value if value > pos else kernel.NONSENSE
    found, value = _info_number(raw, at, end, _LENGTH_KEY)
    if found:
        return pos + 1 + value if value >= 0 else kernel.NONSENSE
    return kernel.UNSAID


@njit(nogil=True, cache=True)
def _gt_place(raw: Any, at: int, end: int) -> int:
    """Place of GT among the keys of the FORMAT column, or -1."""
    place, start = 0, at
    while at <= end:
        if at == end or raw[at] == _COLON:
            if _is(raw, start, at, _GT):
                return place
            place += 1
            start = at + 1
        at += 1
    return -1


# -- genotypes -------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def _samples(raw: Any, at: int, place: int, only_gt: bool, alleles: int, d: Any) -> tuple[int, int]:
    """Parse the genotypes of a line; (status, where the next line begins)."""
    columns, gt, seen, state, carriers = d.columns, d.gt, d.seen, d.state, d.carriers
    count, column, irregular = len(columns), 0, 0
    few = min(alleles, 10)  # allele numbers of one digit
    while column < count:
        if only_gt and state[kernel.COMMON] == 2:
            column, at = _pairs(raw, at, column, few, columns, seen, state, carriers)
        s = columns[column]
        status, at = _sample(raw, at, place, s, alleles, gt, seen, state, carriers)
        irregular += s >= 0 and seen[s, kernel.PLOIDY] != 0
        if status != kernel.DONE:
            state[kernel.SAMPLE] = column
            return status, at
        column += 1
        if column < count:
            if raw[at] != _TAB:
                state[kernel.SAMPLE] = column
                return (
                    kernel.BAD_GT if raw[at] != _LF and raw[at] != _CR else kernel.FEW_COLUMNS
                ), at
            at += 1
    at += raw[at] == _CR
    if raw[at] == _TAB:
        return kernel.MANY_COLUMNS, at
    if raw[at] != _LF:
        state[kernel.SAMPLE] = count - 1
        return kernel.BAD_GT, at
    # Samples with another ploidy than most must not have been skipped as reference on both copies.
    if only_gt and irregular < state[kernel.IRREGULAR] and state[kernel.COMMON] == 2:
        return kernel.MIXED_PLOIDY, at
    return kernel.DONE, at + 1


@njit(nogil=True, cache=True)
def _pairs(
    raw: Any, at: int, column: int, few: int, columns: Any, seen: Any, state: Any, carriers: Any
) -> tuple[int, int]:
    """Take samples with two alleles of one digit; (first column that is another, where).

    Never the last column, behind which no tab stands.
    """
    last, n, inbred = len(columns) - 1, state[kernel.CARRIERS], state[kernel.INBRED] != 0
    while column < last:
        if column + 1 < last:
            pair = kernel.word(raw, at)
            if pair in (_TWO_PHASED, _TWO_UNPHASED):
                at += 8
                column += 2
                continue
        if raw[at + 3] != _TAB or (raw[at + 1] != _BAR and raw[at + 1] != _SLASH):
            break
        s, a, b = columns[column], np.int64(raw[at]) - _ZERO, np.int64(raw[at + 2]) - _ZERO
        if not (0 <= a < few and 0 <= b < few):
            break
        if s >= 0:
            if seen[s, kernel.PLOIDY] != 0 or n + 2 > len(carriers):
                break
            n = kernel.take_two(s, a, b, raw[at + 1] == _SLASH, inbred, carriers, n)
        at += 4
        column += 1
    state[kernel.CARRIERS] = n
    return column, at


@njit(nogil=True, cache=True)
def _sample(
    raw: Any,
    at: int,
    place: int,
    s: Any,
    alleles: int,
    gt: Any,
    seen: Any,
    state: Any,
    carriers: Any,
) -> tuple[int, int]:
    """Take any genotype; (status, where the sample's column ends)."""
    for _ in range(place):
        while raw[at] != _COLON and raw[at] != _TAB and raw[at] != _LF:
            at += 1
        if raw[at] != _COLON:
            break
        at += 1
    p, unphased = 1, False
    # Fields may be dropped from the end, also the one with the genotype.
    if raw[at] == _TAB or raw[at] == _LF or raw[at] == _CR:
        gt[0] = kernel.MISSING
        if place == 0:
            return kernel.BAD_GT, at
    else:
        status, p, unphased, at = _genotype(raw, at, gt)
        if status != kernel.DONE:
            return status, at
    if s >= 0:
        status = kernel.take_genotype(s, p, unphased, alleles, gt, seen, state, carriers)
        if status != kernel.DONE:
            return status, at
    if raw[at] == _COLON:
        at = _field(raw, at)
        at -= raw[at] == _LF and raw[at - 1] == _CR
    return kernel.DONE, at


@njit(nogil=True, cache=True)
def _genotype(raw: Any, at: int, gt: Any) -> tuple[int, int, bool, int]:
    """Parse one GT; (status, ploidy, whether any separator is /, where it ends)."""
    p, unphased = 0, False
    if raw[at] == _BAR or raw[at] == _SLASH:  # the phase of the first allele, as VCF 4.4 has it
        at += 1
    while True:
        if p == len(gt):
            return kernel.HIGH_PLOIDY, p, unphased, at
        if raw[at] == _DOT:
            gt[p] = kernel.MISSING
            at += 1
        elif _ZERO <= raw[at] <= _ZERO + 9:
            value = 0
            while _ZERO <= raw[at] <= _ZERO + 9:
                value = min(10 * value + raw[at] - _ZERO, 1 << 30)
                at += 1
            gt[p] = value
        else:
            return kernel.BAD_GT, p, unphased, at
        p += 1
        if raw[at] == _SLASH:
            unphased = True
        elif raw[at] != _BAR:
            return kernel.DONE, p, unphased, at
        at += 1
