"""Statistics of the rows of many regions, for all samples of a file, a block of rows at a time.

Of a cohort file nothing is expanded to samples but the result: within a region, haplotypes that
have the same distinct windows are one class, and the statistic is computed once a class. Memory
depends on the block and on what is asked for at a time, not on the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from genomepred.sequences.grid import Grid
from genomepred.store.blocks import classify, factors
from genomepred.store.cohort import CohortStore
from genomepred.store.cohort_file import windows_together
from genomepred.store.reader import PredictionStore
from genomepred.tables.regions import NamedRegion

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

STATISTICS = ("mean", "max", "min", "fraction")
# What each begins with, before any value.
_START = np.array([0.0, -np.inf, np.inf, 0.0])
# Values of a plain file that are read at a time.
_BLOCK_VALUES = 1 << 21


class Statistic(NamedTuple):
    """A statistic of the rows that intersect a region, missing rows left out.

    ``name`` is one of :data:`STATISTICS`; ``fraction`` is the share of rows that are at least
    ``threshold``.
    """

    name: str
    threshold: float = np.nan

    @property
    def number(self) -> int:
        """Its place in :data:`STATISTICS`."""
        return STATISTICS.index(self.name)


class Pieces(NamedTuple):
    """Row ranges ``[first, last)`` of regions, by the number of the region."""

    region: Int64
    first: Int64
    last: Int64

    @classmethod
    def of(cls, grid: Grid, regions: Sequence[NamedRegion | None]) -> Pieces:
        """Rows that intersect each of the regions; None and unknown contigs have none."""
        known = set(grid.contigs.tolist())
        found = [
            (number, first, last)
            for number, region in enumerate(regions)
            if region is not None and region.contig in known
            for first, last in grid.query(region.contig, region.start, region.end)
        ]
        return cls(*np.array(found, np.int64).reshape(-1, 3).T)

    def cut(self, size: int) -> Pieces:
        """The same, cut at multiples of ``size`` rows and in their order."""
        count = (self.last - 1) // size - self.first // size + 1
        source = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(source)) - np.repeat(np.cumsum(count) - count, count)
        low = (self.first[source] // size + number) * size
        first = np.maximum(self.first[source], low)
        last = np.minimum(self.last[source], low + size)
        order = np.lexsort((self.region[source], first // size))
        return Pieces(self.region[source][order], first[order], last[order])

    def blocks(self, size: int) -> list[Pieces]:
        """Groups of pieces that lie in one stretch of ``size`` rows each."""
        cut = self.cut(size)
        bounds = np.flatnonzero(np.diff(cut.first // size)) + 1
        columns = [np.split(column, bounds) for column in cut]
        return [Pieces(*group) for group in zip(*columns, strict=True) if len(group[0])]


def reduce_store(
    store: PredictionStore, pieces: Pieces, regions: int, how: Statistic, columns: Sequence[int]
) -> Float32:
    """Statistic of the rows of regions of one genome, [regions, columns]; NaN without a value."""
    total, count = _accumulators(how, regions, 1, len(columns))
    for block in pieces.blocks(max(_BLOCK_VALUES // len(store.tracks), 1)):
        low = int(block.first.min())
        values = columns_of(store.read(low, int(block.last.max())), columns)
        _accumulate(values, low, *block, how.number, how.threshold, total, count)
    return _finished(how, total, count)[:, 0]


def reduce_cohort(
    store: CohortStore, pieces: Pieces, regions: int, how: Statistic, columns: Sequence[int]
) -> Float32:
    """Statistic of the rows of regions of all haplotypes, [regions, haplotypes, columns]."""
    haplotypes, bins = len(store.haplotypes), store.grid.geometry.bins
    total, count = _accumulators(how, regions, haplotypes, len(columns))
    for block in pieces.blocks(windows_together(haplotypes) * bins):
        first, last = int(block.first.min()) // bins, -(-int(block.last.max()) // bins)
        classes = store.classes(first, last)
        classes = classes._replace(rows=columns_of(classes.rows, columns))
        bad = _accumulate_classes(
            *classes,
            factors(last - first),
            first,
            bins,
            *block,
            how.number,
            how.threshold,
            total,
            count,
        )
        if bad >= 0:
            raise store.without_leader(bad)
    return _finished(how, total, count)


def columns_of(rows: Float32, columns: Sequence[int]) -> Float32:
    """Some tracks of rows; the rows themselves if it is all of them."""
    if list(columns) == list(range(rows.shape[1])):
        return rows
    return np.ascontiguousarray(rows[:, columns])


def _accumulators(
    how: Statistic, regions: int, samples: int, tracks: int
) -> tuple[Float64, NDArray[np.int32]]:
    shape = regions, samples, tracks
    return np.full(shape, _START[how.number]), np.zeros(shape, np.int32)


def _finished(how: Statistic, total: Float64, count: NDArray[np.int32]) -> Float32:
    with np.errstate(invalid="ignore", over="ignore"):
        if how.name in ("mean", "fraction"):
            total /= np.maximum(count, 1)
        total[count == 0] = np.nan
        return total.astype(np.float32)


@njit(nogil=True, cache=True)
def _term(number: int, threshold: float, value: float) -> float:
    """The term that a value adds to a statistic."""
    if number < 3:
        return value
    return 1.0 if value >= threshold else 0.0


@njit(nogil=True, cache=True)
def _joined(number: int, a: float, b: float) -> float:
    """Statistic of two sets of values from those of each."""
    if number == 1:
        return max(a, b)
    return min(a, b) if number == 2 else a + b


@njit(nogil=True, cache=True)
def _accumulate(
    values: Any,
    low: int,
    region: Any,
    first: Any,
    last: Any,
    number: int,
    threshold: float,
    total: Any,
    count: Any,
) -> None:
    """Take rows of one genome, ``values[0]`` being row ``low``, into their regions' statistics."""
    for p in range(len(region)):
        r, rows = region[p], values[first[p] - low : last[p] - low]
        _take(rows, number, threshold, total[r, 0], count[r, 0])


