"""Edits of many haplotypes in a stretch of a contig, as arrays for kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from genomepred.sequences.codes import Codes

if TYPE_CHECKING:
    from genomepred.sequences.panel_cache import Block

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Region:
    """Accepted edits of haplotypes in ``[low, high)`` of a contig.

    Attributes
    ----------
    low, high, length : int
        Bases whose edits are known, and the contig's length.
    first : int64 array, [haplotypes + 1]
        Where each haplotype's edits begin in ``edit``.
    edit : int32 array
        Numbers of edits, haplotype by haplotype, in order along the contig.
    start, end : int64 array, [edits]
        Reference bases that each edit replaces.
    alt_first : int64 array, [edits + 1]
        Where each edit's bases begin in ``letters``.
    letters : uint8 array
        Codes.
    key : uint64 array, [edits, 2]
        Random bits that depend on what an edit does and on nothing else.
    block : int64 array, [edits]
        Block of the cache that each edit is in.
    """

    low: int
    high: int
    length: int
    first: Int64
    edit: NDArray[np.int32]
    start: Int64
    end: Int64
    alt_first: Int64
    letters: Codes
    key: UInt64
    block: Int64


def expand(
    blocks: Sequence[tuple[Block, Int64]], haplotypes: int, low: int, high: int, length: int
) -> Region:
    """Edits of blocks that touch ``[low, high]``, each block with every haplotype's slot, or -1."""
    tables = [np.empty((0, 2), np.int64), *(block.edits for block, _ in blocks)]
    table = np.concatenate(tables)
    alt_first, letters = [np.zeros(1, np.int64)], [np.empty(0, np.uint8)]
    size, edits = 0, 0
    offsets = []
    for block, _ in blocks:
        alt_first.append(block.alt_first[1:].astype(np.int64) + size)
        letters.append(block.letters)
        size += len(block.letters)
        offsets.append(edits)
        edits += len(block.edits)
    first = np.zeros(haplotypes + 1, np.int64)
    places = np.empty((len(blocks), haplotypes, 2), np.int64)
    for (block, slots), place in zip(blocks, places, strict=True):
        some, single = _events(block, low, high), _single(block)
        _count(block.first, block.events, block.first_edit, slots, *some, single, place, first)
    np.cumsum(first, out=first)
    edit = np.empty(int(first[-1]), np.int32)
    at = first[:-1].copy()
    for (block, _), place, offset in zip(blocks, places, offsets, strict=True):
        _fill(block.events, block.first_edit, place, offset, _single(block), at, edit)
    number = [np.full(len(block.edits), block.number, np.int64) for block, _ in blocks]
    whole_first, whole_letters = np.concatenate(alt_first), np.concatenate(letters)
    key = np.empty((len(table), 2), np.uint64)
    start, end = np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])
    _keys(start, end, whole_first, whole_letters, key)
    return Region(
        low,
        high,
        length,
        first,
        edit,
        start,
        end,
        whole_first,
        whole_letters,
        key,
        np.concatenate([np.empty(0, np.int64), *number]),
    )


def _events(block: Block, low: int, high: int) -> tuple[int, int]:
    """The first event of a block with an edit that touches ``[low, high]``, and behind the last."""
    touching = np.flatnonzero((block.edits[:, 1] >= low) & (block.edits[:, 0] <= high))
    if not len(touching):
        return 0, 0
    ends = np.searchsorted(block.first_edit, touching[[0, -1]], side="right")
    return int(ends[0]) - 1, int(ends[1])


def _single(block: Block) -> bool:
    """Whether every event is one edit."""
    return bool((np.diff(block.first_edit) == 1).all())


@njit(nogil=True, cache=True)
def _count(
    first: Any,
    events: Any,
    first_edit: Any,
    slots: Any,
    begin: int,
    end: int,
    single: bool,
    at: Any,
    count: Any,
) -> None:
    """Find each haplotype's events of ``[begin, end)`` and add how many edits they have.

    ``at`` (int64, [haplotypes, 2]) receives where they begin and end in ``events``. Of a block
    whose events have a ``single`` edit each nothing is looked up.
    """
    for h in range(len(slots)):
        at[h] = 0
        if slots[h] >= 0:
            low, high = first[slots[h]], first[slots[h] + 1]
            at[h, 0] = low + np.searchsorted(events[low:high], begin)
            at[h, 1] = low + np.searchsorted(events[low:high], end)
            if single:
                count[h + 1] += at[h, 1] - at[h, 0]
                continue
            for k in range(at[h, 0], at[h, 1]):
                count[h + 1] += first_edit[events[k] + 1] - first_edit[events[k]]


@njit(nogil=True, cache=True)
def _fill(
    events: Any, first_edit: Any, places: Any, offset: int, single: bool, at: Any, edit: Any
) -> None:
    """Write the edits of each haplotype's events from ``at`` on, which moves on."""
    for h in range(len(places)):
        behind, begin, end = at[h], places[h, 0], places[h, 1]
        if single:
            for k in range(end - begin):
                edit[behind + k] = events[begin + k] + offset
            at[h] += end - begin
            continue
        for k in range(begin, end):
            for e in range(first_edit[events[k]], first_edit[events[k] + 1]):
                edit[behind] = e + offset
                behind += 1
        at[h] = behind


@njit(nogil=True, cache=True)
def mix(x: Any) -> Any:
    """A bijection of 64 bits that spreads every bit over all (the finaliser of splitmix64)."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(nogil=True, cache=True)
def _keys(start: Any, end: Any, alt_first: Any, letters: Any, key: Any) -> None:
    """128 bits of what each edit does: two chains of :func:`mix` with different beginnings."""
    for e in range(len(start)):
        for half in range(2):
            x = mix(np.uint64(0x9E3779B97F4A7C15) * np.uint64(2 * half + 1))
            x = mix(x ^ mix(np.uint64(start[e]) + np.uint64(half)))
            x = mix(x + np.uint64(end[e] - start[e]))
            x = mix(x ^ np.uint64(alt_first[e + 1] - alt_first[e]))
            for k in range(alt_first[e], alt_first[e + 1]):
                x = mix(x + np.uint64(letters[k]) + np.uint64(1))
            key[e, half] = x
