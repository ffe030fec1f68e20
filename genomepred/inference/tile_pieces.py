"""Pieces of windows: how windows are cut for their trunk, and what is distinct of a panel's.

A window's trunk positions are cut into a left end, tiles of ``stride x phases`` bases and a right
end; the last tile may be longer than what is left for it, and is seen to its end beyond the window,
where the next windows need it anyway. A *piece* is the sequence that decides on one of them: a tile
with as much beside it as the trunk sees, an end with the window's end itself, whose zero padding it
must see too. Pieces of all windows are found equal by the keys of their edits, as windows are.

What is new of a new tile is often some of its positions: one edit is seen by those around it. So a
tile is cut again into *units*, which are found equal as tiles are, and *runs* of new units are what
the trunk is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import lcm
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import nn

from genomepred.lowering.receptive_field import (
    CannotShareError,
    Place,
    counted,
    multiply_adds,
    place_of_windows,
    shortest,
    trunk_of,
)
from genomepred.lowering.stretch import Stretch
from genomepred.models.layers import FlattenPositions
from genomepred.sequences.distinct import Chunk, Places, slack

Int64 = NDArray[np.int64]

# Units of a tile, at most: each number of them that follow one another is a shape of the trunk.
_UNITS = 16
# Products of a piece with a head's weights, at most: 4 KB a piece.
_PRODUCTS = 1024


@dataclass(frozen=True)
class Shape:
    """Stretches that the trunk is given of one length.

    Parameters
    ----------
    length : int
        Bases that what is taken depends on.
    stretch, skip : int
        Bases of the stretch that the trunk is given, and where in it those begin.
    begin, count : int
        Positions that are taken, of those the trunk makes of the stretch.
    """

    length: int
    stretch: int
    skip: int
    begin: int
    count: int


@dataclass(frozen=True)
class Pieces:
    """Pieces of one kind.

    Parameters
    ----------
    offsets : tuple of int
        Where pieces of this kind begin in a window.
    runs : tuple of Shape
        Of one unit, of two and so on, the last one of all units: the whole piece.
    """

    offsets: tuple[int, ...]
    runs: tuple[Shape, ...]

    @property
    def length(self) -> int:
        """Bases of a piece."""
        return self.runs[-1].length

    @property
    def count(self) -> int:
        """Positions of a piece."""
        return self.runs[-1].count

    @property
    def step(self) -> int:
        """Bases from one unit to the next."""
        return (self.length - self.runs[0].length) // max(len(self.runs) - 1, 1)


@lru_cache(maxsize=8)
def cut_windows(model: nn.Module, stride: int) -> tuple[Pieces, Pieces, Pieces]:
    """Left end, tiles and right end of the windows of a model with a trunk.

    Raises
    ------
    CannotShareError
        If the model has no trunk that works on stretches, or its windows are too short for them.
    """
    trunk = trunk_of(model, as_written=True)
    window = trunk.model.window

    def place(bases: int) -> Place:
        return place_of_windows(bases, stride, 1, trunk.steps)

    whole = place(window)
    step = whole.step
    tile = lcm(stride, step) // step  # positions

    fitting = partial(shortest, place, window, most=window)
    inner, found = fitting(tile)
    start = max(whole.left, found.left)
    end = whole.length - whole.right  # tiles end at the first edge, the last of them cut there
    tiles = -(-(end - start) // tile)
    offsets = tuple((start + k * tile - found.left) * step for k in range(tiles))
    while tiles and offsets[tiles - 1] + inner > window + slack(window):
        tiles -= 1
    if tiles < 1:
        raise CannotShareError("windows are too short for tiles")
    rest = whole.length - min(start + tiles * tile, end)
    head, _ = fitting(start, left=True)
    last, tail = fitting(rest, right=True)

    def shape(bases: int, begin: int, count: int) -> Shape:
        first, end = Stretch(*trunk, bases, begin, count).reads
        return Shape(end - first, bases, first, begin, count)

    def run(count: int) -> Shape:
        bases, found = fitting(count)
        return shape(bases, found.left, count)

    def pieces(offset: int, one: Shape) -> Pieces:
        return Pieces((offset + one.skip,), (one,))

    units = max(k for k in range(1, min(tile, _UNITS) + 1) if tile % k == 0)
    runs = tuple(run(k * (tile // units)) for k in range(1, units + 1))
    return (
        pieces(0, shape(head, 0, start)),
        Pieces(tuple(offset + runs[-1].skip for offset in offsets[:tiles]), runs),
        pieces(window - last, shape(last, tail.length - rest, rest)),
    )


@lru_cache(maxsize=8)
def positions(model: nn.Module) -> int:
    """Positions of a window that leave a model's trunk."""
    trunk = trunk_of(model, as_written=True)
    return place_of_windows(trunk.model.window, 1, 1, trunk.steps).length


