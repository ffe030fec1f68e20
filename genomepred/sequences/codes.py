"""Codes: one base as uint8, and what is made of them: other strand, one-hot.

A=0, C=1, G=2, T=U=3, anything else 4. What makes codes from bytes is
:mod:`genomepred.sequences.decode`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

Codes = NDArray[np.uint8]

UNKNOWN = 4
INVALID = 8  # in place of a code: a byte that is no sequence
AMBIGUOUS = "BDHKMNRSVWXY"  # the IUPAC letters, and X, which masks in many assemblies
GAPS = "-.*"

CODE_OF_BYTE = np.full(256, INVALID, np.uint8)
for _letter in [*AMBIGUOUS, *GAPS]:
    CODE_OF_BYTE[[ord(_letter), ord(_letter.lower())]] = UNKNOWN
CODE_OF_BYTE[list(b"ACGTUacgtu")] = [0, 1, 2, 3, 3] * 2
ALPHABET = bytes(np.flatnonzero(CODE_OF_BYTE < INVALID).tolist())


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

    Raises
    ------
    ValueError
        If ``out`` is another kind of array.
    """
    if out is None:
        out = np.empty(codes.shape, np.uint8)
    elif not out.flags.c_contiguous or out.dtype != np.uint8 or out.shape != codes.shape:
        raise ValueError(f"out must be a C-contiguous uint8 array of shape {codes.shape}")
    np.subtract(3, codes[..., ::-1], out=out, dtype=np.uint8)
    return np.minimum(out, 4, out=out)  # 3 - 4 wraps to 255


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
    table = _one_hot_table(base_order, n_policy).astype(dtype)
    if n_policy == "uniform" and table[4, 0] != 0.25:
        raise ValueError(f"n_policy 'uniform' needs a floating-point dtype, not {table.dtype}")
    return table[np.minimum(codes, 4)]


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
