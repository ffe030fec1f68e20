"""Genes of an annotation: those of a region with their exons, and those of a name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import DataError
from genomepred.sequences.genes import Feature, features
from genomepred.sequences.names import ContigNames

# Attributes that a gene is found by.
_NAMES = ("ID", "Name", "gene_id", "gene_name", "Alias", "gene", "locus_tag", "transcript_id")
_PARTS = ("exon", "CDS")
_MOST_FOUND = 20


class Gene(NamedTuple):
    """A gene, 0-based half-open, with its exons (those of all transcripts, merged)."""

    contig: str
    start: int
    end: int
    name: str
    strand: str
    exons: tuple[tuple[int, int], ...] = ()


class Genes:
    """Genes of a GFF3 or GTF file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        If it cannot be read, or has no gene.
    """

    def __init__(self, path: Path) -> None:
        reading = _Reading()
        for feature in features(path, error=DataError):
            reading.take(feature)
        self.genes = reading.genes()
        if not self.genes:
            raise DataError(f"{path}: has no gene, or its genes have no IDs")
        self._named = reading.named
        self._contigs: dict[str, tuple[NDArray[np.int64], NDArray[np.int64], list[int]]] = {}
        self._sort()
        #: Contigs that have genes.
        self.contigs = ContigNames(self._contigs)

    def _sort(self) -> None:
        numbers: dict[str, list[int]] = {}
        for k, gene in enumerate(self.genes):
            numbers.setdefault(gene.contig, []).append(k)
        for contig, found in numbers.items():
            found.sort(key=lambda k: self.genes[k].start)
            starts = np.array([self.genes[k].start for k in found])
            ends = np.maximum.accumulate([self.genes[k].end for k in found])
            self._contigs[contig] = starts, ends, found

    def within(self, contig: str, start: int, end: int) -> list[Gene]:
        """Genes that meet ``[start, end)`` of a contig, by start.

        Its name may differ from the annotation's by ``chr`` and zeros; the genes keep theirs.
        """
        meant = self.contigs.meant(contig)
        if len(meant) != 1:
            return []
        starts, ends, numbers = self._contigs[meant[0]]
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(starts, end, side="left"))
        found = (self.genes[k] for k in numbers[first:last])
        return [gene for gene in found if gene.end > start]

    def named(self, text: str) -> list[Gene]:
        """Genes of a name, whatever its case; if there is none, some whose names begin so."""
        key = text.casefold()
        if key in self._named:
            return [self.genes[self._named[key]]]
        numbers = [k for name, k in self._named.items() if name.startswith(key)] if key else []
        return [self.genes[k] for k in dict.fromkeys(numbers[: 10 * _MOST_FOUND])][:_MOST_FOUND]


class _Reading:
    """Features on their way to genes: parents come before or after, or, in GTF, not at all."""

    def __init__(self) -> None:
        self.named: dict[str, int] = {}
        self._genes: list[tuple[list[Any], list[tuple[int, int]]]] = []
        self._numbers: dict[str, int] = {}
        self._parts: list[tuple[str, int, int]] = []

    def take(self, feature: Feature) -> None:
        attributes = feature.attributes
        if feature.kind in _PARTS:
            for parent in _parents(feature):
                self._parts.append((parent, feature.start, feature.end))
        if "gene_id" in attributes and "ID" not in attributes:
            number = self._gene(attributes["gene_id"], feature)
        elif "Parent" in attributes:
            if feature.kind not in _PARTS and "ID" in attributes:
                self._numbers.setdefault(
                    attributes["ID"], self._numbers.get(attributes["Parent"].split(",")[0], -1)
                )
            return
        elif feature.kind.endswith("gene") or feature.kind in ("mRNA", "transcript"):
            number = self._gene(attributes.get("ID", feature.name), feature)
        else:
            return
        for key in _NAMES:
            if key in attributes:
                self.named.setdefault(attributes[key].casefold(), number)

    def _gene(self, key: str, feature: Feature) -> int:
        """Number of the gene of a key, made by its first feature and widened by others."""
        if key not in self._numbers:
            self._numbers[key] = len(self._genes)
            names = (feature.attributes.get(name) for name in ("gene_name", "Name"))
            name = next(filter(None, names), key)
            facts = [feature.contig, feature.start, feature.end, name, feature.strand]
            self._genes.append((facts, []))
        number = self._numbers[key]
        gene = self._genes[number][0]
        if gene[0] == feature.contig:
            gene[1], gene[2] = min(gene[1], feature.start), max(gene[2], feature.end)
        return number

    def genes(self) -> list[Gene]:
        """All genes, with their exons."""
        for parent, start, end in self._parts:
            number = self._numbers.get(parent, -1)
            if number >= 0:
                self._genes[number][1].append((start, end))
        return [Gene(c, a, b, n, s, tuple(_union(e))) for (c, a, b, n, s), e in self._genes]


def _parents(feature: Feature) -> Iterable[str]:
    attributes = feature.attributes
    if "Parent" in attributes:
        return attributes["Parent"].split(",")
    return [attributes["gene_id"]] if "gene_id" in attributes else []


def _union(exons: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    begin = end = -1
    for start, stop in sorted(exons):
        if start > end:
            if end >= 0:
                yield begin, end
            begin, end = start, stop
        end = max(end, stop)
    if end >= 0:
        yield begin, end
