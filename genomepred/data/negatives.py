"""Negatives for peaks: shuffled sequences, and real windows of a genome that touch no peak.

A window is matched in GC and in mappable share, which here means the share of known bases: codes
drop the case, and with it what an assembly masks as repeats. Peaks and windows alike have at least
90% known bases; a peak with unknown ones is matched in both numbers together. One without is
matched in GC alone, as nearly every window of a genome has none either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from genomepred.data.contigs import Contigs
from genomepred.data.examples import Codes, Int64
from genomepred.errors import DataError
from genomepred.sequences.grid import Region
from genomepred.sequences.names import some

# Share of unknown bases above which a window is no example: a model would learn the difference.
MOST_UNKNOWN = 0.1
# Candidates drawn a window to be matched: enough that GC counts of peaks, higher than those of
# the genome, are nearly all matched exactly.
_CANDIDATES = 30
_ROUNDS = 100


@njit(nogil=True, cache=True)
def _edges(codes: Any) -> Any:
    """Successors of each base in order of appearance: (first of each code, successors)."""
    first = np.zeros(6, np.int64)
    for code in codes[:-1]:
        first[code + 1] += 1
    first = np.cumsum(first)
    successors = np.empty(len(codes) - 1, np.uint8)
    place = first[:5].copy()
    for i in range(len(codes) - 1):
        successors[place[codes[i]]] = codes[i + 1]
        place[codes[i]] += 1
    return first, successors


@njit(nogil=True, cache=True)
def _leads_to(last: int, exits: Any, first: Any, successors: Any) -> bool:
    """Whether following every code's exit ends at ``last``."""
    for code in range(5):
        at, steps = code, 0
        while at != last and first[code] < first[code + 1]:
            if steps == 5:
                return False
            at, steps = successors[exits[at]], steps + 1
    return True


@njit(nogil=True, cache=True)
def _shuffle_one(codes: Any, rng: Any, out: Any) -> None:
    first, successors = _edges(codes)
    last = codes[-1]
    exits = np.zeros(5, np.int64)
    # The last edge out of each code must form a tree toward the last base; all else is free.
    while True:
        for code in range(5):
            if code != last and first[code] < first[code + 1]:
                exits[code] = rng.integers(first[code], first[code + 1])
        if _leads_to(last, exits, first, successors):
            break
    for code in range(5):
        end = first[code + 1]
        if code != last and first[code] < end:
            end -= 1
            swap = successors[end]
            successors[end], successors[exits[code]] = successors[exits[code]], swap
        for i in range(end - 1, first[code], -1):
            j = rng.integers(first[code], i + 1)
            swap = successors[i]
            successors[i], successors[j] = successors[j], swap
    out[0] = codes[0]
    for i in range(1, len(codes)):
        before = out[i - 1]
        out[i] = successors[first[before]]
        first[before] += 1


@njit(nogil=True, cache=True)
def _shuffle(codes: Any, rng: Any, out: Any) -> None:
    for i in range(len(codes)):
        _shuffle_one(codes[i], rng, out[i])


def shuffle_dinucleotides(codes: Codes, rng: np.random.Generator) -> Codes:
    """Random sequences with exactly the dinucleotides of the given ones.

    Every such sequence with the same first base is equally likely: a random Euler path through
    the graph of dinucleotides (Altschul and Erickson, Mol Biol Evol 1985). The last base, too,
    stays the same.

    Parameters
    ----------
    codes : uint8 array, [n, length]
        Codes 0-4; 4 is shuffled as a fifth base.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    uint8 array, [n, length]
    """
    out = codes.copy()
    if codes.shape[1] > 2:
        _shuffle(np.ascontiguousarray(codes), rng, out)
    return out


@njit(nogil=True, cache=True)
def _count(codes: Any, starts: Any, window: int, low: int, high: int, out: Any) -> None:
    for i in range(len(starts)):
        count = 0
        for code in codes[starts[i] : starts[i] + window]:
            count += low <= code <= high
        out[i] = count


