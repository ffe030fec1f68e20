"""Cohort files: every distinct prediction of a panel once, and which of them each haplotype has.

Layout beside what any prediction file has: ``/haplotypes/{sample,copy}``; ``/predictions``
[distinct rows and padding, tracks]; ``/cohort/first`` [windows], number of each window's first
distinct prediction; ``/cohort/leader`` [distinct], the lowest haplotype of each class, ascending
within a window; ``/cohort/index`` [haplotypes, windows], every haplotype's leader. The distinct
number is ``first[w]`` plus the place of ``index[h, w]`` among the window's leaders. Shards are
padded to whole chunks with NaN, so that joining them copies chunks as they are.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from genomepred.errors import GenomepredError, RegionError, optional
from genomepred.sequences.distinct import leader_type
from genomepred.sequences.grid import Region
from genomepred.store.cohort_writing import INDEX_CHUNK
from genomepred.store.opening import COHORT_FORMAT
from genomepred.store.reader import DATASET, Float32, Int64, PredictionStore
from genomepred.store.schema import (
    SchemaError,
    open_dataset,
    open_group,
    read_texts,
)

if TYPE_CHECKING:
    import anndata
    import xarray

# Windows read at a time by `matrix`.
_WINDOWS = 1 << 14
# Windows, and bytes of their distinct predictions, that are read at a time for one haplotype, and
# bytes of what is kept: those, their index, and rows of haplotypes.
_BLOCK, _BLOCK_BYTES, _KEPT_BYTES = 1 << 11, 1 << 23, 1 << 26
_MOST_HAPLOTYPES = 1 << 24


class Classes(NamedTuple):
    """Distinct predictions of consecutive windows, not expanded to haplotypes.

    Parameters
    ----------
    table : uint array, [haplotypes, windows]
        Leader of each haplotype; ``none`` where it has no prediction.
    starts : int64 array, [windows + 1]
        Where each window's distinct predictions begin in ``leader``.
    leader : uint array, [distinct]
        Ascending within a window; ``none`` fills the chunks of a shard.
    rows : float32 array, [distinct x bins, tracks]
    none : int
    """

    table: NDArray[Any]
    starts: Int64
    leader: NDArray[Any]
    rows: Float32
    none: int


class CohortStore:
    """Predictions of all haplotypes of a panel, opened for reading.

    ``store.haplotype("S1", copy=1)`` reads as a prediction file of that haplotype;
    ``store["S1", contig, start:end]`` is its rows of all copies, ``store.matrix(contig, start,
    end)`` those of all haplotypes.

    Parameters
    ----------
    path : Path or str
        A file that ``genomepred predict --variants`` wrote.

    Attributes
    ----------
    path : Path
    haplotypes : list of (str, int)
        Sample and copy of each haplotype.
    samples : list of str
    tracks : tuple of str
    grid : Grid
        Rows <-> reference coordinates.

    Raises
    ------
    StoreError
        If the file is absent, damaged, or no cohort file.
    """

    def __init__(self, path: Path | str) -> None:
        self._base = _Base(path)
        self.path, self.grid = self._base.path, self._base.grid
        self.tracks, self.attributes = self._base.tracks, self._base.attributes
        self.haplotypes = self._base.haplotypes
        self.samples = list(dict.fromkeys(sample for sample, _ in self.haplotypes))

    def haplotype(self, sample: str, copy: int | None = None) -> HaplotypeStore:
        """One haplotype, with the interface of a prediction file.

        ``copy`` may be left out where the sample has only one. Closing it leaves this store open.

        Raises
        ------
        RegionError
            If there is no such sample or copy.
        """
        copies = [c for s, c in self.haplotypes if s == sample]
        if copy is None and len(copies) == 1:
            copy = copies[0]
        if copy not in copies:
            some = ", ".join(self.samples[:5])
            what = (
                f"sample {sample!r} has copies {', '.join(map(str, copies))}: say {sample}.COPY"
                if copies
                else f"no sample {sample!r}; its {len(self.samples)} samples begin with {some}"
            )
            raise RegionError(f"{self.path}: {what}")
        return HaplotypeStore(self._base, self.haplotypes.index((sample, copy)))

    def named(self, text: str) -> HaplotypeStore:
        """Haplotype of ``SAMPLE`` or ``SAMPLE.COPY``; an exact name of a sample wins."""
        sample, dot, copy = text.rpartition(".")
        if text not in self.samples and dot and copy.isdecimal():
            return self.haplotype(sample, int(copy))
        return self.haplotype(text)

    def __getitem__(self, key: tuple[str, str, slice]) -> Float32:
        """Rows of all copies of a sample, [copies, rows, tracks]."""
        sample, contig, bases = key
        stop = self._base.contigs.get(contig, 0) if bases.stop is None else bases.stop
        return self.matrix(contig, bases.start or 0, stop, samples=[sample])

    def matrix(
        self, contig: str, start: int, end: int, samples: Sequence[str] | None = None
    ) -> Float32:
        """Rows that intersect ``[start, end)`` of a contig, [haplotypes, rows, tracks].

        ``samples`` selects haplotypes and their order; all by default.
        """
        numbers = self._numbers(samples)
        ranges = self._base.ranges(Region(contig, start, end))
        parts = [self._base.values(numbers, *r) for r in ranges]
        empty = np.empty((len(numbers), 0, len(self.tracks)), np.float32)
        return np.concatenate([empty, *parts], axis=1) if len(parts) != 1 else parts[0]

    def _numbers(self, samples: Sequence[str] | None) -> Int64:
        """Haplotypes of samples, in their order."""
        if samples is None:
            return np.arange(len(self.haplotypes))
        for sample in samples:
            if sample not in self.samples:
                raise RegionError(f"{self.path}: no sample {sample!r}")
        return np.array([h for s in samples for h, (t, _) in enumerate(self.haplotypes) if s == t])

    def _named(
        self, region: str, samples: Sequence[str] | None
    ) -> tuple[Float32, dict[str, Any], dict[str, Any]]:
        """Matrix of a region string; columns that describe haplotypes, and rows."""
        numbers, place = self._numbers(samples), self._base.region(region)
        values = self.matrix(*place[:3], samples=samples)
        rows = [np.arange(*r) for r in self._base.ranges(place)]
        named = [self.haplotypes[h] for h in numbers.tolist()]
        who = {"sample": [sample for sample, _ in named], "copy": [copy for _, copy in named]}
        return values, who, self._base._places(np.concatenate([np.arange(0), *rows]))

    def to_xarray(self, region: str, samples: Sequence[str] | None = None) -> xarray.DataArray:
        """Rows of a region string of all haplotypes, or of samples', [haplotype, row, track].

        Raises
        ------
        DependencyError
            If xarray is not installed.
        """
        with optional("to_xarray", "xarray"):
            import xarray
        values, who, places = self._named(region, samples)
        coordinates = {name: ("haplotype", column) for name, column in who.items()}
        coordinates |= {name: ("row", column) for name, column in places.items()}
        return xarray.DataArray(
            values,
            dims=("haplotype", "row", "track"),
            coords={**coordinates, "track": list(self.tracks)},
            attrs=self.attributes,
            name=DATASET,
        )

    def to_anndata(self, region: str, samples: Sequence[str] | None = None) -> anndata.AnnData:
        """Rows of a region string: haplotypes as observations, rows as variables.

        X has the first track, and every track is a layer by its name.

        Raises
        ------
        DependencyError
            If anndata is not installed.
        """
        with optional("to_anndata", "anndata"):
            import anndata
        import pandas as pd

        values, who, places = self._named(region, samples)
        names = [f"{sample}.{copy}" for sample, copy in zip(*who.values(), strict=True)]
        where = zip(places["contig"], places["start"], places["end"], strict=True)
        rows = [f"{contig}:{start}-{end}" for contig, start, end in where]
        layers = {name: values[:, :, t] for t, name in enumerate(self.tracks)}
        return anndata.AnnData(
            values[:, :, 0],
            obs=pd.DataFrame(who, index=pd.Index(names)),
            var=pd.DataFrame(places, index=pd.Index(rows)),
            layers=layers,
        )

    def classes(self, first: int, last: int) -> Classes:
        """Distinct predictions of windows ``[first, last)``, and which each haplotype has."""
        base = self._base
        with base._reading(f"read at windows {first}-{last}"):
            end = int(base.first[last]) if last < len(base.first) else len(base.leader)
            low, bins = int(base.first[first]), base.grid.geometry.bins
            return Classes(
                np.asarray(base.index[:, first:last]),
                np.append(base.first[first:last], end) - low,
                base.leader[low:end],
                np.asarray(base.predictions[low * bins : end * bins], np.float32),
                base.none,
            )

    def problems(self) -> list[str]:
        """Contradictions within the file: leaders that do not ascend, an index that names none."""
        return self._base.problems()

    def summary(self) -> dict[str, Any]:
        """Facts about the file as plain values."""
        base = self._base
        distinct = int((base.leader != base.none).sum())
        windows = base.grid.rows // base.grid.geometry.bins
        return {
            "file": str(self.path),
            "bytes": self.path.stat().st_size,
            "attributes": self.attributes,
            "samples": len(self.samples),
            "haplotypes": len(self.haplotypes),
            "contigs": len(base.contigs),
            "bases": sum(base.contigs.values()),
            "windows": windows,
            "distinct": distinct,
            "distinct_per_window": distinct / max(windows, 1),
            "tracks": [
                {"name": name, "description": text}
                for name, text in zip(base.tracks, base.descriptions, strict=True)
            ],
        }

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def __enter__(self) -> CohortStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Base(PredictionStore):
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
        first = open_dataset(cohort, "first", 1)
        leader, self.index = open_dataset(cohort, "leader", 1), open_dataset(cohort, "index", 2)
        kind = leader_type(len(self.haplotypes)).newbyteorder("<")
        if leader.dtype != kind or self.index.dtype != kind or first.dtype != np.dtype("<i8"):
            raise SchemaError(f"leaders are {leader.dtype} and {self.index.dtype}, not {kind}")
        windows, distinct = len(first), len(leader)
        rows = self.predictions.shape[0]
        if self.index.shape != (len(self.haplotypes), windows):
            raise SchemaError(f"/cohort/index has shape {self.index.shape}")
        if distinct * self.grid.geometry.bins != rows:
            raise SchemaError(f"{distinct:,} leaders for {rows:,} rows of predictions")
        self.first: Int64 = first[:]
        self.leader: NDArray[Any] = leader[:]
        self.none = int(np.iinfo(kind).max)
        self._kept = _Kept()
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
        last = first + index.shape[1]
        end = int(self.first[last]) if last < len(self.first) else len(self.leader)
        out = np.empty(index.shape, np.int64)
        bad = _look_up(
            index, self.first[first:last], end, self.leader, len(self.haplotypes), self.none, out
        )
        if bad >= 0:
            raise ValueError(f"the index of window {first + bad} names no leader")
        return out

    def values(self, numbers: Int64, first: int, last: int) -> Float32:
        """Rows ``[first, last)`` of haplotypes, [haplotypes, rows, tracks]."""
        bins, tracks = self.grid.geometry.bins, len(self.tracks)
        out = np.empty((len(numbers), last - first, tracks), np.float32)
        with self._reading(f"read at rows {first}-{last}"):
            for window in range(first // bins, -(-last // bins), _WINDOWS):
                stop = min(window + _WINDOWS, -(-last // bins))
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
        rows = self._block_windows * self.grid.geometry.bins
        out = np.empty((last - first, len(self.tracks)), np.float32)
        with self._reading(f"read at rows {first}-{last}"):
            for block in range(first // rows, -(-last // rows)):
                origin = block * rows
                begin, end = max(origin, first), min(origin + rows, last)
                own = self._kept.get((number, block), self._own_block)
                out[begin - first : end - first] = own[begin - origin : end - origin]
        return out

    @cached_property
    def _block_windows(self) -> int:
        """Windows of a block: whole chunks of the index, fewer where their predictions are many."""
        size = 4 * int(self.predictions.size) // max(len(self.first), 1)
        windows = min(_BLOCK, _BLOCK_BYTES // max(size, 1))
        return max(windows // INDEX_CHUNK, 1) * INDEX_CHUNK

    def _own_block(self, key: tuple[int, int]) -> Float32:
        """Rows of a haplotype in a block."""
        number, block = key
        group, place = divmod(number, INDEX_CHUNK)
        index = self._kept.get((-2 - group, block), self._index_block)
        found = self.located(index[place : place + 1], block * self._block_windows)
        low, rows = self._kept.get((-1, block), self._block_rows)
        bins = self.grid.geometry.bins
        out = np.empty((1, found.shape[1] * bins, len(self.tracks)), np.float32)
        _gather(found, int(low), bins, rows, 0, out)
        own: Float32 = out[0]
        return own

    def _index_block(self, key: tuple[int, int]) -> NDArray[Any]:
        """Index of the haplotypes of a row of chunks in a block."""
        h, first = (-2 - key[0]) * INDEX_CHUNK, key[1] * self._block_windows
        index: NDArray[Any] = self.index[h : h + INDEX_CHUNK, first : first + self._block_windows]
        return index

    def _block_rows(self, key: tuple[int, int]) -> tuple[Int64, Float32]:
        """Number of the first distinct prediction of a block, and the rows of all."""
        first, last = key[1] * self._block_windows, (key[1] + 1) * self._block_windows
        low = self.first[first]
        end = self.first[last] if last < len(self.first) else len(self.leader)
        bins = self.grid.geometry.bins
        return low, np.asarray(self.predictions[low * bins : end * bins], np.float32)

    def problems(self) -> list[str]:
        """See :meth:`CohortStore.problems`."""
        found = []
        counts = np.diff(np.append(self.first, len(self.leader)))
        window = np.repeat(np.arange(len(self.first)), counts)
        leader = self.leader.astype(np.int64)
        rising = (np.diff(leader) > 0) | (leader[1:] == self.none)
        known = leader[leader != self.none].max(initial=0) < max(len(self.haplotypes), 1)
        if not (rising[np.diff(window) == 0].all() and known):
            found.append("leaders do not ascend, or are no haplotypes")
        try:
            for w in range(0, len(self.first), INDEX_CHUNK):
                stop = min(w + INDEX_CHUNK, len(self.first))
                self.distinct(np.arange(len(self.haplotypes)), w, stop)
        except ValueError as error:
            found.append(str(error))
        return found


class _Kept:
    """The last things read, up to some bytes; for any number of threads."""

    def __init__(self) -> None:
        self._read: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def get(self, key: tuple[int, int], read: Callable[[tuple[int, int]], Any]) -> Any:
        """Return what ``read`` returned for the key, now or before."""
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


class HaplotypeStore(PredictionStore):
    """One haplotype of a cohort file, with the interface of a prediction file."""

    def __init__(self, base: _Base, number: int) -> None:
        self._base, self._number = base, number
        self.path, self._file, self.attributes = base.path, base._file, dict(base.attributes)
        self.predictions, self.rows, self.grid = base.predictions, base.grid.rows, base.grid
        self.tracks, self.descriptions = base.tracks, base.descriptions
        self.sample, self.copy = base.haplotypes[number]
        self.attributes |= {"sample": self.sample, "copy": self.copy}

    def read(self, first: int, last: int) -> Float32:
        """See :meth:`PredictionStore.read`."""
        if not 0 <= first <= last <= self.rows:
            raise RegionError(f"rows {first}-{last} asked for, {self.path} has 0-{self.rows}")
        return self._base.own_values(self._number, first, last)

    def close(self) -> None:
        """The cohort file stays open."""


@njit(nogil=True, cache=True)
def _look_up(
    index: Any, first: Any, end: int, leader: Any, haplotypes: int, none: int, out: Any
) -> int:
    """Distinct numbers of an index's leaders; -1, or the first window with one that is none."""
    place = np.full(haplotypes, -1, np.int64)
    for w in range(index.shape[1]):
        stop = first[w + 1] if w + 1 < len(first) else end
        for d in range(first[w], stop):
            if leader[d] < haplotypes:
                place[leader[d]] = d
        for h in range(index.shape[0]):
            number = index[h, w]
            if number == none:
                out[h, w] = -1
                continue
            if number >= haplotypes or place[number] < first[w]:
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


