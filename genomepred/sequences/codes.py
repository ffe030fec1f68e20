"""Kernels on bases: FASTA bytes to codes, codes to one-hot, reverse complement, base counts.

A code is one base as uint8: A=0, C=1, G=2, T=U=3, anything else 4, lower case as upper case. All
kernels release the GIL. The decoder is written so that LLVM turns it into packed byte compares and
blends: no table look-ups, copies of a fixed number of bytes, and a line's surplus overwritten by
the next line.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

Codes = NDArray[np.uint8]

UNKNOWN = 4
INVALID = 8  # in place of a code: a byte that is no sequence
# The IUPAC nucleotide letters, X (masked in many assemblies) and gaps.
ALPHABET = b"ACGTURYSWKMBDHVNXacgturyswkmbdhvnx-.*"
CODE_OF_BYTE = np.full(256, INVALID, np.uint8)
CODE_OF_BYTE[list(ALPHABET)] = UNKNOWN
CODE_OF_BYTE[list(b"ACGTUacgtu")] = [0, 1, 2, 3, 3] * 2

# Bytes copied at once by `_lines`: one AVX-512 or two AVX2 registers. On lines of 60 bases 64
# decodes 29 GB/s from L2, 32 decodes 21 GB/s (Zen 5).
_CHUNK = 64
# Bases decoded before they are checked, small enough to be still in L1.
_GROUP = 1 << 14


@njit(nogil=True, inline="always")
def _code(byte: Any) -> Any:
    """Code of a sequence byte; 4 for every byte that is not one of ACGTU."""
    upper = byte & 0xDF
    code = np.uint8(4)
    code = np.uint8(3) if (byte & 0xDE) == 0x54 else code  # T and U differ in the lowest bit
    code = np.uint8(2) if upper == 0x47 else code
    code = np.uint8(1) if upper == 0x43 else code
    return np.uint8(0) if upper == 0x41 else code


@njit(nogil=True, inline="always")
def _strict(byte: Any) -> Any:
    """0-4 for a byte of `ALPHABET`, else `INVALID`; ranges of letters are found by masks."""
    code = _code(byte)
    letter = np.uint8((byte & 0xDF) - 0x41)
    known = (
        ((letter & 0xFC) == 0)  # A B C D
        | ((letter & 0xFE) == 6)  # G H
        | (letter == 10)  # K
        | ((letter & 0xFE) == 12)  # M N
        | (np.uint8(letter - 17) < 8)  # R S T U V W X Y
        | (byte == 0x2A)  # *
        | (byte == 0x2D)  # -
        | (byte == 0x2E)  # .
    )
    return code if known else np.uint8(8)


@njit(nogil=True, cache=True)
def _run(raw: Any, out: Any, strict: bool) -> None:
    """Decode ``raw`` into the equally long ``out``."""
    if strict:
        for j in range(len(out)):
            out[j] = _strict(raw[j])
    else:
        for j in range(len(out)):
            out[j] = _code(raw[j])


@njit(nogil=True, cache=True)
def _lines(raw: Any, out: Any, lines: int, bases: int, width: int, strict: bool) -> None:
    """Decode whole lines; reads and writes up to ``_CHUNK - 1`` bytes past the last line's bases."""
    for line in range(lines):
        for column in range(0, bases, _CHUNK):
            source = raw[line * width + column : line * width + column + _CHUNK]
            target = out[line * bases + column : line * bases + column + _CHUNK]
            if strict:
                for j in range(_CHUNK):
                    target[j] = _strict(source[j])
            else:
                for j in range(_CHUNK):
                    target[j] = _code(source[j])


@njit(nogil=True, cache=True)
def _union(codes: Any) -> Any:
    """Bitwise or of all codes: below 4 if all are known bases, 8 or more if any is invalid."""
    union = np.uint8(0)
    for j in range(len(codes)):
        union |= codes[j]
    return union