@njit(nogil=True, cache=True)
def _accumulate_classes(
    index: Any,
    starts: Any,
    leader: Any,
    rows: Any,
    none: int,
    factors: Any,
    window: int,
    bins: int,
    region: Any,
    first: Any,
    last: Any,
    number: int,
    threshold: float,
    total: Any,
    count: Any,
) -> int:
    """Take rows of all haplotypes into their regions' statistics, once a class of haplotypes.

    The first five are those of :class:`~genomepred.store.cohort.Classes`, ``factors`` those of
    :func:`~genomepred.store.blocks.factors`; ``window`` is the number of the first window. Gives
    -1, or the window whose index names no leader.
    """
    haplotypes, tracks = total.shape[1], total.shape[2]
    words = index.reshape((1, haplotypes, index.shape[1]))
    masks = np.full(index.shape[1], -1).astype(index.dtype)
    slots = np.empty(1 << int(np.ceil(np.log2(2 * haplotypes + 2))), np.int64)
    label, first_of = np.empty(haplotypes, np.int64), np.empty(haplotypes, np.int64)
    leads = np.empty_like(index)
    sums, counts = np.empty((haplotypes, tracks)), np.empty((haplotypes, tracks), np.int64)
    origin = window * bins
    for p in range(len(region)):
        begin, end = first[p] - origin, last[p] - origin
        low, high = begin // bins, (end - 1) // bins + 1
        width = high - low
        slots[:] = -1
        own = masks[:width], factors, slots, leads[:, :width]
        classify(words, low, *own, first_of, 0, 0, label)
        for h in range(haplotypes):
            k = first_of[label[h]]
            if k == h:
                sums[h], counts[h] = _START[number], 0
                for w in range(low, high):
                    d = _place(leader, starts[w], starts[w + 1], index[h, w])
                    if d < 0 and index[h, w] != none:
                        return window + w
                    if d >= 0:
                        of = rows[d * bins + max(begin - w * bins, 0) :]
                        of = of[: min(end, (w + 1) * bins) - max(begin, w * bins)]
                        _take(of, number, threshold, sums[h], counts[h])
            for t in range(tracks):
                total[region[p], h, t] = _joined(number, total[region[p], h, t], sums[k, t])
                count[region[p], h, t] += counts[k, t]
    return -1


@njit(nogil=True, cache=True)
def _place(leader: Any, start: int, end: int, wanted: int) -> int:
    """Place of a leader among those of a window; -1 if it is none of them."""
    d = start + np.searchsorted(leader[start:end], wanted)
    return int(d) if d < end and leader[d] == wanted else -1


@njit(nogil=True, cache=True)
def _take(rows: Any, number: int, threshold: float, sums: Any, counts: Any) -> None:
    """Take rows [rows, tracks] into one class's statistic [tracks]."""
    for row in range(len(rows)):
        for t in range(len(sums)):
            value = float(rows[row, t])
            if not np.isnan(value):
                sums[t] = _joined(number, sums[t], _term(number, threshold, value))
                counts[t] += 1
