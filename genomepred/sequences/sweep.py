"""Kernels of the sweep along a contig: haplotypes that differ, keys of windows and pieces, codes.

A haplotype's edits are ``edit[first[h]:first[h + 1]]``, in order. Where ``delta`` and ``total`` are
given, ``delta[j + h]`` is its net length and ``total[j + h]`` the sum of its keys before edit
``j``, counted from its first one here, and one entry more than it has edits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from genomepred.sequences.haplotypes import mix

# Beyond every place.
_FAR = 1 << 62


@njit(nogil=True, cache=True)
def most_replaced(first: Any, edit: Any, gain: Any, replaced: Any) -> int:
    """Most bases of one haplotype that fewer or more others replace."""
    most = 0
    for h in range(len(first) - 1):
        own = 0
        for j in range(first[h], first[h + 1]):
            if gain[edit[j]]:
                own += replaced[edit[j]]
        most = max(most, own)
    return most


@njit(nogil=True, cache=True)
def _slot(table: Any, stamp: Any, number: int, a: Any, b: Any) -> Any:
    """Slot of a key in a table, or a free one for it; entries of another ``number`` are none."""
    mask = np.uint64(len(table) - 1)
    slot = a & mask
    while stamp[slot] == number and (table[slot, 0] != a or table[slot, 1] != b):
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(nogil=True, cache=True)
def alike(
    low: int,
    high: int,
    absent: Any,
    first: Any,
    edit: Any,
    start: Any,
    end: Any,
    key: Any,
    at: Any,
    total: Any,
    table: Any,
    stamp: Any,
    owner: Any,
    number: int,
    same: Any,
    who: Any,
) -> int:
    """Haplotypes with other edits in ``[low, high)`` than those before them; how many.

    ``who`` receives them, ``same`` for every haplotype the place of its like there, or -1 for one
    that is absent. ``at`` and ``total``, each haplotype's first edit there, the first one behind,
    and the sum of keys between them, move along the contig.
    """
    found = 0
    for h in range(len(absent)):
        if absent[h]:
            same[h] = -1
            continue
        stop, i, j = first[h + 1], at[h, 0], at[h, 1]
        a, b = total[h, 0], total[h, 1]
        while j < stop and start[edit[j]] < high:
            a += key[edit[j], 0]
            b += key[edit[j], 1]
            j += 1
        while i < j and end[edit[i]] <= low:
            a -= key[edit[i], 0]
            b -= key[edit[i], 1]
            i += 1
        at[h, 0], at[h, 1], total[h, 0], total[h, 1] = i, j, a, b
        slot = _slot(table, stamp, number, a, b)
        if stamp[slot] != number:
            stamp[slot], owner[slot] = number, found
            table[slot, 0], table[slot, 1] = a, b
            who[found] = h
            found += 1
        same[h] = owner[slot]
    return found


@njit(nogil=True, cache=True)
def prefixes(
    at: Any, edit: Any, gain: Any, key: Any, first: Any, own: Any, delta: Any, total: Any
) -> None:
    """Copy edits ``at[k]`` of each haplotype to ``own`` and find ``delta`` and ``total``."""
    for k in range(len(at)):
        net, low, high, j = 0, np.uint64(0), np.uint64(0), first[k]
        for i in range(at[k, 0], at[k, 1]):
            e = own[j] = edit[i]
            delta[j + k], total[j + k, 0], total[j + k, 1] = net, low, high
            net += gain[e]
            low += key[e, 0]
            high += key[e, 1]
            j += 1
        delta[j + k], total[j + k, 0], total[j + k, 1] = net, low, high


@njit(nogil=True, cache=True)
def _enters(start: Any, edit: Any, delta: Any, k: int, h: int, stop: int) -> int:
    """First base of a haplotype's edit ``k`` on it; no place behind its last one."""
    return start[edit[k]] + delta[k + h] if k < stop else _FAR


