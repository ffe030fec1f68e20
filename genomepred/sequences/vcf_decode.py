"""The common part of decoding VCF text and BCF: the tables that are filled, and genotypes.

Genotypes that are reference on all copies, nearly all of a panel, are skipped eight bytes at a
time; what remains becomes *carriers*: sample, copy, allele. Both forms fill the same arrays, so
nothing behind them knows which of them a panel has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

# State that outlives a call. RECORD counts records of the file, ON_CONTIG those of this contig;
# COMMON is the ploidy of most samples on it, IRREGULAR the number of samples with another. SAMPLE
# and VALUE describe what stopped a kernel, NEED which array has no room for a record. RECORDS,
# ALLELES, LETTERS and CARRIERS are how many of each the tables hold. INBRED: emit the first copy
# alone, but all copies of heterozygotes.
STATE_SIZE = 12
RECORD, ON_CONTIG, COMMON, IRREGULAR, SAMPLE, VALUE, NEED = range(7)
RECORDS, ALLELES, LETTERS, CARRIERS, INBRED = range(7, STATE_SIZE)
# NEED: which of the arrays.
RECORD_ROOM, LETTER_ROOM, ALLELE_ROOM, CARRIER_ROOM = range(4)

# Columns of the table of records. END is the base behind the last that a symbolic allele spans,
# -1 if the record does not say; FILTERED is 1 unless FILTER is PASS or empty; ALLELE and CARRIER
# are where the record's alleles and carriers begin; ID and ID_END where its ID stands in the bytes.
COLUMNS = 7
POS, END, FILTERED, ALLELE, CARRIER, ID, ID_END = range(COLUMNS)

# Columns of what is known of each sample on this contig: another ploidy than COMMON (or 0), lines
# with a single dot, the last such.
SEEN_COLUMNS = 3
PLOIDY, DOTS, DOTTED = range(SEEN_COLUMNS)

# Columns of carriers. COPY is ALL_COPIES for a genotype that is one dot; GENOTYPE has the bits.
CARRIER_COLUMNS = 4
WHO, COPY, NUMBER, GENOTYPE = range(CARRIER_COLUMNS)
ALL_COPIES = 255
HETEROZYGOUS, UNPHASED = 1, 2
MISSING = -1

# Why a kernel returned. DONE: nothing whole is left; CONTIG: the next record is of another contig.
DONE, CONTIG, FULL, FEW_COLUMNS, MANY_COLUMNS, BAD_POS, NO_GT, BAD_GT, BAD_ALLELE = range(9)
MIXED_PLOIDY, HIGH_PLOIDY, BAD_LENGTH, BAD_TYPE, OTHER_SAMPLES, NO_REF, BAD_END = range(9, 16)
# In place of the end of a symbolic allele.
UNSAID, NONSENSE = -1, -2

_DOT = 0x2E


class Decoder(NamedTuple):
    """Input and output tables of a decoder.

    Parameters
    ----------
    columns : int32 array, [samples of the file]
        Number of each selected sample, -1 for others. Empty to read position, ID and alleles of
        records alone, whatever follows them.
    state : int64 array, [STATE_SIZE]
    seen : int64 array, [selected samples, SEEN_COLUMNS]
    gt : int64 array, [highest ploidy]
        Scratch: alleles of one genotype, -1 missing.
    records : int64 array, [most, COLUMNS]
    bases : uint8 array
        Letters of all alleles, one after the other.
    starts : int64 array
        Where each allele begins in ``bases``.
    carriers : int32 array, [most, CARRIER_COLUMNS]
    """

    columns: Any
    state: Any
    seen: Any
    gt: Any
    records: Any
    bases: Any
    starts: Any
    carriers: Any


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


# -- records ---------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def begin_record(d: Any) -> Any:
    """Begin a record behind those taken; its row of the table."""
    state = d.state
    state[RECORD] += 1
    state[SAMPLE] = -1
    record = d.records[state[RECORDS]]
    record[ALLELE], record[CARRIER], record[END] = state[ALLELES], state[CARRIERS], UNSAID
    return record


@njit(nogil=True, cache=True)
def end_record(d: Any, status: int) -> None:
    """Keep the record that was begun if all went well; otherwise forget what it left."""
    state = d.state
    if status == DONE:
        state[ON_CONTIG] += 1
        state[RECORDS] += 1
        return
    record = d.records[state[RECORDS]]
    letters = d.starts[record[ALLELE]] if record[ALLELE] > 0 else 0
    state[ALLELES], state[CARRIERS], state[LETTERS] = record[ALLELE], record[CARRIER], letters
    state[RECORD] -= status == FULL


@njit(nogil=True, cache=True)
def end_alleles(d: Any, first: int) -> int:
    """Close a record's alleles; a single dot as ALT is none."""
    state = d.state
    count, last = state[ALLELES] - first, state[LETTERS] - 1
    if count == 2 and d.starts[state[ALLELES] - 1] == last and d.bases[last] == _DOT:
        state[ALLELES] -= 1
        state[LETTERS] -= 1
    d.starts[state[ALLELES]] = state[LETTERS]
    return NO_REF if count == 0 or d.starts[first + 1] == d.starts[first] else DONE


