"""Chunk codec: prediction rows to the exact bytes that HDF5's own filters would store.

Encoding chunks here, outside HDF5, lets worker threads compress at the same time: HDF5 runs its
filters under one lock. The bytes are a function of the values, the layout and the zlib in use.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from math import lcm, log
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import OutputError, PrecisionError
from genomepred.store import zstd

# Values in a chunk: 256 KB of float32. Large enough that the index of a 3-Gb genome at stride 20
# has 2,300 entries, small enough that a query of one gene decodes little.
CHUNK_VALUES = 65536

# Strategy of plain "deflate". Shuffled predictions are planes of exponent bytes, which repeat, and
# of mantissa bytes, which are noise: searching for matches costs time and finds none. Measured on
# chr22:20-21 Mb with the two-block CNN, one core, float32; random weights but for the last line:
#
#   output              level 1        level 4        level 6        run lengths
#   sigmoid, 1 track    79 MB/s 0.859  69 MB/s 0.852  40 MB/s 0.851  219 MB/s 0.834
#   sigmoid, 3 tracks   73 MB/s 0.857  63 MB/s 0.850  29 MB/s 0.847  192 MB/s 0.832
#   ReLU, 3 tracks      64 MB/s 0.604  40 MB/s 0.585  11 MB/s 0.575  107 MB/s 0.514
#   softmax, 3 tracks   57 MB/s 0.738  41 MB/s 0.730  24 MB/s 0.723  156 MB/s 0.720
#   18 scales           68 MB/s 0.794  60 MB/s 0.777  38 MB/s 0.767  197 MB/s 0.850
#   trained CTCF        72 MB/s 0.762  63 MB/s 0.753  36 MB/s 0.750  158 MB/s 0.754
#
# With many tracks of different scales the exponents repeat at a distance, so matches pay again.
RUN_LENGTH_TRACKS = 4
DEFLATE_LEVEL = 4


@dataclass(frozen=True)
class Layout:
    """Layout of predictions in a file: shape, type and compression of chunks.

    Parameters
    ----------
    tracks : int
        Columns of the matrix.
    dtype : {"float32", "float16"}
        Type of the stored values.
    compression : str
        ``"deflate"`` (the measured default), ``"deflate-1"`` to ``"deflate-9"`` (that zlib level),
        ``"zstd"`` (needs the extra ``zstd`` to write and to read) or ``"none"``.
    bins : int
        Bins of a window; whole windows share a chunk where they fit.

    Raises
    ------
    OutputError
        If the type or compression is not one of these.
    DependencyError
        If zstd is asked for and not installed.
    """

    tracks: int
    dtype: Literal["float32", "float16"] = "float32"
    compression: str = "deflate"
    bins: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16"):
            raise OutputError(f"store type {self.dtype!r} is unknown; use float32 or float16")
        levels = {f"deflate-{level}" for level in range(1, 10)}
        if self.compression not in {"deflate", "zstd", "none"} | levels:
            raise OutputError(
                f"compression {self.compression!r} is unknown; use deflate, deflate-1 to "
                "deflate-9, zstd or none"
            )
        if min(self.tracks, self.bins) < 1:
            raise OutputError(f"a layout needs tracks and bins, got {self.tracks} and {self.bins}")
        if self.compression == "zstd":
            zstd.require()

    @cached_property
    def chunk_rows(self) -> int:
        """Rows of a chunk: a power of two of windows, or a divisor of a window too large for one.

        About ``CHUNK_VALUES`` values; rows of shards then always begin at a chunk.
        """
        most = CHUNK_VALUES // (self.tracks * self.bins)
        if most:
            return self.bins << (most.bit_length() - 1)
        divisors = [d for d in range(1, self.bins + 1) if self.bins % d == 0]
        return min(divisors, key=lambda rows: abs(log(rows * self.tracks / CHUNK_VALUES)))

    @cached_property
    def shard_rows(self) -> int:
        """Rows of a shard: about two chunks, a multiple of ``chunk_rows`` and of ``bins``."""
        unit = lcm(self.chunk_rows, self.bins)
        return unit * max(1, 2 * self.chunk_rows // unit)

    @property
    def level(self) -> int:
        """Level of the deflate filter."""
        _, _, level = self.compression.partition("-")
        return int(level or DEFLATE_LEVEL)


def encode_chunk(values: NDArray[np.floating[Any]], layout: Layout) -> bytes:
    """Rows as one full HDF5 chunk: padded, shuffled, compressed, checksummed.

    Parameters
    ----------
    values : float array, [rows <= layout.chunk_rows, layout.tracks]
        Predictions; NaN is missing. Every NaN is stored as the same bits.

    Returns
    -------
    bytes
        What ``write_direct_chunk`` takes.

    Raises
    ------
    PrecisionError
        If a finite value is too large for the type.
    """
    rows = values.shape[0]
    block = np.full((layout.chunk_rows, layout.tracks), np.nan, np.dtype(layout.dtype))
    with np.errstate(over="ignore"):
        np.copyto(block[:rows], values, casting="same_kind", where=~np.isnan(values))
    if block.itemsize < values.itemsize:
        _require_range(values, block[:rows])
    little_endian = block.astype(block.dtype.newbyteorder("<"), copy=False)
    return filter_bytes(little_endian, layout)


def _require_range(values: NDArray[np.floating[Any]], stored: NDArray[np.floating[Any]]) -> None:
    too_large = np.isinf(stored) & np.isfinite(values)
    if too_large.any():
        raise PrecisionError(
            f"a prediction of {values[too_large][0]:g} does not fit {stored.dtype}, whose largest "
            f"value is {np.finfo(stored.dtype).max:g}; use --store-dtype float32"
        )


def filter_bytes(array: NDArray[Any], layout: Layout) -> bytes:
    """A C-contiguous array through the layout's filters: shuffle, compression, fletcher32."""
    packed = array.reshape(-1, 1).view(np.uint8).T.tobytes()
    if layout.compression == "zstd":
        import zstandard

        packed = zstandard.ZstdCompressor(level=zstd.LEVEL).compress(packed)
    elif layout.compression != "none":
        run_lengths = layout.compression == "deflate" and layout.tracks <= RUN_LENGTH_TRACKS
        strategy = zlib.Z_RLE if run_lengths else zlib.Z_DEFAULT_STRATEGY
        deflate = zlib.compressobj(layout.level, zlib.DEFLATED, zlib.MAX_WBITS, 8, strategy)
        packed = deflate.compress(packed) + deflate.flush()
    return packed + fletcher32(packed).to_bytes(4, "little")


# -- fletcher32, as HDF5 has it -------------------------------------------------------------------

# Words summed at once: few enough for L2 (half the speed with 2**12), and the sum of their sums
# stays far below 2**64.
_BLOCK = 1 << 14


def fletcher32(data: bytes | memoryview) -> int:
    """Checksum that HDF5's fletcher32 filter appends, over big-endian 16-bit words.

    An odd last byte counts as the upper half of a word.
    """
    view = memoryview(data).cast("B")
    words = np.frombuffer(view[: len(view) // 2 * 2], ">u2")
    first = second = 0  # Python's numbers, which hold any sum
    for begin in range(0, len(words), _BLOCK):
        sums = np.cumsum(words[begin : begin + _BLOCK].astype(np.uint64))
        second += len(sums) * first + int(sums.sum())
        first += int(sums[-1])
    if len(view) % 2:
        first += view[-1] << 8
        second += first
    # Remainders modulo 65535, but 65535 for its multiples above 0, as folding gives.
    first, second = (total and (total - 1) % 65535 + 1 for total in (first, second))
    return second << 16 | first