@njit(nogil=True, cache=True)
def _leaves(end: Any, edit: Any, delta: Any, k: int, h: int, stop: int) -> int:
    """End of a haplotype's edit ``k`` on it."""
    return end[edit[k]] + delta[k + h + 1] if k < stop else _FAR


@njit(nogil=True, cache=True)
def sweep(
    anchor: int,
    stride: int,
    left: int,
    window: int,
    more: int,
    low: int,
    high: int,
    length: int,
    first: Any,
    edit: Any,
    start: Any,
    end: Any,
    gain: Any,
    delta: Any,
    total: Any,
    key: Any,
    place: Any,
    inside: Any,
) -> bool:
    """Keys of windows of all haplotypes; False if one reaches out of ``[low, high)``.

    So does one whose pieces might, up to ``more`` bases beyond its ends.

    ``place`` receives where windows begin on their haplotype, ``inside`` the first edit that
    reaches into each.
    """
    for h in range(len(first) - 1):
        stop, floor = first[h + 1], -_FAR
        j = f = g = first[h]
        for w in range(len(key)):
            x = max(anchor + w * stride, floor)
            # Over all edits before x; over deletions that take it, to the first base kept.
            while j < stop:
                e = edit[j]
                if end[e] > x and (start[e] > x or gain[e] == 0):
                    break
                x = max(x, end[e])
                j += 1
            floor = x
            begin = x + delta[j + h] - left
            while f < stop and end[edit[f]] + delta[f + h + 1] <= begin:
                f += 1
            finish = begin + window
            while g < stop and start[edit[g]] + delta[g + h] < finish:
                g += 1
            where = begin - delta[f + h]
            beyond = finish + more - delta[g + h]
            if (low > 0 and where - more <= low) or (high < length and beyond >= high):
                return False
            spread = np.uint64(where)
            key[w, h, 0] = mix(spread + np.uint64(1)) + total[g + h, 0] - total[f + h, 0]
            key[w, h, 1] = mix(~spread) + total[g + h, 1] - total[f + h, 1]
            place[w, h], inside[w, h] = begin, f
    return True


@njit(nogil=True, cache=True)
def pieces(
    column: Any,
    begins: Any,
    firsts: Any,
    offsets: Any,
    length: int,
    first: Any,
    edit: Any,
    start: Any,
    end: Any,
    delta: Any,
    total: Any,
    key: Any,
    place: Any,
    inside: Any,
) -> None:
    """Keys of pieces of windows, as :func:`sweep` makes those of windows."""
    forward = len(offsets) < 2 or offsets[0] < offsets[1]
    for row in range(len(column)):
        h = column[row]
        stop = first[h + 1]
        f = g = firsts[row]
        least = begins[row] + (offsets[0] if forward else offsets[-1])
        while f > first[h]:  # a piece may begin before its window
            if _leaves(end, edit, delta, f - 1, h, stop) <= least:
                break
            f -= 1
        g = f
        before = _leaves(end, edit, delta, f, h, stop)
        behind = _enters(start, edit, delta, g, h, stop)
        for i in range(len(offsets)):
            k = i if forward else len(offsets) - 1 - i
            begin = begins[row] + offsets[k]
            while before <= begin:
                f += 1
                before = _leaves(end, edit, delta, f, h, stop)
            if g < f:
                g = f
                behind = _enters(start, edit, delta, g, h, stop)
            while behind < begin + length:
                g += 1
                behind = _enters(start, edit, delta, g, h, stop)
            spread = np.uint64(begin - delta[f + h])
            key[row, k, 0] = mix(spread + np.uint64(1)) + total[g + h, 0] - total[f + h, 0]
            key[row, k, 1] = mix(~spread) + total[g + h, 1] - total[f + h, 1]
            place[row, k], inside[row, k] = begin, f


