"""Peaks as training data: against negatives drawn anew every epoch, or with signals as labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from genomepred.data.contigs import Contigs
from genomepred.data.examples import (
    PARTS,
    TEST,
    TRAIN,
    VALIDATION,
    Codes,
    Epoch,
    Examples,
    Float32,
    Int64,
    count_repeats,
    gather,
    sequence_hashes,
)
from genomepred.data.labels import LabeledData
from genomepred.data.negatives import Background, shuffle_dinucleotides
from genomepred.data.peaks import Peaks, Split
from genomepred.data.storage import allocate
from genomepred.errors import DataError
from genomepred.sequences.grid import Region
from genomepred.sequences.names import some

# Random windows a validation peak: most of a genome is no peak, and the best epoch is the one
# that tells peaks from it. 25 a peak take a few seconds a pass.
_VALIDATION_RANDOM = 25
# Peaks that are shuffled together.
_BLOCK = 4096


@dataclass(frozen=True)
class Mix:
    """Negatives per positive, of each kind.

    Parameters
    ----------
    shuffled : int, optional
        Positives with their dinucleotides shuffled.
    matched : int, optional
        Windows of the positives' genome with their GC.
    random : int, optional
        Windows from anywhere in the genome: what a scan of it meets.
    """

    shuffled: int = 1
    matched: int = 1
    random: int = 4


@dataclass(frozen=True)
class Augmentation:
    """Changes of training sequences, drawn anew every epoch.

    Parameters
    ----------
    reverse_complement : bool, optional
        See each sequence from a random strand.
    shift : int, optional
        Most bases by which peaks on the genome move along it, though not out of their part.
    """

    reverse_complement: bool = True
    shift: int = 0


class PeakData:
    """Peaks against shuffled and real negatives, split by region.

    Parameters
    ----------
    peaks : Peaks
        The positives.
    contigs : Contigs
        Contigs of the genomes under the peaks' names.
    split : Split
        Which regions are held out.
    mix : Mix
        Negatives of an epoch.
    seed : int
        Epoch ``k`` depends on nothing but the data, the options, ``seed`` and ``k``.
    augmentation : Augmentation, optional
        Of an epoch.
    genomes : sequence of str, optional
        Names of several genomes, which stand with a ``:`` before their contigs. Real negatives
        come from the genomes of their positives, in the same numbers.
    facts : mapping, optional
        What is known of the files.
    needed : sequence of str, optional
        Parts that must have peaks.

    Attributes
    ----------
    repeats : int
        Training peaks whose sequence, on either strand, validation or test have too.
    regions : list of list of Region
        What of the contigs belongs to each part.

    Raises
    ------
    DataError
        If a part that must have peaks has none.
    """

    task = "binary"
    tracks: tuple[str, ...] = ("peak",)

    def __init__(
        self,
        peaks: Peaks,
        contigs: Contigs,
        split: Split,
        mix: Mix,
        seed: int,
        *,
        augmentation: Augmentation | None = None,
        genomes: Sequence[str] = ("",),
        facts: Mapping[str, Any] | None = None,
        needed: Sequence[str] = PARTS,
    ) -> None:
        self.peaks, self.contigs, self.mix, self.seed = peaks, contigs, mix, seed
        self.augmentation = augmentation or Augmentation()
        self._facts = dict(facts or {})
        parts = split.parts(peaks.regions)
        self._rows = [np.flatnonzero(parts == part) for part in range(3)]
        for name, rows in zip(PARTS, self._rows, strict=True):
            if name in needed and not len(rows):
                advice = (
                    f"choose regions with --{name} that have some of those on "
                    f"{some(peaks.contigs)}, or take every peak with --part all"
                    if len(needed) == 1 and name != PARTS[TRAIN]
                    else "choose regions with --validation and --test so that each part has some "
                    f"of those on {some(peaks.contigs)}"
                )
                raise DataError(f"{peaks.source}: no peaks for {name}; {advice}")
        hashes = sequence_hashes(peaks.codes)
        training, *held_out = (hashes[rows] for rows in self._rows)
        self.repeats = count_repeats(training, held_out)
        lengths = {name: len(codes) for name, codes in contigs.items()}
        self.regions = split.regions(lengths)
        self.background = Background(contigs, [*peaks.regions, *peaks.spans], self.window)
        prefixes = [f"{genome}:" if genome else "" for genome in genomes]
        self._groups = [self._by_genome(part, prefixes) for part in range(3)]

    @property
    def window(self) -> int:
        """Bases of a peak."""
        return int(self.peaks.codes.shape[1])

    def has(self, part: int) -> bool:
        """Whether a part has peaks."""
        return len(self._rows[part]) > 0

    def positives(self, part: int) -> Codes:
        """Sequences ``[n, window]`` of a part's peaks: a copy."""
        return self.peaks.codes[self._rows[part]]

    def epoch(self, number: int) -> Epoch:
        """Training examples of one epoch: fresh negatives, random strands, random order."""
        rng = np.random.default_rng((self.seed, number))
        peaks = self._rows[TRAIN]
        shape = len(peaks), self.window
        shuffled = [
            allocate(shape, self.contigs.scratch, f"shuffled-{i}") for i in range(self.mix.shuffled)
        ]
        for out in shuffled:
            self._shuffle(TRAIN, rng, out)
        places = self._real(TRAIN, self.mix, rng)
        sources = [self.peaks.codes, *shuffled, self.background.windows]
        rows = [peaks, *(np.arange(len(codes)) for codes in shuffled), places]
        source = np.repeat(np.arange(len(sources), dtype=np.uint8), list(map(len, rows)))
        row = np.concatenate(rows)
        labels = _labels(len(peaks), len(row))
        order = rng.permutation(len(row))
        reverse = np.zeros(len(row), bool)
        if self.augmentation.reverse_complement:
            reverse = rng.random(len(row)) < 0.5
        if self.augmentation.shift:
            placed, places = self.placed(TRAIN)
            source[placed], row[placed] = len(sources) - 1, self.shifted(TRAIN, places, rng)
        return Epoch(sources, source[order], row[order], labels[order], reverse)

    def placed(self, part: int) -> tuple[Int64, Int64]:
        """The peaks of a part that lie on the contigs, and their places there."""
        regions = [self.peaks.regions[row] for row in self._rows[part]]
        placed = [i for i, region in enumerate(regions) if region.contig in self.contigs]
        places = [self.contigs.place(regions[i]) for i in placed]
        return np.array(placed, np.int64), np.array(places, np.int64)

    def shifted(self, part: int, places: Int64, rng: np.random.Generator) -> Int64:
        """Windows moved at random by at most the shift asked for, inside their part's regions.

        A window that reaches out of its contig stays.
        """
        most = self.augmentation.shift
        moved = places + rng.integers(-most, most + 1, len(places))
        bounds = sorted(
            (self.contigs.place(region), self.contigs.place(region) + region.end - region.start)
            for region in self.regions[part]
        )
        starts, ends = np.array(bounds, np.int64).reshape(-1, 2).T
        region = np.searchsorted(starts, places, side="right") - 1
        inside = (region >= 0) & (places + self.window <= ends[region])
        return np.where(inside, np.clip(moved, starts[region], ends[region] - self.window), places)

    def validation(self) -> Examples:
        """Validation examples, always the same: the epoch's kinds, with more random windows."""
        return self._validation

    @cached_property
    def _validation(self) -> Examples:
        rng = np.random.default_rng((self.seed, 0, VALIDATION))
        random = _VALIDATION_RANDOM if self.mix.random else 0
        return self._examples(VALIDATION, replace(self.mix, random=random), rng, "validation")

    def test(self) -> dict[str, Examples]:
        """Test peaks against as many test negatives, by kind of negative; always the same."""
        return dict(self._test)

    @cached_property
    def _test(self) -> dict[str, Examples]:
        rng = np.random.default_rng((self.seed, 0, TEST))
        kinds = {
            "dinucleotide-shuffled": Mix(1, 0, 0),
            "GC-matched": Mix(0, 1, 0),
            "random": Mix(0, 0, 1),
        }
        return {name: self._examples(TEST, mix, rng, f"test-{name}") for name, mix in kinds.items()}

    def facts(self) -> dict[str, Any]:
        """Files, numbers of peaks in each part, negatives and augmentation."""
        counts = [len(rows) for rows in self._rows]
        return {
            **self._facts,
            "peaks": dict(zip(PARTS, counts, strict=True)),
            "training_also_held_out": self.repeats,
            "negatives_per_positive": asdict(self.mix),
            "augmentation": asdict(self.augmentation),
        }

    def matched(self, part: int, rng: np.random.Generator) -> Int64:
        """Places of a different window for each of a part's peaks, with its GC and N."""
        peaks = self._rows[part]
        return np.concatenate(
            [
                self.background.matched(regions, self.peaks.codes, peaks[rows], rng)
                for rows, regions in self._groups[part]
            ]
        )

    def _random(self, part: int, count: int, rng: np.random.Generator) -> Int64:
        """Places of ``count`` random windows for each of a part's peaks."""
        return np.concatenate(
            [
                self.background.random(regions, count * len(rows), rng)
                for rows, regions in self._groups[part]
            ]
        )

    def _by_genome(self, part: int, prefixes: list[str]) -> list[tuple[Int64, list[Region]]]:
        """Peaks of a part on each genome that has any, and its regions."""
        contigs = [self.peaks.regions[row].contig for row in self._rows[part]]
        groups = []
        for prefix in prefixes:
            rows = np.flatnonzero([contig.startswith(prefix) for contig in contigs])
            regions = [r for r in self.regions[part] if r.contig.startswith(prefix)]
            groups += [(rows, regions)] if len(rows) else []
        return groups

    def _shuffle(self, part: int, rng: np.random.Generator, out: Codes) -> None:
        """Fill ``out`` with a part's peaks, their dinucleotides shuffled."""
        rows = self._rows[part]
        for first in range(0, len(rows), _BLOCK):
            codes = self.peaks.codes[rows[first : first + _BLOCK]]
            out[first : first + _BLOCK] = shuffle_dinucleotides(codes, rng)

    def _real(self, part: int, mix: Mix, rng: np.random.Generator) -> Int64:
        """Places of windows of the genomes: matched ones, then random ones."""
        places = [self.matched(part, rng) for _ in range(mix.matched)]
        places += [self._random(part, mix.random, rng)] if mix.random else []
        return np.concatenate([np.empty(0, np.int64), *places])

    def _examples(self, part: int, mix: Mix, rng: np.random.Generator, name: str) -> Examples:
        """Peaks, then each kind of negatives, as codes of that name."""
        rows, n = self._rows[part], len(self._rows[part])
        labels = _labels(n, n * (1 + mix.shuffled + mix.matched + mix.random))
        codes = allocate((len(labels), self.window), self.contigs.scratch, name)
        gather(self.peaks.codes, rows, codes[:n])
        for i in range(mix.shuffled):
            self._shuffle(part, rng, codes[(1 + i) * n : (2 + i) * n])
        places = self._real(part, mix, rng)
        gather(self.background.windows, places, codes[len(codes) - len(places) :])
        names = [region_name(self.peaks.regions[row]) for row in rows]
        names += [f"shuffled {name}" for name in names] * mix.shuffled
        names += map(region_name, self.contigs.regions(places, self.window))
        return Examples(codes, labels, np.array(names, object))


