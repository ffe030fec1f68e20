"""Predictions of many rows, a block of the grid at a time: the distinct ones, and who has which.

A block is at most :data:`~genomepred.store.pyramid.BLOCK` consecutive rows of the grid in
one interval. A line is what a picture has in one line: a haplotype of a cohort's file, or a genome
of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from genomepred.errors import StoreError
from genomepred.sequences.grid import Grid
from genomepred.sequences.names import haplotype_names
from genomepred.store.cohort_file import CohortFile, Stretch
from genomepred.store.cohort_writing import INDEX_CHUNK
from genomepred.store.opening import is_cohort
from genomepred.store.pyramid import BLOCK
from genomepred.store.reader import Float32, PredictionStore
from genomepred.store.stored import planes

# Bytes of a stored chunk of an index: [bytes of a number, lines, words of eight numbers' bytes].
Words = NDArray[np.uint64]
_WORD, _ALL = 8, np.uint64(0xFFFF_FFFF_FFFF_FFFF)
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
        self._base = CohortFile(path)
        self.grid, self.tracks = self._base.grid, self._base.tracks
        self.descriptions = self._base.descriptions
        self.lines = haplotype_names(self._base.haplotypes)

    def blocks(self, spans: Sequence[tuple[int, int]]) -> Iterator[Block]:
        """See :meth:`BlockSource.blocks`."""
        bins, columns = self.grid.geometry.bins, dict[int, list[Words]]()
        with self._base._reading("read"):
            for (first, last), stretch in self._stretched(spans):
                window, stop = first // bins, -(-last // bins)
                wanted = range(window // INDEX_CHUNK, -(-stop // INDEX_CHUNK))
                columns = {k: columns.get(k) or self._column(k) for k in wanted}
                begin, lines = wanted.start * INDEX_CHUNK, len(self.lines)
                index, label = distinct_lines(
                    list(columns.values()), lines, window - begin, stop - begin
                )
                values = np.empty((len(index), last - first, len(self.tracks)), np.float32)
                stretch.fill(index, window, first - window * bins, values)
                yield Block(first, values, label)

    def _stretched(
        self, spans: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], Stretch]]:
        """Spans, each with the predictions of a stretch of windows that it lies in."""
        bins, most = self.grid.geometry.bins, self._base.block_windows
        stretch: Stretch | None = None
        for k, (first, last) in enumerate(spans):
            if stretch is None or -(-last // bins) > stretch.last:
                begin = end = first // bins
                for span in spans[k:]:  # as many as are held at a time, at least one
                    if -(-span[1] // bins) - begin > most and end > begin:
                        break
                    end = -(-span[1] // bins)
                stretch = self._base.stretch(begin, end)
            yield (first, last), stretch

    def stored(self) -> Iterator[Float32]:
        """See :meth:`BlockSource.stored`."""
        data = self._base.predictions
        step = max(_READ // (data.chunks[0] * data.shape[1]), 1) * data.chunks[0]
        for row in range(0, data.shape[0], step):
            with self._base._reading("read"):
                yield np.asarray(data[row : row + step], np.float32)

    def _column(self, number: int) -> list[Words]:
        """Index of all haplotypes and a chunk's windows."""
        first, lines = number * INDEX_CHUNK, range(0, len(self.lines), INDEX_CHUNK)
        if not self._base.is_plain_index:
            found = self._base.index[:, first : first + INDEX_CHUNK]
            return [_words(found[line : line + INDEX_CHUNK]) for line in lines]
        shape = (-1, INDEX_CHUNK, INDEX_CHUNK // _WORD)
        return [
            planes(self._base.index, (line, first)).view("<u8").reshape(shape) for line in lines
        ]

    def close(self) -> None:
        """Close the file."""
        self._base.close()


def _words(index: NDArray[Any]) -> Words:
    """Words of a chunk's numbers as HDF5's shuffle leaves them; where it has none, 0."""
    whole = np.zeros((INDEX_CHUNK, INDEX_CHUNK), index.dtype.newbyteorder("<"))
    whole[: index.shape[0], : index.shape[1]] = index
    planes = np.moveaxis(whole.view(np.uint8).reshape(*whole.shape, whole.itemsize), 2, 0)
    return np.ascontiguousarray(planes).view("<u8")


def distinct_lines(
    columns: Sequence[Sequence[Words]], lines: int, first: int, last: int
) -> tuple[NDArray[np.uint32], NDArray[Any]]:
    """Distinct lines of an index, and which of them each line has.

    Lines are compared as they are stored, eight numbers' bytes at a time.

    Parameters
    ----------
    columns : sequence of sequences of Words
        For each column of chunks that the windows lie in, the chunks of all lines.
    lines : int
    first, last : int
        Windows, counted from the first of the columns.

    Returns
    -------
    uint32 array, [distinct, last - first]
        In the order in which they come first.
    unsigned array, [lines]
        uint8 where all numbers fit, else uint16 or uint32.
    """
    itemsize, word, skip = len(columns[0][0]), first // _WORD, first % _WORD
    masks = np.full(-(-last // _WORD) - word, _ALL)
    masks[0] &= _ALL << np.uint64(8 * skip)
    masks[-1] &= _ALL >> np.uint64(8 * (-last % _WORD))
    found = _Classes(lines, itemsize, masks)
    for chunk, begin in enumerate(range(0, lines, INDEX_CHUNK)):
        own = [column[chunk] for column in columns]
        whole = own[0] if len(own) == 1 else np.concatenate(own, axis=2)
        found.add(whole[:, : lines - begin], word)
    leads = found.leads[: found.count].view(np.uint8).reshape(found.count, itemsize, -1)
    planes = leads[:, :, skip : skip + last - first].astype(np.uint32)
    index = planes[:, 0]
    for byte in range(1, itemsize):
        index |= planes[:, byte] << np.uint32(8 * byte)
    return index, found.labels()


def classes(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Class of each row of unsigned numbers, and the first row of each class.

    Classes are numbered as they come; the numbers are uint8 where they fit, else uint16 or uint32.
    """
    everything = np.full(rows.shape[1], -1, np.int64).astype(rows.dtype)
    found = _Classes(len(rows), 1, everything)
    found.add(rows[None], 0)
    return found.labels(), found.first[: found.count].copy()


@lru_cache(maxsize=1)  # widths are as many as regions are
def factors(width: int) -> NDArray[np.uint64]:
    """Odd numbers that words are multiplied by."""
    return np.random.default_rng(0).integers(1, 1 << 63, width, np.uint64) | np.uint64(1)


class _Classes:
    """Classes of lines that come chunk by chunk: a hash table, and one line of each class.

    Parameters
    ----------
    lines, planes : int
    masks : unsigned array, [words]
        What of each word counts.

    Attributes
    ----------
    leads : unsigned array, [lines, planes * words]
        Words of the first line of each class.
    first : int64 array, [lines]
        Its number.
    """

    def __init__(self, lines: int, planes: int, masks: NDArray[Any]) -> None:
        size = 1 << (2 * lines + 1).bit_length()
        width = planes * len(masks)
        self._masks, self._factors = masks, factors(width)
        self._table, self._label = np.full(size, -1, np.int64), np.empty(lines, np.uint32)
        self.leads, self.first = np.empty((lines, width), masks.dtype), np.empty(lines, np.int64)
        self.count = self._lines = 0

    def add(self, words: NDArray[Any], word: int) -> None:
        """Take the next lines, [planes, lines, words from ``word`` on]."""
        lines = words.shape[1]
        label = self._label[self._lines : self._lines + lines]
        self.count = classify(
            *(words, word, self._masks, self._factors, self._table),
            *(self.leads, self.first, self.count, self._lines, label),
        )
        self._lines += lines

    def labels(self) -> NDArray[Any]:
        """Class of each line."""
        return self._label.astype(np.min_scalar_type(max(self.count - 1, 0)))


@njit(nogil=True, cache=True)
def classify(
    words: Any,
    word: int,
    masks: Any,
    factors: Any,
    table: Any,
    leads: Any,
    first: Any,
    count: int,
    begin: int,
    label: Any,
) -> int:
    """Hash, look up, and compare with the first line of the class, so that no chance is taken."""
    planes, width = words.shape[0], len(masks)
    own = np.empty(planes * width, masks.dtype)
    for r in range(words.shape[1]):
        key = np.uint64(0)
        for p in range(planes):
            for k in range(width):
                found = words[p, r, word + k] & masks[k]
                own[p * width + k] = found
                key += np.uint64(found) * factors[p * width + k]
        mixed = (key ^ (key >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
        slot = np.int64((mixed >> np.uint64(32)) & np.uint64(len(table) - 1))
        while True:
            group = table[slot]
            if group < 0:
                table[slot], first[count], label[r] = count, begin + r, count
                leads[count] = own
                count += 1
                break
            same = True
            for k in range(planes * width):
                if own[k] != leads[group, k]:
                    same = False
                    break
            if same:
                label[r] = group
                break
            slot = (slot + 1) & (len(table) - 1)
    return count


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
    if one.tracks != other.tracks or not one.grid.same_rows(other.grid):
        raise StoreError(
            f"{other.path}: other contigs, windows or "
            "tracks than those it is shown with; give predictions of one model on one reference"
        )
