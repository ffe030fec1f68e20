"""Kernels that turn records and carriers into accepted edits of haplotypes.

An *edit* replaces reference bases ``[start, end)`` by others; those of equal length are split into
single bases, so an edit is a substitution of one base or a *gap* (deletion, insertion, or both).
An *event* is what one allele of one record does: any number of edits. Conflicts are settled as
``bcftools consensus`` does, once along the chromosome: a record that begins inside an accepted one
is skipped; on the last base of an accepted one may follow a record whose first base stays what it
was, unless an insertion was accepted there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from genomepred.sequences.codes import CODE_OF_BYTE, INVALID, UNKNOWN
from genomepred.sequences.vcf_decode import (
    ALL_COPIES,
    ALLELE,
    CARRIER,
    COPY,
    END,
    FILTERED,
    GENOTYPE,
    HETEROZYGOUS,
    NUMBER,
    POS,
    UNPHASED,
    WHO,
)

# What an allele does. NOTHING: `*`; BLOCK: <*> and <NON_REF>, which hold their bases as they are;
# LETTERS: bases; DELETION: <DEL>; OTHER: what no haplotype can be made of.
REF, NOTHING, BLOCK, LETTERS, DELETION, OTHER = range(6)

# Columns of the table of alleles. LAST is the last reference base it takes; KEEPS says that an
# insertion or deletion leaves its first base as it is; GROWS that it is longer than REF. EVENT is
# the number of its event in the block, -1 before the first carrier.
ALLELE_COLUMNS = 6
KIND, LAST, KEEPS, GROWS, SAME_LENGTH, EVENT = range(ALLELE_COLUMNS)

# Status of `classify`.
FINE, OUTSIDE, BAD_LETTER = range(3)

# State of `settle`: where it goes on, what the block holds so far, and counts of the panel; HELD
# is the last base that any allele of the contig takes so far.
STATE_SIZE = 15
AT_RECORD, EVENTS, EDITS, LETTER_COUNT, PAIRS = range(5)
MISSING_COUNT, UNPHASED_COUNT, FILTERED_COUNT, ACCEPTED, REACH = range(5, 10)
FIRST_RECORD, FIRST_SAMPLE, BAD_SAMPLE, BAD_NUMBER, HELD = range(10, STATE_SIZE)
# Status of `settle`.
DONE, MORE_ROOM, UNUSABLE = range(3)

# What a carrier does: hide a record's first base, or all of REF (columns of `hidden`); what its
# allele says; nothing.
HIDE_FIRST, HIDE_ALL, AS_CALLED, NO_EDIT = range(4)


class Records(NamedTuple):
    """Records that are settled; see :class:`genomepred.sequences.vcf.Batch`.

    Parameters
    ----------
    records, bases, starts, carriers
    table : int64 array, [alleles, ALLELE_COLUMNS]
    hidden : int32 array, [records, 2]
        Events that hide a record's first base, and all of REF; -1 before the first.
    """

    records: Any
    bases: Any
    starts: Any
    carriers: Any
    table: Any
    hidden: Any


class Room(NamedTuple):
    """Edits and events of a block.

    Parameters
    ----------
    first_edit : int32 array
        First edit of each event.
    edits : int64 array, [most, 2]
        Start and end of each edit on the reference.
    alt_first : int32 array
        Where each edit's bases begin in ``letters``.
    letters : uint8 array
        Codes of all edits.
    pairs : int32 array, [most, 2]
        Haplotype (sample x most copies + copy) and event of what is accepted, in order of records.
    """

    first_edit: Any
    edits: Any
    alt_first: Any
    letters: Any
    pairs: Any


@njit(nogil=True, cache=True)
def _upper(byte: int) -> int:
    return byte & 0xDF if 0x61 <= byte <= 0x7A else byte


@njit(nogil=True, cache=True)
def _is(bases: Any, start: int, end: int, text: Any) -> bool:
    """Whether letters are the given upper-case text, in any case."""
    if end - start != len(text):
        return False
    for k in range(len(text)):
        if _upper(bases[start + k]) != text[k]:
            return False
    return True


_DEL = np.frombuffer(b"<DEL>", np.uint8)
_STAR = np.frombuffer(b"<*>", np.uint8)
_NON_REF = np.frombuffer(b"<NON_REF>", np.uint8)


@njit(nogil=True, cache=True)
def _changes_length_only(bases: Any, r: int, r_end: int, a: int, a_end: int) -> Any:
    """Whether two alleles differ by one run of bases that is in one of them and not the other."""
    while r < r_end and a < a_end and _upper(bases[r]) == _upper(bases[a]):
        r += 1
        a += 1
    if r == r_end or a == a_end:
        return r < r_end or a < a_end
    r_last, a_last = r_end - 1, a_end - 1
    while r_last > r and a_last > a and _upper(bases[r_last]) == _upper(bases[a_last]):
        r_last -= 1
        a_last -= 1
    if (a_last == a) == (r_last == r):
        return False
    return _upper(bases[r_last]) == _upper(bases[a_last])


@njit(nogil=True, cache=True)
def _classify_alternative(
    bases: Any, start: int, end: int, ref_start: int, ref_end: int, record: Any, row: Any
) -> Any:
    """Fill an alternative's row of the table; False if it holds what no allele can."""
    last = record[POS] + ref_end - ref_start - 1
    row[LAST], row[KEEPS], row[GROWS], row[SAME_LENGTH] = last, 0, 0, 0
    if end == start:
        return False
    byte = bases[start]
    if byte == 0x2A and end == start + 1:  # *
        row[KIND] = NOTHING
        return True
    if byte == 0x3C:  # <
        if _is(bases, start, end, _DEL):
            row[KIND], row[KEEPS] = DELETION, 1
            row[LAST] = record[END] - 1
            if record[END] < 0:
                row[KIND] = OTHER
        elif _is(bases, start, end, _STAR) or _is(bases, start, end, _NON_REF):
            row[KIND] = BLOCK
            row[LAST] = max(last, record[END] - 1)
        else:
            row[KIND] = OTHER
        return bases[end - 1] == 0x3E
    row[KIND] = LETTERS
    for k in range(start, end):
        if bases[k] in (0x5B, 0x5D) or (bases[k] == 0x2E and end > start + 1):  # breakends
            row[KIND] = OTHER
            return True
        if CODE_OF_BYTE[bases[k]] == INVALID or bases[k] in (0x2D, 0x2A, 0x2E):
            return False
    alt, ref = end - start, ref_end - ref_start
    row[SAME_LENGTH], row[GROWS] = alt == ref, alt > ref
    if alt != ref:
        row[KEEPS] = _upper(bases[start]) == _upper(bases[ref_start]) and _changes_length_only(
            bases, ref_start, ref_end, start, end
        )
    return True


