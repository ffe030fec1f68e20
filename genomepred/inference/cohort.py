"""Predictions of a range of a panel's windows: each distinct one once.

A shard is a range of windows of the grid, so what it holds is a function of reference, panel and
numerics alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genomepred.errors import PrecisionError
from genomepred.inference.engine import Batches, Engine
from genomepred.inference.pipeline import missing_bins
from genomepred.inference.tiles import Tiles
from genomepred.sequences.cohort import Panel
from genomepred.sequences.distinct import Chunk, distinct_windows, leader_type
from genomepred.sequences.grid import Grid

# What a signature calls the overlap of a run that goes through tiles.
TILES = "tiles"
# Distinct windows that go through tiles at a time: of each such group one batch of pieces is not
# full.
_TILE_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class ShardResult:
    """Predictions of a range of windows.

    Attributes
    ----------
    values : float32 array, [distinct x bins, tracks]
        NaN where missing.
    counts : int64 array, [windows]
        Distinct predictions of each window.
    leader : uint array, [distinct]
    index : uint array, [haplotypes, windows]
    """

    values: NDArray[np.float32]
    counts: NDArray[np.int64]
    leader: NDArray[Any]
    index: NDArray[Any]


def compute_shard(
    engine: Engine, panel: Panel, grid: Grid, first: int, last: int, slots: int
) -> ShardResult:
    """Distinct predictions of windows ``[first, last)`` of a whole grid.

    A window's slot in its compute batch is fixed by its place among the shard's distinct windows.
    """
    rows: _Rows | _TileRows
    rows = _TileRows(engine) if engine.numerics.overlap == TILES else _Rows(engine, slots)
    haplotypes, windows = len(panel.haplotypes), last - first
    kind = leader_type(haplotypes)
    counts, leader = np.empty(windows, np.int64), [np.empty(0, kind)]
    index, done = np.empty((haplotypes, windows), kind), 0
    for contig, begin, end in pieces(grid, first, last):
        for chunk in distinct_windows(panel, grid.geometry, contig, begin, end):
            some = slice(done, done + len(chunk.begin) - 1)
            counts[some], index[:, some] = np.diff(chunk.begin), chunk.index
            leader.append(chunk.leader)
            rows.take(chunk, contig)
            done = some.stop
    return ShardResult(rows.finish(), counts, np.concatenate(leader), index)


def pieces(grid: Grid, first: int, last: int) -> Iterator[tuple[str, int, int]]:
    """Contigs and their own windows in a range of a grid's windows."""
    g = grid.geometry
    begins = grid.first_row // g.bins
    ends = np.append(begins[1:], grid.rows // g.bins)
    k = int(np.searchsorted(ends, first, side="right"))
    while first < last:
        origin, end = int(begins[k] - grid.start[k] // g.stride), min(int(ends[k]), last)
        if first < end:
            yield str(grid.contigs[k]), first - origin, end - origin
            first = end
        k += 1


class _TileRows:
    """Distinct windows on their way through tiles, some ten thousand at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._tiles = engine, Tiles(engine)
        self._contig, self._waiting = "", 0
        self._real: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float32]] = []

    def take(self, chunk: Chunk, contig: str) -> None:
        """Note a chunk's rows, and compute what waits if it is enough."""
        if contig != self._contig:  # keys are places on a contig
            self._compute()
            self._tiles.reset()
            self._contig = contig
        self._tiles.take(chunk)
        self._real.append(chunk.real_bases())
        self._waiting += len(chunk.leader)
        if self._waiting >= _TILE_ROWS:
            self._compute()

    def finish(self) -> NDArray[np.float32]:
        """Values of everything taken, [rows, tracks]."""
        self._compute()
        return np.concatenate([np.empty((0, self._engine.tracks), np.float32), *self._values])

    def _compute(self) -> None:
        if not self._waiting:
            return
        values = self._tiles.values()
        missing = (np.concatenate(self._real) < self._engine.card.min_bases)[:, None]
        self._values.append(_checked(self._engine, values, missing, self._contig))
        self._real, self._waiting = [], 0


def _checked(
    engine: Engine, found: NDArray[np.float32], missing: NDArray[np.bool_], contig: str
) -> NDArray[np.float32]:
    """Values ``[windows, bins, tracks]`` as rows, NaN where missing.

    Raises
    ------
    PrecisionError
        If another value is not finite.
    """
    values = np.where(missing[..., None], np.float32(np.nan), found)
    if (~np.isfinite(values).all(axis=2) & ~missing).any():
        raise PrecisionError(
            f"{engine.card.name!r} gives values that are not finite on {contig!r} in "
            f"{engine.numerics.precision}; start again in a new --out with --precision fp32, if "
            "this is not what it was"
        )
    return values.reshape(-1, values.shape[2])


class _Rows:
    """Distinct windows on their way through the engine, some compute batches at a time."""

    def __init__(self, engine: Engine, slots: int) -> None:
        self._engine, self._slots = engine, slots
        window = engine.geometry.window
        self._codes = torch.full((slots * window,), 4, dtype=torch.uint8)
        self._table = self._codes.numpy().reshape(slots, window)
        self._used = 0
        self._values: list[NDArray[np.float32]] = []

    def take(self, chunk: Chunk, contig: str) -> None:
        """Compute a chunk's rows, as far as they fill the slots."""
        done, count = 0, len(chunk.leader)
        while done < count:
            more = min(count - done, self._slots - self._used)
            self._table[self._used : self._used + more] = chunk.codes(done, done + more)
            self._used += more
            done += more
            if self._used == self._slots:
                self._compute(contig)

    def finish(self) -> NDArray[np.float32]:
        """Values of everything taken, [rows, tracks]."""
        if self._used:
            self._compute("the shard's end")
        empty = np.empty((0, self._engine.tracks), np.float32)
        return np.concatenate([empty, *self._values])

    def _compute(self, contig: str) -> None:
        g, batch, count = self._engine.geometry, self._engine.numerics.compute_batch, self._used
        slots = ceil(count / batch) * batch
        self._table[count:slots] = 4
        flat = self._table[:slots].reshape(-1)
        starts = np.arange(slots, dtype=np.int64) * g.window
        missing = np.ones((slots, g.bins), np.bool_)
        missing[:count] = missing_bins(flat, starts[:count], g, self._engine.card.min_bases)
        needed = np.any(~missing.reshape(-1, batch * g.bins), axis=1)
        codes = self._codes[: slots * g.window]
        found = self._engine.submit(Batches(codes, starts, g.window, needed))()
        self._values.append(_checked(self._engine, found[:count], missing[:count], contig))
        self._used = 0
