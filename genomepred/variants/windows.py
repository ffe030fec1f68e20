"""Windows around variants: those of the reference, and those of one haplotype an alternative.

An alternative is a haplotype with the edits of one allele, and its windows are cut as those of a
panel's haplotypes are (:mod:`genomepred.sequences.distinct`): a window has an anchor ``x`` on the
reference, ``x'`` is the first reference base from there on that the haplotype keeps, and the window
is the haplotype's ``window`` bases from ``crop + span // 2`` before the place of ``x'`` on.

Coordinates are those of a buffer in which stretches of a contig lie end to end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from genomepred.sequences import edits as kernel
from genomepred.sequences.codes import Codes, reverse_complement
from genomepred.sequences.sweep import build_windows, count_real
from genomepred.variants.sites import Sites

Int64 = NDArray[np.int64]

REFERENCE = -1


@dataclass(frozen=True, eq=False)
class Haplotypes:
    """Alternatives as haplotypes on a buffer of codes; number -1 is the reference.

    Attributes
    ----------
    codes : uint8 array
        The buffer.
    first : int64 array, [haplotypes + 1]
        Where each haplotype's edits begin.
    start, end : int64 array, [edits]
        Bases of the buffer that each edit replaces.
    alt_first : int64 array, [edits + 1]
        Where each edit's bases begin in ``letters``.
    letters : uint8 array
        Codes.
    """

    codes: Codes
    first: Int64
    start: Int64
    end: Int64
    alt_first: Int64
    letters: Codes

    @classmethod
    def of(cls, sites: Sites, alts: Int64, codes: Codes, shift: Int64) -> Haplotypes:
        """Haplotypes of some alternatives of a block.

        Parameters
        ----------
        sites : Sites
        alts : int64 array, [haplotypes]
            Their numbers among all alleles of the block; of bases each.
        codes : uint8 array
            The buffer.
        shift : int64 array, [haplotypes]
            From the contig's bases to the buffer's.
        """
        record = np.searchsorted(sites.ref, alts, side="right") - 1
        ref, size = sites.ref[record], np.diff(sites.starts)
        state = np.zeros(kernel.STATE_SIZE, np.int64)
        most = int((np.minimum(size[alts], size[ref]) + 1).sum())
        edits = np.zeros((most, 2), np.int64)
        alt_first = np.zeros(most + 1, np.int64)
        letters = np.zeros(int(size[alts].sum()), np.uint8)
        room = kernel.Room(None, edits, alt_first, letters, None)
        first = np.zeros(len(alts) + 1, np.int64)
        starts = sites.starts
        _find_edits(
            sites.position[record] + shift,
            starts[ref],
            starts[ref + 1],
            starts[alts],
            starts[alts + 1],
            sites.bases,
            room,
            state,
            first,
        )
        count = int(first[-1])
        start, end = np.ascontiguousarray(edits[:count].T)
        return cls(codes, first, start, end, alt_first[: count + 1], letters[: alt_first[count]])

    @cached_property
    def hull(self) -> tuple[Int64, Int64, Int64]:
        """Bounds of a haplotype's changes: first base, and the end on the reference and on itself.

        A haplotype without edits changes nothing far beyond the buffer.
        """
        has = self.first[1:] > self.first[:-1]
        far = np.full(len(has), 2 * len(self.codes) + (1 << 40), np.int64)
        low, high = far.copy(), far.copy()
        low[has] = self.start[self.first[:-1][has]]
        high[has] = self.end[self.first[1:][has] - 1]
        return low, high, high + self.net

    @cached_property
    def net(self) -> Int64:
        """Bases that each haplotype has more than the reference."""
        gain = np.diff(self.alt_first) - (self.end - self.start)
        total = np.append(0, np.cumsum(gain))
        net: Int64 = total[self.first[1:]] - total[self.first[:-1]]
        return net

    def begins(self, haplotype: Int64, anchor: Int64, left: int) -> Int64:
        """First bases of windows with these anchors, ``left`` bases before each, on a haplotype."""
        begin = np.empty(len(anchor), np.int64)
        _anchored(haplotype, anchor, left, self.first, self.start, self.end, self.alt_first, begin)
        return begin

    def build(self, haplotype: Int64, begin: Int64, length: int) -> Codes:
        """Codes ``[rows, length]`` of haplotypes from ``begin`` on; unknown outside the buffer."""
        out = np.empty((len(begin), length), np.uint8)
        firsts, stops, delta = self._entering(haplotype, begin)
        build_windows(begin, firsts, stops, *self._edits(), delta, self.codes, 0, out)
        return out

    def known(self, haplotype: Int64, begin: Int64, length: int) -> Int64:
        """Known bases of what :meth:`build` makes, without making it."""
        out = np.empty(len(begin), np.int64)
        firsts, stops, delta = self._entering(haplotype, begin)
        before = self._known_before
        count_real(begin, firsts, stops, *self._edits(), delta, before, 0, length, out)
        return out

    def turned(self) -> Haplotypes:
        """The other strand."""
        order = np.concatenate(
            [np.arange(b - 1, a - 1, -1) for a, b in zip(self.first, self.first[1:], strict=False)]
            or [np.empty(0, np.int64)]
        ).astype(np.int64)
        size = np.diff(self.alt_first)[order]
        alt_first = np.append(0, np.cumsum(size))
        letters = np.empty_like(self.letters)
        for at, e in zip(alt_first.tolist(), order.tolist(), strict=False):
            piece = self.letters[self.alt_first[e] : self.alt_first[e + 1]]
            letters[at : at + len(piece)] = reverse_complement(piece)
        return replace(
            self,
            codes=reverse_complement(self.codes),
            start=len(self.codes) - self.end[order],
            end=len(self.codes) - self.start[order],
            alt_first=alt_first,
            letters=letters,
        )

    def turned_begins(self, haplotype: Int64, begin: Int64, length: int) -> Int64:
        """First base, on the other strand, of the ``length`` bases from ``begin`` on."""
        net: Int64 = np.append(self.net, 0)[haplotype]  # the last is that of the reference, -1
        turned: Int64 = len(self.codes) + net - begin - length
        return turned

    @cached_property
    def _known_before(self) -> Int64:
        before = np.zeros(len(self.codes) + 1, np.int64)
        np.cumsum(self.codes < 4, out=before[1:])
        return before

    def _edits(self) -> tuple[Int64, Int64, Int64, Int64, Codes]:
        numbers = np.arange(len(self.start))
        return numbers, self.start, self.end, self.alt_first, self.letters

    def _entering(self, haplotype: Int64, begin: Int64) -> tuple[Int64, Int64, Int64]:
        firsts, stops, delta = np.zeros((3, len(begin)), np.int64)
        _entering(
            haplotype,
            begin,
            self.first,
            self.start,
            self.end,
            self.alt_first,
            firsts,
            stops,
            delta,
        )
        return firsts, stops, delta


@njit(nogil=True, cache=True)
def _find_edits(
    pos: Any,
    ref: Any,
    ref_end: Any,
    alt: Any,
    alt_end: Any,
    bases: Any,
    room: Any,
    state: Any,
    first: Any,
) -> None:
    for h in range(len(pos)):
        kernel.add_alternative(pos[h], bases, ref[h], ref_end[h], alt[h], alt_end[h], room, state)
        first[h + 1] = state[kernel.EDITS]


@njit(nogil=True, cache=True)
def _anchored(
    haplotype: Any,
    anchor: Any,
    left: int,
    first: Any,
    start: Any,
    end: Any,
    alt_first: Any,
    begin: Any,
) -> None:
    """Places of anchors on their haplotypes: the first base kept from each on."""
    for i in range(len(anchor)):
        x, net, h = anchor[i], 0, haplotype[i]
        if h >= 0:
            for e in range(first[h], first[h + 1]):
                gain = alt_first[e + 1] - alt_first[e] - (end[e] - start[e])
                if end[e] > x:
                    if gain == 0 or start[e] > x:
                        break
                    x = end[e]
                net += gain
        begin[i] = x + net - left


@njit(nogil=True, cache=True)
def _entering(
    haplotype: Any,
    begin: Any,
    first: Any,
    start: Any,
    end: Any,
    alt_first: Any,
    firsts: Any,
    stops: Any,
    delta: Any,
) -> None:
    """First edit that reaches into each window, where its haplotype's edits end, and net before."""
    for i in range(len(begin)):
        h = haplotype[i]
        if h < 0:
            continue
        e, net = first[h], 0
        while e < first[h + 1]:
            size = alt_first[e + 1] - alt_first[e]
            if start[e] + net + size > begin[i]:
                break
            net += size - (end[e] - start[e])
            e += 1
        firsts[i], stops[i], delta[i] = e, first[h + 1], net
