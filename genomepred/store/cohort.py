"""Cohort files: every distinct prediction of a panel once, and which of them each haplotype has.

Layout beside what any prediction file has: ``/haplotypes/{sample,copy}``; ``/predictions``
[distinct rows and padding, tracks]; ``/cohort/first`` [windows], number of each window's first
distinct prediction; ``/cohort/leader`` [distinct], the lowest haplotype of each class, ascending
within a window; ``/cohort/index`` [haplotypes, windows], every haplotype's leader. The distinct
number is ``first[w]`` plus the place of ``index[h, w]`` among the window's leaders. Shards are
padded to whole chunks with NaN, so that joining them copies chunks as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import GenomepredError, RegionError, StoreError, optional
from genomepred.sequences.grid import Region
from genomepred.sequences.names import haplotype_meant
from genomepred.store.cohort_file import CohortFile
from genomepred.store.reader import Float32, Int64, PredictionStore
from genomepred.store.schema import DATASET

if TYPE_CHECKING:
    import anndata
    import xarray

# Leaders that are read at a time.
_LEADERS = 1 << 20


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
        self._base = CohortFile(path)
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
        """Haplotype of ``SAMPLE`` or ``SAMPLE.COPY``; see :func:`haplotype_meant`."""
        return self.haplotype(*haplotype_meant(text, self.haplotypes))

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
        base, bins = self._base, self._base.grid.geometry.bins
        with base._reading(f"read at windows {first}-{last}"):
            starts, leader = base.leaders(first, last)
            low, end = starts[[0, -1]] * bins
            return Classes(
                np.asarray(base.index[:, first:last]),
                starts - starts[0],
                leader,
                np.asarray(base.predictions[low:end], np.float32),
                base.none,
            )

    def without_leader(self, window: int) -> StoreError:
        """Error of a window whose index names none of its leaders."""
        return StoreError(
            f"{self.path}: the index of window {window} names no leader; check the file with "
            "`genomepred verify`"
        )

    def problems(self) -> list[str]:
        """Contradictions within the file: leaders that do not ascend, an index that names none."""
        return self._base.problems()

    def summary(self) -> dict[str, Any]:
        """Facts about the file as plain values."""
        base = self._base
        with base._reading("read"):
            parts = range(0, base.distinct_count, _LEADERS)
            distinct = sum(int((base.leader[i : i + _LEADERS] != base.none).sum()) for i in parts)
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

    def __exit__(self, *_: object) -> None:
        self.close()


class HaplotypeStore(PredictionStore):
    """One haplotype of a cohort file, with the interface of a prediction file."""

    def __init__(self, base: CohortFile, number: int) -> None:
        self._base, self._number, self.owns = base, number, False
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
        """Close the cohort's file, if that is this haplotype's own."""
        if self.owns:
            self._base.close()


def open_haplotype(path: Path, sample: str) -> PredictionStore:
    """One haplotype of a cohort file, which is closed with it.

    Raises
    ------
    StoreError
        If the file is no cohort's, or the sample is not in it.
    """
    store = CohortStore(path)
    try:
        haplotype = store.named(sample)
    except BaseException:
        store.close()
        raise
    haplotype.owns = True
    return haplotype


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