def open_haplotype(path: Path, sample: str) -> PredictionStore:
    """One haplotype of a cohort file, which is closed with it.

    Raises
    ------
    StoreError
        If the file is no cohort's, or the sample is not in it.
    """
    store = CohortStore(path)
    try:
        return _Owned(store, store.named(sample))
    except BaseException:
        store.close()
        raise


class _Owned(HaplotypeStore):
    """A haplotype that closes its cohort file."""

    def __init__(self, cohort: CohortStore, haplotype: HaplotypeStore) -> None:
        super().__init__(haplotype._base, haplotype._number)
        self._cohort = cohort

    def close(self) -> None:
        """Close the file."""
        self._cohort.close()


def cohort_problems(path: Path, noted: Mapping[str, Any]) -> list[str]:
    """Problems of a cohort file whose bytes are as they were written."""
    try:
        with CohortStore(path) as store:
            problems = store.problems()
            if store.grid.rows != noted["rows"]:
                problems.append(f"{store.grid.rows} rows, the sidecar says {noted['rows']}")
            for name in ("panel", "weights_sha256", "strand", "precision"):
                told = noted["signature"].get(name)
                if told is not None and store.attributes.get(name, told) != told:
                    problems.append(f"{name} is {store.attributes[name]!r}, not {told!r}")
            return [f"{path}: {problem}" for problem in problems]
    except GenomepredError as error:
        return [str(error)]