def _labels(positives: int, count: int) -> Float32:
    if not 0 < positives < count:
        raise DataError(
            f"constant labels: {positives} positives and {count - positives} negatives; ask for "
            "negatives of at least one kind"
        )
    labels = np.zeros((count, 1), np.float32)
    labels[:positives] = 1
    return labels


def region_name(region: Region) -> str:
    """A region as the command line takes it: 1-based inclusive."""
    return f"{region.contig}:{region.start + 1}-{region.end}"


class SignalData(LabeledData):
    """Windows at peaks and at matched background, with labels of their own.

    Parameters
    ----------
    peaks : PeakData
        Gives the background, the seed and the augmentation.
    places : int64 array, [n]
        Of the training windows among the joined contigs.
    parts : sequence of three Examples
        For training, validation and test.
    tracks : tuple of str
        Names of the labels.
    facts : dict
        What :meth:`facts` returns.
    """

    def __init__(
        self,
        peaks: PeakData,
        places: Int64,
        parts: Sequence[Examples],
        tracks: tuple[str, ...],
        facts: dict[str, Any],
    ) -> None:
        super().__init__(
            parts,
            tracks,
            "regression",
            reverse_complement=peaks.augmentation.reverse_complement,
            shift=0,
            seed=peaks.seed,
            facts=facts,
        )
        self.peaks, self.places = peaks, places

    def epoch(self, number: int) -> Epoch:
        """Training examples of one epoch: random order, strands, and shifts along the genome.

        A moved window keeps its label.
        """
        epoch = super().epoch(number)
        if not self.peaks.augmentation.shift:
            return epoch
        rng = np.random.default_rng((self.seed, number, 1))
        moved = self.peaks.shifted(TRAIN, self.places, rng)
        return replace(epoch, sources=[self.peaks.background.windows], row=moved[epoch.row])

    def facts(self) -> dict[str, Any]:
        """Files, numbers of peaks and windows, transformation, split and augmentation."""
        return {**super().facts(), "augmentation": asdict(self.peaks.augmentation)}
