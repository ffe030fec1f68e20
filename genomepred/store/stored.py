"""Chunks of datasets as they are stored, decoded without HDF5.

HDF5's own filters take several times as long, and hold one lock for all threads.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from isal import igzip_lib, isal_zlib
from numba import njit
from numpy.typing import NDArray

_IsalError: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]
_CHECKSUM = 4  # bytes behind a chunk


def is_plain(dataset: h5py.Dataset) -> bool:
    """Whether chunks are as this package writes them: shuffled, deflated, with a checksum."""
    made = dataset.id.get_create_plist()
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    ours = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32]
    return filters == ours and dataset.dtype.byteorder in "<=|"


def planes(dataset: h5py.Dataset, place: tuple[int, ...]) -> NDArray[np.uint8]:
    """Bytes of the chunk at ``place`` as HDF5's shuffle leaves them, [bytes of a value, values].

    Raises
    ------
    ValueError
        If the chunk is damaged.
    """
    skipped, chunk = dataset.id.read_direct_chunk(place)
    if skipped:
        raise ValueError(f"a chunk of {dataset.name} was stored without its filters")
    told = int.from_bytes(chunk[-_CHECKSUM:], "little")
    if len(chunk) < _CHECKSUM or checksum(np.frombuffer(chunk, np.uint8)[:-_CHECKSUM]) != told:
        raise ValueError(f"a chunk of {dataset.name} does not match its checksum")
    itemsize, values = dataset.dtype.itemsize, int(np.prod(dataset.chunks))
    try:
        data = isal_zlib.decompressobj().decompress(chunk[:-_CHECKSUM], itemsize * values + 1)
    except _IsalError as error:
        raise ValueError(f"a chunk of {dataset.name}: {error}") from error
    if len(data) != itemsize * values:
        raise ValueError(f"a chunk of {dataset.name} has another size")
    return np.frombuffer(data, np.uint8).reshape(itemsize, values)


@njit(nogil=True, cache=True)
def checksum(data: Any) -> int:
    """As :func:`genomepred.store.schema.fletcher32`, of up to a few megabytes."""
    first, second = np.uint64(0), np.uint64(0)
    for i in range(0, len(data) - 1, 2):
        first += np.uint64(data[i]) << np.uint64(8) | np.uint64(data[i + 1])
        second += first
    if len(data) % 2:
        first += np.uint64(data[-1]) << np.uint64(8)
        second += first
    most = np.uint64(65535)
    a = (first - np.uint64(1)) % most + np.uint64(1) if first else first
    b = (second - np.uint64(1)) % most + np.uint64(1) if second else second
    return int(b << np.uint64(16) | a)


def joined(found: NDArray[np.uint8], kind: np.dtype[Any]) -> NDArray[Any]:
    """Values of a type from planes of their bytes, [bytes of a value, values]."""
    values = np.empty(found.shape[1], f"<u{len(found)}")
    _join(found, 0, values)
    typed: NDArray[Any] = values.view(kind)
    return typed


@njit(nogil=True, cache=True)
def _join(found: Any, begin: int, values: Any) -> None:
    """Values from the planes of their bytes, from the one at ``begin`` on."""
    kind, end = values.dtype.type, begin + len(values)
    if len(found) == 4:  # in one pass, of half the time
        a, b, c, d = (
            found[0, begin:end],
            found[1, begin:end],
            found[2, begin:end],
            found[3, begin:end],
        )
        for i in range(len(values)):
            low, high = kind(a[i]) | kind(b[i]) << kind(8), kind(c[i]) | kind(d[i]) << kind(8)
            values[i] = low | high << kind(16)
        return
    values[:] = found[0, begin:end]
    for byte in range(1, len(found)):
        plane = found[byte, begin:end]
        for i in range(len(values)):
            values[i] |= kind(plane[i]) << kind(8 * byte)


class StoredRows:
    """Rows of a dataset, of which the last chunk is kept; for any number of threads.

    Rows whose chunks are not this package's, or not whole rows, are read by HDF5.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._data = dataset
        self._direct = is_plain(dataset) and dataset.chunks[1:] == dataset.shape[1:]
        self._last: tuple[int, NDArray[np.uint8]] = (-1, np.empty((0, 0), np.uint8))

    def read(self, first: int, last: int) -> NDArray[Any]:
        """Rows ``[first, last)``.

        Raises
        ------
        ValueError
            If a chunk is damaged.
        """
        if not self._direct:
            found: NDArray[Any] = self._data[first:last]
            return found
        size, width = self._data.chunks[0], int(np.prod(self._data.shape[1:]))
        out = np.empty((last - first, *self._data.shape[1:]), self._data.dtype)
        values = out.reshape(-1).view(f"<u{out.itemsize}")
        for number in range(first // size, -(-last // size)):
            origin = number * size
            begin, end = max(origin, first), min(origin + size, last)
            part = values[(begin - first) * width : (end - first) * width]
            _join(self._chunk(number), (begin - origin) * width, part)
        return out

    def _chunk(self, number: int) -> NDArray[np.uint8]:
        kept, chunk = self._last
        if kept != number:
            place = (number * self._data.chunks[0], *(0 for _ in self._data.shape[1:]))
            chunk = planes(self._data, place)
            self._last = number, chunk
        return chunk