def turned(pieces: tuple[Pieces, Pieces, Pieces], window: int) -> tuple[Pieces, ...]:
    """The same pieces of the other strand, by their places on this one."""
    return tuple(
        replace(p, offsets=tuple(window - offset - p.length for offset in p.offsets))
        for p in pieces
    )


def linear_by_pieces(head: nn.Module, cut: Sequence[Pieces]) -> nn.Linear | None:
    """Linear layer that a head begins with, if windows are to be sums over their pieces.

    That is where a window's products with its pieces are fewer than the positions to gather, and
    those of a piece, which are kept, not many; see
    :class:`genomepred.inference.tile_head.LinearHead`.
    """
    match list(head) if isinstance(head, nn.Sequential) else []:
        case [FlattenPositions(), nn.Linear() as linear, *_]:
            places = sum(len(pieces.offsets) for pieces in cut)
            fewer = places * linear.out_features < linear.in_features
            return linear if fewer and places * linear.out_features <= _PRODUCTS else None
    return None


class DistinctKeys:
    """Numbers of distinct keys in order of their coming.

    Attributes
    ----------
    count : int
        Distinct keys so far.
    """

    def __init__(self) -> None:
        self.count = 0
        # A key, and its number counted from 1; 32 bytes, so that a cache line holds all of it.
        self._table = np.zeros((1 << 12, 4), np.uint64)

    def numbers(self, key: NDArray[np.uint64]) -> tuple[NDArray[np.int32], Int64]:
        """Number of each key ``[keys, 2]``, and the places of those that are new."""
        while 2 * (self.count + len(key)) > len(self._table):
            self._grow()
        number, new = np.empty(len(key), np.int32), np.empty(len(key), np.int64)
        found = _number(key, self._table, self.count, number, new)
        self.count += found
        return number, new[:found]

    def clear(self) -> None:
        """Forget all keys."""
        self.count = 0
        self._table.fill(0)

    def _grow(self) -> None:
        table = np.zeros((2 * len(self._table), 4), np.uint64)
        _insert(self._table, table)
        self._table = table


class Runs(NamedTuple):
    """Units of some pieces, and runs of those that are new.

    Parameters
    ----------
    number : int32 array, [pieces, units]
        In the order of the trunk, which on the other strand is not that of bases.
    begin, length : int64 array, [runs]
        Unit at which each begins, counted through all pieces, and its units, no more than a piece
        has, the last of them of this piece or the next one. Their numbers follow one another.
    """

    number: NDArray[np.int32]
    begin: Int64
    length: Int64


def joined(some: Sequence[Runs]) -> Runs:
    """Runs of pieces that follow one another."""
    sizes = np.cumsum([0, *(runs.number.size for runs in some)])
    return Runs(
        np.concatenate([runs.number for runs in some]),
        np.concatenate([runs.begin + size for runs, size in zip(some, sizes, strict=False)]),
        np.concatenate([runs.length for runs in some]),
    )


class Units:
    """Units of pieces of one kind, found equal.

    Parameters
    ----------
    pieces : Pieces
    turn : bool, optional
        Whether pieces are those of the other strand.
    """

    def __init__(self, pieces: Pieces, turn: bool = False) -> None:
        self._count, self._length = len(pieces.runs), pieces.runs[0].length
        places = range(self._count)
        self._offsets = tuple(k * pieces.step for k in (reversed(places) if turn else places))
        self.distinct = DistinctKeys()

    def take(self, chunk: Chunk, which: Int64, places: Places) -> Runs:
        """Units of pieces of a chunk, by their flat numbers."""
        key = chunk.part_keys(which, places, self._offsets, self._length)
        number, new = self.distinct.numbers(key.reshape(-1, 2))
        begin, length = np.empty(len(new), np.int64), np.empty(len(new), np.int64)
        found = _runs(new, which, places.start.shape[1], self._count, begin, length)
        return Runs(number.reshape(-1, self._count), begin[:found], length[:found])


