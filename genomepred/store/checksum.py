"""HDF5's fletcher32, in NumPy: readers of a file need no compiler."""

from __future__ import annotations

import numpy as np

# Words summed at once: few enough for L2 (half the speed with 2**12), and the sum of their sums
# stays far below 2**64.
_BLOCK = 1 << 14


def fletcher32(data: bytes | memoryview) -> int:
    """Checksum that HDF5's fletcher32 filter appends, over big-endian 16-bit words.

    An odd last byte counts as the upper half of a word.
    """
    view = memoryview(data).cast("B")
    words = np.frombuffer(view[: len(view) // 2 * 2], ">u2")
    first = second = 0
    for begin in range(0, len(words), _BLOCK):
        sums = np.cumsum(words[begin : begin + _BLOCK].astype(np.uint64))
        second = _reduce(second + len(sums) * first + int(sums.sum()))
        first = _reduce(first + int(sums[-1]))
    if len(view) % 2:
        first += view[-1] << 8
        second += first
    return _reduce(second) << 16 | _reduce(first)


def intact(chunk: bytes) -> bool:
    """Whether a stored chunk ends with the checksum of the bytes before it."""
    return len(chunk) >= 4 and fletcher32(memoryview(chunk)[:-4]) == int.from_bytes(
        chunk[-4:], "little"
    )


def _reduce(total: int) -> int:
    """Remainder modulo 65535, but 65535 for its multiples above 0, as folding gives."""
    return total and (total - 1) % 65535 + 1
