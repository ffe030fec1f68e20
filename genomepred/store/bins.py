"""Bins of rows: sum, number and highest of their values, and those of a region for all lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genomepred.sequences.grid import Region
from genomepred.store.blocks import Block, BlockSource, spans_of
from genomepred.store.pyramid import INNER
from genomepred.store.reader import Float32, Int64


class Bin(NamedTuple):
    """Sum and number of the values of a bin that are not missing, and the highest of them.

    All of one shape, whose last axis is tracks; the highest of none is minus infinity.
    """

    sum: NDArray[np.float64]
    number: NDArray[np.float64]
    high: Float32

    def of(self, lines: Any) -> Bin:
        """Those of some lines, a slice or their numbers."""
        return Bin(self.sum[lines], self.number[lines], self.high[lines])

    def joined(self, other: Bin) -> Bin:
        """Both bins as one."""
        high = np.maximum(self.high, other.high)
        return Bin(self.sum + other.sum, self.number + other.number, high)

    def statistics(self) -> tuple[Float32, Float32]:
        """Mean and highest, NaN where all is missing."""
        with np.errstate(invalid="ignore"):
            mean = (self.sum / self.number).astype(np.float32)
        return mean, np.where(self.number > 0, self.high, np.float32(np.nan))


class Bins(NamedTuple):
    """Bins of a region for all lines.

    ``start`` and ``end`` are the bases that each is drawn on, int64 [bins]; ``mean`` and ``high``
    float32 [lines, bins, tracks], NaN where all is missing.
    """

    start: Int64
    end: Int64
    mean: Float32
    high: Float32


def bins_within(source: BlockSource, region: Region, most: int) -> Bins:
    """Bins of a region: of as many rows, a power of two, as make at most ``most`` of them.

    Raises
    ------
    RegionError
        If no interval lies on the contig.
    StoreError
        If a file is damaged there.
    """
    grid, shape = source.grid, (len(source.lines), 0, len(source.tracks))
    ranges = grid.query(region.contig, region.start, region.end)
    rows = sum(last - first for first, last in ranges)
    level = max(int(np.ceil(np.log2(max(rows, 1) / most))), 0)
    starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    means, highs = [np.empty(shape, np.float32)], [np.empty(shape, np.float32)]
    for first, last in ranges:
        for row, count, found in _of_range(source, first, last, level):
            edges = grid.drawn(np.array([row, row + count - 1]))
            mean, high = found.statistics()
            starts.append(edges[0][:1])
            ends.append(edges[1][1:])
            means.append(mean[:, None])
            highs.append(high[:, None])
    return Bins(
        np.concatenate(starts),
        np.concatenate(ends),
        np.concatenate(means, axis=1),
        np.concatenate(highs, axis=1),
    )


def _of_range(
    source: BlockSource, first: int, last: int, level: int
) -> Iterator[tuple[int, int, Bin]]:
    """First row, rows and bin [lines, tracks] of each bin that meets rows of one interval."""
    origin = int(source.grid.first_row[source.grid.interval_of(np.array([first]))[0]])
    size, waiting = 1 << level, None
    begin = origin + (first - origin) // size * size
    spans = spans_of(source.grid, begin, max(last, begin))
    for block in source.blocks(spans):
        for row, count, found in _of_block(block, min(level, INNER)):
            number = (row - origin) >> level
            if waiting is not None and waiting[0] == number:
                waiting = number, waiting[1], waiting[2] + count, waiting[3].joined(found)
                continue
            if waiting is not None and waiting[1] + waiting[2] > first:
                yield waiting[1:]
            waiting = number, row, count, found
            if row >= last:
                return
    if waiting is not None and waiting[1] < last:
        yield waiting[1:]


def _of_block(block: Block, level: int) -> Iterator[tuple[int, int, Bin]]:
    """Bins of a block, expanded to all lines."""
    rows, size = block.values.shape[1], 1 << level
    for at in range(0, rows, size):
        part = block.values[:, at : at + size]
        yield block.first + at, part.shape[1], summed(part).of(block.label)


def summed(values: Float32) -> Bin:
    """All rows of distinct lines [distinct, rows, tracks] as one bin [distinct, tracks]."""
    missing: NDArray[Any] = np.isnan(values)
    return Bin(
        np.where(missing, 0, values.astype(np.float64)).sum(axis=1),
        (~missing).sum(axis=1).astype(np.float64),
        np.where(missing, np.float32(-np.inf), values).max(axis=1),
    )
