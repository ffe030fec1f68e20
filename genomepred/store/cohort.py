"""Cohort files: every distinct prediction of a panel once, and which of them each haplotype has.

Layout beside what any prediction file has: ``/haplotypes/{sample,copy}``; ``/predictions``
[distinct rows and padding, tracks]; ``/cohort/first`` [windows], number of each window's first
distinct prediction; ``/cohort/leader`` [distinct], the lowest haplotype of each class, ascending
within a window; ``/cohort/index`` [haplotypes, windows], every haplotype's leader. The distinct
number is ``first[w]`` plus the place of ``index[h, w]`` among the window's leaders. Shards are
padded to whole chunks with NaN, so that joining them copies chunks as they are.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import h5py
import numpy as np
from numba import njit
from numpy.typing import NDArray

from genomepred.errors import GenomepredError, RegionError, StoreError
from genomepred.files import publishing, require_space, sha256_of, write_all
from genomepred.sequences.distinct import leader_type
from genomepred.sequences.grid import Grid, Region
from genomepred.store import hdf5
from genomepred.store.chunks import Layout, encode_chunk, filter_bytes
from genomepred.store.hdf5 import DamagedPartError
from genomepred.store.opening import COHORT_FORMAT
from genomepred.store.reader import Float32, Int64, PredictionStore
from genomepred.store.schema import (
    Attribute,
    SchemaError,
    open_dataset,
    open_group,
    read_attributes,
    read_texts,
)

# Haplotypes and windows of a chunk of the index: 128 kB, of which a haplotype's stretch decodes
# little and a stretch of all haplotypes little more than it needs.
INDEX_CHUNK = 256
_INDEX_LAYOUT = Layout(tracks=1, compression="deflate-4")
# Windows read at a time by `matrix` and by a haplotype's rows.
_WINDOWS = 1 << 14
_MOST_HAPLOTYPES = 1 << 24


def padded(distinct: int, layout: Layout) -> int:
    """Distinct windows of a shard with those that fill its last chunk."""
    rows = -(-distinct * layout.bins // layout.chunk_rows) * layout.chunk_rows
    return rows // layout.bins


def write_cohort_part(
    path: Path,
    values: Float32,
    counts: Int64,
    leader: NDArray[Any],
    index: NDArray[Any],
    layout: Layout,
    attributes: Mapping[str, Attribute],
) -> None:
    """Publish a shard, with its sha256 behind it as any part.

    Parameters
    ----------
    path : Path
    values : float32 array, [distinct x bins, tracks]
    counts : int64 array, [windows]
        Distinct predictions of each window.
    leader : uint array, [distinct]
    index : uint array, [haplotypes, windows]
    layout : Layout
    attributes : mapping
        What the part says of itself.
    """
    fill = padded(len(leader), layout) - len(leader)
    none = np.iinfo(leader.dtype).max
    step = layout.chunk_rows
    image = io.BytesIO()
    with hdf5._create_file(image) as file:
        hdf5._write_attributes(file, attributes)
        rows = (len(leader) + fill) * layout.bins
        data = hdf5._create_predictions(file, rows, layout)
        for row in range(0, rows, step):
            chunk = encode_chunk(values[row : row + step], layout)
            data.id.write_direct_chunk((row, 0), chunk)
        whole = np.concatenate([leader, np.full(fill, none, leader.dtype)])
        hdf5._write_table(file, "counts", counts.astype("<i8"), np.dtype("<i8"))
        hdf5._write_table(file, "leader", whole, whole.dtype.newbyteorder("<"))
        table = _create_index(file, "index", index.shape, index.dtype)
        for h in range(0, index.shape[0], INDEX_CHUNK):
            for w in range(0, index.shape[1], INDEX_CHUNK):
                block = np.full((INDEX_CHUNK, INDEX_CHUNK), none, index.dtype)
                part = index[h : h + INDEX_CHUNK, w : w + INDEX_CHUNK]
                block[: part.shape[0], : part.shape[1]] = part
                table.id.write_direct_chunk((h, w), filter_bytes(block, _INDEX_LAYOUT))
    with publishing(path) as temporary, open(temporary, "xb", buffering=0) as target:
        write_all(target.fileno(), image.getbuffer())
        write_all(target.fileno(), hdf5._SEAL + hashlib.sha256(image.getbuffer()).digest())


def _create_index(group: Any, name: str, shape: tuple[int, int], kind: np.dtype[Any]) -> Any:
    return group.create_dataset(
        name,
        shape=shape,
        maxshape=(None, None),
        chunks=(INDEX_CHUNK, INDEX_CHUNK),
        dtype=kind.newbyteorder("<"),
        fillvalue=np.iinfo(kind).max,
        shuffle=True,
        compression="gzip",
        compression_opts=_INDEX_LAYOUT.level,
        fletcher32=True,
    )


def join_cohort(
    parts: Sequence[Path],
    path: Path,
    layout: Layout,
    grid: Grid,
    tracks: Sequence[tuple[str, str]],
    haplotypes: Sequence[tuple[str, int]],
    attributes: Mapping[str, Attribute],
    told: Sequence[Mapping[str, Attribute]],
) -> str:
    """Publish the shards of a panel as one file; its sha256.

    Parameters
    ----------
    parts : sequence of Path
        In order of windows.
    path : Path
    layout : Layout
    grid : Grid
    tracks : sequence of (name, description)
    haplotypes : sequence of (sample, copy)
    attributes : mapping
        Root attributes beside those of format and grid.
    told : sequence of mapping
        What each part must say of itself.

    Raises
    ------
    DamagedPartError
        If a part is absent, damaged or another one.
    StoreError
        If the parts do not add up to the grid.
    """
    windows = grid.rows // grid.geometry.bins
    with publishing(path) as temporary:
        require_space(path.parent, sum(hdf5._size(part) for part in parts))
        with hdf5._Target(temporary, "x+b") as target:
            try:
                with hdf5._create_file(target) as file:
                    said = {**attributes, **hdf5._grid_attributes(grid), "format": COHORT_FORMAT}
                    hdf5._write_attributes(file, said)
                    hdf5._write_tables(file, grid, tracks)
                    group = hdf5._create_group(file, "haplotypes")
                    hdf5._write_strings(group, "sample", [sample for sample, _ in haplotypes])
                    copies = np.array([copy for _, copy in haplotypes], "<i4")
                    hdf5._write_table(group, "copy", copies, copies.dtype)
                    _copy_cohort(file, parts, layout, len(haplotypes), windows, told)
                    hdf5._name_dimensions(file, [name for name, _ in tracks])
            finally:
                target.raise_error()
        return sha256_of(temporary)


def _copy_cohort(
    file: h5py.File,
    parts: Sequence[Path],
    layout: Layout,
    haplotypes: int,
    windows: int,
    told: Sequence[Mapping[str, Attribute]],
) -> None:
    data = hdf5._create_predictions(file, 0, layout)
    group = hdf5._create_group(file, "cohort")
    kind = leader_type(haplotypes)
    index = _create_index(group, "index", (haplotypes, windows), kind)
    counts, leaders, firsts = [], [np.empty(0, kind)], [np.empty(0, np.int64)]
    row = window = 0
    for part, expected in zip(parts, told, strict=True):
        with hdf5._opened_part(part) as source:
            if read_attributes(source) != expected:
                raise DamagedPartError(part, "of another run or another panel")
            values = source["predictions"]
            if hdf5._layout_facts(values) != hdf5._layout_facts(data):
                raise DamagedPartError(part, "another type, width, chunk size or compression")
            data.resize(row + values.shape[0], axis=0)
            for at in range(0, values.shape[0], layout.chunk_rows):
                _, chunk = values.id.read_direct_chunk((at, 0))
                data.id.write_direct_chunk((row + at, 0), chunk)
            count, found = source["counts"][:], source["index"]
            for h in range(0, haplotypes, INDEX_CHUNK):
                for w in range(0, found.shape[1], INDEX_CHUNK):
                    _, chunk = found.id.read_direct_chunk((h, w))
                    index.id.write_direct_chunk((h, window + w), chunk)
            leaders.append(source["leader"][:])
            firsts.append(row // layout.bins + np.cumsum(count) - count)
            counts.append(count)
            row += values.shape[0]
            window += len(count)
    if window != windows:
        raise StoreError(f"{len(parts)} parts hold {window} of {windows} windows; predict again")
    first, leader = np.concatenate(firsts), np.concatenate(leaders)
    hdf5._write_table(group, "first", first.astype("<i8"), np.dtype("<i8"))
    hdf5._write_table(group, "leader", leader, kind.newbyteorder("<"))


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
        numbers = np.arange(len(self.haplotypes))
        if samples is not None:
            for sample in samples:
                if sample not in self.samples:
                    raise RegionError(f"{self.path}: no sample {sample!r}")
            numbers = np.array(
                [h for s in samples for h, (t, _) in enumerate(self.haplotypes) if s == t]
            )
        ranges = self._base.ranges(Region(contig, start, end))
        parts = [self._base.values(numbers, *r) for r in ranges]
        empty = np.empty((len(numbers), 0, len(self.tracks)), np.float32)
        return np.concatenate([empty, *parts], axis=1) if len(parts) != 1 else parts[0]

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


class HaplotypeStore(PredictionStore):
    """One haplotype of a cohort file, with the interface of a prediction file."""

    def __init__(self, base: _Base, number: int) -> None:
        self._base, self._numbers = base, np.array([number])
        self.path, self._file, self.attributes = base.path, base._file, dict(base.attributes)
        self.predictions, self.rows, self.grid = base.predictions, base.grid.rows, base.grid
        self.tracks, self.descriptions = base.tracks, base.descriptions
        self.sample, self.copy = base.haplotypes[number]
        self.attributes |= {"sample": self.sample, "copy": self.copy}

    def read(self, first: int, last: int) -> Float32:
        """See :meth:`PredictionStore.read`."""
        if not 0 <= first <= last <= self.rows:
            raise RegionError(f"rows {first}-{last} asked for, {self.path} has 0-{self.rows}")
        found: Float32 = self._base.values(self._numbers, first, last)[0]
        return found

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
        for r in range(out.shape[1]):
            window, b = (r + skip) // bins, (r + skip) % bins
            d = found[h, window]
            for t in range(out.shape[2]):
                out[h, r, t] = np.nan if d < 0 else rows[(d - low) * bins + b, t]


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
        super().__init__(haplotype._base, int(haplotype._numbers[0]))
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
