"""Tables of regions by samples: one statistic of the rows of each region, for every sample.

A value is taken over the rows that ``query`` gives for the region. It is NaN where the region has
no row, or none that is not missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genomepred.errors import OptionError, RegionError, StoreError, optional
from genomepred.progress import Progress
from genomepred.runs.manifest import prediction_files
from genomepred.runs.spec import read_places
from genomepred.sequences.grid import Grid
from genomepred.sequences.names import haplotype_names, shown, some
from genomepred.store.cohort import CohortStore
from genomepred.store.opening import cohort_of
from genomepred.store.reader import Float32, PredictionStore
from genomepred.tables.reduction import (
    STATISTICS,
    Pieces,
    Statistic,
    reduce_cohort,
    reduce_store,
)
from genomepred.tables.regions import NamedRegion, read_regions, require_known

if TYPE_CHECKING:
    import anndata
    import pandas as pd

# Values of a group of regions that is computed and written at a time: with its sums and counts,
# 16 bytes each.
_GROUP_VALUES = 1 << 23


@dataclass(frozen=True)
class RegionTable:
    """One statistic of regions by samples; values are computed as they are asked for.

    Made by :func:`region_table`.

    Attributes
    ----------
    names : list of str
        Of the regions, in the order of their file.
    places : list of NamedRegion, optional
        Where they lie; None if every genome has regions of its own.
    samples : list of str
        Genomes, or haplotypes of a cohort.
    tracks : tuple of str
    statistic : Statistic
    absent : int
        Pairs of region and genome without a place: the name is not in that genome's file, or its
        contig has no predictions.
    inputs : tuple of Path
        Files that it is made from, regions among them.
    """

    files: tuple[Path, ...]
    cohort: bool
    names: list[str]
    places: list[NamedRegion] | None
    own: list[dict[str, NamedRegion]] | None
    samples: list[str]
    tracks: tuple[str, ...]
    columns: tuple[int, ...]
    statistic: Statistic
    absent: int
    inputs: tuple[Path, ...]

    def groups(self, progress: bool = False) -> Iterator[tuple[int, Float32]]:
        """Number of the first region, and values [regions, samples, tracks], a group at a time."""
        size = max(_GROUP_VALUES // max(len(self.samples) * len(self.tracks), 1), 1)
        unit = len(self.samples)
        total = len(self.names) * unit
        bar = Progress(total=total, desc="table", unit=" values", unit_scale=True, shown=progress)
        with bar, CohortStore(self.files[0]) if self.cohort else nullcontext() as store:
            for first in range(0, len(self.names), size):
                numbers = range(first, min(first + size, len(self.names)))
                if store is not None:
                    pieces, how = self._pieces(store.grid, 0, numbers), self.statistic
                    yield first, reduce_cohort(store, pieces, len(numbers), how, self.columns)
                    bar.update(len(numbers) * unit)
                else:
                    yield first, self._of_genomes(numbers, bar)

    def _of_genomes(self, numbers: range, bar: Progress) -> Float32:
        shape = len(numbers), len(self.samples), len(self.tracks)
        values = np.empty(shape, np.float32)
        known: tuple[Grid, Pieces] | None = None
        for k, path in enumerate(self.files):
            with PredictionStore(path) as store:
                if known is None or self.own is not None or not known[0].same_rows(store.grid):
                    known = store.grid, self._pieces(store.grid, k, numbers)
                values[:, k] = reduce_store(
                    store, known[1], len(numbers), self.statistic, self.columns
                )
            bar.update(len(numbers))
        return values

    def _pieces(self, grid: Grid, file: int, numbers: range) -> Pieces:
        if self.own is not None:
            return Pieces.of(grid, [self.own[file].get(self.names[i]) for i in numbers])
        assert self.places is not None
        return Pieces.of(grid, [self.places[i] for i in numbers])

    @cached_property
    def values(self) -> Float32:
        """All values, [regions, samples, tracks]."""
        shape = len(self.names), len(self.samples), len(self.tracks)
        out = np.empty(shape, np.float32)
        for first, values in self.groups():
            out[first : first + len(values)] = values
        return out

    def to_frame(self, track: str | None = None) -> pd.DataFrame:
        """One track as a table: a row a region, a column a sample.

        ``track`` may be left out where there is only one.
        """
        import pandas as pd

        column = self.column(track)
        index = pd.Index(self.names, name="name")
        return pd.DataFrame(self.values[:, :, column], index, pd.Index(self.samples))

    def column(self, track: str | None) -> int:
        """Number of a track among the table's.

        Raises
        ------
        StoreError
            If it is none of them, or has to be chosen.
        """
        if track is None and len(self.tracks) == 1:
            return 0
        if track not in self.tracks:
            asked = "several tracks" if track is None else f"no track {shown(track)}"
            raise StoreError(f"{self.files[0]}: {asked}; there are {some(self.tracks)}")
        return self.tracks.index(track)

    def to_anndata(self) -> anndata.AnnData:
        """All of it as AnnData: samples as obs, regions as var, tracks as layers.

        ``X`` is the first track.

        Raises
        ------
        DependencyError
            If anndata is not installed.
        """
        with optional("to_anndata", "anndata"):
            import anndata
        import pandas as pd

        places = {"name": self.names, **self.place_columns()}
        layers = {track: self.values[:, :, k].T for k, track in enumerate(self.tracks)}
        return anndata.AnnData(
            X=self.values[:, :, 0].T,
            obs=pd.DataFrame(index=pd.Index(self.samples)),
            var=pd.DataFrame(places, index=pd.Index(unique_names(self.names))),
            layers=layers,
        )

    def place_columns(self) -> dict[str, list[Any]]:
        """Contig, start, end and strand of the regions; nothing if genomes have their own."""
        if self.places is None:
            return {}
        columns = zip(*((r.contig, r.start, r.end, r.strand) for r in self.places), strict=True)
        return dict(zip(("contig", "start", "end", "strand"), map(list, columns), strict=True))


def unique_names(names: Sequence[str]) -> list[str]:
    """Names of which none stands twice: later ones get ``-1``, ``-2`` behind them."""
    taken, seen, found = set(names), dict[str, int](), []
    for name in names:
        unique = name
        if name in seen:
            while unique in taken:
                seen[name] += 1
                unique = f"{name}-{seen[name]}"
        seen.setdefault(name, 0)
        taken.add(unique)
        found.append(unique)
    return found


def region_table(
    out: str | Path,
    regions: str | Path,
    statistic: str = "mean",
    *,
    threshold: float | None = None,
    feature: str = "gene",
    upstream: int | None = None,
    downstream: int | None = None,
    tracks: Sequence[str] = (),
) -> RegionTable:
    """Table of a statistic of regions by samples.

    Parameters
    ----------
    out : path
        A run's folder, a prediction file, or a cohort's file.
    regions : path
        BED, GFF3 or GTF; or a manifest ``.tsv`` with the columns ``name`` and ``regions``, which
        names such a file for each genome: their regions are then matched by name.
    statistic : {"mean", "max", "min", "fraction"}, optional
        Of the rows that intersect a region, missing ones left out.
    threshold : float, optional
        With ``fraction``: the share of the rows that are at least so high.
    feature, upstream, downstream : optional
        See :func:`genomepred.tables.regions.read_regions`.
    tracks : sequence of str, optional
        All by default.

    Raises
    ------
    OptionError
        If the statistic and its threshold do not fit.
    RegionError
        If regions cannot be read, are named twice where names are matched, or none of them lies on
        a contig with predictions.
    StoreError
        If predictions cannot be read, or files have different tracks.
    """
    how = _statistic(statistic, threshold)
    files = prediction_files(Path(out))
    cohort = cohort_of(files)
    samples, contigs, there = _facts(files, cohort)
    columns = _columns(files[0], there, tracks)
    chosen = tuple(there[k] for k in columns)
    path = Path(regions)

    def read(one: Path) -> list[NamedRegion]:
        return read_regions(one, feature, upstream, downstream)

    places: list[NamedRegion] | None = None
    own: list[dict[str, NamedRegion]] | None = None
    if path.suffix == ".tsv":
        if cohort is not None:
            raise RegionError(f"{path}: a manifest; {cohort} has one reference: give its regions")
        own = _matched(path, [file.stem for file in files], read)
        names = list(dict.fromkeys(name for by_name in own for name in by_name))
        pairs: list[Any] = [[by.get(name) for name in names] for by in own]
    else:
        places = read(path)
        names, pairs = [region.name for region in places], [places] * len(contigs)
        require_known(places, {c: 0 for one in contigs for c in one}, out)
    absent = sum(
        region is None or region.contig not in one
        for one, listed in zip(contigs, pairs, strict=True)
        for region in listed
    )
    return RegionTable(
        tuple(files),
        cohort is not None,
        names,
        places,
        own,
        samples,
        chosen,
        columns,
        how,
        absent,
        (*files, path),
    )


def _statistic(name: str, threshold: float | None) -> Statistic:
    if name not in STATISTICS:
        raise OptionError(f"statistic {name!r} is unknown; use {', '.join(STATISTICS)}")
    if (name == "fraction") != (threshold is not None):
        need = "needs a threshold" if threshold is None else "takes no threshold"
        raise OptionError(f"--stat {name} {need}; fraction is the share of rows at or above it")
    if threshold is not None and np.isnan(threshold):
        raise OptionError("a threshold of NaN counts nothing; give a number")
    return Statistic(name, np.nan if threshold is None else threshold)


def _facts(
    files: Sequence[Path], cohort: Path | None
) -> tuple[list[str], list[dict[str, int]], tuple[str, ...]]:
    """Samples, contigs of each file, and the tracks that all files have."""
    if cohort is not None:
        with CohortStore(cohort) as store:
            lengths = dict(zip(store.grid.contigs, store.grid.length.tolist(), strict=True))
            return list(haplotype_names(store.haplotypes)), [lengths], store.tracks
    contigs: list[dict[str, int]] = []
    tracks: tuple[str, ...] | None = None
    for path in files:
        with PredictionStore(path) as store:
            if tracks is not None and store.tracks != tracks:
                raise StoreError(
                    f"{path}: has the tracks {', '.join(store.tracks)}, but {files[0]} has "
                    f"{', '.join(tracks)}; one table is of one model"
                )
            tracks = store.tracks
            same = contigs and contigs[-1] == store.contigs
            contigs.append(contigs[-1] if same else store.contigs)
    return [path.stem for path in files], contigs, tracks or ()


def _columns(path: Path, there: tuple[str, ...], tracks: Sequence[str]) -> tuple[int, ...]:
    number = {track: k for k, track in enumerate(there)}
    for track in tracks:
        if track not in number:
            raise StoreError(f"{path}: no track {track!r}; there are {some(there)}")
    return tuple(number[track] for track in dict.fromkeys(tracks or there))


def _matched(path: Path, genomes: Sequence[str], read: Any) -> list[dict[str, NamedRegion]]:
    """Regions by name of each genome, from the files that a manifest names."""
    files = read_places(path, "regions")
    without = [genome for genome in genomes if genome not in files]
    if len(without) == len(genomes):
        raise RegionError(f"{path}: names no regions for any of the genomes {some(genomes)}")
    if without:
        warnings.warn(
            f"{path}: names no regions for {len(without):,} of {len(genomes):,} genomes, whose "
            f"values are NaN: {some(without)}",
            stacklevel=3,
        )
    return [_by_name(files[g], read(files[g])) if g in files else {} for g in genomes]


def _by_name(path: Path, regions: Sequence[NamedRegion]) -> dict[str, NamedRegion]:
    found: dict[str, NamedRegion] = {}
    for region in regions:
        if region.name in found:
            raise RegionError(
                f"{path}: region {shown(region.name)} stands in it twice, but regions of several "
                "genomes are matched by name; give each its own"
            )
        found[region.name] = region
    return found
