"""Peaks and their places, the genome they lie on, and splits by region."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from genomepred.errors import DataError
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Region, parse_region
from genomepred.training.examples import TEST, TRAIN, VALIDATION, Codes

# A contig without a known length: longer than any.
_ENDLESS = 1 << 40


@dataclass(frozen=True)
class Peaks:
    """Peak sequences of one length and their places.

    Parameters
    ----------
    regions : list of Region
        Place of each peak, 0-based half-open.
    codes : uint8 array, [n, window]
        Its sequence.
    source : str
        File they come from, for messages.
    """

    regions: list[Region]
    codes: Codes
    source: str

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
                f"{path}: mixed lengths: {regions[0].name!r} has {lengths[0]} bases, "
                f"{region.name!r} has {length}; all peaks must be one window long"
            )
    return Peaks(regions, np.stack(codes), str(path))


def _header_region(name: str, length: int, path: Path | str) -> Region:
    found = re.fullmatch(r"(.+):(\d+)-(\d+)", name)
    if found is None:
        raise DataError(f"{path}: header {name!r} is not CONTIG:START-END, as peaks need")
    region = Region(found[1], int(found[2]), int(found[3]), name)
    if region.end - region.start != length:
        raise DataError(
            f"{path}: header {name!r} spans {region.end - region.start} bases, but its sequence "
            f"has {length}; START is 0-based, END exclusive"
        )
    return region


def match_names(labels: Iterable[str], genome: Iterable[str], what: str) -> dict[str, str]:
    """Genome contig of each label contig that has one: the same name, else but for ``chr`` and 0s.

    Parameters
    ----------
    labels, genome : iterable of str
        Contig names on both sides.
    what : str
        Where the labels come from, for messages.

    Returns
    -------
    dict
        Label contig -> genome contig.

    Raises
    ------
    DataError
        If no label contig is in the genome, or two could be meant; both sides are shown.
    """
    labels, genome = list(labels), list(genome)
    by_core: dict[str, list[str]] = {}
    for name in genome:
        by_core.setdefault(_core(name), []).append(name)
    matched: dict[str, str] = {}
    for label in labels:
        candidates = [label] if label in genome else by_core.get(_core(label), [])
        if len(candidates) > 1:
            raise DataError(f"{what}: contig {label!r} could be any of {candidates} in the genome")
        if candidates:
            matched[label] = candidates[0]
    if not matched:
        raise DataError(
            f"no contig in common: {what} has {some(labels)}, the genome has {some(genome)}; "
            "use the genome the labels were made on"
        )
    return matched


def _core(name: str) -> str:
    return re.sub(r"^chr(omosome)?[_.-]?", "", name.lower()).lstrip("0") or name.lower()


def some(names: Sequence[str], most: int = 4) -> str:
    """The first names, for messages."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def load_contigs(genome: Genome, peaks: Peaks) -> dict[str, Codes]:
    """Codes of the genome's contigs that have peaks, under the peaks' names for them.

    Raises
    ------
    DataError
        If no name fits, or a peak's sequence is not the genome's at its place.
    """
    names = match_names(peaks.contigs, genome.contigs, peaks.source)
    contigs = {label: genome.codes(name, 0, genome.contigs[name]) for label, name in names.items()}
    _check_agreement(peaks, contigs)
    return contigs


def _check_agreement(peaks: Peaks, contigs: Mapping[str, Codes]) -> None:
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
            f"differ from the genome, first {peaks.regions[differing[0]].name!r}; use the assembly "
            "the peaks were called on, with 0-based starts"
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
        cls, validation: Sequence[str], test: Sequence[str], lengths: Mapping[str, int]
    ) -> Split:
        """Split of region strings such as ``chr22`` and ``chr20:31500001-63025520``.

        Parameters
        ----------
        validation, test : sequence of str
            1-based inclusive, as everywhere on the command line.
        lengths : mapping of str to int
            Known contigs; a length of 0 is unknown.
        """
        known = {name: length or _ENDLESS for name, length in lengths.items()}
        parsed = [
            tuple(parse_region(text, known) for text in texts) for texts in (validation, test)
        ]
        return cls(*parsed)

    def part(self, region: Region) -> int:
        """``TRAIN``, ``VALIDATION`` or ``TEST``."""
        if any(_touch(region, held) for held in self.test):
            return TEST
        return VALIDATION if any(_touch(region, held) for held in self.validation) else TRAIN

    def regions(self, lengths: Mapping[str, int]) -> list[list[Region]]:
        """Regions of the given contigs that belong to each part and to no other."""
        whole = [Region(contig, 0, length) for contig, length in lengths.items()]
        test = _intersect(whole, self.test)
        validation = _subtract(_intersect(whole, self.validation), self.test)
        return [_subtract(_subtract(whole, self.test), self.validation), validation, test]


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
