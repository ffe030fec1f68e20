"""Windows around variants through a trunk that sees each stretch once.

Of a model with a trunk and a head, an alternative changes no trunk positions but those that see it,
and reference windows of neighboring variants overlap. So a window's positions are gathered from
*pieces*: its two ends, whose zero padding makes them its own; *strips*, the positions that see an
alternative; and *tiles*, all others, which are positions of the reference. Positions stand
``pool`` bases apart, and windows begin anywhere, so tiles are numbered for each *phase*, the
remainder of a position's base.

Pieces that are equal are computed once. What that saves is counted before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from genomepred.inference.engine import Engine, compute_batch
from genomepred.lowering.receptive_field import (
    Place,
    Trunk,
    counted,
    multiply_adds,
    place_of_windows,
    receptive_field,
    shortest,
    trunk_of,
)
from genomepred.lowering.stretch import Stretch, on_stretches
from genomepred.variants.windows import REFERENCE, Haplotypes

Int64 = NDArray[np.int64]

# Bases of a tile's positions. Longer ones see less beside them twice, shorter ones waste less where
# windows are far apart.
_TILE_BASES = 1024
# Windows of a call of the head: its gathered features stay in the cache.
_HEAD_BASES = 262_144


class Piece(NamedTuple):
    """A kind of piece: its bases, and the positions that are taken of each."""

    length: int
    begin: int
    taken: int


class Pieces(NamedTuple):
    """Distinct pieces of one kind: their haplotypes (-1: the reference) and first bases."""

    kind: Piece
    haplotype: Int64
    start: Int64


@dataclass(frozen=True, eq=False)
class Gathering:
    """Stretches to compute for some windows, and where the windows' positions are in them.

    Attributes
    ----------
    haplotypes : Haplotypes
    pieces : tuple of Pieces
        Left ends, right ends, strips, tiles.
    windows : int
    index : callable -> int64 array, [windows, positions]
        Row of each position in the pieces' positions, one after the other.
    """

    haplotypes: Haplotypes
    pieces: tuple[Pieces, ...]
    windows: int
    index: Callable[[], Int64]


class SharedTrunk:
    """Raw values of windows of haplotypes, their trunk positions shared.

    Parameters
    ----------
    engine : Engine
        Its model, device and precision are used.

    Raises
    ------
    CannotShareError
        If the model has no trunk that works on stretches, or its windows are too short for it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        trunk = self._trunk = trunk_of(engine.written, as_written=True)
        self._window = trunk.model.window
        self._pool, self._before, self._after = receptive_field(trunk.model.trunk)
        whole = _place(trunk, self._window)
        self._inner = whole.left, whole.length - whole.right
        self._positions = whole.length
        see = self._pool + self._before + self._after
        strip = -(-see // self._pool)
        self._left = _shortest(trunk, whole.left, left=True)
        self._right = _shortest(trunk, whole.right, right=True)
        self._strip = _shortest(trunk, strip)
        self._tile = _shortest(trunk, max(_TILE_BASES // self._pool, 1))
        kinds = (self._left, self._right, self._strip, self._tile)
        self._piece_works = [Stretch(*trunk, *kind).multiply_adds for kind in kinds]
        self._calls = {kind: on_stretches(engine.model, *kind) for kind in kinds}
        #: Multiply-adds of a window by itself.
        self.window_work = multiply_adds(trunk.model, self._window)
        self._head_work = self.window_work - self._trunk_work(self._window)

    def work(self, gathering: Gathering) -> int:
        """Multiply-adds of one strand."""
        pieces = zip(gathering.pieces, self._piece_works, strict=True)
        trunk = sum(len(found.start) * work for found, work in pieces)
        return trunk + gathering.windows * self._head_work

    def gather(self, haplotypes: Haplotypes, haplotype: Int64, begin: Int64) -> Gathering:
        """Pieces of windows that begin at ``begin`` on their haplotypes."""
        far = np.int64(1 << 60)
        low, _, high = (np.append(ends, far)[haplotype] for ends in haplotypes.hull)
        net = np.append(haplotypes.net, 0)[haplotype]
        pool, (first, last) = self._pool, self._inner
        right = begin + self._window - self._right.length
        lefts, left_row = _ends(self._left, haplotype, begin, low, high, net)
        rights, right_row = _ends(self._right, haplotype, right, low, high, net)
        # The first position that sees an alternative, and the first one behind it.
        sees = np.clip((low - begin - pool - self._after) // pool + 1, first, last)
        past = np.clip(-((begin - high - self._before) // pool), sees, last)
        strips, strip_row, strip_first = self._strips(haplotype, begin, sees, past)
        tiles, table = self._tiles(len(haplotypes.codes), begin, net, sees, past)
        pieces = (lefts, rights, strips, tiles)
        sizes = [len(p.start) * p.kind.taken for p in pieces]

        def index() -> Int64:
            found = np.empty((len(begin), self._positions), np.int64)
            _fill_index(
                begin,
                net,
                sees,
                past,
                left_row,
                right_row,
                strip_first,
                strip_row,
                table,
                np.cumsum([0, *sizes]),
                self._inner,
                pool,
                self._strip.taken,
                self._tile.taken,
                found,
            )
            return found

        return Gathering(haplotypes, pieces, len(begin), index)

    def raw(self, gathering: Gathering) -> Tensor:
        """Raw values of the windows, float32 ``[windows, 1, tracks]``."""
        with torch.no_grad(), self._engine.autocast:
            parts = [self._run_trunk(gathering.haplotypes, p) for p in gathering.pieces]
            features = torch.cat([part for part in parts if len(part)])
            return self._run_head(features, gathering.index()).float()

    def _strips(
        self, haplotype: Int64, begin: Int64, sees: Int64, past: Int64
    ) -> tuple[Pieces, Int64, Int64]:
        """Strips that hold positions ``[sees, past)`` of each window."""
        kind = self._strip
        counts = -(-(past - sees) // kind.taken)
        first = np.append(0, np.cumsum(counts))
        window = np.repeat(np.arange(len(begin)), counts)
        number = np.arange(len(window)) - first[window]
        start = begin[window] + (sees[window] + number * kind.taken - kind.begin) * self._pool
        pieces, row = _distinct(kind, haplotype[window], start)
        return pieces, row, first

    def _tiles(
        self, bases: int, begin: Int64, net: Int64, sees: Int64, past: Int64
    ) -> tuple[Pieces, Int64]:
        """Tiles that all other positions are in, and the row of each by phase and number."""
        kind, pool = self._tile, self._pool
        needed = np.zeros((pool, bases // (pool * kind.taken) + 1), np.bool_)
        _mark_tiles(begin, net, sees, past, self._inner, pool, kind.taken, needed)
        phase, number = np.nonzero(needed)
        start = (number * kind.taken - kind.begin) * pool + phase
        table = np.full(needed.shape, -1, np.int64)
        table[phase, number] = np.arange(len(start))
        return Pieces(kind, np.full(len(start), REFERENCE), start), table

    def _run_trunk(self, haplotypes: Haplotypes, pieces: Pieces) -> Tensor:
        """Taken positions of pieces, ``[pieces * taken, channels]``."""
        device, length, taken = self._engine.device, pieces.kind.length, pieces.kind.taken
        out = torch.empty(0)
        for part in _parts(len(pieces.start), compute_batch(length, device.type)):
            codes = haplotypes.build(pieces.haplotype[part], pieces.start[part], length)
            y = self._calls[pieces.kind](torch.from_numpy(codes).to(device))
            if not len(out):
                out = y.new_empty(len(pieces.start), taken, y.shape[2])
            out[part] = y
        return out.flatten(0, 1) if len(out) else out

    def _run_head(self, features: Tensor, index: Int64) -> Tensor:
        rows = torch.from_numpy(index)
        values = []
        for part in _parts(len(rows), max(_HEAD_BASES // self._window, 1)):
            x = features[rows[part].to(features.device)].transpose(1, 2)
            values.append(self._engine.model.head(x).unsqueeze(1).clone())
        return torch.cat(values)

    def _trunk_work(self, bases: int) -> int:
        with torch.no_grad():
            codes = torch.zeros(1, bases, dtype=torch.uint8, device=self._engine.device)
            model = self._trunk.model
            return counted(model.trunk, model.encode(codes)).multiply_adds


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _place(trunk: Trunk, bases: int) -> Place:
    """Positions that a trunk makes of a stretch, and those that padding touches."""
    return place_of_windows(bases, 0, 1, trunk.steps)


def _shortest(trunk: Trunk, count: int, *, left: bool = False, right: bool = False) -> Piece:
    """The shortest piece with ``count`` positions that only its own window's ends pad.

    Those at its left or right end, or such that no padding touches.
    """
    window = trunk.model.window
    most = window + count * _place(trunk, window).step
    bases, found = shortest(partial(_place, trunk), window, count, most, left=left, right=right)
    begin = 0 if left else found.length - count if right else found.left
    return Piece(bases, begin, count)


def _ends(
    kind: Piece, haplotype: Int64, start: Int64, low: Int64, high: Int64, net: Int64
) -> tuple[Pieces, Int64]:
    """Ends of windows; where an alternative does not reach, those of the reference."""
    before, behind = start + kind.length <= low, start >= high
    whose = np.where(before | behind, REFERENCE, haplotype)
    return _distinct(kind, whose, np.where(behind, start - net, start))


def _distinct(kind: Piece, haplotype: Int64, start: Int64) -> tuple[Pieces, Int64]:
    """Distinct pieces, and the number of each."""
    if not kind.taken:
        return Pieces(kind, haplotype[:0], start[:0]), np.zeros(len(start), np.int64)
    (whose, begin), row = distinct_rows(haplotype, start)
    return Pieces(kind, whose, begin), row


def distinct_rows(haplotype: Int64, start: Int64) -> tuple[tuple[Int64, Int64], Int64]:
    """Distinct pairs in ascending order, and the number of each."""
    if not len(start):
        return (haplotype, start), np.zeros(0, np.int64)
    least = int(start.min())
    width = int(start.max()) - least + 1
    key, row = np.unique((haplotype + 1) * width + (start - least), return_inverse=True)
    return (key // width - 1, key % width + least), row.reshape(-1)


@njit(nogil=True, cache=True)
def _mark_tiles(
    begin: Any, net: Any, sees: Any, past: Any, inner: Any, pool: int, count: int, needed: Any
) -> None:
    for w in range(len(begin)):
        for side in range(2):
            first = inner[0] if side == 0 else past[w]
            last = sees[w] if side == 0 else inner[1]
            if first >= last:
                continue
            base = begin[w] - (net[w] if side else 0)
            phase = base % pool
            a, b = base // pool + first, base // pool + last - 1
            for tile in range(a // count, b // count + 1):
                needed[phase, tile] = True


@njit(nogil=True, cache=True)
def _fill_index(
    begin: Any,
    net: Any,
    sees: Any,
    past: Any,
    left_row: Any,
    right_row: Any,
    strip_first: Any,
    strip_row: Any,
    table: Any,
    at: Any,
    inner: Any,
    pool: int,
    strip: int,
    tile: int,
    index: Any,
) -> None:
    for w in range(len(begin)):
        for j in range(inner[0]):
            index[w, j] = at[0] + left_row[w] * inner[0] + j
        right = index.shape[1] - inner[1]
        for j in range(right):
            index[w, inner[1] + j] = at[1] + right_row[w] * right + j
        for j in range(sees[w], past[w]):
            k, rest = divmod(j - sees[w], strip)
            index[w, j] = at[2] + strip_row[strip_first[w] + k] * strip + rest
        for side in range(2):
            first = inner[0] if side == 0 else past[w]
            last = sees[w] if side == 0 else inner[1]
            base = begin[w] - (net[w] if side else 0)
            phase, origin = base % pool, base // pool
            for j in range(first, last):
                k = origin + j
                index[w, j] = at[3] + table[phase, k // tile] * tile + k % tile
