"""A cohort file opened for reading: rows of haplotypes from the distinct predictions they name.

Nothing that grows with the predictions is held: the index, leaders and rows are read by stretches,
and of what was read for single haplotypes the last blocks are kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from genomepred.sequences.distinct import leader_type
from genomepred.store.cohort_writing import INDEX_CHUNK
from genomepred.store.opening import COHORT_FORMAT
from genomepred.store.reader import Float32, Int64, PredictionStore
from genomepred.store.schema import SchemaError, open_dataset, open_group, read_texts
from genomepred.store.stored import StoredRows, is_plain, joined, planes

# Entries of the index that are read at a time, and windows that they are of at most.
_ENTRIES, _WINDOWS = 1 << 22, 1 << 14
# Windows, and bytes of their distinct predictions, that are read at a time for one haplotype, and
# bytes of what is kept: those, their index, and rows of haplotypes.
_BLOCK, _BLOCK_BYTES, _KEPT_BYTES = 1 << 11, 1 << 23, 1 << 26
_MOST_HAPLOTYPES = 1 << 24


def windows_together(haplotypes: int) -> int:
    """Windows whose index of so many haplotypes is read at a time: whole chunks."""
    return max(_ENTRIES // max(haplotypes, 1) // INDEX_CHUNK, 1) * INDEX_CHUNK


class CohortFile(PredictionStore):
    """The open file, whose rows are those of the grid."""

    format = COHORT_FORMAT

    def _load(self) -> None:
        super()._load()
        names = open_dataset(open_group(self._file, "haplotypes"), "copy", 1)
        count = len(names)
        if count > _MOST_HAPLOTYPES or names.dtype.kind not in "iu":
            raise SchemaError(f"{count:,} haplotypes, or copies that are no numbers")
        samples = read_texts(self._file["haplotypes"], "sample", count).tolist()
        self.haplotypes = list(zip(samples, names[:].tolist(), strict=True))
        if len(set(self.haplotypes)) != count:
            raise SchemaError("a haplotype is named twice")
        self._load_classes()

    def _load_classes(self) -> None:
        cohort = open_group(self._file, "cohort")
        first, self.leader = open_dataset(cohort, "first", 1), open_dataset(cohort, "leader", 1)
        self.index = open_dataset(cohort, "index", 2)
        kind = leader_type(len(self.haplotypes)).newbyteorder("<")
        if self.leader.dtype != kind or self.index.dtype != kind or first.dtype != np.dtype("<i8"):
            raise SchemaError(f"leaders are {self.leader.dtype} and {self.index.dtype}, not {kind}")
        windows, distinct = len(first), len(self.leader)
        rows = self.predictions.shape[0]
        if self.index.shape != (len(self.haplotypes), windows):
            raise SchemaError(f"/cohort/index has shape {self.index.shape}")
        if distinct * self.grid.geometry.bins != rows:
            raise SchemaError(f"{distinct:,} leaders for {rows:,} rows of predictions")
        self.first: Int64 = first[:]
        self.distinct_count = distinct
        self.none = int(np.iinfo(kind).max)
        self._kept = _Kept()
        self._leaders, self._rows = StoredRows(self.leader), StoredRows(self.predictions)
        plain = is_plain(self.index) and self.index.chunks == (INDEX_CHUNK, INDEX_CHUNK)
        self.is_plain_index: bool = plain
        ascending = (np.diff(self.first) >= 0).all()
        if windows and not (ascending and self.first[0] >= 0 and self.first[-1] <= distinct):
            raise SchemaError("/cohort/first does not ascend within the predictions")

    def _row_count(self) -> int:
        bins = self.attributes.get("bins")
        if type(bins) is not int or not 0 < bins < 1 << 32:
            raise SchemaError(f"attribute bins is {bins!r}")
        return len(open_dataset(open_group(self._file, "cohort"), "first", 1)) * bins

    def distinct(self, numbers: Int64, first: int, last: int) -> Int64:
        """Distinct numbers of windows ``[first, last)``, [haplotypes, windows]; -1: absent."""
        index = np.empty((len(numbers), last - first), self.index.dtype)
        runs = np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers) != 1) + 1)
        for run in runs:
            a, b = int(numbers[run[0]]), int(numbers[run[-1]]) + 1
            index[run[0] : run[-1] + 1] = self.index[a:b, first:last]
        return self.located(index, first)

    def located(self, index: NDArray[Any], first: int) -> Int64:
        """Distinct numbers of leaders, [haplotypes, windows from ``first`` on]; -1: absent."""
        return self.looked_up(index, first, *self.leaders(first, first + index.shape[1]))

    def looked_up(
        self, index: NDArray[Any], first: int, starts: Int64, leader: NDArray[Any]
    ) -> Int64:
        """As :meth:`located`, of leaders that have been read."""
        out = np.empty(index.shape, np.int64)
        bad = _look_up(index, starts, leader, len(self.haplotypes), self.none, out)
        if bad >= 0:
            raise ValueError(f"the index of window {first + bad} names no leader")
        return out

    def leaders(self, first: int, last: int) -> tuple[Int64, NDArray[Any]]:
        """Offsets of the distinct predictions of windows, [windows + 1], and their leaders."""
        starts = self._starts(first, last)
        return starts, np.asarray(self.leader[starts[0] : starts[-1]])

    def _starts(self, first: int, last: int) -> Int64:
        """Offsets of the distinct predictions of windows, [windows + 1]."""
        last = max(first, min(last, len(self.first)))
        end = self.first[last] if last < len(self.first) else self.distinct_count
        return np.append(self.first[first:last], end)

    def stretch(self, first: int, last: int) -> Stretch:
        """Distinct predictions of windows ``[first, last)``, held."""
        starts, leader = self.leaders(first, last)
        bins = self.grid.geometry.bins
        rows = np.asarray(self.predictions[starts[0] * bins : starts[-1] * bins], np.float32)
        return Stretch(first, last, starts, leader, rows, self)

    def values(self, numbers: Int64, first: int, last: int) -> Float32:
        """Rows ``[first, last)`` of haplotypes, [haplotypes, rows, tracks]."""
        step = min(windows_together(len(numbers)), _WINDOWS)
        bins, tracks = self.grid.geometry.bins, len(self.tracks)
        out = np.empty((len(numbers), last - first, tracks), np.float32)
        with self._reading(f"read at rows {first}-{last}"):
            for window in range(first // bins, -(-last // bins), step):
                stop = min(window + step, -(-last // bins))
                found = self.distinct(numbers, window, stop)
                begin, end = max(window * bins, first), min(stop * bins, last)
                self.gather(found, begin - window * bins, out[:, begin - first : end - first])
        return out

    def gather(self, found: Int64, skip: int, out: Float32) -> None:
        """Fill ``out``, [haplotypes, rows, tracks], with the rows of distinct windows.

        ``found`` is their numbers, [haplotypes, windows]; the first ``skip`` rows are left out.
        """
        bins = self.grid.geometry.bins
        low = int(np.min(found, initial=1 << 62, where=found >= 0))
        high = int(found.max(initial=-1)) + 1
        rows = np.empty((0, len(self.tracks)), np.float32)
        if low < high:
            rows = np.asarray(self.predictions[low * bins : high * bins], np.float32)
        _gather(found, low, bins, rows, skip, out)

    def own_values(self, number: int, first: int, last: int) -> Float32:
        """Rows ``[first, last)`` of one haplotype, from blocks that are kept."""
        rows = self.block_windows * self.grid.geometry.bins
        out = np.empty((last - first, len(self.tracks)), np.float32)
        with self._reading(f"read at rows {first}-{last}"):
            for block in range(first // rows, -(-last // rows)):
                origin = block * rows
                begin, end = max(origin, first), min(origin + rows, last)
                own = self._kept.get((number, block), self._own_block)
                out[begin - first : end - first] = own[begin - origin : end - origin]
        return out

    @cached_property
    def block_windows(self) -> int:
        """Windows of a block: whole chunks of the index, fewer where their predictions are many."""
        size = 4 * int(self.predictions.size) // max(len(self.first), 1)
        windows = min(_BLOCK, _BLOCK_BYTES // max(size, 1))
        return max(windows // INDEX_CHUNK, 1) * INDEX_CHUNK

    def _own_block(self, key: tuple[int, int]) -> Float32:
        """Rows of a haplotype in a block."""
        number, block = key
        index = self._own_index(number, block)
        starts, leader, rows = self._kept.get((-1, block), self._block_rows)
        found = self.looked_up(index, block * self.block_windows, starts, leader)
        bins = self.grid.geometry.bins
        out = np.empty((1, found.shape[1] * bins, len(self.tracks)), np.float32)
        _gather(found, int(starts[0]), bins, rows, 0, out)
        own: Float32 = out[0]
        return own

    def _own_index(self, number: int, block: int) -> NDArray[Any]:
        """Index of a haplotype in a block, [1, windows]."""
        first = block * self.block_windows
        last = min(first + self.block_windows, len(self.first))
        if not self.is_plain_index:
            index: NDArray[Any] = self.index[number : number + 1, first:last]
            return index
        group, place = divmod(number, INDEX_CHUNK)
        chunks = self._kept.get((-2 - group, block), self._index_block)
        shape = (-1, INDEX_CHUNK, INDEX_CHUNK)
        own = np.concatenate([chunk.reshape(shape)[:, place] for chunk in chunks], axis=1)
        return joined(own, self.index.dtype)[None, : last - first]

    def _index_block(self, key: tuple[int, int]) -> tuple[NDArray[np.uint8], ...]:
        """Chunks of the index in a block and a row of chunks, as they are stored."""
        h, first = (-2 - key[0]) * INDEX_CHUNK, key[1] * self.block_windows
        last = min(first + self.block_windows, len(self.first))
        return tuple(planes(self.index, (h, w)) for w in range(first, last, INDEX_CHUNK))

    def _block_rows(self, key: tuple[int, int]) -> tuple[Int64, NDArray[Any], Float32]:
        """Leaders of a block's windows, as :meth:`leaders` gives them, and the rows of all."""
        first = key[1] * self.block_windows
        starts = self._starts(first, first + self.block_windows)
        low, end = starts[[0, -1]] * self.grid.geometry.bins
        rows = np.asarray(self._rows.read(low, end), np.float32)
        return starts, self._leaders.read(*starts[[0, -1]]), rows

    def problems(self) -> list[str]:
        """See :meth:`CohortStore.problems`."""
        found = []
        every, contradicting = np.arange(len(self.haplotypes)), False
        try:
            for w in range(0, len(self.first), INDEX_CHUNK):
                stop = min(w + INDEX_CHUNK, len(self.first))
                contradicting |= not self._ascend(*self.leaders(w, stop))
                self.distinct(every, w, stop)
        except ValueError as error:
            found.append(str(error))
        if contradicting:
            found.append("leaders do not ascend, or are no haplotypes")
        return found

    def _ascend(self, starts: Int64, leaders: NDArray[Any]) -> bool:
        """Whether leaders are haplotypes that ascend within each window, and padding behind."""
        window = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        leader = leaders.astype(np.int64)
        rising = (np.diff(leader) > 0) | (leader[1:] == self.none)
        known = leader[leader != self.none].max(initial=0) < max(len(self.haplotypes), 1)
        return bool(rising[np.diff(window) == 0].all() and known)


