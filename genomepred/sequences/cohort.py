"""Panel: one reference genome and the haplotypes that a VCF or BCF describes on it.

What a haplotype is, is settled once, in one pass over the file: byte for byte what ``bcftools
consensus -H`` writes, but for the cases that the documentation marks. The accepted edits are kept
haplotype by haplotype in blocks of reference bases, so that any stretch of any haplotype can be
read without the VCF and without an index.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import RegionError, SequenceError
from genomepred.messages import counted
from genomepred.sequences import panel_cache
from genomepred.sequences.byte_source import stamp_of
from genomepred.sequences.consensus import Haplotype
from genomepred.sequences.haplotypes import Region, expand
from genomepred.sequences.names import absent_contig, haplotype_meant, some
from genomepred.sequences.panel_cache import BlockPlace, PanelCache
from genomepred.sequences.panel_pass import PanelPass
from genomepred.sequences.source import SequenceSource
from genomepred.sequences.vcf import VariantFile

Int64 = NDArray[np.int64]

# Share of a sample's records that are skipped as in conflict from which on it is worth a hint.
WORTH_A_HINT = 1e-3
_SUFFIX = re.compile(r"(\.(vcf|bcf))?(\.(gz|bgz))?$", re.IGNORECASE)


@dataclass(frozen=True)
class PanelOptions:
    """The rules by which genotypes become haplotypes.

    Parameters
    ----------
    missing : {"reference", "n"}
        What a missing allele is: the reference, or N at the record's position.
    unphased : {"error", "first", "n"}
        What heterozygotes without phase are: refused, taken as written, or N (indels: reference).
    inbred : bool
        One haplotype a sample; every heterozygote follows ``unphased``.
    samples : tuple of str, optional
        Selected samples in this order; all by default.
    """

    missing: Literal["reference", "n"] = "reference"
    unphased: Literal["error", "first", "n"] = "error"
    inbred: bool = False
    samples: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.missing not in ("reference", "n"):
            raise SequenceError(f"--missing {self.missing!r}: one of reference, n")
        if self.unphased not in ("error", "first", "n"):
            raise SequenceError(f"--unphased {self.unphased!r}: one of error, first, n")


def read_samples(text: str) -> tuple[str, ...]:
    """Samples of a comma list, or of a file with one a line.

    Raises
    ------
    SequenceError
        If the list is empty or the file cannot be read.
    """
    path = Path(text)
    # `Path.is_file` raises where a list is too long for the name of a file.
    if not os.path.isfile(path):
        names = [name.strip() for name in text.split(",")]
    else:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SequenceError(f"--samples {path}: cannot be read: {error}") from None
        names = [line.strip() for line in lines if not line.startswith("#")]
    names = [name for name in names if name]
    if not names:
        raise SequenceError(f"--samples {text!r}: names no sample")
    return tuple(names)


def require_sample(path: Path, text: str) -> None:
    """Refuse ``SAMPLE`` or ``SAMPLE.COPY`` by a panel's header alone, if it has no such sample.

    Raises
    ------
    RegionError
        If no haplotype can be meant.
    SequenceError
        If the file is no panel.
    """
    file = VariantFile(path)
    file.close()
    sample, _, copy = text.rpartition(".")
    if text not in file.samples and not (sample in file.samples and copy.isdecimal()):
        raise RegionError(
            f"{path}: no sample {text!r}; it has {counted(len(file.samples), 'sample')}: "
            f"{some(file.samples)}"
        )


@dataclass(frozen=True)
class Counts:
    """Counts of the pass over a panel.

    Parameters
    ----------
    records : int
    accepted : int
        Alleles that became part of a haplotype.
    missing, unphased, filtered : int
        Missing alleles, heterozygotes without phase, and carried alleles of records whose FILTER
        is not PASS.
    skipped : tuple of int
        Per sample, records skipped because they overlap an accepted one.
    """

    records: int
    accepted: int
    missing: int
    unphased: int
    filtered: int
    skipped: tuple[int, ...]


class Panel:
    """Haplotypes of a reference and a VCF or BCF.

    Parameters
    ----------
    reference : SequenceSource
        Stays the caller's to close.
    path : path
        VCF or BCF: plain, gzip or bgzip, with or without an index.
    options : PanelOptions, optional
    cache : path, optional
        Folder for the accepted edits; by default one that goes with this object.

    Attributes
    ----------
    name : str
        File name without .vcf.gz and the like.
    contigs : dict of str to int
        Of the reference.
    samples : list of str
    haplotypes : list of (str, int)
        Sample and copy, counted from 1; the position is the haplotype's number.
    digest : str
        XXH3-128 of sites, alleles and the selected genotypes: the same for VCF and BCF.
    counts : Counts

    Raises
    ------
    SequenceError
        If the file is no panel of this reference; names record, place and sample.
    OutputError
        If the cache cannot be written.
    """

    def __init__(
        self,
        reference: SequenceSource,
        path: str | Path,
        options: PanelOptions | None = None,
        *,
        cache: str | Path | None = None,
    ) -> None:
        self.reference, self.path = reference, Path(path)
        self.options = options or PanelOptions()
        self.name = _SUFFIX.sub("", self.path.name)
        self.contigs = reference.contigs
        self.stamp = stamp_of(self.path)
        self._private: tempfile.TemporaryDirectory[str] | None = None
        if cache is None:
            self._private = tempfile.TemporaryDirectory(prefix="genomepred-")
            cache = self._private.name
        self._cache = PanelCache(Path(cache), f"{self.name[:80]}-{self._key()}")
        self._load(self._cache.open(self._make))

    def _key(self) -> str:
        made = (panel_cache.VERSION, panel_cache.BLOCK)
        facts = (*made, self.stamp, self.reference.digest(), self.options)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def _make(self, sink: BinaryIO) -> dict[str, Any]:
        document = PanelPass(self.reference, self.path, self.options, sink).run()
        if stamp_of(self.path) != self.stamp:
            raise SequenceError(f"{self.path} changed while it was being read; run again")
        return document

    def _load(self, document: dict[str, Any]) -> None:
        self.samples: list[str] = document["samples"]
        self.digest: str = document["digest"]
        counts = document["counts"]
        self.counts = Counts(**{**counts, "skipped": tuple(counts["skipped"])})
        copies = document["copies"]
        self.haplotypes = [
            (s, c + 1) for s, k in zip(self.samples, copies, strict=True) for c in range(k)
        ]
        self._sample = np.repeat(np.arange(len(copies)), copies)
        self._copy = np.concatenate([np.arange(k) for k in copies])
        self._ploidy = [np.array(row, np.int64) for row in document["ploidies"]]
        self._ploidy_of: dict[str, int] = document["contigs"]
        self._blocks: dict[str, list[BlockPlace]] = {}
        for contig, *place in document["blocks"]:
            self._blocks.setdefault(contig, []).append(BlockPlace(*place))

    @cached_property
    def numbers(self) -> dict[tuple[str, int], int]:
        """Number of each (sample, copy)."""
        return {haplotype: h for h, haplotype in enumerate(self.haplotypes)}

    def absent(self, contig: str) -> NDArray[np.bool_]:
        """Whether each haplotype lacks this contig, as the second X of a male, [haplotypes]."""
        if contig not in self._ploidy_of:
            return np.zeros(len(self.haplotypes), np.bool_)
        ploidy = self._ploidy[self._ploidy_of[contig]][self._sample]
        return (ploidy > 0) & (self._copy >= ploidy)

    def warnings(self) -> list[str]:
        """Facts of the panel that its user should know, a line each."""
        counts, lines = self.counts, []
        if counts.accepted == 0:
            lines.append("no selected sample carries anything: every haplotype is the reference")
        skipped = sum(counts.skipped)
        if skipped > WORTH_A_HINT * max(counts.accepted, 1):
            worst = int(np.argmax(counts.skipped))
            lines.append(
                f"{counted(skipped, 'allele')} skipped over an earlier one of its haplotype "
                f"(most in {self.samples[worst]!r}: {counts.skipped[worst]:,}); "
                "`bcftools norm` may help"
            )
        if counts.missing and self.options.missing == "n":
            lines.append(
                f"{counts.missing:,} missing alleles become N, which makes sequences differ; "
                "impute them, or use --missing reference"
            )
        if counts.filtered:
            lines.append(f"{counts.filtered:,} carried alleles are of records that did not PASS")
        return lines

    def region(
        self,
        contig: str,
        start: int,
        end: int,
        numbers: Int64 | None = None,
        *,
        whole: bool = False,
    ) -> Region:
        """Accepted edits that touch ``[start, end)``, haplotype by haplotype.

        Parameters
        ----------
        contig : str
        start, end : int
        numbers : int64 array, optional
            Haplotypes to load; all by default.
        whole : bool, optional
            All edits of the blocks that ``[start, end)`` lies in.
        """
        if contig not in self.contigs:
            raise RegionError(f"{self.reference.path}: {absent_contig(contig, self.contigs)}")
        numbers = np.arange(len(self.haplotypes)) if numbers is None else numbers
        places, size = self._blocks.get(contig, []), panel_cache.BLOCK
        length = self.contigs[contig]
        low, high = max(start, 0) // size, -(-min(end, length) // size)
        # An edit that reaches into the first block from before it must be known too.
        while any(p.reach > low * size and p.number < low for p in places):
            low = min(p.number for p in places if p.reach > low * size and p.number < low)
        blocks = []
        for place in (p for p in places if low <= p.number < high):
            block = self._cache.block(place)
            slots = self._sample[numbers] * block.most + self._copy[numbers]
            slots[self._copy[numbers] >= block.most] = -1
            blocks.append((block, slots))
        if whole:
            start, end = low * size, 1 << 62
        known = max(start, 0), min(end, length)
        return expand(blocks, len(numbers), *known, length)

    def haplotype(self, sample: str, copy: int = 1) -> Haplotype:
        """One haplotype as a sequence source.

        Raises
        ------
        RegionError
            If the panel has no such sample or copy.
        """
        number = self.numbers.get((sample, copy))
        if number is None:
            has = sum(s == sample for s, _ in self.haplotypes)
            what = f"sample {sample!r} has copies 1-{has}" if has else f"no sample {sample!r}"
            raise RegionError(f"{self.path}: {sample}.{copy} asked for, but {what}")
        return Haplotype(self, number)

    def named(self, text: str) -> Haplotype:
        """Haplotype of ``SAMPLE`` or ``SAMPLE.COPY``; see :func:`haplotype_meant`."""
        sample, copy = haplotype_meant(text, self.haplotypes)
        if copy is None and (sample, 2) in self.numbers:
            raise RegionError(f"{self.path}: sample {text!r} has several copies: say {text}.COPY")
        return self.haplotype(sample, 1 if copy is None else copy)

    def close(self) -> None:
        """Close the cache; removes a private one."""
        self._cache.close()
        if self._private is not None:
            self._private.cleanup()
            self._private = None

    def __enter__(self) -> Panel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
