"""GFF3 and GTF files: genes and other features, plain or gzip, line by line and bounded.

The formats are those of the Sequence Ontology's GFF3 specification, version 1.26, and of Ensembl's
description of GTF (GFF 2). Which one a file has is told by its name (``.gff3``, ``.gff``; ``.gtf``)
and never guessed. Positions are 1-based inclusive in the files, 0-based half-open here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from genomepred.errors import GenomepredError, RegionError
from genomepred.sequences.bed import numbered_lines
from genomepred.sequences.names import shown, some

_GFF3, _GTF = re.compile(r"\.gff3?(\.b?gz)?$", re.I), re.compile(r"\.(gtf|gff2)(\.b?gz)?$", re.I)
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_GTF_ATTRIBUTE = re.compile(
    r'\s*(?P<key>[^\s;"]+)\s+(?:"(?P<quoted>[^"]*)"|(?P<bare>[^";]*?))\s*(?:;|$)'
)
_GFF3_NAMES = ("ID", "Name")
_COLUMNS = 9


class Feature(NamedTuple):
    """One feature of a GFF3 or GTF file, 0-based half-open.

    ``name`` is its ID, else its Name (GTF: the gene's or transcript's), else its place; ``strand``
    is ``+``, ``-`` or ``.``; ``kind`` the third column's text; ``line`` the line's number.
    """

    contig: str
    start: int
    end: int
    name: str
    strand: str
    kind: str
    line: int
    attributes: dict[str, str]


def is_annotation(path: Path | str) -> bool:
    """Whether a file's name is that of a GFF3 or GTF file."""
    return any(ending.search(str(path)) for ending in (_GFF3, _GTF))


def read_features(path: Path | str, feature: str = "gene") -> list[Feature]:
    """Features of one type, in file order.

    Parameters
    ----------
    path : path
        A regular file named ``.gff3``, ``.gff`` or ``.gtf``, plain or gzip.
    feature : str
        Type of the third column, such as ``gene``, ``mRNA`` or ``exon``.

    Raises
    ------
    RegionError
        Naming file and line, if a line is malformed; or if no feature is of the type, naming those
        that there are.
    """
    found, others = [], dict[str, None]()
    for one in features(path):
        if one.kind == feature:
            found.append(one)
        else:
            others[one.kind] = None
    if not found:
        there = f"there are {some(others, 12)}" if others else "it has no features at all"
        raise RegionError(f"{path}: no feature {shown(feature)}; {there}")
    return found


def features(path: Path | str, error: type[GenomepredError] = RegionError) -> Iterator[Feature]:
    """All features in file order; errors as of :func:`read_features`, but of this type."""
    if not is_annotation(path):
        raise error(f"{path}: is named neither .gff3, .gff nor .gtf; rename it as what it is")
    gtf = _GTF.search(str(path)) is not None
    for number, line in numbered_lines(path, path, "GTF" if gtf else "GFF3", error):
        if line.startswith("##FASTA") or line.startswith(">"):
            return  # sequence from here on
        if line.strip() and not line.startswith("#"):
            fields = line.rstrip("\r\n").split("\t")
            yield _gene(fields, f"{path} line {number}", number, gtf, error)


def _gene(
    fields: list[str], where: str, number: int, gtf: bool, error: type[GenomepredError]
) -> Feature:
    if len(fields) != _COLUMNS or not all(map(_NUMBER.fullmatch, fields[3:5])):
        raise error(
            f"{where}: expected {_COLUMNS} columns between tabs with start and end, counted from 1,"
            f" in the fourth and fifth; found {shown(' '.join(fields[:_COLUMNS]))}"
        )
    contig, _, feature, first, last, _, strand, _, text = fields
    start, end = int(first) - 1, int(last)
    if start >= end:
        raise error(f"{where}: {shown(contig)} {first}-{last} ends before it begins")
    attributes = _gtf_attributes(text) if gtf else _gff3_attributes(text)
    contig, feature = (contig, feature) if gtf else (unquote(contig), unquote(feature))
    name = _name(attributes, feature, gtf) or f"{contig}:{first}-{last}"
    strand = strand if strand in ("+", "-") else "."
    return Feature(contig, start, end, name, strand, feature, number, attributes)


def _name(attributes: dict[str, str], feature: str, gtf: bool) -> str:
    """Name of a feature; empty if it has none."""
    keys: tuple[str, ...] = _GFF3_NAMES
    if gtf:
        own = ("exon_id", "transcript_id", "gene_id")
        keys = own[2:] if feature == "gene" else own[1:] if feature != "exon" else own
        keys = (*keys, "gene_name")
    return next((attributes[key] for key in keys if attributes.get(key)), "")


def _gff3_attributes(text: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(";"))
    return {unquote(key.strip()): unquote(value) for key, equals, value in pairs if equals}


def _gtf_attributes(text: str) -> dict[str, str]:
    """Attributes; of one that stands several times, the first value."""
    found: dict[str, str] = {}
    for match in _GTF_ATTRIBUTE.finditer(text):
        value = match["quoted"] if match["quoted"] is not None else match["bare"]
        found.setdefault(match["key"], value)
    return found
