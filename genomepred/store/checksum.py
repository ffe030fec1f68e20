"""HDF5's fletcher32, apart from the rest so that readers do not wait for Numba."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Words summed before reducing: with 2**20 of them the second 64-bit sum stays below 2**56.
_BLOCK = 1 << 20


def fletcher32(data: bytes | memoryview) -> int:
    """Checksum that HDF5's fletcher32 filter appends, over big-endian 16-bit words.

    An odd last byte counts as the upper half of a word. The GIL is released meanwhile.
    """
    return int(_fletcher32(np.frombuffer(data, np.uint8)))


def intact(chunk: bytes) -> bool:
    """Whether a stored chunk ends with the checksum of the bytes before it."""
    return len(chunk) >= 4 and fletcher32(memoryview(chunk)[:-4]) == int.from_bytes(
        chunk[-4:], "little"
    )


@njit(nogil=True, cache=True)
def _fletcher32(data: NDArray[np.uint8]) -> np.uint64:
    words = data.size // 2
    first, second = np.uint64(0), np.uint64(0)
    for begin in range(0, words, _BLOCK):
        for i in range(begin, min(begin + _BLOCK, words)):
            first += (np.uint64(data[2 * i]) << np.uint64(8)) | np.uint64(data[2 * i + 1])
            second += first
        first, second = _reduce(first), _reduce(second)
    if data.size % 2:
        first += np.uint64(data[data.size - 1]) << np.uint64(8)
        second += first
    return (_reduce(second) << np.uint64(16)) | _reduce(first)


@njit(nogil=True, cache=True, inline="always")
def _reduce(total: np.uint64) -> np.uint64:
    """Remainder modulo 65535, but 65535 for its multiples above 0, as folding gives."""
    rest = total % np.uint64(65535)
    return np.uint64(65535) if rest == 0 and total != 0 else rest
