"""Codes: one base as uint8, and what is made of them: other strand, one-hot, counts of real bases.

A=0, C=1, G=2, T=U=3, anything else 4. The kernels release the GIL; the one that makes codes from
bytes is in :mod:`genomepred.sequences.decode`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import DTypeLike, NDArray

Codes = NDArray[np.uint8]


@njit(nogil=True, cache=True)
def _reverse_complement(codes: Any, out: Any) -> None:
    for row in range(codes.shape[0]):
        source, target = codes[row], out[row]
        length = np.uint64(len(source))  # unsigned: no check for negative indices, hence SIMD
        for j in range(length):
            # 3 - 4 wraps to 255, so that the minimum keeps 4.
            code = np.uint8(np.uint8(3) - source[length - np.uint64(1) - j])
            target[j] = min(code, np.uint8(4))


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


@njit(nogil=True)  # not cached: it has a signature for each dtype, which Numba could mix up
def _take_rows(codes: Any, table: Any, out: Any) -> None:
    for i in range(len(codes)):
        row = table[min(codes[i], np.uint8(4))]
        for channel in range(4):
            out[i, channel] = row[channel]


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
    # Moved as integers of the same size, so that four kernels serve every dtype.
    word = np.dtype(f"u{out.itemsize}")
    _take_rows(codes.reshape(-1), table.view(word), out.reshape(-1, 4).view(word))
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
def _all_real(codes: Any) -> bool:
    union = np.uint8(0)
    for j in range(len(codes)):
        union |= codes[j]
    return bool(union < 4)


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
        if _all_real(codes[starts[first] : starts[last - 1] + width]):
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
