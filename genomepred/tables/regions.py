"""Regions that a table has a row for: of BED, GFF3 or GTF, whole or around their first base."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from genomepred.errors import OptionError, RegionError
from genomepred.sequences.bed import bed_records
from genomepred.sequences.genes import is_annotation, read_features
from genomepred.sequences.names import absent_contig


class NamedRegion(NamedTuple):
    """A stretch of a contig with a name and a strand, 0-based half-open."""

    name: str
    contig: str
    start: int
    end: int
    strand: str


def read_regions(
    path: Path,
    feature: str = "gene",
    upstream: int | None = None,
    downstream: int | None = None,
) -> list[NamedRegion]:
    """Regions of a file in its order.

    Parameters
    ----------
    path : Path
        BED, GFF3 or GTF, told by its name (what is not named as one of the latter is BED), plain or
        gzip. A record of BED without a name is called by its place.
    feature : str
        Of GFF3 and GTF: the type of the features.
    upstream, downstream : int, optional
        Bases before and behind the first base of a feature, as its strand reads, instead of all of
        it; one of them alone leaves the other 0. Without a strand it is read forward.

    Raises
    ------
    OptionError
        If the bases upstream and downstream are none.
    RegionError
        If the file cannot be read or has no region.
    """
    found = _annotated(path, feature) if is_annotation(path) else _bed(path)
    if not found:
        raise RegionError(f"{path}: no BED records; a record is contig, start, end and tabs")
    if upstream is None and downstream is None:
        return found
    before, behind = upstream or 0, downstream or 0
    if before + behind < 1:
        raise OptionError(f"--upstream {before} --downstream {behind} leave no bases; give some")
    unknown = sum(region.strand == "." for region in found)
    if unknown:
        warnings.warn(
            f"{path}: {unknown:,} of {len(found):,} regions have no strand and are read forward",
            stacklevel=2,
        )
    return [_around_start(region, before, behind) for region in found]


def _annotated(path: Path, feature: str) -> list[NamedRegion]:
    return [
        NamedRegion(one.name, one.contig, one.start, one.end, one.strand)
        for one in read_features(path, feature)
    ]


def _bed(path: Path) -> list[NamedRegion]:
    return [
        NamedRegion(
            record.name or f"{record.contig}:{record.start + 1}-{record.end}",
            *record[:3],
            record.strand,
        )
        for record in bed_records(path)
    ]


def _around_start(region: NamedRegion, before: int, behind: int) -> NamedRegion:
    """Bases around the first base of a region, as its strand reads, not before the contig."""
    if region.strand == "-":
        start, end = region.end - behind, region.end + before
    else:
        start, end = region.start - before, region.start + behind
    return region._replace(start=max(start, 0), end=max(end, 0))


def require_known(
    regions: Iterable[NamedRegion], contigs: Mapping[str, int], where: object
) -> None:
    """Raise a RegionError unless some region lies on a contig that has predictions.

    It says what the first region's contig is called there.
    """
    listed = list(regions)
    if any(region.contig in contigs for region in listed):
        return
    what = absent_contig(listed[0].contig, contigs, where, "use the annotation of this genome")
    raise RegionError(f"no predictions on any of the regions' contigs: {what}")