class _Kept:
    """A cache of what was read last, up to some bytes; for any number of threads."""

    def __init__(self) -> None:
        self._read: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def get(self, key: tuple[int, int], read: Callable[[tuple[int, int]], Any]) -> Any:
        """Value that ``read`` returned for the key, now or before."""
        with self._lock:
            if key in self._read:
                self._read.move_to_end(key)
                return self._read[key]
        found = read(key)
        with self._lock:
            self._bytes += _size(found) if key not in self._read else 0
            self._read[key] = found
            while self._bytes > _KEPT_BYTES and len(self._read) > 2:
                self._bytes -= _size(self._read.popitem(last=False)[1])
        return found


def _size(read: Any) -> int:
    arrays = read if isinstance(read, tuple) else (read,)
    return int(sum(array.nbytes for array in arrays))


class Stretch(NamedTuple):
    """Distinct predictions of windows ``[first, last)``, for any number of threads.

    Parameters
    ----------
    first, last : int
    starts : int64 array, [windows + 1]
        Where those of each window begin.
    leader : unsigned array, [distinct]
    rows : float32 array, [distinct * bins, tracks]
    base : CohortFile
    """

    first: int
    last: int
    starts: Int64
    leader: NDArray[Any]
    rows: Float32
    base: CohortFile

    def fill(self, index: NDArray[Any], window: int, skip: int, out: Float32) -> None:
        """Fill ``out``, [lines, rows, tracks], from an index of the windows from ``window`` on.

        The first ``skip`` rows are left out.
        """
        own = self.starts[window - self.first : window - self.first + index.shape[1] + 1]
        leader, low = self.leader[own[0] - self.starts[0] :], int(self.starts[0])
        found = self.base.looked_up(index, window, own, leader)
        _gather(found, low, self.base.grid.geometry.bins, self.rows, skip, out)


@njit(nogil=True, cache=True)
def _look_up(index: Any, starts: Any, leader: Any, haplotypes: int, none: int, out: Any) -> int:
    """Distinct numbers of an index's leaders; -1, or the first window with one that is none."""
    place = np.full(haplotypes, -1, np.int64)
    for w in range(index.shape[1]):
        for d in range(starts[w], starts[w + 1]):
            number = leader[d - starts[0]]
            if number < haplotypes:
                place[number] = d
        for h in range(index.shape[0]):
            number = index[h, w]
            if number == none:
                out[h, w] = -1
                continue
            if number >= haplotypes or place[number] < starts[w]:
                return w
            out[h, w] = place[number]
    return -1


@njit(nogil=True, cache=True)
def _gather(found: Any, low: int, bins: int, rows: Any, skip: int, out: Any) -> None:
    """Values of rows of haplotypes from those of distinct windows; NaN where absent."""
    for h in range(out.shape[0]):
        window, b = skip // bins, skip % bins
        for r in range(out.shape[1]):
            d = found[h, window]
            for t in range(out.shape[2]):
                out[h, r, t] = np.nan if d < 0 else rows[(d - low) * bins + b, t]
            b += 1
            if b == bins:
                window, b = window + 1, 0