@njit(nogil=True, cache=True)
def classify(
    records: Any,
    first: int,
    last: int,
    bases: Any,
    starts: Any,
    length: int,
    codes: Any,
    origin: int,
    table: Any,
    mismatches: Any,
) -> tuple[int, int]:
    """Check records ``[first, last)`` against the reference and fill the table of their alleles.

    Parameters
    ----------
    records, bases, starts
        See :class:`genomepred.sequences.vcf.Batch`.
    first, last : int
    length : int
        Bases of the contig.
    codes : uint8 array
        Reference codes from ``origin`` on, as far as the records' REF reaches.
    origin : int
    table : int32 array, [alleles, ALLELE_COLUMNS]
    mismatches : int64 array, [2]
        Number of records whose REF is not the reference, and the first of them.

    Returns
    -------
    status, record : int
    """
    for r in range(first, last):
        record, pos = records[r], records[r, POS]
        a = record[ALLELE]
        stop = records[r + 1, ALLELE] if r + 1 < len(records) else len(starts) - 1
        size = starts[a + 1] - starts[a]
        if pos < 0 or pos + size > length or record[END] > length:
            return OUTSIDE, r
        table[a, KIND], table[a, EVENT], table[a, LAST] = REF, -1, pos + size - 1
        wrong = False
        for k in range(size):
            code = CODE_OF_BYTE[bases[starts[a] + k]]
            here = codes[pos - origin + k]
            if code == INVALID or bases[starts[a] + k] in (0x2D, 0x2A, 0x2E):
                return BAD_LETTER, r
            wrong |= here != UNKNOWN and here != code  # noqa: PLR1714 - not in, Numba cannot
        if wrong:
            mismatches[1] = r if mismatches[0] == 0 else mismatches[1]
            mismatches[0] += 1
        for b in range(a + 1, stop):
            table[b, EVENT] = -1
            if not _classify_alternative(
                bases, starts[b], starts[b + 1], starts[a], starts[a + 1], record, table[b]
            ):
                return BAD_LETTER, r
    return FINE, last


