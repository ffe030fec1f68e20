"""All samples of a run row by row: a cohort by its distinct predictions, or genomes of one grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import StoreError
from genomepred.runs.manifest import prediction_files
from genomepred.sequences.grid import Grid
from genomepred.sequences.names import haplotype_names
from genomepred.store.cohort import CohortStore
from genomepred.store.cohort_file import windows_together
from genomepred.store.opening import cohort_of
from genomepred.store.reader import Float32, Int64, PredictionStore
from genomepred.tables.ranks import count_classes
from genomepred.tables.reduction import columns_of

# Values of genomes that are held at a time.
_BLOCK_VALUES = 1 << 24
# Files of genomes that stay open; of more, each is opened anew for every block.
_MOST_OPEN = 256


class Block(NamedTuple):
    """Distinct predictions of consecutive windows, and how many samples of each group have them.

    ``row`` is the first row's number; the rest is what :func:`genomepred.tables.ranks.moments`
    takes.
    """

    row: int
    starts: Int64
    rows: Float32
    counts: Int64
    bins: int


class Samples(Protocol):
    """All samples of a run."""

    names: list[str]
    """Names of the samples: genomes, or haplotypes of a cohort."""
    owners: list[str]
    """The sample that each haplotype is of; a genome itself."""
    path: Path
    grid: Grid
    tracks: tuple[str, ...]
    attributes: dict[str, Any]

    def blocks(
        self, group: NDArray[np.int8], groups: int, tracks: Sequence[int]
    ) -> Iterator[Block]:
        """All rows of some tracks, in order.

        ``group`` says which of the groups each sample is in, -1 none.
        """
        ...

    def values(self, rows: Sequence[int]) -> Float32:
        """Some rows of all samples, [samples, rows, tracks]."""
        ...


@contextmanager
def open_samples(out: Path) -> Iterator[Samples]:
    """A cohort's file, or the genomes of a run, opened for reading row by row.

    Raises
    ------
    StoreError
        If files cannot be read, or the genomes do not have the same rows and tracks.
    """
    files = prediction_files(out)
    cohort = cohort_of(files)
    with ExitStack() as stack:
        if cohort is not None:
            yield _Cohort(stack.enter_context(CohortStore(cohort)))
        else:
            yield _Genomes(files, stack)


class _Cohort:
    """Haplotypes of a cohort's file."""

    def __init__(self, store: CohortStore) -> None:
        self._store = store
        self.names = list(haplotype_names(store.haplotypes))
        self.owners = [sample for sample, _ in store.haplotypes]
        self.path, self.grid, self.tracks = store.path, store.grid, store.tracks
        self.attributes = dict(store.attributes)

    def blocks(
        self, group: NDArray[np.int8], groups: int, tracks: Sequence[int]
    ) -> Iterator[Block]:
        bins = self.grid.geometry.bins
        windows = self.grid.rows // bins
        step = windows_together(len(group))
        for first in range(0, windows, step):
            table, starts, leader, rows, none = self._store.classes(
                first, min(first + step, windows)
            )
            counts = np.zeros((len(leader), groups), np.int64)
            turned = np.ascontiguousarray(table.T)
            bad = count_classes(turned, starts, leader, none, group, counts)
            if bad >= 0:
                raise self._store.without_leader(first + bad)
            yield Block(first * bins, starts, columns_of(rows, tracks), counts, bins)

    def values(self, rows: Sequence[int]) -> Float32:
        bins = self.grid.geometry.bins
        out = np.full((len(self.names), len(rows), len(self.tracks)), np.nan, np.float32)
        for k, row in enumerate(rows):
            window, b = divmod(row, bins)
            table, _, leader, values, none = self._store.classes(window, window + 1)
            known = table[:, 0] != none
            place = np.searchsorted(leader, table[known, 0])
            out[known, k] = values[place * bins + b]
        return out


class _Genomes:
    """Genomes whose files have the same rows."""

    def __init__(self, files: Sequence[Path], stack: ExitStack) -> None:
        self._files = files
        self._open: list[PredictionStore] = []
        self.names = self.owners = [path.stem for path in files]
        with PredictionStore(files[0]) as store:
            self.path, self.grid, self.tracks = files[0].parent, store.grid, store.tracks
            self.attributes = dict(store.attributes)
        for path in files:
            with PredictionStore(path) as store:
                self._require_same(store, files[0])
        if len(files) <= _MOST_OPEN:
            self._open = [stack.enter_context(PredictionStore(path)) for path in files]

    def _require_same(self, store: PredictionStore, first: Path) -> None:
        what = None
        if store.tracks != self.tracks:
            what = f"the tracks {', '.join(store.tracks)}"
        elif store.grid.geometry != self.grid.geometry:
            what = f"{store.grid.geometry}"
        elif not store.grid.same_rows(self.grid, "names"):
            what = "other contigs, lengths or regions"
        if what is not None:
            raise StoreError(
                f"{store.path}: has {what}, unlike {first}; rows are compared between genomes of "
                "one coordinate system: for others make a table of regions matched by name "
                "(genomepred table)"
            )

    def _stores(self) -> Iterator[PredictionStore]:
        if self._open:
            yield from self._open
            return
        for path in self._files:
            with PredictionStore(path) as store:
                yield store

    def blocks(
        self, group: NDArray[np.int8], groups: int, tracks: Sequence[int]
    ) -> Iterator[Block]:
        samples = len(self.names)
        step = max(_BLOCK_VALUES // (samples * len(self.tracks)), 1)
        # Every sample is a distinct prediction of its own; the counts of one row hold for all.
        counts = np.zeros((samples, groups), np.int64)
        counts[group >= 0, group[group >= 0]] = 1
        for first in range(0, self.grid.rows, step):
            last = min(first + step, self.grid.rows)
            rows = np.empty((last - first, samples, len(tracks)), np.float32)
            for k, store in enumerate(self._stores()):
                rows[:, k] = columns_of(store.read(first, last), tracks)
            starts = np.arange(last - first + 1, dtype=np.int64) * samples
            yield Block(first, starts, rows.reshape(-1, len(tracks)), counts, 1)

    def values(self, rows: Sequence[int]) -> Float32:
        out = np.empty((len(self.names), len(rows), len(self.tracks)), np.float32)
        for k, store in enumerate(self._stores()):
            for j, row in enumerate(rows):
                out[k, j] = store.read(row, row + 1)[0]
        return out


class RowStore(PredictionStore):
    """Values computed for each row of a grid, with the interface of a prediction file.

    Parameters
    ----------
    samples : Samples
        Whose rows they are.
    columns : dict of str to float array, [rows]
        Tracks by name.
    """

    def __init__(self, samples: Samples, columns: dict[str, NDArray[Any]]) -> None:
        self.path, self.grid, self.rows = samples.path, samples.grid, samples.grid.rows
        self.attributes = {**samples.attributes, "genome": samples.path.stem}
        self.tracks, self.descriptions = tuple(columns), ("",) * len(columns)
        self._columns = list(columns.values())

    def read(self, first: int, last: int) -> Float32:
        """See :meth:`PredictionStore.read`."""
        with np.errstate(over="ignore"):
            return np.stack([column[first:last] for column in self._columns], 1).astype(np.float32)

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, Float32]]:
        """See :meth:`PredictionStore.blocks`."""
        last = self.rows if last is None else last
        for row in range(first, last, 1 << 16):
            yield row, self.read(row, min(row + (1 << 16), last))

    def close(self) -> None:
        """Nothing is open."""