def gc_counts(codes: Codes, starts: Int64, window: int) -> Int64:
    """Number of C and G in each ``codes[start : start + window]``."""
    counts = np.empty(len(starts), np.int64)
    _count(codes, starts, window, 1, 2, counts)
    return counts


def unknown_counts(codes: Codes, starts: Int64, window: int) -> Int64:
    """Number of unknown bases in each ``codes[start : start + window]``."""
    counts = np.empty(len(starts), np.int64)
    _count(codes, starts, window, 4, 4, counts)
    return counts


def _both_counts(codes: Codes, starts: Int64, window: int) -> Int64:
    """Numbers of C or G and of unknown bases ``[n, 2]``."""
    counts = gc_counts(codes, starts, window), unknown_counts(codes, starts, window)
    return np.stack(counts, axis=1)


def rows_of(codes: Codes) -> tuple[Codes, Int64, int]:
    """Rows ``[n, window]`` as stretches of one array: codes, starts and window."""
    n, window = codes.shape
    return codes.reshape(-1), np.arange(n, dtype=np.int64) * window, window


def match_counts(wanted: Int64, offered: Int64, rng: np.random.Generator) -> Int64:
    """Choose, for each wanted count, an offer with that count, or else the nearest one left.

    Parameters
    ----------
    wanted, offered : int64 array
        Counts; there are at least as many offers.
    rng : numpy.random.Generator
        Chooses among equal offers.

    Returns
    -------
    int64 array, [wanted]
        Index of a different offer for each.
    """
    order = rng.permutation(len(offered))
    order = order[np.argsort(offered[order], kind="stable")]
    sorted_offers = offered[order]
    rank = np.empty(len(wanted), np.int64)  # of each among equal ones
    by_count = np.argsort(wanted, kind="stable")
    sorted_wanted = wanted[by_count]
    rank[by_count] = np.arange(len(wanted)) - np.searchsorted(sorted_wanted, sorted_wanted)
    place = np.searchsorted(sorted_offers, wanted) + rank
    exact = place < np.searchsorted(sorted_offers, wanted, side="right")
    free = np.ones(len(offered), bool)
    free[place[exact]] = False
    for i in np.flatnonzero(~exact):  # few: counts rarer in the genome than among the wanted
        distance = np.where(free, np.abs(sorted_offers - wanted[i]), np.iinfo(np.int64).max)
        place[i] = np.argmin(distance)
        free[place[i]] = False
    chosen: Int64 = order[place]
    return chosen


def match_pairs(wanted: Int64, offered: Int64, rng: np.random.Generator) -> Int64:
    """Choose, for each wanted pair of counts, the nearest offer left, by the sum of differences.

    Parameters
    ----------
    wanted, offered : int64 array, [n, 2]
        Counts; there are at least as many offers.
    rng : numpy.random.Generator
        Chooses among equal offers.

    Returns
    -------
    int64 array, [wanted]
        Index of a different offer for each.
    """
    order = rng.permutation(len(offered))
    order = order[np.lexsort(offered[order].T)]
    pairs, first, left = np.unique(
        offered[order][:, ::-1], axis=0, return_index=True, return_counts=True
    )
    chosen = np.empty(len(wanted), np.int64)
    for i, pair in enumerate(wanted[:, ::-1]):
        distance = np.abs(pairs - pair).sum(axis=1)
        distance[left == 0] = np.iinfo(np.int64).max
        nearest = np.argmin(distance)
        left[nearest] -= 1
        chosen[i] = order[first[nearest] + left[nearest]]
    return chosen


