"""Peaks against shuffled and real negatives, drawn anew every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from genomepred.errors import DataError
from genomepred.sequences.codes import reverse_complement
from genomepred.training.examples import PARTS, TEST, TRAIN, VALIDATION, Codes, Examples
from genomepred.training.negatives import Background, shuffle_dinucleotides
from genomepred.training.peaks import Peaks, Split, some

# Random windows a validation peak: most of a genome is no peak, and the best epoch is the one
# that tells peaks from it. 25 a peak take a few seconds a pass.
_VALIDATION_RANDOM = 25


def labelled(positives: Codes, *negatives: Codes) -> Examples:
    """Examples of one binary track: label 1 for the positives, which come first, 0 for the rest.

    Raises
    ------
    DataError
        If all labels would be equal.
    """
    codes = np.concatenate([positives, *negatives])
    if not 0 < len(positives) < len(codes):
        raise DataError(
            f"constant labels: {len(positives)} positives and {len(codes) - len(positives)} "
            "negatives; give positives, and ask for negatives of at least one kind"
        )
    labels = np.zeros((len(codes), 1), np.float32)
    labels[: len(positives)] = 1
    return Examples(codes, labels)


@dataclass(frozen=True)
class Mix:
    """Negatives per positive, of each kind.

    Parameters
    ----------
    shuffled : int, optional
        Positives with their dinucleotides shuffled.
    matched : int, optional
        Windows of the genome with the positives' GC.
    random : int, optional
        Windows from anywhere in the genome: what a scan of it meets.
    """

    shuffled: int = 1
    matched: int = 1
    random: int = 4


class PeakData:
    """Peaks against shuffled and real negatives, split by region.

    Parameters
    ----------
    peaks : Peaks
        The positives.
    contigs : mapping of str to uint8 array
        Codes of contigs under the peaks' names, from :func:`load_contigs`.
    split : Split
        Which regions are held out.
    mix : Mix
        Negatives of an epoch.
    seed : int
        Epoch ``k`` depends on nothing but the data, ``mix``, ``seed`` and ``k``.

    Raises
    ------
    DataError
        If a part has no peaks or no room for negatives.
    """

    def __init__(
        self, peaks: Peaks, contigs: Mapping[str, Codes], split: Split, mix: Mix, seed: int
    ) -> None:
        parts = np.array([split.part(region) for region in peaks.regions])
        self.positives = [peaks.codes[parts == part] for part in range(3)]
        for name, positives in zip(PARTS, self.positives, strict=True):
            if not len(positives):
                raise DataError(
                    f"{peaks.source}: no peaks for {name}; its regions must hold some of "
                    f"{some(peaks.contigs)}"
                )
        lengths = {name: len(codes) for name, codes in contigs.items()}
        self.regions = split.regions(lengths)
        self.background = Background(contigs, peaks.regions, peaks.codes.shape[1])
        self.mix, self.seed = mix, seed

    def epoch(self, number: int) -> Examples:
        """Training examples of one epoch: fresh negatives, random strands, random order."""
        rng = np.random.default_rng((self.seed, number))
        examples = self._examples(TRAIN, self.mix, rng)
        order = rng.permutation(len(examples))
        codes, labels = examples.codes[order], examples.labels[order]
        flip = rng.random(len(codes)) < 0.5
        codes[flip] = reverse_complement(codes[flip])
        return Examples(codes, labels)

    def validation(self) -> Examples:
        """Validation examples, always the same: the epoch's kinds, with more random windows."""
        rng = np.random.default_rng((self.seed, 0, VALIDATION))
        random = _VALIDATION_RANDOM if self.mix.random else 0
        return self._examples(VALIDATION, replace(self.mix, random=random), rng)

    def test(self) -> dict[str, Examples]:
        """Test peaks against as many test negatives, by kind of negative."""
        return self.held_out()

    def held_out(self) -> dict[str, Examples]:
        """Test peaks against as many test negatives, by kind of negative."""
        rng = np.random.default_rng((self.seed, 0, TEST))
        kinds = {
            "dinucleotide-shuffled": Mix(1, 0, 0),
            "GC-matched": Mix(0, 1, 0),
            "random": Mix(0, 0, 1),
        }
        return {name: self._examples(TEST, mix, rng) for name, mix in kinds.items()}

    def _examples(self, part: int, mix: Mix, rng: np.random.Generator) -> Examples:
        positives, regions = self.positives[part], self.regions[part]
        negatives = [shuffle_dinucleotides(positives, rng) for _ in range(mix.shuffled)]
        negatives += [self.background.matched(regions, positives, rng) for _ in range(mix.matched)]
        if mix.random:
            count = mix.random * len(positives)
            negatives.append(self.background.random(regions, count, rng))
        return labelled(positives, *negatives)
