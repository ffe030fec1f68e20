"""Contigs of genomes as one stretch of codes, under the names that labels have for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from genomepred.data.examples import Codes, Int64
from genomepred.data.storage import allocate
from genomepred.errors import DataError
from genomepred.sequences.grid import Region
from genomepred.sequences.names import ContigNames, ambiguous_contig, shown, some


class Contigs(dict[str, Codes]):
    """Codes of each contig, which lie in one array with unknown bases around each.

    Parameters
    ----------
    lengths : mapping of str to int
        Contigs and their lengths.
    margin : int
        Unknown bases before, between and after them: how far windows may reach outside.
    scratch : Path
        Folder for codes that outgrow memory.

    Attributes
    ----------
    joined : uint8 array
        All contigs; 4 until they are filled in.
    scratch : Path
        The folder.
    offset : dict of str to int
        Place of each contig's first base in ``joined``.
    """

    def __init__(self, lengths: Mapping[str, int], margin: int, scratch: Path) -> None:
        ends = np.cumsum([length + margin for length in lengths.values()], dtype=np.int64)
        self.scratch = scratch
        self.joined = allocate(
            (margin + int(ends[-1]) if len(ends) else margin,), scratch, "contigs"
        )
        self.offset = {
            name: int(end) - length
            for (name, length), end in zip(lengths.items(), ends, strict=True)
        }
        for name, first in self.offset.items():
            self[name] = self.joined[first : first + lengths[name]]

    def windows(self, window: int) -> Codes:
        """The window at each place of ``joined``, ``uint8 [places, window]``: a view."""
        return np.lib.stride_tricks.sliding_window_view(self.joined, window)

    def place(self, region: Region) -> int:
        """Place of a region's first base in ``joined``; its contig is one of these."""
        return self.offset[region.contig] + region.start

    def regions(self, places: Int64, window: int) -> list[Region]:
        """Regions of windows at places of ``joined``."""
        offsets = np.fromiter(self.offset.values(), np.int64, len(self.offset))
        names = list(self.offset)
        # A window may begin before its contig, but ends behind its first base.
        contig = np.searchsorted(offsets, places + window - 1, side="right") - 1
        starts = places - offsets[contig]
        return [
            Region(names[i], start, start + window)
            for i, start in zip(contig.tolist(), starts.tolist(), strict=True)
        ]


def match_names(
    labels: Iterable[str], genome: Iterable[str], what: str, where: str = "the genome"
) -> dict[str, str]:
    """Genome contig of each label contig that has one: the same name, else but for ``chr`` and 0s.

    Parameters
    ----------
    labels, genome : iterable of str
        Contig names on both sides.
    what, where : str
        What the names on either side belong to, for messages.

    Returns
    -------
    dict
        Label contig -> genome contig.

    Raises
    ------
    DataError
        If no label contig is in the genome, or two could be meant; both sides are shown.
    """
    labels, known = list(labels), ContigNames(genome)
    matched: dict[str, str] = {}
    labels_of: dict[str, str] = {}
    for label in labels:
        candidates = known.meant(label)
        if len(candidates) > 1:
            raise DataError(f"{what}: {ambiguous_contig(label, candidates)} in {where}")
        if candidates:
            matched[label] = candidates[0]
    for label, name in matched.items():
        other = labels_of.setdefault(name, label)
        if other != label:
            raise DataError(
                f"{what}: contigs {shown(other)} and {shown(label)} both mean {shown(name)} of "
                f"{where}"
            )
    if not matched:
        raise DataError(
            f"no contig in common: {what} has {some(labels)}, {where} has {some(known)}; "
            "use the genome the labels were made on"
        )
    return matched
