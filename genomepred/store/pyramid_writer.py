"""Making pyramids, in bounded memory: one pass over values for scales, one over blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from genomepred.documents import seal
from genomepred.errors import StoreError
from genomepred.files import publishing
from genomepred.machine import usable_cpus
from genomepred.sequences.grid import Grid
from genomepred.store.bins import Bin
from genomepred.store.blocks import Block, BlockSource, spans_of
from genomepred.store.pyramid import FORMAT_VERSION, INNER, MOST_LINES, Shape, index_type
from genomepred.store.scale import Bounds, Scale, code_of, scales_of

# Bytes of a segment: what is held before it is written. Values that are encoded by one call: fewer
# calls hand the interpreter's lock back and forth more often than they work.
_SEGMENT, _BATCH = 1 << 24, 1 << 18

Encoded = tuple[list[Block], list[NDArray[np.uint8]], Bin]


def write_pyramid(
    source: BlockSource,
    path: Path,
    identity: Mapping[str, Any],
    progress: Callable[[float], object] = lambda share: None,
) -> None:
    """Publish the pyramid of a source.

    Parameters
    ----------
    source : BlockSource
    path : Path
    identity : mapping
        What a reader compares to know whether the pyramid is still that of its files.
    progress : callable
        Told the share that is done.

    Raises
    ------
    StoreError
        If a file of the source is damaged, or it has too many lines.
    OutputError
        If the pyramid cannot be written.
    """
    if len(source.lines) > MOST_LINES:
        raise StoreError(f"{len(source.lines):,} lines: pictures hold up to {MOST_LINES:,}")
    shape = Shape(source.grid.row_counts, len(source.lines), len(source.tracks))
    scales = scales_of(source.stored(), shape.tracks)
    with publishing(path) as temporary, open(temporary, "xb", buffering=1 << 20) as file:
        target = _Target(file, shape)
        upper = _Upper(target, shape, scales)
        distinct = _write_blocks(source, shape, scales, target, upper, progress)
        target.flush()
        target.finish(distinct, scales, source, identity)


def _write_blocks(
    source: BlockSource,
    shape: Shape,
    scales: Sequence[Scale],
    target: _Target,
    upper: _Upper,
    progress: Callable[[float], object],
) -> list[int]:
    """Write all blocks; how many distinct lines each has."""
    bounds, threads = [scale.bounds for scale in scales], usable_cpus().amount
    ends = set(shape.first_block[1:].tolist())
    distinct: list[int] = []
    with ThreadPoolExecutor(threads) as pool:
        batches = _batches(source.blocks(spans_of(source.grid)))
        for blocks, planes, last in _ahead(
            pool, partial(_encoded, bounds=bounds), batches, threads
        ):
            target.add_blocks(blocks, planes)
            edges = np.cumsum([0] + [len(block.values) for block in blocks]).tolist()
            for block, (a, b) in zip(blocks, pairwise(edges), strict=True):
                distinct.append(b - a)
                upper.add(block.label, last.of(slice(a, b)))
                if len(distinct) in ends:
                    upper.end()
            progress(len(distinct) / len(shape.block_rows))
    return distinct


def _ahead(
    pool: ThreadPoolExecutor,
    task: Callable[[list[Block]], Encoded],
    batches: Iterable[list[Block]],
    most: int,
) -> Iterator[Encoded]:
    """Results in order, of at most ``most`` tasks that are begun before they are asked for."""
    begun: deque[Future[Encoded]] = deque()
    for batch in batches:
        begun.append(pool.submit(task, batch))
        if len(begun) > most:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _batches(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    """Consecutive blocks with equally many rows, of many values together."""
    batch: list[Block] = []
    size = 0
    for block in blocks:
        if batch and (size >= _BATCH or block.values.shape[1] != batch[0].values.shape[1]):
            yield batch
            batch, size = [], 0
        batch.append(block)
        size += block.values.size
    if batch:
        yield batch


def _encoded(blocks: list[Block], bounds: Sequence[Bounds]) -> Encoded:
    """Codes of blocks, plane by plane, and their bins of whole blocks, [distinct, tracks]."""
    values = np.concatenate([block.values for block in blocks])
    distinct, rows, tracks = values.shape
    widths = [-(-rows // (1 << level)) for level in range(INNER + 1)]
    sizes = distinct * np.array([widths[0], *np.repeat(widths[1:], 2)])
    planes = []
    last = Bin(
        np.empty((distinct, tracks)),
        np.empty((distinct, tracks)),
        np.empty((distinct, tracks), np.float32),
    )
    for t in range(tracks):
        out = np.empty(int(sizes.sum()), np.uint8)
        _encode(values, t, *bounds[t], out, last.sum, last.number, last.high)
        planes += np.split(out, np.cumsum(sizes)[:-1])
    return blocks, planes, last


@njit(nogil=True, cache=True)
def _encode(
    values: Any,
    track: int,
    bounds: Any,
    starts: Any,
    out: Any,
    sums: Any,
    counts: Any,
    highs: Any,
) -> None:
    """Codes of a track: level 0, then mean and highest of each level up to the block."""
    distinct, rows = values.shape[:2]
    total, count = np.empty(rows, np.float64), np.empty(rows, np.int64)
    high = np.empty(rows, np.float32)
    for r in range(distinct):
        for k in range(rows):
            value = values[r, k, track]
            missing = np.isnan(value)
            total[k], count[k] = (0.0, 0) if missing else (np.float64(value), 1)
            high[k] = np.float32(-np.inf) if missing else value
            out[r * rows + k] = code_of(value, bounds, starts)
        base, width = distinct * rows, rows
        for _ in range(INNER):
            half = (width + 1) // 2
            for k in range(half):
                a, b = 2 * k, 2 * k + 1
                total[k], count[k], high[k] = total[a], count[a], high[a]
                if b < width:
                    total[k] += total[b]
                    count[k] += count[b]
                    high[k] = max(high[k], high[b])
                at = base + r * half + k
                out[at] = out[at + distinct * half] = 0
                if count[k]:
                    out[at] = code_of(np.float32(total[k] / count[k]), bounds, starts)
                    out[at + distinct * half] = code_of(high[k], bounds, starts)
            base, width = base + 2 * distinct * half, half
        sums[r, track], counts[r, track], highs[r, track] = total[0], count[0], high[0]


class _Target:
    """Entries on their way into segments of a file."""

    def __init__(self, file: BinaryIO, shape: Shape) -> None:
        self._file, self._shape = file, shape
        self._digest, self._written = xxhash.xxh3_128(), 0
        self._waiting: list[list[NDArray[np.uint8]]] = [[] for _ in range(shape.planes)]
        self._size = self._blocks = 0
        self._bins = [0] * (shape.top - INNER)
        self._segments: list[list[int]] = []
        self._begin = [0] * (1 + shape.top - INNER)

    def add_blocks(self, blocks: Sequence[Block], planes: Sequence[NDArray[np.uint8]]) -> None:
        """Take the indexes of blocks, and their codes."""
        kinds = [index_type(len(block.values)) for block in blocks]
        indexes = [block.label.astype(kind) for block, kind in zip(blocks, kinds, strict=True)]
        entries = [np.concatenate([index.view(np.uint8) for index in indexes]), *planes]
        for waiting, entry in zip(self._waiting, entries, strict=False):
            waiting.append(entry)
            self._size += entry.size
        self._blocks += len(blocks)
        if self._size >= _SEGMENT:
            self.flush()

    def add_bin(self, level: int, planes: Sequence[NDArray[np.uint8]]) -> None:
        """Take a bin above the block: codes [lines] of each track and statistic."""
        first = self._shape.plane(0, 0, level)
        for number, entry in enumerate(planes, first):
            self._waiting[number].append(entry)
            self._size += entry.size
        self._bins[level - INNER - 1] += 1

    def flush(self) -> None:
        """Write what waits as a segment."""
        if not self._size:
            return
        offsets = []
        for waiting in self._waiting:
            offsets.append(self._written)
            if waiting:
                self._write(np.concatenate(waiting).tobytes())
            waiting.clear()
        self._segments.append([*self._begin, *offsets])
        self._begin, self._size = [self._blocks, *self._bins], 0

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._written += self._file.write(data)

    def finish(
        self,
        distinct: Sequence[int],
        scales: Sequence[Scale],
        source: BlockSource,
        identity: Mapping[str, Any],
    ) -> None:
        """Write the tables and the description."""
        values = np.full((len(scales), 256), np.nan, "<f4")
        for row, scale in zip(values, scales, strict=True):
            row[: len(scale.values)] = scale.values
        for table in (values, np.array(distinct, "<u4"), np.array(self._segments, "<i8")):
            self._write(table.tobytes())
        text = seal(
            {
                "format_version": FORMAT_VERSION,
                "identity": dict(identity),
                "lines": list(source.lines),
                "tracks": list(zip(source.tracks, source.descriptions, strict=True)),
                "intervals": _intervals(source.grid),
                "step": source.grid.geometry.step,
                "bin_size": source.grid.geometry.bin_size,
                "segments": len(self._segments),
                "content": self._digest.hexdigest(),
            }
        )
        self._file.write(text + len(text).to_bytes(8, "little"))


def _intervals(grid: Grid) -> list[dict[str, Any]]:
    columns = (grid.contigs, grid.start, grid.length, grid.row_counts)
    names = ("contig", "start", "length", "rows")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


class _Upper:
    """Levels above the block, of one interval after the other."""

    def __init__(self, target: _Target, shape: Shape, scales: Sequence[Scale]) -> None:
        self._target, self._shape, self._scales = target, shape, scales
        self._interval = -1
        self._half: dict[int, Bin] = {}
        self._skip()

    def _skip(self) -> None:
        """Go to the next interval that has rows."""
        rows = self._shape.rows
        self._interval += 1
        while self._interval < len(rows) and not rows[self._interval]:
            self._interval += 1

    def add(self, index: NDArray[Any], last: Bin) -> None:
        """Take a block: its index, and its bin [distinct, tracks]."""
        if self._shape.tops[self._interval] > INNER:
            self._finished(INNER, last.of(index))

    def end(self) -> None:
        """Finish the interval: bins that have only their first half."""
        for level in range(INNER + 1, int(self._shape.tops[self._interval]) + 1):
            if level in self._half:
                self._finished(level, self._half.pop(level))
        self._skip()

    def _finished(self, level: int, found: Bin) -> None:
        """Write a bin, and make one of two for the next level."""
        if level > INNER:
            self._emit(level, found)
        above = level + 1
        if above > self._shape.tops[self._interval]:
            return
        if above in self._half:
            self._finished(above, self._half.pop(above).joined(found))
        else:
            self._half[above] = found

    def _emit(self, level: int, found: Bin) -> None:
        mean, high = found.statistics()
        planes = [
            scale.encode(np.ascontiguousarray(values[:, t]))
            for t, scale in enumerate(self._scales)
            for values in (mean, high)
        ]
        self._target.add_bin(level, planes)
