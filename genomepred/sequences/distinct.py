"""Distinct windows: what of a panel's windows has to be computed, each sequence once.

The grid stays in reference coordinates. Window ``i`` has the anchor ``x = i * stride + span // 2``,
the center of what it describes; ``x'`` is the first reference base from there on that a haplotype
keeps, ``phi(x')`` its place on the haplotype, and the window is the haplotype's ``window`` bases
from ``phi(x') - crop - span // 2`` on. Haplotypes with equal windows form a class, its *leader* is
the lowest haplotype number of it. Rows stand in order of (window, leader).

Of consecutive windows only those of haplotypes that have other edits there are looked at: of many
haplotypes few differ from all others over some thousand bases.

A window's key is the sum of the keys of the edits that reach into it, mixed with where its first
base lies on the reference: two windows with equal keys hold the same bases. (The converse fails
where one edit is cut by a window's end; such a window is computed twice, no more.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genomepred.sequences import panel_cache
from genomepred.sequences.codes import Codes
from genomepred.sequences.cohort import Panel
from genomepred.sequences.grid import Geometry
from genomepred.sequences.haplotypes import Region
from genomepred.sequences.sweep import (
    alike,
    build_windows,
    count_real,
    group,
    most_replaced,
    pieces,
    prefixes,
    rows_before,
    sweep,
)

Int64 = NDArray[np.int64]
# Haplotypes from which on leaders take four bytes.
_WIDE_FROM = 65_535

# Windows whose keys are kept at a time, at most, and keys: 7 MB.
_CHUNK, _KEYS = 64, 1 << 18
# Bases of all haplotypes together whose edits are loaded at a time: 4 bytes an edit, of which the
# simulated panel has 4 a kb.
_LOADED = 1 << 30
# Bases loaded beside what windows span, for what deletions take; more if they take more.
_MARGIN = 1 << 12


def leader_type(haplotypes: int) -> np.dtype[Any]:
    """Type of leaders; its largest value means that a haplotype has no such contig."""
    return np.dtype(np.uint16 if haplotypes < _WIDE_FROM else np.uint32)


def slack(window: int) -> int:
    """Bases beyond a window's ends that its pieces may reach."""
    return window // 2


def anchor(geometry: Geometry) -> int:
    """Bases from a window's place on the grid (``i * stride``) to its anchor."""
    return geometry.span // 2


class Places(NamedTuple):
    """Places of pieces: whose [rows], first base on it and first edit [rows, offsets]."""

    column: Int64
    start: Int64
    edit: Int64


