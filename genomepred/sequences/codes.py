"""Codes: one base as uint8, and what is made of them: the other strand, letters.

A=0, C=1, G=2, T=U=3, anything else 4. What makes codes from bytes is
:mod:`genomepred.sequences.decode`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]

UNKNOWN = 4
INVALID = 8  # in place of a code: a byte that is no sequence
AMBIGUOUS = "BDHKMNRSVWXY"  # the IUPAC letters, and X, which masks in many assemblies
GAPS = "-.*"

CODE_OF_BYTE = np.full(256, INVALID, np.uint8)
for _letter in [*AMBIGUOUS, *GAPS]:
    CODE_OF_BYTE[[ord(_letter), ord(_letter.lower())]] = UNKNOWN
CODE_OF_BYTE[list(b"ACGTUacgtu")] = [0, 1, 2, 3, 3] * 2
LETTERS = np.frombuffer(b"ACGTN", np.uint8)  # by code
ALPHABET = bytes(np.flatnonzero(CODE_OF_BYTE < INVALID).tolist())


def reverse_complement(codes: Codes) -> Codes:
    """Codes of the opposite strand, uint8 ``[..., length]`` as those given."""
    turned: Codes = np.minimum(np.subtract(3, codes[..., ::-1], dtype=np.uint8), 4)
    return turned  # 3 - 4 wraps to 255


def letters(codes: Codes) -> str:
    """Text of codes [length], in upper case; N for what is not known."""
    return LETTERS[codes].tobytes().decode()