@njit(nogil=True, cache=True)
def rows_before(begin: Any, column: Any, start: Any, windows: int, bases: int, out: Any) -> None:
    """Rows of the same haplotypes ``windows`` before, where they begin ``bases`` before."""
    row_of = np.full(start.shape[1], -1, np.int64)
    for w in range(windows, len(begin) - 1):
        first = begin[w - windows]
        for row in range(first, begin[w - windows + 1]):
            row_of[column[row]] = row
        for row in range(begin[w], begin[w + 1]):
            h = column[row]
            if row_of[h] >= first and start[w - windows, h] + bases == start[w, h]:
                out[row] = row_of[h]


@njit(nogil=True, cache=True)
def count_real(
    begins: Any,
    firsts: Any,
    stops: Any,
    edit: Any,
    start: Any,
    end: Any,
    alt_first: Any,
    letters: Any,
    delta_before: Any,
    known: Any,
    origin: int,
    window: int,
    out: Any,
) -> None:
    """As :func:`build_windows`, counting; ``known[x]`` codes before ``origin + x`` are real."""
    for row in range(len(out)):
        k, stop, done, count = firsts[row], stops[row], 0, 0
        base = begins[row] - delta_before[row]
        while done < window:
            if k < stop and start[edit[k]] <= base:
                e = edit[k]
                skip = base - start[e] if done == 0 else 0
                for p in range(alt_first[e] + skip, alt_first[e + 1]):
                    if done == window:
                        break
                    count += letters[p] < 4
                    done += 1
                base = end[e]
                k += 1
                continue
            until = base + window - done
            if k < stop:
                until = min(until, start[edit[k]])
            last = len(known) - 1
            a = min(max(base - origin, 0), last)
            b = min(max(until - origin, 0), last)
            count += known[b] - known[a]
            done += until - base
            base = until
        out[row] = count


@njit(nogil=True, cache=True)
def group(
    key: Any,
    who: Any,
    table: Any,
    stamp: Any,
    owner: Any,
    number: int,
    begin: Any,
    column: Any,
    index: Any,
) -> int:
    """Classes of equal keys, window by window; how many there are in all.

    ``column`` receives the first haplotype of each class by its place in ``who``, ``index`` by its
    number.
    """
    found = 0
    for w in range(key.shape[0]):
        number += 1
        begin[w] = found
        for i in range(key.shape[1]):
            a, b = key[w, i, 0], key[w, i, 1]
            slot = _slot(table, stamp, number, a, b)
            if stamp[slot] != number:
                stamp[slot], owner[slot] = number, who[i]
                table[slot, 0], table[slot, 1] = a, b
                column[found] = i
                found += 1
            index[i, w] = owner[slot]
    begin[key.shape[0]] = found
    return found


@njit(nogil=True, cache=True)
def build_windows(
    begins: Any,
    firsts: Any,
    stops: Any,
    edit: Any,
    start: Any,
    end: Any,
    alt_first: Any,
    letters: Any,
    delta_before: Any,
    codes: Any,
    origin: int,
    out: Any,
) -> None:
    """Codes of windows: reference between the edits, and what replaces it."""
    for row in range(len(out)):
        at, k, stop, done = begins[row], firsts[row], stops[row], 0
        base = at - delta_before[row]
        window = out.shape[1]
        while done < window:
            if k < stop and start[edit[k]] <= base:
                e = edit[k]
                # Where a window begins inside an edit, `base` counts on from the edit's start.
                skip = base - start[e] if done == 0 else 0
                for p in range(alt_first[e] + skip, alt_first[e + 1]):
                    if done == window:
                        break
                    out[row, done] = letters[p]
                    done += 1
                base = end[e]
                k += 1
                continue
            until = base + window - done
            if k < stop:
                until = min(until, start[edit[k]])
            for x in range(base, until):
                inside = 0 <= x - origin < len(codes)
                out[row, done] = codes[x - origin] if inside else 4
                done += 1
            base = until