class Background:
    """Real windows of genomes that touch no peak.

    Parameters
    ----------
    contigs : Contigs
        Codes of each contig.
    peaks : sequence of Region
        What no window may touch.
    window : int
        Bases of a window.

    Attributes
    ----------
    windows : uint8 array, [places, window]
        The window at each place of the joined contigs: a view.
    """

    def __init__(self, contigs: Contigs, peaks: Sequence[Region], window: int) -> None:
        self.contigs, self.window = contigs, window
        self.windows = contigs.windows(window)
        spans = sorted(
            (contigs.place(peak), contigs.place(peak) + peak.end - peak.start)
            for peak in peaks
            if peak.contig in contigs
        )
        self._peak_starts = np.array([start for start, _ in spans], np.int64)
        ends = np.array([end for _, end in spans], np.int64)
        self._peak_ends = np.maximum.accumulate(ends)  # of a peak or any before it

    def random(self, regions: Sequence[Region], count: int, rng: np.random.Generator) -> Int64:
        """Places of ``count`` random windows inside the regions, with replacement.

        Raises
        ------
        DataError
            If the regions have (nearly) no window that touches no peak and has few N.
        """
        first, ends = self._places(regions)
        found = np.empty(0, np.int64)
        for _ in range(_ROUNDS):
            if len(found) >= count or not len(ends):
                break
            at = rng.integers(0, ends[-1], 2 * (count - len(found)) + 100)
            region = np.searchsorted(ends, at, side="right")
            starts = first[region] + at - np.concatenate([[0], ends])[region]
            found = np.concatenate([found, starts[self._is_usable(starts)]])
        if len(found) < count:
            shown = [f"{r.contig}:{r.start + 1}-{r.end}" for r in regions]
            raise DataError(
                f"no negatives: the genome has too few windows of {self.window} bases without "
                f"peaks and with at most {MOST_UNKNOWN:.0%} N in the regions left for them "
                f"({some(shown) or 'none'}); give other regions or another genome"
            )
        return found[:count]

    def matched(
        self, regions: Sequence[Region], codes: Codes, rows: Int64, rng: np.random.Generator
    ) -> Int64:
        """Places of a different window inside the regions for each row, with its GC count.

        A row with unknown bases is matched in their number too.

        Parameters
        ----------
        regions : sequence of Region
            Where the windows lie.
        codes : uint8 array, [n, window]
            Sequences.
        rows : int64 array
            Those of them to be matched.
        rng : numpy.random.Generator
            Draws the candidates.

        Returns
        -------
        int64 array, [rows]

        Raises
        ------
        DataError
            If the regions have fewer different windows than there are rows.
        """
        places = np.sort(self.random(regions, _CANDIDATES * len(rows), rng))
        places = places[np.diff(places, prepend=-1) > 0]  # np.unique takes five times as long
        if len(places) < len(rows):
            raise DataError(
                f"only {len(places)} different windows to match {len(rows)} sequences in GC; "
                "give larger regions for negatives"
            )
        wanted = _both_counts(codes.reshape(-1), rows * self.window, self.window)
        offered = _both_counts(self.contigs.joined, places, self.window)
        is_known = wanted[:, 1] == 0
        chosen = np.empty(len(rows), np.int64)
        chosen[is_known] = match_counts(wanted[is_known, 0], offered[:, 0], rng)
        if not is_known.all():
            free = np.setdiff1d(np.arange(len(places)), chosen[is_known])
            chosen[~is_known] = free[match_pairs(wanted[~is_known], offered[free], rng)]
        return places[chosen]

    def _places(self, regions: Sequence[Region]) -> tuple[Int64, Int64]:
        """First place in each region, and the running total of their numbers of places."""
        usable = [r for r in regions if r.contig in self.contigs and r.end - r.start >= self.window]
        first = np.array([self.contigs.place(r) for r in usable], np.int64)
        sizes = np.array([r.end - r.start - self.window + 1 for r in usable], np.int64)
        return first, np.cumsum(sizes)

    def _is_usable(self, places: Int64) -> NDArray[np.bool_]:
        unknown = unknown_counts(self.contigs.joined, places, self.window)
        few: NDArray[np.bool_] = unknown <= MOST_UNKNOWN * self.window
        if not len(self._peak_starts):
            return few
        before = np.searchsorted(self._peak_starts, places + self.window) - 1
        few &= (before < 0) | (self._peak_ends[before] <= places)
        return few