@njit(nogil=True, cache=True)
def _add(start: int, end: int, room: Any, state: Any) -> None:
    """Append an edit whose bases are those appended since the last."""
    room.edits[state[EDITS], 0], room.edits[state[EDITS], 1] = start, end
    state[EDITS] += 1
    room.alt_first[state[EDITS]] = state[LETTER_COUNT]


@njit(nogil=True, cache=True)
def _put(code: int, room: Any, state: Any) -> None:
    """Append a base."""
    room.letters[state[LETTER_COUNT]] = code
    state[LETTER_COUNT] += 1


@njit(nogil=True, cache=True)
def add_alternative(
    pos: int, bases: Any, r: int, r_end: int, a: int, a_end: int, room: Any, state: Any
) -> None:
    """Append the edits of an allele of bases."""
    if r_end - r == a_end - a:
        for k in range(a_end - a):
            if _upper(bases[r + k]) != _upper(bases[a + k]):
                _put(CODE_OF_BYTE[bases[a + k]], room, state)
                _add(pos + k, pos + k + 1, room, state)
        return
    # As in chain files: a first base that stays is no part of the gap.
    kept = _upper(bases[r]) == _upper(bases[a])
    for k in range(a + kept, a_end):
        _put(CODE_OF_BYTE[bases[k]], room, state)
    _add(pos + kept, pos + r_end - r, room, state)


@njit(nogil=True, cache=True)
def _begin_event(what: int, r: int, number: int, end: int, b: Any, room: Any, state: Any) -> int:
    """Append the edits of what a carrier of a record does; the number of the event."""
    pos, first, event = b.records[r, POS], b.records[r, ALLELE], state[EVENTS]
    ref, ref_end = b.starts[first], b.starts[first + 1]
    if what != AS_CALLED:
        b.hidden[r, what] = event
        for k in range(ref_end - ref if what == HIDE_ALL else 1):
            _put(UNKNOWN, room, state)
            _add(pos + k, pos + k + 1, room, state)
    else:
        b.table[first + number, EVENT] = event
        if b.table[first + number, KIND] == DELETION:
            _add(pos + 1, end + 1, room, state)
        else:
            alt, alt_end = b.starts[first + number], b.starts[first + number + 1]
            add_alternative(pos, b.bases, ref, ref_end, alt, alt_end, room, state)
    state[EVENTS] += 1
    room.first_edit[state[EVENTS]] = state[EDITS]
    state[REACH] = max(state[REACH], end + 1)
    return int(event)


@njit(nogil=True, cache=True)
def _all_same_length(carriers: Any, n: int, first: int, table: Any) -> bool:
    """Whether all alleles of the genotype that carrier ``n`` belongs to are as long as REF."""
    who = carriers[n, WHO]
    begin = n
    while begin > 0 and carriers[begin - 1, WHO] == who and carriers[begin, COPY] > 0:
        begin -= 1
    while begin < len(carriers) and carriers[begin, WHO] == who:
        number = carriers[begin, NUMBER]
        if number > 0 and not table[first + number, SAME_LENGTH]:
            return False
        begin += 1
        if begin < len(carriers) and carriers[begin, COPY] == 0:
            break
    return True


@njit(nogil=True, cache=True)
def _fits(r: int, last: int, most: int, b: Any, room: Any, state: Any) -> bool:
    """Whether there is room for all that a record may add."""
    first = b.records[r, ALLELE]
    end = b.records[r + 1, ALLELE] if r + 1 < len(b.records) else len(b.starts) - 1
    letters = b.starts[end] - b.starts[first] + 2 * (b.starts[first + 1] - b.starts[first])
    return bool(
        state[PAIRS] + (last - b.records[r, CARRIER]) * most <= len(room.pairs)
        and state[EVENTS] + end - first + 2 < len(room.first_edit)
        and state[EDITS] + letters + end - first < len(room.edits)
        and state[LETTER_COUNT] + letters < len(room.letters)
    )


