"""Pyramids: predictions of many lines at every zoom, as one byte a value.

Level l has bins of ``2 ** l`` rows, counted from the first row of an interval. Up to the block
(:data:`BLOCK` rows) a level holds the distinct lines of each block, and an
index says which of them each line has; above it, a level holds all lines. A bin has the mean and
the highest of its values that are not missing, as codes of a :class:`~genomepred.store.scale.Scale`
per track.

The file: segments, tables, a sealed description, the length of that in 8 bytes. A segment holds,
plane after plane, the entries that came since the last: one a block (index, and levels up to the
block), or one a bin (levels above). The content has a digest; what is damaged is made anew.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from genomepred.documents import COUNT, DocumentError, read_document
from genomepred.errors import StoreError
from genomepred.files import open_regular

Int64 = NDArray[np.int64]
Codes = NDArray[np.uint8]

FORMAT_VERSION = 1
#: Rows of a block, and the level whose bins are whole blocks.
BLOCK, INNER = 256, 8
#: Bins of a tile.
TILE = 256
#: Bins of an interval's highest level, at most: as many as an order by similarity looks at.
TOP_BINS = 256
#: Lines that an index of two bytes can tell apart.
MOST_LINES = 1 << 16
STATISTICS = ("mean", "max")
_DESCRIPTION = {
    "format_version": int,
    "identity": {str: object},
    "lines": [str],
    "tracks": [[str]],
    "intervals": [{"contig": str, "start": int, "length": COUNT, "rows": COUNT}],
    "step": COUNT,
    "bin_size": COUNT,
    "segments": COUNT,
    "content": str,
}
_LARGEST_DESCRIPTION = 1 << 28
_PIECE = 1 << 22


@dataclass(frozen=True, eq=False)
class Shape:
    """Sizes that follow from the grid: blocks, bins and planes.

    Parameters
    ----------
    rows : int64 array, [intervals]
    lines, tracks : int
    """

    rows: Int64
    lines: int
    tracks: int

    @cached_property
    def tops(self) -> Int64:
        """Highest level of each interval: the first that has few bins."""
        ratio = -(-np.maximum(self.rows, 1) // TOP_BINS)
        levels: Int64 = np.maximum(INNER, np.ceil(np.log2(ratio)).astype(np.int64))
        return levels

    @property
    def top(self) -> int:
        """Highest level of all."""
        return int(self.tops.max(initial=INNER))

    @cached_property
    def first_block(self) -> Int64:
        """Number of each interval's first block, and of all, [intervals + 1]."""
        return np.concatenate([[0], np.cumsum(-(-self.rows // BLOCK))])

    @cached_property
    def block_rows(self) -> Int64:
        """Rows of each block."""
        counts = np.full(int(self.first_block[-1]), BLOCK)
        filled = self.rows > 0
        counts[self.first_block[1:][filled] - 1] = (self.rows[filled] - 1) % BLOCK + 1
        return counts

    def bins(self, interval: int, level: int) -> int:
        """Bins of an interval at a level; 0 if it has no such level."""
        return int(-(-self.rows[interval] // (1 << level))) if level <= self.tops[interval] else 0

    def first_bins(self, level: int) -> Int64:
        """Number of each interval's first bin at a level above the block, [intervals + 1]."""
        counts = np.where(self.tops >= level, -(-self.rows // (1 << level)), 0)
        return np.concatenate([[0], np.cumsum(counts)])

    @property
    def inner_planes(self) -> int:
        """Planes with one entry a block: the index, and for each track those of levels."""
        return 1 + self.tracks * (1 + 2 * INNER)

    @property
    def planes(self) -> int:
        """All planes; those above the block come last, level by level."""
        return self.inner_planes + (self.top - INNER) * self.tracks * 2

    def plane(self, track: int, statistic: int, level: int) -> int:
        """Number of a plane: statistic 0 is the mean, 1 the highest."""
        if level == 0:
            return 1 + track * (1 + 2 * INNER)
        if level <= INNER:
            return 1 + track * (1 + 2 * INNER) + 1 + 2 * (level - 1) + statistic
        upper = (level - INNER - 1) * self.tracks + track
        return self.inner_planes + 2 * upper + statistic


def index_type(distinct: int) -> np.dtype[Any]:
    """Type of a block's index."""
    return np.dtype("u1") if distinct <= 256 else np.dtype("<u2")


class Pyramid:
    """A pyramid, opened for reading; any number of threads may read.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    identity : dict
        What it was made of.
    lines, tracks, descriptions : tuple of str
    intervals : list of dict
        Contig, start of the first row, length of the contig, rows.
    step, bin_size : int
        Bases from row to row, and those that a row describes.
    shape : Shape
    scales : list of float32 arrays
        Per track, the values of the codes 1, 2, ...

    Raises
    ------
    StoreError
        If it is absent, damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
        # By whoever reads it last, where nobody else does.
        self.close = weakref.finalize(self, os.close, self._file)
        try:
            self._load()
        except (DocumentError, ValueError, OSError, LookupError) as error:
            self.close()
            raise StoreError(f"{path}: no pyramid, or a damaged one ({error})") from error

    def _load(self) -> None:
        size = os.fstat(self._file).st_size
        length = int.from_bytes(os.pread(self._file, 8, max(size - 8, 0)), "little")
        if not 0 < length <= min(size - 8, _LARGEST_DESCRIPTION):
            raise ValueError("it has no description")
        content = size - 8 - length
        told = read_document(os.pread(self._file, length, content), _DESCRIPTION, sealed=True)
        if told["format_version"] != FORMAT_VERSION:
            raise ValueError(f"version {told['format_version']}")
        if told["content"] != _digest(self._file, content):
            raise ValueError("its content does not match its digest")
        self.identity = told["identity"]
        self.lines = tuple(told["lines"])
        self.tracks = tuple(track[0] for track in told["tracks"])
        self.descriptions = tuple(track[1] for track in told["tracks"])
        self.intervals, self.step = told["intervals"], told["step"]
        self.bin_size = told["bin_size"]
        rows = np.array([interval["rows"] for interval in self.intervals], np.int64)
        self.shape = Shape(rows, len(self.lines), len(self.tracks))
        self._load_tables(content, told["segments"])

    def _load_tables(self, end: int, segments: int) -> None:
        """Tables, from the last: segments, distinct lines of blocks, scales."""
        shape = self.shape
        width = 1 + (shape.top - INNER) + shape.planes
        table, end = self._table(end, "<i8", segments, width)
        self._first_block, above = table[:, 0], table[:, 1 : 1 + shape.top - INNER]
        self._first_bin, self._offset = above, table[:, 1 + shape.top - INNER :]
        distinct, end = self._table(end, "<u4", 1, len(shape.block_rows))
        self.distinct = distinct[0].astype(np.int64)
        values, _ = self._table(end, "<f4", shape.tracks, 256)
        self.scales = [row[~np.isnan(row)] for row in values]

    def _table(self, end: int, kind: str, rows: int, columns: int) -> tuple[NDArray[Any], int]:
        size = np.dtype(kind).itemsize * rows * columns
        if size > end:
            raise ValueError("its tables are not whole")
        data = _read(self._file, size, end - size)
        return np.frombuffer(data, kind).reshape(rows, columns), end - size

    def __enter__(self) -> Pyramid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tile(self, track: int, statistic: int, level: int, interval: int, number: int) -> bytes:
        """Bins ``[TILE * number, + TILE)`` of an interval at a level, as the page reads them.

        Three uint32: blocks, lines, bins. Up to the block, for each block three more (distinct
        lines, bins, bytes of an index entry); then each block's index and its codes [distinct,
        bins]. Above it, no blocks, and codes [bins, lines].

        Raises
        ------
        LookupError
            If there is no such tile.
        """
        first, last = self._bins_of(track, statistic, level, interval, number)
        head = np.array([0, self.shape.lines, last - first], "<u4")
        if level > INNER:
            return head.tobytes() + self._upper(track, statistic, level, interval, first, last)
        facts, parts = [], []
        for index, codes in self._blocks(track, statistic, level, interval, first, last):
            facts += [*codes.shape, index.itemsize]
            parts += [index.tobytes(), codes.tobytes()]
        head[0] = len(facts) // 3
        return b"".join([head.tobytes(), np.array(facts, "<u4").tobytes(), *parts])

    def codes(
        self, track: int, statistic: int, level: int, interval: int, first: int, last: int
    ) -> Codes:
        """Codes of bins ``[first, last)`` of an interval, uint8 [lines, bins]."""
        shape = self.shape
        if level > INNER:
            data = self._upper(track, statistic, level, interval, first, last)
            return np.frombuffer(data, np.uint8).reshape(last - first, shape.lines).T
        skip = first % (BLOCK >> level)
        parts = [
            codes[index]
            for index, codes in self._blocks(track, statistic, level, interval, first, last)
        ]
        parts = [np.empty((shape.lines, 0), np.uint8), *parts]
        return np.concatenate(parts, axis=1)[:, skip : skip + last - first]

    def _bins_of(
        self, track: int, statistic: int, level: int, interval: int, number: int
    ) -> tuple[int, int]:
        shape = self.shape
        known = (
            0 <= track < shape.tracks and statistic in (0, 1) and 0 <= interval < len(shape.rows)
        )
        if not known or not 0 <= level <= shape.top:
            raise LookupError("no such plane")
        first, bins = number * TILE, shape.bins(interval, level)
        if not 0 <= first < bins:
            raise LookupError("no such tile")
        return first, min(first + TILE, bins)

    def _blocks(
        self, track: int, statistic: int, level: int, interval: int, first: int, last: int
    ) -> Iterator[tuple[NDArray[Any], Codes]]:
        """Index [lines] and codes [distinct, bins] of the blocks that bins are in."""
        shape, each = self.shape, BLOCK >> level
        origin = int(shape.first_block[interval])
        a, b = origin + first // each, origin - (-last // each)
        distinct = self.distinct[a:b]
        bins = -(-shape.block_rows[a:b] // (1 << level))
        indexes = self._entries(0, a, b)
        planes = self._entries(shape.plane(track, statistic, level), a, b, level)
        for d, n, index, codes in zip(distinct, bins, indexes, planes, strict=True):
            kind = index_type(int(d))
            yield np.frombuffer(index, kind), np.frombuffer(codes, np.uint8).reshape(d, n)

    def _entries(self, plane: int, first: int, last: int, level: int = 0) -> Iterator[memoryview]:
        """Entries of blocks ``[first, last)`` in a plane, one read a segment."""
        segment = int(np.searchsorted(self._first_block, first, side="right")) - 1
        while first < last:
            begin = int(self._first_block[segment])
            rest = self._first_block[segment + 1 :]
            stop = min(int(rest[0]) if len(rest) else last, last)
            sizes = self._sizes(plane, begin, stop, level)
            bounds = np.concatenate([[0], np.cumsum(sizes)])
            low, high = int(bounds[first - begin]), int(bounds[-1])
            at = int(self._offset[segment, plane])
            data = memoryview(_read(self._file, high - low, at + low))
            for k in range(first - begin, stop - begin):
                yield data[int(bounds[k]) - low : int(bounds[k + 1]) - low]
            first, segment = stop, segment + 1

    def _sizes(self, plane: int, first: int, last: int, level: int) -> Int64:
        """Bytes of the entries of blocks in an inner plane."""
        distinct = self.distinct[first:last]
        if plane == 0:
            return np.where(distinct <= 256, 1, 2) * self.shape.lines
        sizes: Int64 = distinct * -(-self.shape.block_rows[first:last] // (1 << level))
        return sizes

    def _upper(
        self, track: int, statistic: int, level: int, interval: int, first: int, last: int
    ) -> bytes:
        """Codes [bins, lines] of bins of a level above the block."""
        shape = self.shape
        plane, starts = shape.plane(track, statistic, level), self._first_bin[:, level - INNER - 1]
        origin = int(shape.first_bins(level)[interval])
        first, last = first + origin, last + origin
        parts = []
        segment = int(np.searchsorted(starts, first, side="right")) - 1
        while first < last:
            rest = starts[segment + 1 :]
            stop = min(int(rest[0]) if len(rest) else last, last)
            at = int(self._offset[segment, plane]) + (first - int(starts[segment])) * shape.lines
            parts.append(_read(self._file, (stop - first) * shape.lines, at))
            first, segment = stop, segment + 1
        return b"".join(parts)


def _read(file: int, size: int, at: int) -> bytes:
    data = os.pread(file, size, at)
    if len(data) != size:
        raise ValueError("it ends too early")
    return data


def _digest(file: int, size: int) -> str:
    """Digest of the first bytes of a file."""
    digest = xxhash.xxh3_128()
    for at in range(0, size, _PIECE):
        digest.update(_read(file, min(_PIECE, size - at), at))
    return digest.hexdigest()
