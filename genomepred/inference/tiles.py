"""Trunk tiles: of a panel's distinct windows, each distinct stretch goes through the trunk once.

A window's trunk positions are cut into a left end, tiles of ``stride x phases`` bases and a right
end; the last tile may be longer than what is left for it, and is seen to its end beyond the window,
where the next windows need it anyway. A *piece* is the sequence that decides on one of them: a tile
with as much beside it as the trunk sees, an end with the window's end itself, whose zero padding it
must see too. Pieces of all windows are found equal by the keys of their edits, as windows are; the
trunk runs on distinct pieces, the head on the positions of every distinct window, gathered from
them.

The trunk sees pieces in the fixed batches that a shard's own order makes, so that equal shards give
equal bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import lcm
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from genomepred.errors import ModelError
from genomepred.inference.engine import Engine, compute_batch
from genomepred.lowering.cost import counted, multiply_adds
from genomepred.lowering.receptive_field import (
    CannotShareError,
    Place,
    follow,
    place_of_windows,
    trunk_of,
)
from genomepred.lowering.stretch import Stretch
from genomepred.sequences.codes import Codes
from genomepred.sequences.distinct import Chunk, slack

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

# Compute batches of pieces are so many times those of windows as long: a trunk without its head
# holds little, and of the simulated panel 4 took 12% less time than 1, and 10% less than 8.
_BATCHES = 4
# Values that one call of the head gathers: they stay in the cache.
_HEAD_VALUES = 262_144
# Values of the features of distinct pieces that are kept before all are forgotten.
_MOST_VALUES = 1 << 27
# As for shared overlap: how many times less counted work pays.
PAYS = 1.25


@dataclass(frozen=True)
class Pieces:
    """Pieces of one kind.

    Parameters
    ----------
    length : int
        Bases of a piece: those that what is taken of it depends on.
    offsets : tuple of int
        Where pieces of this kind begin in a window.
    stretch, skip : int
        Bases of the stretch that the trunk is given, and where in it the piece lies.
    begin, count : int
        Positions that are taken, of those the trunk makes of the stretch.
    """

    length: int
    offsets: tuple[int, ...]
    stretch: int
    skip: int
    begin: int
    count: int


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
        return follow(trunk.steps, place_of_windows(bases, stride, 1))

    whole = place(window)
    step = whole.step
    tile = lcm(stride, step) // step  # positions

    def shortest(positions: int, left: bool, right: bool) -> tuple[int, Place]:
        """Bases of the shortest piece with so many positions that padding leaves alone."""
        bases = window % step if right else 0
        while bases <= window:
            try:
                found = place(bases)
                good = found.length
                good -= (0 if left else found.left) + (0 if right else found.right)
                if bases and good >= positions:
                    return bases, found
            except (CannotShareError, ModelError, ValueError):
                pass
            bases += step
        raise CannotShareError("windows are too short for tiles")

    inner, found = shortest(tile, False, False)
    start = max(whole.left, found.left)
    end = whole.length - whole.right  # tiles end at the first edge, the last of them cut there
    tiles = -(-(end - start) // tile)
    offsets = tuple((start + k * tile - found.left) * step for k in range(tiles))
    while tiles and offsets[tiles - 1] + inner > window + slack(window):
        tiles -= 1
    if tiles < 1:
        raise CannotShareError("windows are too short for tiles")
    rest = whole.length - min(start + tiles * tile, end)
    head, _ = shortest(start, True, False)
    last, tail = shortest(rest, False, True)

    def pieces(offsets: tuple[int, ...], bases: int, begin: int, count: int) -> Pieces:
        first, end = Stretch(*trunk, bases, begin, count).reads
        places = tuple(offset + first for offset in offsets)
        return Pieces(end - first, places, bases, first, begin, count)

    return (
        pieces((0,), head, 0, start),
        pieces(offsets[:tiles], inner, found.left, tile),
        pieces((window - last,), last, tail.length - rest, rest),
    )


def positions(model: nn.Module) -> int:
    """Positions of a window that leave a model's trunk."""
    trunk = trunk_of(model, as_written=True)
    return follow(trunk.steps, place_of_windows(trunk.model.window, 1, 1)).length


def turned(pieces: tuple[Pieces, Pieces, Pieces], window: int) -> tuple[Pieces, ...]:
    """The same pieces of the other strand, by their places on this one."""
    return tuple(
        replace(p, offsets=tuple(window - offset - p.length for offset in p.offsets))
        for p in pieces
    )


