"""Effects by the definition: consensus sequences in plain Python, whole windows by Predictor.

Nothing of :mod:`genomepred.variants` is used, nor of the code that builds haplotypes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from genomepred import Predictor

CODE = {letter: code for code, letter in enumerate("ACGT")}


@dataclass
class Edited:
    """A contig with one alternative in it."""

    text: str
    start: int
    end: int  # of what it changes, on the reference
    gain: int

    def kept(self, x: int) -> int:
        """Place on this sequence of the first reference base from ``x`` on that it keeps."""
        if self.gain and self.start <= x < self.end:
            x = self.end
        return x + self.gain if x >= self.end else x


def edited(contig: str, pos: int, ref: str, alt: str) -> Edited:
    """The contig with ``alt`` in place of ``ref``, at a 0-based place."""
    text = contig[:pos] + alt + contig[pos + len(ref) :]
    if len(ref) == len(alt):
        places = [i for i in range(len(ref)) if ref[i].upper() != alt[i].upper()]
        start, end = (pos + places[0], pos + places[-1] + 1) if places else (pos, pos + 1)
        return Edited(text, start, end, 0)
    kept = ref[0].upper() == alt[0].upper()
    return Edited(text, pos + kept, pos + len(ref), len(alt) - len(ref))


def window(text: str, start: int, size: int) -> np.ndarray:
    """Codes of a stretch; 4 outside."""
    letters = (text[i].upper() if 0 <= i < len(text) else "N" for i in range(start, start + size))
    return np.array([CODE.get(letter, 4) for letter in letters], np.uint8)


def center(contig: str, pos: int, ref: str, alt: str, predictor: Predictor, card) -> np.ndarray:
    """Predictions ``[2, bins, tracks]`` at the windows centered on an alternative."""
    allele = edited(contig, pos, ref, alt)
    x = (allele.start + allele.end) // 2
    return at(contig, allele, x, predictor, card)


def at(contig: str, allele: Edited, x: int, predictor: Predictor, card) -> np.ndarray:
    """Predictions at the windows with an anchor."""
    left = card.crop + card.bins * card.bin_size // 2
    pair = [
        window(contig, x - left, card.window),
        window(allele.text, allele.kept(x) - left, card.window),
    ]
    return predictor.predict(np.stack(pair))


def rows(
    contig: str, pos: int, ref: str, alt: str, span: int, predictor: Predictor, card
) -> dict[int, np.ndarray]:
    """Start of each row of the grid within ``span`` bases -> its change ``[tracks]``."""
    allele = edited(contig, pos, ref, alt)
    step = card.stride if card.bins == 1 else card.bin_size
    described = card.bins * card.bin_size
    windows = -(-max(len(contig) - described, 0) // card.stride) + 1
    found = {}
    for row in range(windows * card.bins):
        middle = row * step + card.bin_size // 2
        last = max(allele.end - 1, allele.start)
        if allele.start - span <= middle <= last + span:
            i, b = divmod(row, card.bins)
            both = at(contig, allele, i * card.stride + described // 2, predictor, card)
            found[row * step] = both[1, b] - both[0, b]
    return found


def random_contig(seed: int, length: int, unknown: bool = True) -> str:
    """A random sequence, with unknown and lower-case bases in it."""
    rng = random.Random(seed)
    text = "".join(rng.choice("ACGT") for _ in range(length))
    if unknown:
        at = length // 3
        text = text[:at] + "N" * 7 + text[at + 7 :]
    return text[: length // 2] + text[length // 2 :].lower()


def random_records(seed: int, contig: str, count: int) -> list[tuple[int, str, list[str]]]:
    """SNPs, insertions, deletions, mixed and multi-allelic records, also at the ends."""
    rng = random.Random(seed)
    found = []
    places = sorted(rng.randrange(len(contig)) for _ in range(count))
    for pos in [0, *places, len(contig) - 1]:
        ref = contig[pos : pos + rng.choice((1, 1, 1, 2, 3, 12, 70))]
        alts: list[str] = []
        while len(alts) < rng.choice((1, 1, 2, 3)):
            some = "".join(rng.choice("ACGT") for _ in range(rng.choice((1, 2, 9, 60))))
            choices = (
                "".join(rng.choice("ACGT") for _ in ref),
                ref + some,
                ref[0],
                ref[0] + some + ref[1:],
                some,
            )
            alt = rng.choice(choices)
            if alt.upper() != ref.upper() and alt not in alts:
                alts.append(alt)
        found.append((pos, ref, alts))
    return found
