"""Predictions of many rows, a block of the grid at a time: the distinct ones, and who has which.

A block is at most :data:`~genomepred.store.pyramid.BLOCK` consecutive rows of the grid in
one interval. A line is what a picture has in one line: a haplotype of a cohort's file, or a genome
of a run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np
from isal import igzip_lib, isal_zlib
from numba import njit
from numpy.typing import NDArray

from genomepred.errors import StoreError
from genomepred.machine import usable_cpus
from genomepred.sequences.grid import Grid
from genomepred.store.chunks import intact
from genomepred.store.cohort import CohortStore
from genomepred.store.cohort_writing import INDEX_CHUNK
from genomepred.store.opening import is_cohort
from genomepred.store.pyramid import BLOCK
from genomepred.store.reader import Float32, PredictionStore

_IsalError: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]
# Values of single genomes that are held at a time, and stored values of a cohort's.
_HELD, _READ = 1 << 26, 1 << 20


class Block(NamedTuple):
    """Distinct values of rows ``[first, first + n)``, and which of them each line has.

    ``values`` is float32 [distinct, n, tracks], NaN where missing; ``label`` uint [lines].
    """

    first: int
    values: Float32
    label: NDArray[Any]


class BlockSource(Protocol):
    """Lines on one grid."""

    lines: tuple[str, ...]
    tracks: tuple[str, ...]
    descriptions: tuple[str, ...]
    grid: Grid

    def blocks(self, spans: Sequence[tuple[int, int]]) -> Iterator[Block]:
        """Blocks of ascending ranges of rows, as :func:`spans_of` makes them.

        Raises
        ------
        StoreError
            If a file is damaged there.
        """
        ...

    def stored(self) -> Iterator[Float32]:
        """All stored values in any order, [rows, tracks] each."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