@njit(nogil=True, cache=True)
def _action(
    n: int, last: int, het: bool, first: int, hide_missing: bool, hide_het: bool, b: Any
) -> int:
    """Action for a carrier, one of the codes above."""
    number = b.carriers[n, NUMBER]
    if het and hide_het:
        same = _all_same_length(b.carriers[:last], n, first, b.table)
        return HIDE_ALL if same else NO_EDIT
    if number < 0:
        return HIDE_FIRST if hide_missing else NO_EDIT
    if number == 0 or b.table[first + number, KIND] == NOTHING:
        return NO_EDIT
    return AS_CALLED


@njit(nogil=True, cache=True)
def _count(r: int, filtered: Any, carrier: Any, het: bool, state: Any) -> None:
    """Count missing alleles, heterozygotes without phase, and alleles of filtered records."""
    number, copy = carrier[NUMBER], carrier[COPY]
    state[MISSING_COUNT] += number < 0
    state[FILTERED_COUNT] += number > 0 and filtered != 0
    if het and copy in (0, ALL_COPIES):
        if state[UNPHASED_COUNT] == 0:
            state[FIRST_RECORD], state[FIRST_SAMPLE] = r, carrier[WHO]
        state[UNPHASED_COUNT] += 1


@njit(nogil=True, cache=True)
def _meets_none(r: int, end: int, records: Any, table: Any, state: Any) -> bool:
    """Whether no record begins where another's alleles reach, of those before and after.

    ``end`` is where the record's alleles end. What comes behind the last record is not known.
    """
    before = state[HELD]
    for a in range(records[r, ALLELE], end):
        state[HELD] = max(state[HELD], table[a, LAST])
    if r + 1 == len(records):
        return False
    return bool(records[r, POS] > before and records[r + 1, POS] > state[HELD])


@njit(nogil=True, cache=True)
def _accept_all(
    n: int, last: int, r: int, hets: int, most: int, b: Any, room: Any, state: Any
) -> int:
    """Accept carriers of a record that meets no other, from ``n`` on, up to one to look at closer.

    ``hets`` is the bit of the genotypes that count as heterozygotes without phase.
    """
    first, begin = b.records[r, ALLELE], n
    while n < last:
        number = b.carriers[n, NUMBER]
        allele = first + max(number, 0)
        usual = not b.carriers[n, GENOTYPE] & hets and b.carriers[n, COPY] < most
        if not (usual and LETTERS <= b.table[allele, KIND] <= DELETION):
            break
        if b.table[allele, EVENT] < 0:
            _begin_event(AS_CALLED, r, number, b.table[allele, LAST], b, room, state)
        event, at = b.table[allele, EVENT], state[PAIRS]
        found = _pair(n, last, number, hets, most, event, at, b.carriers, room.pairs)
        state[PAIRS] += found - n
        n = found
    state[ACCEPTED] += n - begin
    state[FILTERED_COUNT] += (n - begin) * (b.records[r, FILTERED] != 0)
    return n


@njit(nogil=True, cache=True)
def _pair(
    n: int,
    last: int,
    number: int,
    hets: int,
    most: int,
    event: int,
    at: int,
    carriers: Any,
    pairs: Any,
) -> int:
    """Pair carriers of the same allele with its event; the first of another, or to look at."""
    for k in range(n, last):
        who, copy = carriers[k, WHO], carriers[k, COPY]
        if carriers[k, NUMBER] != number or carriers[k, GENOTYPE] & hets or copy >= most:
            return k
        pairs[at + k - n, 0], pairs[at + k - n, 1] = who * most + copy, event
    return last


