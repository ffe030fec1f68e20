"""Values as one byte: 0 is missing, any other code the number of the nearest of ascending values.

Up to 254 values of a track: half of them evenly over its range, half of them its quantiles, so that
neither a rare peak nor the bulk of small values is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Codes = NDArray[np.uint8]

#: Codes of values: 1 to this.
MOST = 254
# Rows of a sample, of which quantiles are taken.
_SAMPLE = 1 << 16


class Bounds(NamedTuple):
    """Bounds between codes, ascending, and where to begin to look among them.

    ``starts``, [65,536], has for the upper 16 bits of a value (half of which are its exponent) the
    number of bounds that are not above any value with such bits.
    """

    bounds: Float32
    starts: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Scale:
    """Values that the codes 1, 2, ... of a track stand for, float32, ascending, at least one."""

    values: Float32

    @cached_property
    def bounds(self) -> Bounds:
        """Bounds between one code and the next: what lies on a bound has the upper code."""
        low, high = self.values[:-1].astype(np.float64), self.values[1:].astype(np.float64)
        found = ((low + high) / 2).astype(np.float32)
        # Of all values with the same upper 16 bits, that with the lowest value.
        upper = np.arange(1 << 16, dtype=np.uint32) << 16
        least = np.where(upper >> 31, upper | 0xFFFF, upper).astype(np.uint32).view(np.float32)
        return Bounds(found, np.searchsorted(found, least, side="right").astype(np.uint8))

    def encode(self, values: Float32) -> Codes:
        """Codes of values of any shape."""
        out = np.empty(values.size, np.uint8)
        quantize(np.ascontiguousarray(values).reshape(-1), *self.bounds, out)
        return out.reshape(values.shape)

    def decode(self, codes: Codes) -> Float32:
        """Values of codes, NaN for 0."""
        table = np.full(256, np.nan, np.float32)
        table[1 : len(self.values) + 1] = self.values
        found: Float32 = table[codes]
        return found


def scales_of(blocks: Iterable[Float32], tracks: int) -> list[Scale]:
    """Scale of each track, of values [rows, tracks] that come block by block.

    The range is that of all finite values, the quantiles are those of evenly spaced rows.
    """
    low, high = np.full(tracks, np.inf), np.full(tracks, -np.inf)
    sample, kept, step, row = [np.empty((0, tracks), np.float32)], 0, 1, 0
    for values in blocks:
        finite = np.isfinite(values)
        low = np.minimum(low, np.min(values, axis=0, initial=np.inf, where=finite))
        high = np.maximum(high, np.max(values, axis=0, initial=-np.inf, where=finite))
        sample.append(values[-row % step :: step])
        row, kept = row + len(values), kept + len(sample[-1])
        if kept > 2 * _SAMPLE:  # every other one of those kept, and of those to come
            sample, step = [np.concatenate(sample)[::2]], 2 * step
            kept = len(sample[0])
    rows = np.concatenate(sample)
    return [_scale(rows[:, t], float(low[t]), float(high[t])) for t in range(tracks)]


def _scale(sample: Float32, low: float, high: float) -> Scale:
    if not low <= high:
        return Scale(np.zeros(1, np.float32))
    even = np.linspace(low, high, MOST // 2)
    finite = sample[np.isfinite(sample)].astype(np.float64)
    ranks = (np.arange(MOST // 2) + 0.5) / (MOST // 2)
    quantiles = np.quantile(finite, ranks) if finite.size else even[:0]
    return Scale(np.unique(np.concatenate([even, quantiles]).astype(np.float32)))


@njit(nogil=True, cache=True, inline="always")
def code_of(value: Any, bounds: Any, starts: Any) -> Any:
    """Code of one value: 1 and the number of bounds that are not above it; 0 for NaN."""
    if np.isnan(value):
        return np.uint8(0)
    code = np.int64(starts[np.float32(value).view(np.uint32) >> np.uint32(16)])
    while code < len(bounds) and bounds[code] <= value:
        code += 1
    return np.uint8(code + 1)


@njit(nogil=True, cache=True)
def quantize(values: Any, bounds: Any, starts: Any, out: Any) -> None:
    """Codes of values, both [values]."""
    for i in range(len(values)):
        out[i] = code_of(values[i], bounds, starts)