class DistinctKeys:
    """Numbers of distinct keys in order of their coming.

    Attributes
    ----------
    count : int
        Distinct keys so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._table = np.zeros((1 << 12, 2), np.uint64)
        self._number = np.full(1 << 12, -1, np.int64)

    def numbers(self, key: NDArray[np.uint64]) -> tuple[NDArray[np.int32], Int64]:
        """Number of each key ``[keys, 2]``, and the places of those that are new."""
        while 2 * (self.count + len(key)) > len(self._number):
            self._grow()
        number, new = np.empty(len(key), np.int32), np.empty(len(key), np.int64)
        found = _number(key, self._table, self._number, self.count, number, new)
        self.count += found
        return number, new[:found]

    def _grow(self) -> None:
        kept = self._number >= 0
        key, number = self._table[kept], self._number[kept]
        self._table = np.zeros((2 * len(self._table), 2), np.uint64)
        self._number = np.full(len(self._table), -1, np.int64)
        _insert(key, number, self._table, self._number)


class _Trunk:
    """Computes what is taken of pieces of one kind, a batch at a time."""

    def __init__(self, engine: Engine, pieces: Pieces) -> None:
        self._pieces, self._device = pieces, engine.device
        self._batch = compute_batch(pieces.stretch, engine.device.type)
        self._batch *= _BATCHES if engine.device.type == "cpu" else 1
        place = pieces.stretch, pieces.begin, pieces.count
        self._call: Callable[[Tensor], Tensor]
        try:
            self._call = Stretch(*trunk_of(engine.model), *place)
        except CannotShareError:  # a model as written
            self._call = partial(_taken, engine.model, *place[1:])

    def __call__(self, codes: Codes) -> Tensor:
        """Codes ``[pieces, length]`` -> taken positions, ``[pieces, count, channels]``."""
        batch, skip = self._batch, self._pieces.skip
        # Bases beside a piece may be any: nothing that is taken sees them.
        buffer = torch.full((batch, self._pieces.stretch), 4, dtype=torch.uint8)
        own = buffer[:, skip : skip + self._pieces.length]
        outs = []
        for first in range(0, len(codes), batch):
            some = torch.from_numpy(codes[first : first + batch])
            own[: len(some)] = some
            own[len(some) :] = 4
            outs.append(self._call(buffer.to(self._device))[: len(some)].contiguous())
        return torch.cat(outs)


def _taken(model: Any, begin: int, count: int, codes: Tensor) -> Tensor:
    """Positions of a whole trunk, ``[batch, count, channels]``."""
    y: Tensor = model.trunk(model.encode(codes))
    return y[:, :, begin : begin + count].transpose(1, 2)


class _Kind:
    """Distinct pieces of one kind, and what the trunk makes of them."""

    def __init__(self, pieces: Pieces, trunk: _Trunk, turn: bool) -> None:
        self.pieces, self._trunk, self._turn = pieces, trunk, turn
        self.distinct = DistinctKeys()
        self.numbers: list[NDArray[np.int32]] = []
        self._waiting: list[Codes] = []
        self._done: list[Tensor] = []
        self.values = 0

    def take(self, chunk: Chunk, before: Int64) -> None:
        """Find the pieces of a chunk's distinct windows.

        ``before`` are rows whose pieces, but for one, are also those of a later row, or -1.
        """
        offsets = self.pieces.offsets
        if len(offsets) == 1:
            self.numbers.append(self._numbered(chunk, offsets, None))
            return
        number = np.empty((len(before), len(offsets)), np.int32)
        alone, last = np.flatnonzero(before < 0), -1 if offsets[0] < offsets[1] else 0
        number[alone] = self._numbered(chunk, offsets, alone)
        others = np.flatnonzero(before >= 0)
        number[others, last] = self._numbered(chunk, (offsets[last],), others)[:, 0]
        _follow(number, before, last)
        self.numbers.append(number)

    def _numbered(
        self, chunk: Chunk, offsets: tuple[int, ...], rows: Int64 | None
    ) -> NDArray[np.int32]:
        """Numbers of pieces of rows, [rows, offsets]; those that are new wait for the trunk."""
        key, places = chunk.piece_keys(offsets, self.pieces.length, rows)
        number, new = self.distinct.numbers(key.reshape(-1, 2))
        if len(new):
            codes = chunk.piece_codes(new, places, self.pieces.length)
            if self._turn:
                codes = np.ascontiguousarray(np.array([3, 2, 1, 0, 4], np.uint8)[codes[:, ::-1]])
            self._waiting.append(codes)
        return number.reshape(key.shape[:2])

    def features(self) -> Tensor:
        """Positions of all distinct pieces, ``[pieces, count, channels]``."""
        if self._waiting:
            codes = np.concatenate(self._waiting)
            self._waiting = []
            self._done.append(self._trunk(codes))
            self._done = [torch.cat(self._done)]
            self.values = self._done[0].numel()
        return self._done[0]

    def forget(self) -> None:
        """Start anew, to bound memory."""
        self.distinct = DistinctKeys()
        self._done, self.values = [], 0


class Tiles:
    """Computes distinct windows of chunks through distinct pieces.

    Parameters
    ----------
    engine : Engine
        Of numerics whose overlap is ``naive``; its model, device and activation are used.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pieces = cut_windows(engine.written, engine.geometry.stride)
        self._trunks = [_Trunk(engine, p) for p in self._pieces]
        self._positions = positions(engine.written)
        # Windows and bases after which the tiles of a window stand one further on.
        first, *others = self._pieces[1].offsets
        bases = others[0] - first if others else 0
        self._apart = max(bases // engine.geometry.stride, 1), bases
        self._strands = engine.turns
        self._kinds: list[tuple[_Kind, ...]] = []
        self.reset()

    def reset(self) -> None:
        """Forget all pieces: at the beginning of every shard."""
        window = self._engine.geometry.window
        self._kinds = []
        for turn in self._strands:
            pieces = turned(self._pieces, window) if turn else self._pieces
            kinds = zip(pieces, self._trunks, strict=True)
            self._kinds.append(tuple(_Kind(p, trunk, turn) for p, trunk in kinds))

    def take(self, chunk: Chunk) -> None:
        """Note the distinct windows of a chunk."""
        before = chunk.rows_before(*self._apart)
        for kinds in self._kinds:
            for kind in kinds:
                kind.take(chunk, before)

    def values(self) -> Float32:
        """Predictions of all windows taken since the last call, ``[windows, 1, tracks]``."""
        engine = self._engine
        with torch.no_grad(), engine.autocast():
            strands = [
                self._strand(kinds, turn)
                for kinds, turn in zip(self._kinds, self._strands, strict=True)
            ]
        if max(kind.values for kinds in self._kinds for kind in kinds) > _MOST_VALUES:
            for kinds in self._kinds:
                for kind in kinds:
                    kind.forget()
        if len(strands) == 1:
            found = strands[0]
        elif engine.numerics.strand == "mean":
            found = (strands[0] + strands[1]) / 2
        else:
            found = torch.cat(strands, dim=2)
        result: Float32 = found.cpu().numpy()
        return result

    def _strand(self, kinds: tuple[_Kind, ...], turn: bool) -> Tensor:
        features = [kind.features() for kind in kinds]
        numbers = [torch.from_numpy(np.concatenate(kind.numbers)) for kind in kinds]
        for kind in kinds:
            kind.numbers = []
        rows, channels = len(numbers[0]), features[0].shape[2]
        batch = max(_HEAD_VALUES // (self._positions * channels), 1)
        outs = []
        for first in range(0, rows, batch):
            parts = []
            for feature, number in zip(features, numbers, strict=True):
                some = number[first : first + batch].to(feature.device)
                if len(some) < batch:  # the same shape for every call
                    some = torch.cat([some, some[:1].expand(batch - len(some), -1)])
                found = feature.flatten(1).index_select(0, some.reshape(-1))
                parts.append(found.view(batch, -1, channels))
            # Of the last tile only what comes before the right end.
            parts[1] = parts[1][:, : self._positions - parts[0].shape[1] - parts[2].shape[1]]
            x = torch.cat(parts, dim=1).transpose(1, 2)
            y = self._engine.activate(self._engine.model.head(x).unsqueeze(1).float())
            outs.append(y[: rows - first].clone())
        values = torch.cat(outs)
        return self._engine.turned_tracks(values) if turn else values

    @property
    def counts(self) -> tuple[int, ...]:
        """Distinct pieces of each kind so far, of the first strand."""
        return tuple(kind.distinct.count for kind in self._kinds[0])


def tile_work(model: nn.Module, stride: int) -> tuple[tuple[int, ...], int, int]:
    """Multiply-adds: of a piece of each kind, of a window's head, of a window by itself.

    Raises
    ------
    CannotShareError
        See :func:`cut_windows`.
    """
    pieces = cut_windows(model, stride)
    whole, steps = trunk_of(model, as_written=True)
    stretches = (Stretch(whole, steps, p.stretch, p.begin, p.count) for p in pieces)
    works = tuple(stretch.multiply_adds for stretch in stretches)
    window = multiply_adds(model, whole.window)
    codes_ = torch.zeros(1, whole.window, dtype=torch.uint8)
    with torch.no_grad():
        trunk = counted(whole.trunk, whole.encode(codes_)).multiply_adds
    return works, window - trunk, window


@njit(nogil=True, cache=True)
def _follow(number: Any, before: Any, last: int) -> None:
    """Numbers that an earlier row has one place further on; those at ``last`` are known."""
    for row in range(len(before)):
        if before[row] >= 0:
            for k in range(number.shape[1] - 1):
                if last < 0:
                    number[row, k] = number[before[row], k + 1]
                else:
                    number[row, k + 1] = number[before[row], k]


@njit(nogil=True, cache=True)
def _number(key: Any, table: Any, numbers: Any, count: int, number: Any, new: Any) -> int:
    """Look keys up, and number those that are new; how many."""
    mask = np.uint64(len(numbers) - 1)
    found = 0
    for i in range(len(key)):
        a, b = key[i, 0], key[i, 1]
        slot = a & mask
        while numbers[slot] >= 0 and (table[slot, 0] != a or table[slot, 1] != b):
            slot = (slot + np.uint64(1)) & mask
        if numbers[slot] < 0:
            table[slot, 0], table[slot, 1] = a, b
            numbers[slot] = count + found
            new[found] = i
            found += 1
        number[i] = numbers[slot]
    return found


@njit(nogil=True, cache=True)
def _insert(key: Any, number: Any, table: Any, numbers: Any) -> None:
    mask = np.uint64(len(numbers) - 1)
    for i in range(len(key)):
        slot = key[i, 0] & mask
        while numbers[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        table[slot, 0], table[slot, 1] = key[i, 0], key[i, 1]
        numbers[slot] = number[i]