# -- genotypes -------------------------------------------------------------------------------
# These run once a carrier; arrays of a tuple would be counted references each time, so they come
# one by one.


@njit(nogil=True, cache=True)
def _carry(s: Any, copy: Any, number: Any, bits: Any, state: Any, carriers: Any) -> None:
    """Append a carrier."""
    carrier = carriers[state[CARRIERS]]
    carrier[WHO], carrier[COPY], carrier[NUMBER], carrier[GENOTYPE] = s, copy, number, bits
    state[CARRIERS] += 1


@njit(nogil=True, cache=True)
def take_genotype(
    s: int, p: int, unphased: bool, alleles: int, gt: Any, seen: Any, state: Any, carriers: Any
) -> int:
    """Take one sample's genotype, ``gt[:p]``.

    What it notes about ploidy stays right if a record is decoded twice.
    """
    if state[CARRIERS] + p > len(carriers):
        state[NEED] = CARRIER_ROOM
        return FULL
    if p == 1 and gt[0] < 0:
        if seen[s, DOTTED] != state[RECORD]:
            seen[s, DOTTED] = state[RECORD]
            seen[s, DOTS] += 1
        _carry(s, ALL_COPIES, MISSING, 0, state, carriers)
        return DONE
    status = _note_ploidy(s, p, seen, state)
    if status != DONE:
        return status
    known, carried, het = -1, False, False
    for c in range(p):
        if gt[c] >= alleles:
            state[VALUE] = gt[c]
            return BAD_ALLELE
        carried |= gt[c] != 0
        if gt[c] >= 0:
            het |= known >= 0 and known != gt[c]
            known = gt[c]
    if not carried:
        return DONE
    inbred = state[INBRED] != 0
    bits = HETEROZYGOUS * het | UNPHASED * (het and unphased)
    every = het and (unphased or inbred)
    for c in range(1 if inbred and not het else p):
        if gt[c] != 0 or every:
            _carry(s, c, gt[c], bits, state, carriers)
    return DONE


@njit(nogil=True, cache=True)
def _note_ploidy(s: int, p: int, seen: Any, state: Any) -> int:
    """Compare a sample's copies with what it had before on this contig."""
    if state[COMMON] == 0:
        state[COMMON] = p
    before = seen[s, PLOIDY]
    if p == state[COMMON] and before == 0:
        return DONE
    if p == state[COMMON] or before not in (0, p):
        return MIXED_PLOIDY
    if before == 0:
        if seen[s, DOTS] != state[ON_CONTIG]:
            return MIXED_PLOIDY
        seen[s, PLOIDY] = p
        state[IRREGULAR] += 1
    return DONE


@njit(nogil=True, cache=True)
def take_two(s: Any, a: Any, b: Any, unphased: bool, inbred: bool, carriers: Any, n: int) -> int:
    """As :func:`take_genotype` for two alleles known to be right on a sample with two copies.

    ``n`` is how many carriers there are; returns how many then.
    """
    het = a != b
    bits = HETEROZYGOUS * het | UNPHASED * (het and unphased)
    every = het and (unphased or inbred)
    # What does not count is overwritten by the next, which takes less than to branch.
    first, second = carriers[n], carriers[n + (a != 0 or every)]
    first[WHO], first[COPY], first[NUMBER], first[GENOTYPE] = s, 0, a, bits
    second[WHO], second[COPY], second[NUMBER], second[GENOTYPE] = s, 1, b, bits
    return n + (a != 0 or every) + ((het or not inbred) and (b != 0 or every))