@njit(nogil=True, cache=True)
def decode_run(raw: Any, out: Any) -> bool:
    """Decode bytes without line ends into the equally long ``out``; whether all were valid."""
    _run(raw, out, False)
    if _union(out) < UNKNOWN:
        return True
    _run(raw, out, True)
    return _union(out) < INVALID


@njit(nogil=True, cache=True)
def decode_lines(raw: Any, out: Any, lines: int, bases: int, width: int) -> int:
    """Decode whole lines of equal length; how many were decoded before an invalid group.

    Lines whose surplus would pass the end of ``raw`` or ``out`` are left to the caller.
    """
    surplus = -(-bases // _CHUNK) * _CHUNK
    safe = min((len(raw) - surplus) // width, (len(out) - surplus) // bases) + 1
    lines = min(lines, max(safe, 0))
    done = 0
    group = max(_GROUP // bases, 1)
    while done < lines:
        count = min(group, lines - done)
        source, target = raw[done * width :], out[done * bases :]
        _lines(source, target, count, bases, width, False)
        if _union(target[: count * bases]) >= UNKNOWN:
            _lines(source, target, count, bases, width, True)
            if _union(target[: count * bases]) >= INVALID:
                break
        done += count
    return done


@njit(nogil=True, cache=True)
def decode(raw: Any, column: int, bases: int, width: int, out: Any) -> int:
    """Decode bytes of one FASTA record into codes.

    Parameters
    ----------
    raw : uint8 array, read-only
        Bytes of the record: any piece of its lines, beginning anywhere in a line.
    column : int
        Place of ``raw[0]`` in its line; ``column >= bases`` is in the line end.
    bases, width : int
        Bases and bytes of a line, the latter with its line end.
    out : uint8 array
        Receives the codes; its length is the number of bases in ``raw``.

    Returns
    -------
    int
        Number of codes written, or ``-1 - i`` if ``raw[i]`` is no sequence.
    """
    at, done = 0, 0
    while at < len(raw) and done < len(out):
        if column == 0 and bases < len(raw) - at:
            lines = decode_lines(raw[at:], out[done:], (len(raw) - at) // width, bases, width)
            at += lines * width
            done += lines * bases
        count = max(min(bases - column, len(raw) - at, len(out) - done), 0)
        if not decode_run(raw[at : at + count], out[done : done + count]):
            for j in range(count):
                if out[done + j] >= INVALID:
                    return -1 - at - j
        at += count + (width - column - count)
        done += count
        column = 0
    return done


@njit(nogil=True, cache=True)
def _reverse_complement(codes: Any, out: Any) -> None:
    for row in range(codes.shape[0]):
        source, target = codes[row], out[row]
        last = len(source) - 1
        for j in range(len(source)):
            code = source[last - j]
            target[j] = np.uint8(3) - code if code < 4 else np.uint8(4)


def reverse_complement(codes: Codes, out: Codes | None = None) -> Codes:
    """Codes of the opposite strand.

    Parameters
    ----------
    codes : uint8 array, [..., length]
        Codes 0-4.
    out : uint8 array, [..., length], optional
        C-contiguous buffer to fill; must not overlap ``codes``.

    Returns
    -------
    uint8 array, [..., length]
        ``out`` if given.
    """
    out = np.empty(codes.shape, np.uint8) if out is None else out
    length = codes.shape[-1]
    rows = np.ascontiguousarray(codes).reshape(-1, length) if length else codes.reshape(0, 0)
    _reverse_complement(rows, _flat(out, rows.shape))
    return out


@njit(nogil=True, cache=True)
def _take_rows(codes: Any, table: Any, out: Any) -> None:
    for i in range(len(codes)):
        row = table[min(codes[i], np.uint8(4))]
        for j in range(table.shape[1]):
            out[i, j] = row[j]


def one_hot(
    codes: Codes,
    base_order: str = "ACGT",
    n_policy: Literal["zeros", "ones", "uniform"] = "zeros",
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """One-hot encoding of codes.

    Parameters
    ----------
    codes : uint8 array, [...]
        Codes 0-4.
    base_order : str
        Base of each channel: a permutation of ``ACGT``.
    n_policy : {"zeros", "ones", "uniform"}
        The row of code 4: all 0, all 1 or all 0.25 (floating-point dtypes only).
    dtype : dtype
        Type of the result; any NumPy number.

    Returns
    -------
    array of ``dtype``, [..., 4]

    Raises
    ------
    ValueError
        If the base order or policy is unknown, or the dtype cannot hold the policy's value.
    """
    out = np.empty((*codes.shape, 4), dtype)
    table = _one_hot_table(base_order, n_policy).astype(out.dtype)
    if n_policy == "uniform" and table[4, 0] != 0.25:
        raise ValueError(f"n_policy 'uniform' needs a floating-point dtype, not {out.dtype}")
    # A row is moved as 32-bit words, so that one kernel serves every dtype.
    words = table.view(np.uint32)
    flat = np.ascontiguousarray(codes).reshape(-1)
    _take_rows(flat, words, out.reshape(-1, 4).view(np.uint32))
    return out


def _one_hot_table(base_order: str, n_policy: str) -> NDArray[np.float64]:
    """Rows of codes 0-4, [5, 4]."""
    if sorted(base_order) != list("ACGT"):
        raise ValueError(f"base order must be a permutation of 'ACGT', not {base_order!r}")
    values = {"zeros": 0.0, "ones": 1.0, "uniform": 0.25}
    if n_policy not in values:
        raise ValueError(f"N policy must be one of {', '.join(values)}, not {n_policy!r}")
    table = np.full((5, 4), values[n_policy])
    table[:4] = [[float(base == channel) for channel in base_order] for base in "ACGT"]
    return table


@njit(nogil=True, cache=True)
def _count_real(codes: Any) -> int:
    count = 0
    for j in range(len(codes)):
        count += codes[j] < 4
    return count


@njit(nogil=True, cache=True)
def _slide(codes: Any, starts: Any, width: int, out: Any) -> None:
    """Counts of successive windows, each base entering and leaving once."""
    count, begin, end = 0, starts[0], starts[0]
    for i in range(len(starts)):
        start = starts[i]
        if start >= end:
            count = _count_real(codes[start : start + width])
        else:
            count -= _count_real(codes[begin:start])
            count += _count_real(codes[end : start + width])
        begin, end = start, start + width
        out[i] = count


@njit(nogil=True, cache=True)
def _real_counts(codes: Any, starts: Any, width: int, out: Any) -> None:
    for first in range(0, len(starts), 256):
        last = min(first + 256, len(starts))
        if _union(codes[starts[first] : starts[last - 1] + width]) < UNKNOWN:
            out[first:last] = width
        else:
            _slide(codes, starts[first:last], width, out[first:last])


def real_counts(codes: Codes, starts: NDArray[np.int64], width: int) -> NDArray[np.int32]:
    """Number of codes 0-3 in each ``codes[start:start + width]``.

    Parameters
    ----------
    codes : uint8 array, [length]
    starts : int64 array, [windows]
        Ascending; every window lies inside ``codes``.
    width : int
        Bases of a window.

    Returns
    -------
    int32 array, [windows]

    Raises
    ------
    ValueError
        If starts do not ascend or a window reaches outside ``codes``.
    """
    out = np.empty(len(starts), np.int32)
    if len(starts) == 0:
        return out
    if starts[0] < 0 or starts[-1] + width > len(codes) or np.any(starts[1:] < starts[:-1]):
        raise ValueError(
            f"windows must ascend and lie in [0, {len(codes)}); found starts from {starts[0]} to "
            f"{starts[-1]} with width {width}"
        )
    _real_counts(codes, starts, width, out)
    return out


def _flat(out: Codes, shape: tuple[int, ...]) -> Codes:
    """The buffer in another shape, never copied."""
    if not out.flags.c_contiguous or out.dtype != np.uint8 or out.size != np.prod(shape):
        raise ValueError(f"out must be a C-contiguous uint8 array of {int(np.prod(shape))} codes")
    return out.reshape(shape)
