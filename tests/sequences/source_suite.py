"""Duties of every SequenceSource; each implementation runs them on sources of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from genomepred.errors import RegionError
from genomepred.sequences.source import SequenceSource


def check_source(
    opened: Callable[[], SequenceSource], expected: Mapping[str, NDArray[np.uint8]]
) -> None:
    """Check a source against the codes it must have; ``opened`` opens it anew each time."""
    with opened() as source:
        assert isinstance(source, SequenceSource)
        assert source.name
        assert list(source.contigs.items()) == [(name, len(c)) for name, c in expected.items()]
        _check_codes(source, expected)
        _check_refusals(source, next(iter(expected)))
        _check_threads(source, expected)
        digest, stamp = source.digest(), source.stamp
    source.close()
    with pytest.raises(ValueError, match="closed"):
        source.codes(max(expected, key=lambda name: len(expected[name])), 0, 1)
    joined = b"".join(codes.tobytes() for codes in expected.values())
    names = "".join(f"{name}\t{len(codes)}\n" for name, codes in expected.items())
    assert digest == xxhash.xxh3_128_hexdigest(joined + names.encode())
    with opened() as again:
        assert (again.digest(), again.stamp) == (digest, stamp)
        assert list(again.contigs) == list(expected)
        again.discard_cache()
        _check_codes(again, expected)


def _check_codes(source: SequenceSource, expected: Mapping[str, NDArray[np.uint8]]) -> None:
    rng = np.random.default_rng(0)
    for name, codes in expected.items():
        padded = np.concatenate([np.full(9, 4, np.uint8), codes, np.full(9, 4, np.uint8)])
        whole = source.codes(name, -9, len(codes) + 9)
        assert whole.dtype == np.uint8
        np.testing.assert_array_equal(whole, padded)
        for start, end in np.sort(rng.integers(-9, len(codes) + 10, (10, 2))).tolist():
            out = np.full(end - start, 77, np.uint8)
            assert source.codes(name, start, end, out) is out
            np.testing.assert_array_equal(out, padded[start + 9 : end + 9])
        assert (source.codes(name, len(codes) + 50, len(codes) + 60) == 4).all()
        assert (source.codes(name, -60, -50) == 4).all()


def _check_refusals(source: SequenceSource, contig: str) -> None:
    with pytest.raises(RegionError, match="no contig"):
        source.codes("no such contig", 0, 1)
    with pytest.raises(RegionError, match="ends before it starts"):
        source.codes(contig, 2, 1)
    for out in (np.empty(2, np.uint8), np.empty(3, np.int64), np.empty(6, np.uint8)[::2]):
        with pytest.raises(ValueError, match="contiguous uint8 array of 3"):
            source.codes(contig, 0, 3, out)


def _check_threads(source: SequenceSource, expected: Mapping[str, NDArray[np.uint8]]) -> None:
    def right(name: str) -> bool:
        return np.array_equal(source.codes(name, 0, len(expected[name])), expected[name])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(right, list(expected) * 20))
