"""Statistics of each row over samples, from distinct values and how many samples have each.

The rank statistic is Mann and Whitney's U (1947, Annals of Mathematical Statistics 18:50-60): its
p-value is exact where a group has at most 8 samples and no values are equal, otherwise that of the
normal distribution with corrections for ties and continuity, as ``scipy.stats.mannwhitneyu`` has
it. P-values are kept as -log10, which has no smallest number.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Samples of the smaller group up to which p-values without ties are exact.
_EXACT = 8


class Moments(NamedTuple):
    """Statistics of rows over all samples, each [rows, tracks]; NaN without a value.

    ``variance`` is the mean squared distance from the mean, ``range`` highest less lowest.
    """

    samples: Float64
    mean: Float64
    variance: Float64
    range: Float64


class Ranks(NamedTuple):
    """Comparison of two groups in each row, each [rows, tracks]; NaN where a group has no value.

    ``difference`` is the first group's mean less the second's, ``u`` the first's rank statistic,
    ``z`` its distance from what chance gives in standard deviations, and ``log_p`` -log10 of its
    two-sided p-value.
    """

    first: Float64
    second: Float64
    difference: Float64
    u: Float64
    z: Float64
    log_p: Float64


def moments(starts: Int64, rows: Any, counts: Any, bins: int) -> Moments:
    """Statistics over all samples.

    Parameters
    ----------
    starts : int64 array, [windows + 1]
        Where each window's distinct predictions begin.
    rows : float32 array, [distinct x bins, tracks]
        Their values.
    counts : int64 array, [distinct, 1]
        Samples that have each; the array may be shorter, and is then repeated.
    bins : int
        Rows of a window.
    """
    shape = (len(starts) - 1) * bins, rows.shape[1], 4
    out = np.full(shape, np.nan)
    _moments(starts, rows, counts, bins, out)
    return Moments(*np.moveaxis(out, 2, 0))


def compare_ranks(starts: Int64, rows: Any, counts: Any, bins: int) -> Ranks:
    """Comparison of two groups; ``counts`` [distinct, 2] are of each, the rest as in moments."""
    shape = (len(starts) - 1) * bins, rows.shape[1], 6
    out = np.full(shape, np.nan)
    _ranks(starts, rows, counts, bins, out)
    first, second, a, b, u, ties = np.moveaxis(out, 2, 0)
    z, log_p = _significance(first, second, u, ties)
    return Ranks(first, second, a - b, u, z, log_p)


def _significance(
    first: Float64, second: Float64, u: Float64, ties: Float64
) -> tuple[Float64, Float64]:
    """Signed z and -log10 of the p-value; ``ties`` is the sum of t^3 - t over equal values."""
    from scipy.special import log_ndtr

    n = first + second
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = first * second / 2
        spread = np.sqrt(first * second / 12 * (n + 1 - ties / (n * (n - 1))))
        above = np.maximum(u, first * second - u) - middle - 0.5
        z = np.where(spread > 0, np.maximum(above, 0) / spread, 0.0)
        log_p = -(np.log(2) + log_ndtr(-np.where(spread > 0, above / spread, -np.inf))) / np.log(10)
    z = np.where(np.isnan(u), np.nan, np.copysign(z, u - middle))
    log_p = np.where(np.isnan(u), np.nan, np.maximum(log_p, 0.0))
    exact = (np.minimum(first, second) <= _EXACT) & (ties == 0) & ~np.isnan(u)
    for pair in {*zip(first[exact].tolist(), second[exact].tolist(), strict=True)}:
        here = exact & (first == pair[0]) & (second == pair[1])
        table = _exact(*sorted(map(int, pair)))
        log_p[here] = table[np.maximum(u, first * second - u)[here].astype(np.int64)]
    return z, log_p


@lru_cache(64)
def _exact(small: int, large: int) -> Float64:
    """-log10 of the two-sided p-value of each U, by counting all arrangements of the ranks.

    Their numbers are the coefficients of the Gaussian binomial of both sizes.
    """
    counts = [1] + [0] * (small * large)
    for k in range(1, small + 1):
        for power in range(len(counts) - 1, large + k - 1, -1):
            counts[power] -= counts[power - large - k]
        for power in range(k, len(counts)):
            counts[power] += counts[power - k]
    total = comb(small + large, small)
    tails = list(accumulate(reversed(counts)))[::-1]
    shares = [min(2 * tail / total, 1.0) for tail in tails]
    return np.abs(np.log10(shares))


def adjusted(log_p: Float64) -> Float64:
    """-log10 of Benjamini and Hochberg's adjusted p-values (1995, J. R. Stat. Soc. B 57:289-300).

    Parameters
    ----------
    log_p : float64 array, [rows]
        -log10 of p-values; NaN is left out.
    """
    found = np.full(log_p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(log_p))
    order = known[np.argsort(-log_p[known], kind="stable")]
    raised = log_p[order] - np.log10(len(order) / np.arange(1, len(order) + 1))
    # From the largest p-value down, none is above the one before.
    found[order] = np.maximum(np.maximum.accumulate(raised[::-1])[::-1], 0.0)
    return found


@njit(nogil=True, cache=True)
def count_classes(table: Any, starts: Any, leader: Any, none: int, group: Any, counts: Any) -> int:
    """Samples of each group that have each distinct prediction; -1, or a window without leader.

    ``table`` [windows, haplotypes] holds leaders, ``group`` [haplotypes] the group of each, -1 for
    none; ``counts`` [distinct, groups] is filled.
    """
    haplotypes = table.shape[1]
    tally = np.zeros((haplotypes, counts.shape[1]), np.int64)
    for w in range(table.shape[0]):
        tally[:] = 0
        wanted = 0
        for h in range(haplotypes):
            number, g = table[w, h], group[h]
            if number != none and g >= 0:
                if number >= haplotypes:
                    return w
                tally[number, g] += 1
                wanted += 1
        for d in range(starts[w], starts[w + 1]):
            if leader[d] < haplotypes:
                for g in range(counts.shape[1]):
                    counts[d, g] = tally[leader[d], g]
                    wanted -= counts[d, g]
        if wanted != 0:
            return w
    return -1


@njit(nogil=True, cache=True)
def _known(
    start: int, end: int, rows: Any, bins: int, b: int, t: int, counts: Any, values: Any, own: Any
) -> int:
    """Gather what is known of a row of a window; how many distinct predictions that is."""
    found = 0
    for d in range(start, end):
        value, c = rows[d * bins + b, t], d % len(counts)
        total = 0
        for g in range(counts.shape[1]):
            own[found, g] = counts[c, g]
            total += counts[c, g]
        if total > 0 and not np.isnan(value):
            values[found] = value
            found += 1
    return found


@njit(nogil=True, cache=True)
def _moments(starts: Any, rows: Any, counts: Any, bins: int, out: Any) -> None:
    most = np.max(np.diff(starts)) if len(starts) > 1 else 0
    values, own = np.empty(most), np.empty((most + 1, 1), np.int64)
    for w in range(len(starts) - 1):
        for b in range(bins):
            for t in range(rows.shape[1]):
                m = _known(starts[w], starts[w + 1], rows, bins, b, t, counts, values, own)
                one = out[w * bins + b, t]
                one[0] = 0
                if m == 0:
                    continue
                n, total, spread = 0, 0.0, 0.0
                low, high = values[0], values[0]
                for k in range(m):
                    n += own[k, 0]
                    total += own[k, 0] * values[k]
                    low, high = min(low, values[k]), max(high, values[k])
                for k in range(m):
                    spread += own[k, 0] * (values[k] - total / n) ** 2
                one[0], one[1], one[2], one[3] = n, total / n, spread / n, high - low


@njit(nogil=True, cache=True)
def _ranks(starts: Any, rows: Any, counts: Any, bins: int, out: Any) -> None:
    most = np.max(np.diff(starts)) if len(starts) > 1 else 0
    values, own = np.empty(most), np.empty((most + 1, 2), np.int64)
    for w in range(len(starts) - 1):
        for b in range(bins):
            for t in range(rows.shape[1]):
                m = _known(starts[w], starts[w + 1], rows, bins, b, t, counts, values, own)
                one = out[w * bins + b, t]
                one[0], one[1] = own[:m, 0].sum(), own[:m, 1].sum()
                if one[0] > 0 and one[1] > 0:
                    one[2] = (own[:m, 0] * values[:m]).sum() / one[0]
                    one[3] = (own[:m, 1] * values[:m]).sum() / one[1]
                    one[4], one[5] = _u(values[:m], own[:m])


@njit(nogil=True, cache=True)
def _u(values: Any, own: Any) -> tuple[float, float]:
    """U of the first group, and the sum of t^3 - t over equal values."""
    order = np.argsort(values)
    ranks, ties, before, k = 0.0, 0.0, 0, 0
    while k < len(order):
        first, both, last = 0, 0, k
        while last < len(order) and values[order[last]] == values[order[k]]:
            first += own[order[last], 0]
            both += own[order[last], 0] + own[order[last], 1]
            last += 1
        ranks += first * (before + (both + 1) / 2)
        ties += float(both) ** 3 - both
        before, k = before + both, last
    size = own[:, 0].sum()
    return ranks - size * (size + 1) / 2, ties
