"""Writing bigWig: sections of values, an index, and zoom levels, in memory that does not grow.

The format is that of Kent et al. 2010, "BigWig and BigBed", Bioinformatics 26(17), version 4 as
today's tools write it. The bins of a zoom level are multiples of its size, so a level follows from
the one below; a summary begins and ends at bases that have a value, and counts how many do.
"""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from struct import pack
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

#: Contigs that 32-bit positions cannot describe have this many bases or more.
TOO_LONG = 1 << 32

_MAGIC, _TREE_MAGIC, _INDEX_MAGIC = 0x888FFC26, 0x78CA8C91, 0x2468ACE0
_SLOT = 1024  # values of a section, summaries of a block of a zoom level
_FAN = 256  # children of a node of the index and of the tree of contigs
_BATCH = 1 << 16  # values gathered before they are encoded
_FIRST_ZOOM, _ZOOM_FACTOR, _MOST_ZOOMS = 10, 4, 10
_FIXED_STEP, _BEDGRAPH = 3, 1

_ITEM = np.dtype([("start", "<u4"), ("end", "<u4"), ("value", "<f4")])
_SUMMARY = np.dtype(
    [("contig", "<u4"), ("start", "<u4"), ("end", "<u4"), ("bases", "<u4")]
    + [(name, "<f4") for name in ("low", "high", "sum", "squares")]
)
_LEAF = np.dtype(
    [(name, "<u4") for name in ("contig", "start", "last", "end")]
    + [("offset", "<u8"), ("size", "<u8")]
)
_NODE = np.dtype(_LEAF.descr[:-1])


class Bins(NamedTuple):
    """Statistics of the bases of some bins that have a value, ascending; a bin may stand twice."""

    contig: NDArray[Any]
    start: NDArray[Any]
    end: NDArray[Any]
    bases: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]
    sum: NDArray[Any]
    squares: NDArray[Any]

    def take(self, rows: slice | Int64) -> Bins:
        """Some of the bins."""
        return Bins(*(column[rows] for column in self))


class BigWigWriter:
    """A bigWig that takes values in order; :meth:`finish` makes it whole. A context manager.

    Parameters
    ----------
    file : binary file
        Empty, seekable.
    folder : Path
        Where zoom levels are kept until the values are written.
    contigs : mapping of str to int
        Lengths by name, below :data:`TOO_LONG`.
    width : int
        Typical bases of a value: decides the first zoom level.
    """

    def __init__(
        self, file: BinaryIO, folder: Path, contigs: Mapping[str, int], width: int
    ) -> None:
        names = sorted(name.encode() for name, length in contigs.items() if length)
        self._numbers = {name.decode(): i for i, name in enumerate(names)}
        self._file = file
        longest = max(contigs.values(), default=0)
        self._zooms = [_Zoom(size, folder) for size in _sizes(width, longest)]
        self._gathered: list[tuple[int, Int64, Int64, NDArray[np.float32]]] = []
        self._size = 0
        self._leaves = _Leaves()
        self._total = _NOTHING
        file.write(bytes(64 + 24 * len(self._zooms) + 40))
        self._tree = file.tell()
        _write_tree(file, names, [contigs[name.decode()] for name in names])
        self._data = file.tell()
        file.write(bytes(8))

    def add(self, contig: str, start: Int64, end: Int64, values: NDArray[np.float32]) -> None:
        """Values on ``[start, end)``, ascending, apart, none NaN; contigs in the order of bytes."""
        if not start.size:
            return
        self._gathered.append((self._numbers[contig], start, end, values))
        self._size += start.size
        if self._size >= _BATCH:
            self._encode()

    def finish(self) -> None:
        """Write what is left: the last values, the index, the zoom levels, the header."""
        self._encode()
        bins = _NOTHING.take(slice(0))
        for zoom in self._zooms:
            bins = zoom.add(bins, last=True)
        file, index = self._file, self._file.tell()
        self._leaves.write(file)
        zooms = [pack("<IIQQ", zoom.size, 0, *zoom.append_to(file)) for zoom in self._zooms]
        largest = max(_SLOT * _SUMMARY.itemsize, 24 + _SLOT * _ITEM.itemsize)
        file.write(pack("<I", _MAGIC))
        file.seek(0)
        file.write(pack("<IHH3Q", _MAGIC, 4, len(zooms), self._tree, self._data, index))
        file.write(pack("<HHQQIQ", 0, 0, 0, 64 + 24 * len(zooms), largest, 0))
        file.write(b"".join(zooms))
        file.write(pack("<Q4d", *(column.item() for column in self._total[3:])))
        file.seek(self._data)
        file.write(pack("<Q", len(self._leaves)))

    def __enter__(self) -> BigWigWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for zoom in self._zooms:
            zoom.close()

    def _encode(self) -> None:
        """Write the values gathered as sections and hand them to the zoom levels."""
        if not self._gathered:
            return
        sizes = [part[1].size for part in self._gathered]
        contig = np.repeat([part[0] for part in self._gathered], sizes)
        start, end = (np.concatenate([part[k] for part in self._gathered]) for k in (1, 2))
        values = np.concatenate([part[3] for part in self._gathered])
        self._gathered, self._size = [], 0
        bounds = np.append(np.flatnonzero(np.diff(contig)) + 1, contig.size).tolist()
        for first, last in zip([0, *bounds], bounds, strict=False):
            for i in range(first, last, _SLOT):
                slot = slice(i, min(i + _SLOT, last))
                self._write_section(int(contig[i]), start[slot], end[slot], values[slot])
        bins = _bins_of(contig, start, end, values.astype(np.float64))
        self._total = _merged(_joined(self._total, bins), np.zeros(1, np.int64))
        for zoom in self._zooms:
            bins = zoom.add(bins)

    def _write_section(
        self, contig: int, start: Int64, end: Int64, values: NDArray[np.float32]
    ) -> None:
        packed = zlib.compress(_section(contig, start, end, values))
        place = self._file.tell(), len(packed)
        self._leaves.add(contig, int(start[0]), contig, int(end[-1]), *place)
        self._file.write(packed)