class Tally:
    """Counts of what is distinct of a panel's windows, and of its multiply-adds.

    Parameters
    ----------
    model : nn.Module
    stride : int

    Attributes
    ----------
    alone, head : int
        Multiply-adds of a window by itself, and of what is computed of it once its pieces are.
    counts : list of int
        Distinct left ends, tiles and right ends.
    pieces : int
        Multiply-adds of all that is distinct.

    Raises
    ------
    CannotShareError
        See :func:`cut_windows`.
    """

    def __init__(self, model: nn.Module, stride: int) -> None:
        self._pieces = cut_windows(model, stride)
        trunk = trunk_of(model, as_written=True)
        self._works = [
            np.array([Stretch(*trunk, r.stretch, r.begin, r.count).multiply_adds for r in p.runs])
            for p in self._pieces
        ]
        whole = trunk.model
        codes = torch.zeros(1, whole.window, dtype=torch.uint8)
        with torch.no_grad():
            before = counted(whole.trunk, whole.encode(codes)).multiply_adds
        self.alone = multiply_adds(model, whole.window)
        self.head = self.alone - before
        self._products = [0] * len(self._pieces)
        linear = linear_by_pieces(whole.head, self._pieces)
        if linear is not None:
            self.head -= linear.weight.numel()
            of_position = linear.weight.numel() // positions(model)
            self._products = [p.count * len(p.offsets) * of_position for p in self._pieces]
        self.counts, self.pieces = [0] * len(self._pieces), 0
        self.begin()

    def begin(self) -> None:
        """Begin another contig or stretch, that shares nothing with those before."""
        self._found = [(DistinctKeys(), Units(pieces)) for pieces in self._pieces]

    def take(self, chunk: Chunk) -> None:
        """Count a chunk's distinct windows."""
        for k, (pieces, (distinct, units)) in enumerate(
            zip(self._pieces, self._found, strict=True)
        ):
            key, places = chunk.piece_keys(pieces.offsets, pieces.length)
            _, new = distinct.numbers(key.reshape(-1, 2))
            self.counts[k] += len(new)
            self.pieces += self._products[k] * len(new)
            self.pieces += int(self._works[k][units.take(chunk, new, places).length - 1].sum())


@njit(nogil=True, cache=True)
def _number(key: Any, table: Any, count: int, number: Any, new: Any) -> int:
    """Look keys up, and number those that are new; how many."""
    mask = np.uint64(len(table) - 1)
    found = 0
    for i in range(len(key)):
        a, b = key[i, 0], key[i, 1]
        slot = a & mask
        while table[slot, 2] and (table[slot, 0] != a or table[slot, 1] != b):
            slot = (slot + np.uint64(1)) & mask
        if not table[slot, 2]:
            new[found] = i
            found += 1
            table[slot, 0], table[slot, 1], table[slot, 2] = a, b, np.uint64(count + found)
        number[i] = np.int64(table[slot, 2]) - 1
    return found


@njit(nogil=True, cache=True)
def _runs(new: Any, which: Any, places: int, units: int, begin: Any, length: Any) -> int:
    """Runs of new units, ascending; how many. None is longer than a piece.

    A run goes on from one piece to the next where that is the next tile of the same row.
    """
    runs = 0
    for k in range(len(new)):
        piece, unit = divmod(new[k], units)
        goes_on = runs > 0 and new[k] == new[k - 1] + 1 and length[runs - 1] < units
        if goes_on and unit == 0:
            goes_on = which[piece] == which[piece - 1] + 1 and which[piece] % places > 0
        if not goes_on:
            begin[runs], length[runs] = new[k], 0
            runs += 1
        length[runs - 1] += 1
    return runs


@njit(nogil=True, cache=True)
def _insert(old: Any, table: Any) -> None:
    """Put all keys of a table into one that is larger and empty."""
    mask = np.uint64(len(table) - 1)
    for i in range(len(old)):
        if old[i, 2]:
            slot = old[i, 0] & mask
            while table[slot, 2]:
                slot = (slot + np.uint64(1)) & mask
            table[slot] = old[i]
