"""Trunk tiles: of a panel's distinct windows, each distinct stretch goes through the trunk once.

See :mod:`genomepred.inference.tile_pieces` for how windows are cut, and
:mod:`genomepred.inference.tile_head` for how values are made of pieces. The trunk runs on runs of
new units.

The trunk sees runs in the batches that a shard's own order makes, so that equal shards give equal
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from genomepred.inference.engine import Engine, compute_batch
from genomepred.inference.tile_head import GatheredHead, LinearHead, head_on_pieces
from genomepred.inference.tile_pieces import (
    DistinctKeys,
    Pieces,
    Runs,
    Shape,
    Units,
    cut_windows,
    joined,
    positions,
    turned,
)
from genomepred.lowering.blocks import Buffers
from genomepred.lowering.stretch import on_stretches
from genomepred.sequences.codes import Codes
from genomepred.sequences.distinct import Chunk

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

# Compute batches of pieces are so many times those of windows as long: a trunk without its head
# holds little, and of the simulated panel 4 took 12% less time than 1, and 10% less than 8.
_BATCHES = 4
# Slots of a shape's last batch are a multiple of this.
_FEWEST = 64
# Values of distinct pieces that are kept before all are forgotten.
_MOST_VALUES = 1 << 27
# As for shared overlap: how many times less counted work pays.
PAYS = 1.25


class _Trunk:
    """Computes what is taken of stretches of one shape, a batch at a time."""

    def __init__(self, engine: Engine, shape: Shape, outputs: Buffers) -> None:
        self._shape, self._device = shape, engine.device
        self._batch = compute_batch(shape.stretch, engine.device.type)
        self._batch *= _BATCHES if engine.device.type == "cpu" else 1
        self._call = on_stretches(engine.model, shape.stretch, shape.begin, shape.count, outputs)

    def __call__(self, codes: Codes) -> Tensor:
        """Codes ``[pieces, length]`` -> taken positions, ``[pieces, count, channels]``."""
        outs = []
        for first in range(0, len(codes), self._batch):
            some = codes[first : first + self._batch]
            slots = min(-(-len(some) // _FEWEST) * _FEWEST, self._batch)
            # Bases beside what is taken may be any: nothing that is taken sees them.
            buffer = torch.full((slots, self._shape.stretch), 4, dtype=torch.uint8)
            begin = self._shape.skip
            buffer[: len(some), begin : begin + self._shape.length] = torch.from_numpy(some)
            outs.append(self._call(buffer.to(self._device))[: len(some)].contiguous())
        return torch.cat(outs)


class _Kind:
    """Distinct pieces of one kind, and what the head needs of them."""

    def __init__(
        self,
        pieces: Pieces,
        trunks: Sequence[_Trunk],
        turn: bool,
        kept: Callable[[Tensor], Tensor],
    ) -> None:
        self.pieces, self._turn = pieces, turn
        self.distinct, self._units = DistinctKeys(), Units(pieces, turn)
        self.numbers: list[NDArray[np.int32]] = []
        self._trunks, self._kept = trunks, kept
        self._waiting: list[tuple[Codes, Runs]] = []
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
        """Numbers of pieces of rows, [rows, offsets]; what is new waits for the trunk."""
        key, places = chunk.piece_keys(offsets, self.pieces.length, rows)
        number, new = self.distinct.numbers(key.reshape(-1, 2))
        if len(new):
            codes = chunk.piece_codes(new, places, self.pieces.length)
            if self._turn:
                codes = np.ascontiguousarray(np.array([3, 2, 1, 0, 4], np.uint8)[codes[:, ::-1]])
            self._waiting.append((codes, self._units.take(chunk, new, places)))
        return number.reshape(key.shape[:2])

    def kept(self) -> Tensor:
        """Values of all distinct pieces that the head needs, ``[pieces, ...]``."""
        if self._waiting:
            units, values = self._units_waiting()
            found = values.index_select(0, units.reshape(-1).to(values.device))
            found = found.view(len(units), self.pieces.count, values.shape[2])
            self._done = [torch.cat([*self._done, self._kept(found)])]
            self.values = self._done[0].numel()
            # Units are found equal among the pieces of one call: this bounds memory.
            self._waiting = []
            self._units.distinct.clear()
        return self._done[0]

    def _units_waiting(self) -> tuple[Tensor, Tensor]:
        """Units of what waits, [pieces, units], and what the trunk makes of each."""
        codes = np.concatenate([codes for codes, _ in self._waiting])
        # A run may end in the next piece, which begins so much further on; none of ends does.
        further = len(self._trunks) * self.pieces.step
        beyond = np.roll(codes, -1, 0)[:, codes.shape[1] - further :]
        codes = np.concatenate([codes, beyond], axis=1)
        runs = joined([runs for _, runs in self._waiting])
        units, each = runs.number.reshape(-1), self.pieces.runs[0].count
        values: Tensor | None = None
        for length in np.unique(runs.length).tolist():
            begin = runs.begin[runs.length == length]
            piece, unit = np.divmod(begin, len(self._trunks))
            views = sliding_window_view(codes, self.pieces.runs[length - 1].length, axis=1)
            made = self._trunks[length - 1](views[piece, unit * self.pieces.step])
            if values is None:
                values = made.new_empty(self._units.distinct.count, each, made.shape[2])
            place = torch.from_numpy(units[begin]).long()[:, None] + torch.arange(length)
            own = made.reshape(len(begin) * length, each, made.shape[2])
            values.index_copy_(0, place.reshape(-1).to(values.device), own)
        assert values is not None
        return torch.from_numpy(runs.number), values

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
        self._trunks = []
        for pieces in self._pieces:
            outputs = Buffers()  # one length at a time: there are many
            self._trunks.append([_Trunk(engine, run, outputs) for run in pieces.runs])
        self._head: GatheredHead | LinearHead = head_on_pieces(
            engine.model.head, self._pieces, positions(engine.written)
        )
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
            kinds = enumerate(zip(pieces, self._trunks, strict=True))
            self._kinds.append(
                tuple(
                    _Kind(p, trunks, turn, partial(self._head.kept, k)) for k, (p, trunks) in kinds
                )
            )

    def take(self, chunk: Chunk) -> None:
        """Note the distinct windows of a chunk."""
        before = chunk.rows_before(*self._apart)
        for kinds in self._kinds:
            for kind in kinds:
                kind.take(chunk, before)

    def values(self) -> Float32:
        """Predictions of all windows taken since the last call, ``[windows, 1, tracks]``."""
        engine = self._engine
        with torch.no_grad(), engine.autocast:
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
        kept = [kind.kept() for kind in kinds]
        numbers = [torch.from_numpy(np.concatenate(kind.numbers)) for kind in kinds]
        for kind in kinds:
            kind.numbers = []
        raw = self._head(kept, [number.to(kept[0].device) for number in numbers])
        values = self._engine.activate(raw.unsqueeze(1).float())
        return self._engine.turned_tracks(values) if turn else values

    @property
    def counts(self) -> tuple[int, ...]:
        """Distinct pieces of each kind so far, of the first strand."""
        return tuple(kind.distinct.count for kind in self._kinds[0])


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