class _Zoom:
    """One zoom level: summaries are kept in a file of their own until the data are written."""

    def __init__(self, size: int, folder: Path) -> None:
        self.size = size
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (closed by the writer)
        self._open = _NOTHING.take(slice(0))
        self._waiting = self._open
        self._count = 0
        self._leaves = _Leaves()

    def add(self, bins: Bins, last: bool = False) -> Bins:
        """Take finer bins; gives the bins of this level that are complete, at last all of them."""
        merged = _joined(self._open, _split(bins, self.size))
        if merged.start.size:  # what lies in one bin stands together
            new = (np.diff(merged.contig) != 0) | (np.diff(merged.start // self.size) != 0)
            merged = _merged(merged, np.append(0, np.flatnonzero(new) + 1))
        kept = merged.start.size if last else max(merged.start.size - 1, 0)
        self._open, merged = merged.take(slice(kept, None)), merged.take(slice(kept))
        self._waiting = _joined(self._waiting, merged)
        self._pack(last)
        return merged

    def _pack(self, last: bool) -> None:
        """Write full blocks of the summaries that wait, at last all of them."""
        waiting = self._waiting.start.size
        whole = waiting if last else waiting // _SLOT * _SLOT
        summaries = np.empty(whole, _SUMMARY)
        with np.errstate(over="ignore"):  # sums past float32 are infinite there
            for name, column in zip(_SUMMARY.names or (), self._waiting, strict=True):
                summaries[name] = column[:whole]
        for first in range(0, whole, _SLOT):
            block = summaries[first : first + _SLOT]
            packed = zlib.compress(block.tobytes())
            begins = int(block["contig"][0]), int(block["start"][0])
            ends = int(block["contig"][-1]), int(block["end"][-1])
            self._leaves.add(*begins, *ends, self._file.tell(), len(packed))
            self._file.write(packed)
        self._count += whole
        self._waiting = self._waiting.take(slice(whole, None))

    def append_to(self, target: BinaryIO) -> tuple[int, int]:
        """Copy the level to the end of the bigWig; gives where its data and its index are."""
        data = target.tell()
        target.write(pack("<I", self._count))
        self._file.seek(0)
        shutil.copyfileobj(self._file, target, 1 << 20)
        index = target.tell()
        self._leaves.write(target, moved=data + 4)
        return data, index

    def close(self) -> None:
        self._file.close()


class _Leaves:
    """Bounds and places of the blocks of an index, and the index itself."""

    def __init__(self) -> None:
        self._entries = bytearray()

    def __len__(self) -> int:
        return len(self._entries) // _LEAF.itemsize

    def add(self, contig: int, start: int, last: int, end: int, offset: int, size: int) -> None:
        self._entries += pack("<4I2Q", contig, start, last, end, offset, size)

    def write(self, file: BinaryIO, moved: int = 0) -> None:
        """Write the index at the file's position; blocks lie ``moved`` bytes further on."""
        leaves = np.frombuffer(self._entries, _LEAF).copy()
        leaves["offset"] += np.uint64(moved)
        around = _bounds(leaves, len(leaves))[0].tolist()[:4] if leaves.size else [0] * 4
        data_end = file.tell()
        file.write(pack("<IIQ", _INDEX_MAGIC, _FAN, len(leaves)))
        file.write(pack("<4IQII", *around, data_end, _SLOT, 0))
        levels: list[NDArray[Any]] = [leaves]
        while len(levels[0]) > _FAN:
            levels.insert(0, _bounds(levels[0], _FAN))
        offset = file.tell()
        for level in levels:
            width = level.dtype.itemsize
            offset += _padded(len(level), width)
            if level is not leaves:
                below = _LEAF.itemsize if level is levels[-2] else _NODE.itemsize
                level["offset"] = offset + np.arange(len(level)) * (4 + _FAN * below)
            _write_nodes(file, level, is_leaf=level is leaves)


def _padded(entries: int, width: int) -> int:
    """Bytes of the nodes that hold some entries."""
    return max(-(-entries // _FAN), 1) * (4 + _FAN * width)


def _write_nodes(file: BinaryIO, entries: NDArray[Any], is_leaf: bool) -> None:
    for first in range(0, max(len(entries), 1), _FAN):
        node = entries[first : first + _FAN]
        file.write(pack("<BBH", is_leaf, 0, len(node)) + node.tobytes())
        file.write(bytes((_FAN - len(node)) * entries.dtype.itemsize))


def _bounds(entries: NDArray[Any], fan: int) -> NDArray[Any]:
    """One entry around each ``fan`` entries, its offset still to be set."""
    first = np.arange(0, len(entries), fan)
    last = np.minimum(first + fan, len(entries)) - 1
    nodes = np.zeros(len(first), _NODE)
    for name in ("contig", "start"):
        nodes[name] = entries[name][first]
    nodes["last"] = entries["last"][last]
    nodes["end"] = entries["end"][last]
    return nodes


def _write_tree(file: BinaryIO, names: list[bytes], lengths: list[int]) -> None:
    """Write the B+ tree of contigs; their numbers are their places in the list."""
    key = max(map(len, names), default=1)
    kind = np.dtype([("name", f"S{key}"), ("number", "<u4"), ("length", "<u4")])
    file.write(pack("<IIIIQQ", _TREE_MAGIC, _FAN, key, 8, len(names), 0))
    width = kind.itemsize
    counts = [len(names)]
    while counts[0] > _FAN:
        counts.insert(0, -(-counts[0] // _FAN))
    offset = file.tell()
    for depth, count in enumerate(counts[:-1]):
        offset += _padded(count, width)
        span = _FAN ** (len(counts) - 1 - depth)
        nodes = np.empty(count, [("name", f"S{key}"), ("offset", "<u8")])
        nodes["name"] = names[::span]
        nodes["offset"] = offset + np.arange(count) * (4 + _FAN * width)
        _write_nodes(file, nodes, is_leaf=False)
    for first in range(0, max(len(names), 1), _FAN):
        here = names[first : first + _FAN]
        leaf = np.empty(len(here), kind)
        leaf["name"] = here
        leaf["number"] = np.arange(first, first + len(here))
        leaf["length"] = lengths[first : first + _FAN]
        _write_nodes(file, leaf, is_leaf=True)


def _section(contig: int, start: Int64, end: Int64, values: NDArray[np.float32]) -> bytes:
    """A section: values alone where they lie at one distance, else each with its bounds."""
    span = int(end[0] - start[0])
    step = int(start[1] - start[0]) if start.size > 1 else span
    even = bool((np.diff(start) == step).all() and (end - start == span).all())
    head = pack(
        "<5IBBH",
        *(contig, int(start[0]), int(end[-1])),
        *((step, span, _FIXED_STEP) if even else (0, 0, _BEDGRAPH)),
        *(0, start.size),
    )
    if even:
        return head + values.astype("<f4").tobytes()
    items = np.empty(start.size, _ITEM)
    items["start"], items["end"], items["value"] = start, end, values
    return head + items.tobytes()


def _sizes(width: int, longest: int) -> Iterator[int]:
    """Bases of the bins of each zoom level, up to the first that holds the longest contig."""
    size = _FIRST_ZOOM * width
    for _ in range(_MOST_ZOOMS):
        if size >= TOO_LONG:
            return
        yield size
        if size >= longest:
            return
        size *= _ZOOM_FACTOR


_NOTHING = Bins(
    *np.zeros((4, 1), np.int64),
    *np.array([[np.inf], [-np.inf], [0.0], [0.0]]),
)


def _bins_of(contig: Int64, start: Int64, end: Int64, values: Float64) -> Bins:
    """Statistics of single values."""
    count = end - start
    return Bins(contig, start, end, count, values, values, values * count, values**2 * count)


def _joined(*parts: Bins) -> Bins:
    return Bins(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _split(bins: Bins, size: int) -> Bins:
    """The same, cut where bins of ``size`` bases meet; only single values reach across."""
    first = bins.start // size
    pieces = (bins.end - 1) // size - first + 1
    if (pieces == 1).all():
        return bins
    source = np.repeat(np.arange(pieces.size), pieces)
    number = np.arange(source.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    cut = bins.take(source)
    low = (first[source] + number) * size
    start, end = np.maximum(cut.start, low), np.minimum(cut.end, low + size)
    share = (end - start) / (cut.end - cut.start)
    return cut._replace(
        start=start, end=end, bases=end - start, sum=cut.sum * share, squares=cut.squares * share
    )


def _merged(bins: Bins, firsts: Int64) -> Bins:
    """One bin a run of bins, given where the runs begin."""
    lasts = np.append(firsts[1:], bins.start.size) - 1
    with np.errstate(invalid="ignore"):  # infinities of both signs have no sum
        return Bins(
            bins.contig[firsts],
            bins.start[firsts],
            bins.end[lasts],
            np.add.reduceat(bins.bases, firsts),
            np.minimum.reduceat(bins.low, firsts),
            np.maximum.reduceat(bins.high, firsts),
            np.add.reduceat(bins.sum, firsts),
            np.add.reduceat(bins.squares, firsts),
        )