def spans_of(grid: Grid, first: int = 0, last: int | None = None) -> list[tuple[int, int]]:
    """Rows of each block that meets rows ``[first, last)``; all by default.

    Blocks are counted from the first row of an interval.
    """
    last = grid.rows if last is None else last
    spans = []
    for begin, count in zip(grid.first_row.tolist(), grid.row_counts.tolist(), strict=True):
        low, high = max(first - begin, 0), min(last - begin, count)
        rows = range(low // BLOCK * BLOCK, high if low < high else 0, BLOCK)
        spans += [(begin + row, begin + min(row + BLOCK, count)) for row in rows]
    return spans


def open_blocks(files: Sequence[Path], reference: Path | None = None) -> BlockSource:
    """Source of one cohort's file, or of single genomes with equal grids.

    Parameters
    ----------
    files : sequence of Path
    reference : Path, optional
        Prediction file of the reference on the same grid: one more line, the last.

    Raises
    ------
    StoreError
        If a file is damaged, or its grid or tracks are others than those of the first.
    """
    source: BlockSource
    source = CohortBlocks(files[0]) if is_cohort(files[0]) else GenomeBlocks(files)
    if reference is None:
        return source
    try:
        return WithReference(source, GenomeBlocks([reference]))
    except BaseException:
        source.close()
        raise


class CohortBlocks:
    """Haplotypes of a cohort's file."""

    def __init__(self, path: Path) -> None:
        self._store = CohortStore(path)
        self._base = self._store._base
        self.grid, self.tracks = self._base.grid, self._base.tracks
        self.descriptions = self._base.descriptions
        self.lines = haplotype_names(self._base.haplotypes)

    def blocks(self, spans: Sequence[tuple[int, int]]) -> Iterator[Block]:
        """See :meth:`BlockSource.blocks`."""
        bins, base = self.grid.geometry.bins, self._base
        with base._reading("read"), ThreadPoolExecutor(usable_cpus().amount) as pool:
            for (first, last), (index, label, leads) in zip(
                spans, self._classes(pool, spans), strict=True
            ):
                window = first // bins
                found = base.located(index[leads], window)
                values = np.empty((len(leads), last - first, len(self.tracks)), np.float32)
                base.gather(found, first - window * bins, values)
                yield Block(first, values, label)

    def stored(self) -> Iterator[Float32]:
        """See :meth:`BlockSource.stored`."""
        data = self._base.predictions
        step = max(_READ // (data.chunks[0] * data.shape[1]), 1) * data.chunks[0]
        for row in range(0, data.shape[0], step):
            with self._base._reading("read"):
                yield np.asarray(data[row : row + step], np.float32)

    def _classes(
        self, pool: ThreadPoolExecutor, spans: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """Index of each span, the class of each haplotype in it, and one haplotype of each."""
        bins = self.grid.geometry.bins
        columns: dict[int, Future[NDArray[Any]]] = {}

        def task(span: tuple[int, int]) -> Future[Any]:
            first, last = span[0] // bins, -(-span[1] // bins)
            wanted = range(first // INDEX_CHUNK, -(-last // INDEX_CHUNK))
            for column in wanted:
                if column not in columns:
                    columns[column] = pool.submit(self._column, column)
            for column in [column for column in columns if column < wanted.start]:
                del columns[column]
            parts = [columns[column] for column in wanted]
            return pool.submit(_classes_of, parts, first - wanted.start * INDEX_CHUNK, last - first)

        yield from ahead(task, spans, 2 * usable_cpus().amount)

    def _column(self, number: int) -> NDArray[Any]:
        """Index of all haplotypes and a chunk's windows, [haplotypes, windows]."""
        index = self._base.index
        first = number * INDEX_CHUNK
        if not _is_plain(index):
            found: NDArray[Any] = index[:, first : first + INDEX_CHUNK]
            return found
        lines, windows = index.shape
        out = np.empty((-(-lines // INDEX_CHUNK) * INDEX_CHUNK, INDEX_CHUNK), index.dtype)
        for line in range(0, lines, INDEX_CHUNK):
            skipped, chunk = index.id.read_direct_chunk((line, first))
            if skipped:
                raise ValueError("a chunk of the index was stored without its filters")
            _decode(chunk, out[line : line + INDEX_CHUNK])
        return out[:lines, : windows - first]

    def close(self) -> None:
        """Close the file."""
        self._store.close()


def haplotype_names(haplotypes: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """Names of haplotypes as ``--sample`` takes them: S, or S.1 and S.2 where there are several."""
    copies: dict[str, int] = {}
    for sample, _ in haplotypes:
        copies[sample] = copies.get(sample, 0) + 1
    return tuple(f"{s}.{copy}" if copies[s] > 1 else s for s, copy in haplotypes)


def ahead(task: Callable[[Any], Future[Any]], items: Iterable[Any], most: int) -> Iterator[Any]:
    """Results in order, of at most ``most`` tasks that are begun before they are asked for."""
    coming = iter(items)
    begun = deque(map(task, islice(coming, most)))
    while begun:
        result = begun.popleft().result()
        begun.extend(map(task, islice(coming, 1)))
        yield result


def _is_plain(index: h5py.Dataset) -> bool:
    """Whether chunks are as this package writes them: shuffled, deflated, with a checksum."""
    made = index.id.get_create_plist()
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    ours = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32]
    return filters == ours and index.chunks == (INDEX_CHUNK, INDEX_CHUNK)


def _decode(chunk: bytes, out: NDArray[Any]) -> None:
    """Fill ``out`` with a stored chunk's numbers; HDF5's own filters hold one lock for all."""
    if not intact(chunk):
        raise ValueError("a chunk of the index does not match its checksum")
    try:
        data = isal_zlib.decompressobj().decompress(chunk[:-4], out.nbytes + 1)
    except _IsalError as error:
        raise ValueError(f"a chunk of the index: {error}") from error
    planes = np.frombuffer(data, np.uint8).reshape(out.itemsize, -1)
    if planes.size != out.nbytes:
        raise ValueError("a chunk of the index has another size")
    _unshuffle(planes, out.reshape(-1))


@njit(nogil=True, cache=True)
def _unshuffle(planes: Any, out: Any) -> None:
    """Numbers of their bytes, the lowest first; a loop a byte, which compiles to vectors."""
    for i in range(len(out)):
        out[i] = planes[0, i]
    for b in range(1, planes.shape[0]):
        shift = 8 * b
        for i in range(len(out)):
            out[i] |= np.uint32(planes[b, i]) << shift


def _classes_of(
    parts: Sequence[Future[NDArray[Any]]], skip: int, count: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    columns = [part.result() for part in parts]
    whole = columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
    index = whole[:, skip : skip + count]
    label, leads = classes(index)
    return index, label, leads


def classes(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Class of each row of unsigned numbers, and the first row of each class.

    Classes are numbered as they come; the numbers are uint8 where they fit, else uint16 or uint32.
    """
    factors = np.random.default_rng(0).integers(1, 1 << 63, rows.shape[1], np.uint64)
    label, leads = _classes(np.ascontiguousarray(rows), factors | np.uint64(1))
    return label.astype(np.min_scalar_type(max(len(leads) - 1, 0))), leads


@njit(nogil=True, cache=True)
def _classes(rows: Any, factors: Any) -> Any:
    """Hash, look up, and compare with the first row of the class, so that no chance is taken."""
    count, width = rows.shape
    size = 1
    while size < 2 * count + 2:
        size *= 2
    table = np.full(size, -1, np.int64)
    label, leads = np.empty(count, np.uint32), np.empty(count, np.int64)
    found = 0
    for r in range(count):
        key = np.uint64(0)
        for k in range(width):
            key += np.uint64(rows[r, k]) * factors[k]
        mixed = (key ^ (key >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
        slot = np.int64((mixed >> np.uint64(32)) & np.uint64(size - 1))
        while True:
            group = table[slot]
            if group < 0:
                table[slot], leads[found], label[r] = found, r, found
                found += 1
                break
            same, lead = True, leads[group]
            for k in range(width):
                if rows[r, k] != rows[lead, k]:
                    same = False
                    break
            if same:
                label[r] = group
                break
            slot = (slot + 1) & (size - 1)
    return label, leads[:found].copy()


class GenomeBlocks:
    """Single genomes whose grids are equal, one line each."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        with PredictionStore(paths[0]) as first:
            self.grid, self.tracks = first.grid, first.tracks
            self.descriptions = first.descriptions
        self.lines = tuple(path.stem for path in paths)
        self._kept: PredictionStore | None = PredictionStore(paths[0]) if len(paths) == 1 else None

    def blocks(self, spans: Sequence[tuple[int, int]]) -> Iterator[Block]:
        """See :meth:`BlockSource.blocks`."""
        held = max(_HELD // (len(self._paths) * len(self.tracks) * BLOCK), 1)
        for k in range(0, len(spans), held):
            group = spans[k : k + held]
            begin = group[0][0]
            values = self._read(begin, group[-1][1])
            for first, last in group:
                part = values[:, first - begin : last - begin]
                label, leads = classes(part.reshape(len(part), -1).view(np.uint32))
                yield Block(first, part[leads], label)

    def stored(self) -> Iterator[Float32]:
        """See :meth:`BlockSource.stored`."""
        for path in self._paths:
            with PredictionStore(path) as store:
                yield from (values for _, values in store.blocks())

    def _read(self, first: int, last: int) -> Float32:
        """Rows of all genomes, [genomes, rows, tracks]; files are opened one after the other."""
        out = np.empty((len(self._paths), last - first, len(self.tracks)), np.float32)
        for path, rows in zip(self._paths, out, strict=True):
            with ExitStack() as stack:
                store = self._kept or stack.enter_context(PredictionStore(path))
                require_equal(self, store)
                rows[:] = store.read(first, last)
        return out

    def close(self) -> None:
        """Close the file, where it is one."""
        if self._kept is not None:
            self._kept.close()


class WithReference:
    """Lines of a source, and the reference's predictions as one more, the last."""

    #: Name of the line.
    name = "reference"

    def __init__(self, source: BlockSource, reference: GenomeBlocks) -> None:
        require_equal(source, reference._kept)
        self._source, self._reference = source, reference
        self.grid, self.tracks = source.grid, source.tracks
        self.descriptions = source.descriptions
        self.lines = (*source.lines, self.name)

    def blocks(self, spans: Sequence[tuple[int, int]]) -> Iterator[Block]:
        """See :meth:`BlockSource.blocks`."""
        pairs = zip(self._source.blocks(spans), self._reference.blocks(spans), strict=True)
        for (first, values, label), reference in pairs:
            kind = np.min_scalar_type(len(values))
            yield Block(
                first,
                np.concatenate([values, reference.values]),
                np.append(label.astype(kind), kind.type(len(values))),
            )

    def stored(self) -> Iterator[Float32]:
        """See :meth:`BlockSource.stored`."""
        yield from self._source.stored()
        yield from self._reference.stored()

    def close(self) -> None:
        """Let go of files."""
        self._source.close()
        self._reference.close()


def require_equal(one: Any, other: Any) -> None:
    """Raise a StoreError unless two sources or stores have the same rows and tracks."""
    if one.tracks != other.tracks or not equal_grids(one.grid, other.grid):
        raise StoreError(
            f"{other.path}: other contigs, windows or "
            "tracks than those it is shown with; give predictions of one model on one reference"
        )


def equal_grids(a: Grid, b: Grid) -> bool:
    """Whether rows of two grids are the same places."""
    return (
        a.geometry == b.geometry
        and a.rows == b.rows
        and all(
            np.array_equal(getattr(a, name), getattr(b, name))
            for name in ("contigs", "start", "first_row", "length")
        )
    )