@njit(nogil=True, cache=True)
def settle(
    b: Any,
    stop: int,
    hide_missing: bool,
    hide_het: bool,
    inbred: bool,
    frozen: Any,
    inserted: Any,
    skipped: Any,
    room: Any,
    state: Any,
) -> int:
    """Accept or skip what the carriers of records up to ``stop`` carry.

    Parameters
    ----------
    b : Records
    stop : int
        Record to stop at.
    hide_missing, hide_het : bool
        Whether missing alleles, and heterozygotes without phase, become N.
    inbred : bool
        Only the first copy counts, and every heterozygote as unphased.
    frozen, inserted : int64 and bool array, [samples, most copies]
        Last base taken on each haplotype; whether the last accepted record made it longer.
    skipped : int64 array, [samples]
        Records skipped as in conflict.
    room : Room
    state : int64 array, [STATE_SIZE]

    Returns
    -------
    int
        ``DONE``; ``MORE_ROOM`` if an array is full; ``UNUSABLE`` at a carrier of an allele that
        cannot be used. Called again it goes on.
    """
    most, hets = frozen.shape[1], HETEROZYGOUS if inbred else UNPHASED
    records, carriers, table, hidden, pairs = b.records, b.carriers, b.table, b.hidden, room.pairs
    for r in range(state[AT_RECORD], stop):
        state[AT_RECORD] = r
        pos, first = records[r, POS], records[r, ALLELE]
        last = records[r + 1, CARRIER] if r + 1 < len(records) else len(carriers)
        if not _fits(r, last, most, b, room, state):
            return MORE_ROOM
        stop_allele = records[r + 1, ALLELE] if r + 1 < len(records) else len(b.starts) - 1
        alone = _meets_none(r, stop_allele, records, table, state)
        n = records[r, CARRIER] - 1
        while True:
            n += 1
            if alone:
                n = _accept_all(n, last, r, hets, most, b, room, state)
            if n >= last:
                break
            who, copy, number = carriers[n, WHO], carriers[n, COPY], carriers[n, NUMBER]
            het = carriers[n, GENOTYPE] & hets != 0
            row = table[first + max(number, 0)]
            if number > 0 and row[KIND] == OTHER:
                state[BAD_SAMPLE], state[BAD_NUMBER] = who, number
                return UNUSABLE
            _count(r, records[r, FILTERED], carriers[n], het, state)
            what = AS_CALLED
            if number <= 0 or het or row[KIND] == NOTHING:
                what = _action(n, last, het, first, hide_missing, hide_het, b)
                if what == NO_EDIT:
                    continue
            end, keeps, grows = pos + (row[LAST] - pos) * (what != HIDE_FIRST), False, False
            if what == AS_CALLED:
                keeps, grows = row[KEEPS] != 0, row[GROWS] != 0
            begin_copy, end_copy = (0, most) if copy == ALL_COPIES else (copy, copy + 1)
            for c in range(begin_copy, min(end_copy, most)):
                if what == AS_CALLED and row[KIND] == BLOCK:
                    frozen[who, c] = end if pos > frozen[who, c] else frozen[who, c]
                    continue
                if pos < frozen[who, c] or (
                    pos == frozen[who, c] and (not keeps or inserted[who, c])
                ):
                    skipped[who] += 1
                    continue
                event = row[EVENT] if what == AS_CALLED else hidden[r, what]
                if event < 0:
                    event = _begin_event(what, r, number, end, b, room, state)
                frozen[who, c], inserted[who, c] = end, grows
                pairs[state[PAIRS], 0], pairs[state[PAIRS], 1] = who * most + c, event
                state[PAIRS] += 1
                state[ACCEPTED] += 1
    state[AT_RECORD] = stop
    return DONE


@njit(nogil=True, cache=True)
def by_haplotype(pairs: Any, first: Any, events: Any) -> None:
    """Sort (haplotype, event) pairs by haplotype, keeping their order.

    ``first`` (int64, [haplotypes + 1]) receives where each haplotype's events begin in ``events``.
    """
    first[:] = 0
    for i in range(len(pairs)):
        first[pairs[i, 0] + 1] += 1
    for h in range(1, len(first)):
        first[h] += first[h - 1]
    at = first[:-1].copy()
    for i in range(len(pairs)):
        h = pairs[i, 0]
        events[at[h]] = pairs[i, 1]
        at[h] += 1
