"""Peaks and their places, from FASTA, BED or narrowPeak, and splits by region."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genomepred.data.examples import TEST, TRAIN, VALIDATION, Codes
from genomepred.errors import DataError, RegionError
from genomepred.progress import tell
from genomepred.sequences.bed import BedRecord, bed_records
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Region, parse_region
from genomepred.sequences.names import (
    ContigNames,
    absent_contig,
    ambiguous_contig,
    shown,
    some,
)

# A contig without a known length: longer than any.
ENDLESS = 1 << 40
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Peaks:
    """Peak sequences of one length and their places.

    Parameters
    ----------
    regions : list of Region
        Place of each peak's sequence, 0-based half-open.
    codes : uint8 array, [n, window]
        Its sequence.
    source : str
        File they come from, for messages.
    spans : list of Region, optional
        What the peaks cover besides: no negative touches it.
    """

    regions: list[Region]
    codes: Codes
    source: str
    spans: Sequence[Region] = ()

    @cached_property
    def contigs(self) -> list[str]:
        """Names of the contigs with peaks, in order of appearance."""
        return list(dict.fromkeys(region.contig for region in self.regions))


def read_peaks(path: Path | str) -> Peaks:
    """Peaks of a FASTA whose headers are ``CONTIG:START-END`` (0-based half-open).

    Raises
    ------
    DataError
        If a header is malformed, contradicts its sequence's length, or lengths differ.
    SequenceError
        If the file is no FASTA.
    """
    with Genome(path) as genome:
        regions = [_header_region(name, length, path) for name, length in genome.contigs.items()]
        codes = [genome.codes(name, 0, length) for name, length in genome.contigs.items()]
    lengths = [region.end - region.start for region in regions]
    for region, length in zip(regions, lengths, strict=True):
        if length != lengths[0]:
            raise DataError(
                f"{path}: mixed lengths: {shown(regions[0].name)} has {lengths[0]} bases, "
                f"{shown(region.name)} has {length}; all peaks must be one window long"
            )
    return Peaks(regions, np.stack(codes), str(path))


def _header_region(name: str, length: int, path: Path | str) -> Region:
    found = re.fullmatch(r"(.+):(\d+)-(\d+)", name)
    if found is None:
        raise DataError(f"{path}: header {shown(name)} is not CONTIG:START-END, as peaks need")
    region = Region(found[1], int(found[2]), int(found[3]), name)
    if region.end - region.start != length:
        raise DataError(
            f"{path}: header {shown(name)} spans {region.end - region.start} bases, but its "
            f"sequence has {length}; START is 0-based, END exclusive"
        )
    return region


def read_bed(path: Path, peak_format: str = "auto") -> list[BedRecord]:
    """Records of a BED, broadPeak or narrowPeak file, plain or gzip, in any genome's names.

    Parameters
    ----------
    path : Path
    peak_format : {"auto", "bed", "narrowPeak"}, optional
        Whether the tenth column is a summit; ``auto`` is as the file's name or header says. Files
        whose records look like narrowPeak and are not read as such are told on stderr.

    Raises
    ------
    DataError
        Naming the line that is no record.
    """
    narrow_peak = {"auto": None, "bed": False, "narrowPeak": True}[peak_format]
    records, may_be_narrow, ignored = [], peak_format == "auto", False
    for record in bed_records(path, narrow_peak=narrow_peak, error=DataError):
        may_be_narrow = may_be_narrow and _may_be_narrow(record)
        center = str(record.center - record.start)
        ignored |= may_be_narrow and record.columns[9] not in ("-1", center)
        records.append(record._replace(columns=()))
    if not records:
        raise DataError(f"{path}: no peaks; a record is contig, start and end between tabs")
    if may_be_narrow and ignored:
        tell(
            f"{path}: has the ten columns of a narrowPeak, but is read as BED, peaks by their "
            "middle; if it has summits, give --peak-format narrowPeak"
        )
    return records


def _may_be_narrow(record: BedRecord) -> bool:
    """Whether a record has a narrowPeak's columns: numbers from the seventh on, then a summit."""
    if len(record.columns) != 10 or not all(map(_NUMBER.fullmatch, record.columns[6:])):
        return False
    summit = record.columns[9]
    return summit == "-1" or (summit.isdecimal() and int(summit) < record.end - record.start)