class _Edits(NamedTuple):
    """Edits of the haplotypes of a chunk that differ, as :mod:`genomepred.sequences.sweep` says."""

    first: Int64
    edit: NDArray[np.int32]
    delta: Int64
    total: NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive windows of one contig and what of them is distinct.

    Attributes
    ----------
    first : int
        Number of the first window on its contig.
    begin : int64 array, [windows + 1]
        Where each window's distinct rows begin.
    leader : uint array, [distinct]
        Ascending within a window.
    index : uint array, [haplotypes, windows]
        Leader of each haplotype, or the type's largest value.
    """

    first: int
    begin: Int64
    leader: NDArray[Any]
    index: NDArray[Any]
    _column: Int64
    _region: Region
    _codes: Codes
    _known: Int64
    _origin: int
    _start: Int64
    _edit: NDArray[np.int32]
    _edits: _Edits
    _window: int

    @cached_property
    def _rows(self) -> tuple[Int64, Int64, Int64]:
        """Haplotype, place on it and first edit of every distinct row."""
        window = np.repeat(np.arange(len(self.begin) - 1), np.diff(self.begin))
        at = window, self._column
        return self._column, self._start[at], self._edit[at].astype(np.int64)

    def rows_before(self, windows: int, bases: int) -> Int64:
        """Row of the same leader so many windows before, if it begins so many bases before; or -1.

        Its pieces are those of this row, further on in the window.
        """
        out = np.full(len(self.leader), -1, np.int64)
        rows_before(self.begin, self._column, self._start, windows, bases, out)
        return out

    def piece_keys(
        self, offsets: tuple[int, ...], length: int, rows: Int64 | None = None
    ) -> tuple[NDArray[np.uint64], Places]:
        """Keys of pieces of distinct windows, ``length`` bases from each offset on.

        Parameters
        ----------
        offsets : tuple of int
            Ascending or descending.
        length : int
        rows : int64 array, optional
            Distinct windows; all by default.

        Returns
        -------
        key : uint64 array, [rows, offsets, 2]
            Equal keys mean equal bases, in this chunk or in another one of the same contig.
        places : Places
            For :meth:`piece_codes`.
        """
        column, begins, firsts = self._rows
        if rows is not None:
            column, begins, firsts = column[rows], begins[rows], firsts[rows]
        return self._keys(column, begins, firsts, offsets, length)

    def part_keys(
        self, which: Int64, places: Places, offsets: tuple[int, ...], length: int
    ) -> NDArray[np.uint64]:
        """Keys of parts of some pieces, as of pieces of windows; ``[pieces, offsets, 2]``."""
        column, start, edit = places
        owner = column[which // start.shape[1]]
        begins, firsts = start.reshape(-1)[which], edit.reshape(-1)[which]
        return self._keys(owner, begins, firsts, offsets, length)[0]

    def _keys(
        self, column: Int64, begins: Int64, firsts: Int64, offsets: tuple[int, ...], length: int
    ) -> tuple[NDArray[np.uint64], Places]:
        """Keys of what begins so far behind places on haplotypes, whose first edits are known."""
        r, own, shape = self._region, self._edits, (len(column), len(offsets))
        key, start = np.empty((*shape, 2), np.uint64), np.empty(shape, np.int64)
        edit = np.empty(shape, np.int64)
        pieces(
            column,
            begins,
            firsts,
            np.array(offsets, np.int64),
            length,
            own.first,
            own.edit,
            r.start,
            r.end,
            own.delta,
            own.total,
            key,
            start,
            edit,
        )
        return key, Places(column, start, edit)

    def piece_codes(self, which: Int64, places: Places, length: int) -> Codes:
        """Codes of some pieces of :meth:`piece_keys`, by their flat numbers, [pieces, length]."""
        column, start, edit = places
        out = np.empty((len(which), length), np.uint8)
        owner = column[which // start.shape[1]]
        self._fill(owner, start.reshape(-1)[which], edit.reshape(-1)[which], out)
        return out

    def real_bases(self) -> Int64:
        """Codes 0-3 of every distinct window, without building it."""
        column, begins, firsts = self._rows
        r, own = self._region, self._edits
        out = np.empty(len(column), np.int64)
        count_real(
            begins,
            firsts,
            own.first[column + 1],
            own.edit,
            r.start,
            r.end,
            r.alt_first,
            r.letters,
            own.delta[firsts + column],
            self._known,
            self._origin,
            self._window,
            out,
        )
        return out

    def codes(self, first: int = 0, last: int | None = None) -> Codes:
        """Codes of distinct rows ``[first, last)``, [rows, window]."""
        last = len(self.leader) if last is None else last
        out = np.empty((last - first, self._window), np.uint8)
        column, start, edit = (values[first:last] for values in self._rows)
        self._fill(column, start, edit, out)
        return out

    def _fill(self, column: Int64, start: Int64, edit: Int64, out: Codes) -> None:
        r, own = self._region, self._edits
        build_windows(
            start,
            edit,
            own.first[column + 1],
            own.edit,
            r.start,
            r.end,
            r.alt_first,
            r.letters,
            own.delta[edit + column],
            self._codes,
            self._origin,
            out,
        )


def distinct_windows(
    panel: Panel, geometry: Geometry, contig: str, first: int, last: int
) -> Iterator[Chunk]:
    """Windows ``[first, last)`` of a contig, a few at a time."""
    haplotypes = max(len(panel.haplotypes), 1)
    size = chunk_windows(haplotypes)  # chunks are the same however much is loaded
    step = max(_LOADED // haplotypes // geometry.stride // size, 1) * size
    for begin in range(first, last, step):
        yield from _loaded(panel, geometry, contig, begin, min(begin + step, last))


def chunk_windows(haplotypes: int) -> int:
    """Windows of a chunk."""
    return min(max(_KEYS // max(haplotypes, 1), 1), _CHUNK)


def held_bytes(haplotypes: int, geometry: Geometry, longest: int, edits_a_base: float) -> int:
    """About the bytes that finding distinct windows holds.

    ``longest`` is the longest contig; ``edits_a_base`` are those of all haplotypes together.
    """
    window, size = geometry.window, chunk_windows(haplotypes)
    beside = 2 * (2 * window + _MARGIN) + window
    bases = min(_LOADED // max(haplotypes, 1) + beside, longest)
    blocks = min(panel_cache.KEPT_BLOCKS * panel_cache.BLOCK, longest)
    reach = min(size * geometry.stride + window, longest)
    # Edits of two loads, where the last chunk of the one before is still in use; those of a chunk
    # and all its keys, as if no two haplotypes were alike.
    return int(edits_a_base * (2 * 4 * bases + 28 * reach + 8 * blocks)) + 36 * haplotypes * size


def _loaded(
    panel: Panel, geometry: Geometry, contig: str, first: int, last: int
) -> Iterator[Chunk]:
    """Windows whose edits are loaded together."""
    left = geometry.crop + anchor(geometry)
    low = first * geometry.stride + anchor(geometry) - left
    high = (last - 1) * geometry.stride + anchor(geometry) - left + geometry.window
    margin, size = 2 * geometry.window + _MARGIN, chunk_windows(len(panel.haplotypes))
    while True:
        pointers = _Sweep(panel, geometry, contig, low - margin, high + margin)
        done = first
        for begin in range(first, last, size):
            chunk = pointers.chunk(begin, min(begin + size, last))
            if chunk is None:
                break
            yield chunk
            done = begin + len(chunk.begin) - 1
        if done == last:
            return
        # A deletion or insertion carries a window out of what was loaded: load more.
        first, margin = done, 2 * margin + panel_cache.BLOCK
        low = first * geometry.stride + anchor(geometry) - left


class _Sweep:
    """Pointers into the edits of all haplotypes that move along a contig."""

    def __init__(self, panel: Panel, geometry: Geometry, contig: str, low: int, high: int) -> None:
        region = self._region = panel.region(contig, low, high)
        self._geometry = geometry
        haplotypes = len(panel.haplotypes)
        self._absent = panel.absent(contig)
        self._type = leader_type(haplotypes)
        self._origin = min(low, region.low)
        end = max(high, region.high)
        self._codes = panel.reference.codes(contig, self._origin, end)
        # Codes 0-3 before each base of what was loaded.
        self._known = np.zeros(len(self._codes) + 1, np.int64)
        np.cumsum(self._codes < 4, out=self._known[1:])
        replaced = region.end - region.start
        self._gain = np.diff(region.alt_first) - replaced
        # What lies beside a place on a haplotype may lie further away on the reference, by no more
        # than this: deletions take no more.
        self._lost = int(most_replaced(region.first, region.edit, self._gain, replaced))
        # First edit that reaches into a chunk's windows, first edit behind them, and the sum of
        # keys between.
        self._at = np.stack([region.first[:-1]] * 2, 1)
        self._total = np.zeros((haplotypes, 2), np.uint64)
        slots = 1 << max(2 * haplotypes - 1, 1).bit_length()
        self._table = np.zeros((slots, 2), np.uint64)
        self._stamp = np.zeros(slots, np.int64)
        self._owner = np.zeros(slots, np.int64)
        self._number = 0

    def chunk(self, first: int, last: int) -> Chunk | None:
        """Windows ``[first, last)``; None if what was loaded does not reach."""
        g, r, count = self._geometry, self._region, last - first
        same, who, own = self._alike(first, last)
        key = np.empty((count, len(who), 2), np.uint64)
        start, edit = np.empty(key.shape[:2], np.int64), np.empty(key.shape[:2], np.int32)
        reaches = sweep(
            first * g.stride + anchor(g),
            g.stride,
            g.crop + anchor(g),
            g.window,
            slack(g.window) + self._lost,
            r.low,
            r.high,
            r.length,
            own.first,
            own.edit,
            r.start,
            r.end,
            self._gain,
            own.delta,
            own.total,
            key,
            start,
            edit,
        )
        if not reaches:
            return None
        begin, column = np.zeros(count + 1, np.int64), np.empty(key[..., 0].size, np.int64)
        index = np.full((len(who) + 1, count), np.iinfo(self._type).max, self._type)
        table = self._table, self._stamp, self._owner, self._number
        column = column[: group(key, who, *table, begin, column, index)].copy()
        self._number += count
        return Chunk(
            first,
            begin,
            who[column].astype(self._type),
            index[same],  # the last row is that of absent ones
            column,
            r,
            self._codes,
            self._known,
            self._origin,
            start,
            edit,
            own,
            g.window,
        )

    def _alike(self, first: int, last: int) -> tuple[Int64, Int64, _Edits]:
        """Haplotypes that differ in windows ``[first, last)``, and their edits.

        Two haplotypes with the same edits as far as windows reach have the same windows. First
        comes for every haplotype the place of its like among them; see :func:`alike`.
        """
        g, r, lost = self._geometry, self._region, self._lost
        low = first * g.stride - g.crop - lost
        # Where a deletion takes the last anchor, its window stands further on.
        high = (last - 1) * g.stride - g.crop + g.window + 2 * lost
        same, who = (np.empty(len(self._absent), np.int64) for _ in range(2))
        self._number += 1
        found = alike(
            low,
            high,
            self._absent,
            r.first,
            r.edit,
            r.start,
            r.end,
            r.key,
            self._at,
            self._total,
            self._table,
            self._stamp,
            self._owner,
            self._number,
            same,
            who,
        )
        # What pieces see beyond all these windows may lack edits: no window has it.
        who, at = who[:found], self._at[who[:found]]
        begin = np.zeros(found + 1, np.int64)
        np.cumsum(at[:, 1] - at[:, 0], out=begin[1:])
        edits, entries = int(begin[-1]), int(begin[-1]) + found
        own = _Edits(
            begin,
            np.empty(edits, np.int32),
            np.empty(entries, np.int64),
            np.empty((entries, 2), np.uint64),
        )
        prefixes(at, r.edit, self._gain, r.key, *own)
        return same, who, own