def check_agreement(peaks: Peaks, contigs: Mapping[str, Codes]) -> None:
    """Refuse peaks whose sequences are not those of the contigs at their places.

    Raises
    ------
    DataError
        Saying how many differ, and the first.
    """
    placed = [i for i, region in enumerate(peaks.regions) if region.contig in contigs]
    differing = [
        i
        for i in placed
        if not np.array_equal(
            contigs[peaks.regions[i].contig][peaks.regions[i].start : peaks.regions[i].end],
            peaks.codes[i],
        )
    ]
    if differing:
        raise DataError(
            f"{peaks.source}: {len(differing)} of {len(placed)} peaks on the genome's contigs "
            f"differ from the genome, first {shown(peaks.regions[differing[0]].name)}; use the "
            "assembly the peaks were called on, with 0-based starts"
        )


@dataclass(frozen=True)
class Split:
    """Regions held out for validation and test; everything else is for training.

    Parameters
    ----------
    validation, test : tuple of Region
        A sequence that touches a test region belongs to the test, however little.
    """

    validation: tuple[Region, ...]
    test: tuple[Region, ...]

    @classmethod
    def parse(
        cls,
        validation: Sequence[str],
        test: Sequence[str],
        lengths: Mapping[str, int],
        genomes: Sequence[str] = (),
    ) -> Split:
        """Split of region strings such as ``chr22`` and ``chr20:31500001-63025520``.

        Names of contigs may differ from the genomes' by ``chr`` and leading zeros. Of several
        genomes, what is told on stderr does not depend on their order.

        Parameters
        ----------
        validation, test : sequence of str
            1-based inclusive, as everywhere on the command line.
        lengths : mapping of str to int
            Known contigs; a length of 0 is unknown.
        genomes : sequence of str, optional
            Names before the ``:`` of contigs of several genomes; a region without one is meant in
            all of them.

        Raises
        ------
        RegionError
            If no genome has a contig, a genome may mean several, or the only one has no such bases.
        """
        own = {genome: _Contigs(genome, lengths) for genome in genomes or [""]}
        parsed = (
            tuple(region for text in texts for region in _held_out(option, text, own))
            for option, texts in (("--validation", validation), ("--test", test))
        )
        return cls(*parsed)

    def parts(self, regions: Sequence[Region]) -> NDArray[np.uint8]:
        """``TRAIN``, ``VALIDATION`` or ``TEST`` for each region."""
        rows: dict[str, list[int]] = {}
        for i, region in enumerate(regions):
            rows.setdefault(region.contig, []).append(i)
        starts = np.array([region.start for region in regions], np.int64)
        ends = np.array([region.end for region in regions], np.int64)
        parts = np.full(len(regions), TRAIN, np.uint8)
        for part, held_out in ((VALIDATION, self.validation), (TEST, self.test)):
            for held in held_out:
                here = np.array(rows.get(held.contig, []), np.int64)
                parts[here[(starts[here] < held.end) & (held.start < ends[here])]] = part
        return parts

    def regions(self, lengths: Mapping[str, int]) -> list[list[Region]]:
        """Regions of the given contigs that belong to each part and to no other."""
        validation, test = _by_contig(self.validation), _by_contig(self.test)
        parts: list[list[Region]] = [[], [], []]
        for contig, length in lengths.items():
            whole = [Region(contig, 0, length)]
            held, tested = validation.get(contig, []), test.get(contig, [])
            parts[TRAIN] += _subtract(_subtract(whole, tested), held)
            parts[VALIDATION] += _subtract(_intersect(whole, held), tested)
            parts[TEST] += _intersect(whole, tested)
        return parts


def _by_contig(regions: Sequence[Region]) -> dict[str, list[Region]]:
    found: dict[str, list[Region]] = {}
    for region in regions:
        found.setdefault(region.contig, []).append(region)
    return found


class _Contigs:
    """Contigs of one genome, found by the names that they may have."""

    def __init__(self, genome: str, lengths: Mapping[str, int]) -> None:
        self._prefix = f"{genome}:" if genome else ""
        self._lengths = {
            name.removeprefix(self._prefix): length or ENDLESS
            for name, length in lengths.items()
            if name.startswith(self._prefix)
        }
        self._known = ContigNames(self._lengths)

    @property
    def names(self) -> list[str]:
        """Contigs, without the genome."""
        return list(self._lengths)

    def own(self, text: str) -> str | None:
        """The text after this genome's name, if it begins with it."""
        return text.removeprefix(self._prefix) if text.startswith(self._prefix) else None

    def find(self, text: str, *, alone: bool = True) -> Region | None:
        """The region that a text means here, under its name among all genomes; None if none.

        Unless it is meant ``alone`` here, it may reach beyond the contig's end.
        """
        name, bounds = self.named(text), ""
        if name is None:
            contig, _, bounds = text.rpartition(":")
            name = self.named(contig)
        if name is None:
            return None
        lengths = self._lengths if alone or not bounds else dict.fromkeys(self._lengths, ENDLESS)
        region = parse_region(f"{name}:{bounds}" if bounds else name, lengths)
        return Region(self._prefix + name, region.start, region.end)

    def named(self, contig: str) -> str | None:
        """The contig that a text without bounds means, if any."""
        found = self._known.meant(contig)
        if len(found) > 1:
            raise RegionError(
                f"{ambiguous_contig(contig, found)}; give {self._prefix}CONTIG as the genome has it"
            )
        return found[0] if found else None


def held_out_of(path: Path, genome: str, lengths: Mapping[str, int]) -> list[tuple[str, Region]]:
    """Regions that a BED of one of several genomes holds out, each with its record's name.

    Parameters
    ----------
    path : Path
        In the coordinates of that genome; names of contigs may differ by ``chr`` and zeros.
    genome : str
        Its name, which stands before its contigs in ``lengths`` and in the regions.
    lengths : mapping of str to int
        As for :meth:`Split.parse`.

    Raises
    ------
    RegionError
        Naming file and line, if a record is malformed or not on the genome.
    """
    contigs = _Contigs(genome, lengths)
    found = []
    for record in bed_records(path):
        where = f"{path} line {record.line}"
        try:
            region = contigs.find(f"{record.contig}:{record.start + 1}-{record.end}")
        except RegionError as error:
            raise RegionError(f"{where}: {error}") from error
        if region is None:
            raise RegionError(f"{where}: {absent_contig(record.contig, contigs.names)}")
        found.append((record.name, region))
    if not found:
        raise RegionError(f"{path}: no BED records; a record is contig, start, end and part")
    return found


def _held_out(option: str, text: str, genomes: Mapping[str, _Contigs]) -> list[Region]:
    """Regions that a text means, in one genome if it names it, else in all."""
    for contigs in genomes.values():
        own = contigs.own(text) if len(genomes) > 1 else None
        if own is not None and (region := contigs.find(own)):
            return [region]
    alone = len(genomes) == 1
    found = {genome: contigs.find(text, alone=alone) for genome, contigs in genomes.items()}
    regions = [region for region in found.values() if region]
    if not regions:
        names = [name for contigs in genomes.values() for name in contigs.names]
        contig = text if text in names or ":" not in text else text.rpartition(":")[0]
        raise RegionError(f"{option} {text}: {absent_contig(contig, names)}")
    if len(regions) < len(found):
        lacking = sorted(genome for genome, region in found.items() if not region)
        tell(f"{option} {text}: no such contig in {some(lacking)}; write NAME:CONTIG for each")
    if len(regions) > 1 and not any(contigs.named(text) for contigs in genomes.values()):
        tell(
            f"{option} {text}: the same coordinates are held out in {len(regions)} genomes, where "
            "they may mean other places; write NAME:CONTIG:START-END for each, or whole contigs"
        )
    return regions


def _touch(a: Region, b: Region) -> bool:
    return a.contig == b.contig and a.start < b.end and b.start < a.end


def _intersect(regions: Sequence[Region], others: Sequence[Region]) -> list[Region]:
    return [
        Region(a.contig, max(a.start, b.start), min(a.end, b.end))
        for a in regions
        for b in others
        if _touch(a, b)
    ]


def _subtract(regions: Sequence[Region], others: Sequence[Region]) -> list[Region]:
    left = list(regions)
    for b in others:
        pieces = []
        for a in left:
            if not _touch(a, b):
                pieces.append(a)
                continue
            pieces += [Region(a.contig, a.start, b.start)] if a.start < b.start else []
            pieces += [Region(a.contig, b.end, a.end)] if b.end < a.end else []
        left = pieces
    return left
