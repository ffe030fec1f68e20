"""Labeled sequences as codes, and epochs: the order and changes in which training sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from genomepred.progress import tell
from genomepred.sequences.codes import UNKNOWN, reverse_complement

Codes = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Rows = slice | Int64

TRAIN, VALIDATION, TEST = 0, 1, 2
PARTS = ("training", "validation", "test")
# Examples whose codes are looked at together: a megabyte at a window of 250 bases.
_BLOCK = 4096


@dataclass(frozen=True)
class Examples:
    """Sequences and what to predict for them.

    Parameters
    ----------
    codes : uint8 array, [n, window]
        Codes 0-4, in memory or mapped from a file.
    labels : float32 array, [n, tracks]
        Targets; NaN where missing.
    names : array of str objects, [n], optional
        A sequence's name in its file, its row, or its place (1-based inclusive).
    """

    codes: Codes
    labels: Float32
    names: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: Rows) -> Examples:
        """The examples of some rows, in memory."""
        names = None if self.names is None else self.names[rows]
        return Examples(np.array(self.codes[rows]), self.labels[rows], names)


class Batches(Protocol):
    """Examples that are gathered a batch at a time."""

    def __len__(self) -> int: ...

    def take(self, rows: slice) -> Examples:
        """The examples of some rows, in memory."""
        ...


class Data(Protocol):
    """Data that models are trained on and tested with."""

    @property
    def window(self) -> int:
        """Bases of each sequence."""
        ...

    @property
    def tracks(self) -> tuple[str, ...]:
        """Names of the columns of the labels."""
        ...

    @property
    def task(self) -> str:
        """``regression``, ``binary`` or ``profile``."""
        ...

    def epoch(self, number: int) -> Batches:
        """Training examples in the order to use them; a function of the epoch's number."""
        ...

    def validation(self) -> Examples:
        """Examples that choose the best epoch; always the same."""
        ...

    def test(self) -> dict[str, Examples]:
        """Examples kept from training altogether, by kind."""
        ...

    def facts(self) -> dict[str, Any]:
        """Origin of the examples and what was made of them, for the card (JSON-able)."""
        ...


@dataclass(frozen=True)
class Epoch:
    """Training examples of one epoch, gathered a batch at a time from where they lie.

    Parameters
    ----------
    sources : sequence of uint8 arrays, each [any, window]
        Where sequences lie; may be views with overlapping rows, or mapped from a file.
    source : uint8 array, [n]
        Which of the sources each example is in, in the order of the epoch.
    row : int64 array, [n]
        Its row there.
    labels : float32 array, [n, tracks]
        In the order of the epoch.
    reverse : bool array, [n]
        Whether it is seen from the other strand.
    shift : int64 array, [n], optional
        Bases that its window moves to the right; those that enter are unknown. Strands change
        after it.
    """

    sources: Sequence[Codes]
    source: NDArray[np.uint8]
    row: Int64
    labels: Float32
    reverse: NDArray[np.bool_]
    shift: Int64 | None = None

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows: slice) -> Examples:
        """The examples of some rows, in memory."""
        source, row, reverse = self.source[rows], self.row[rows], self.reverse[rows]
        codes = np.empty((len(row), self.sources[0].shape[1]), np.uint8)
        for i, array in enumerate(self.sources):
            here = source == i
            codes[here] = array[row[here]]
        if self.shift is not None:
            codes = shifted(codes, self.shift[rows])
        codes[reverse] = reverse_complement(codes[reverse])
        return Examples(codes, self.labels[rows])


def gather(codes: Codes, rows: Int64, out: Codes) -> None:
    """Copy rows ``[n]`` of codes, some at a time as both may be mapped from files."""
    for first in range(0, len(rows), _BLOCK):
        out[first : first + _BLOCK] = codes[rows[first : first + _BLOCK]]


@njit(nogil=True, cache=True)
def _hash(codes: Any, factors: Any, out: Any) -> None:
    for i in range(len(codes)):
        row = codes[i]
        first, last = 0, len(row) - 1
        while first <= last and row[first] == 4:
            first += 1
        while last >= first and row[last] == 4:
            last -= 1
        forward, reverse = np.uint64(0), np.uint64(0)
        for j in range(first, last + 1):
            code = row[j]
            forward += factors[j - first] * np.uint64(code + 1)
            reverse += factors[last - j] * np.uint64(4 - code if code < 4 else 5)
        out[i] = min(forward, reverse)


def sequence_hashes(codes: Codes) -> UInt64:
    """A number for each row ``[n, window]`` that is the same for its reverse complement.

    Unknown bases at the ends do not count: they are padding. Of a million different sequences two
    are equal with a chance of some 1e-7.
    """
    factors = np.random.default_rng(0).integers(1 << 63, size=codes.shape[1], dtype=np.uint64)
    hashes = np.empty(len(codes), np.uint64)
    _hash(codes, factors * np.uint64(2) + np.uint64(1), hashes)  # odd, or differences could vanish
    return hashes


def count_repeats(training: UInt64, held_out: Sequence[UInt64]) -> int:
    """Training sequences, by their hashes, that validation or test have too."""
    return int(np.count_nonzero(np.isin(training, np.concatenate(held_out))))


def warn_of_repeats(source: str, repeats: int, count: int) -> None:
    """Say on stderr that some training sequences are held-out ones too."""
    if repeats:
        tell(
            f"{source}: {repeats:,} of {count:,} training sequences are, on either strand, one of "
            "validation or test too: the metrics will flatter the model; remove them or split "
            "otherwise"
        )


def known_bases(codes: Codes) -> Int64:
    """Number of known bases (codes 0-3) of each window ``[n, window]``, ``[n]``."""
    blocks = (codes[i : i + _BLOCK] for i in range(0, len(codes), _BLOCK))
    counts = [np.count_nonzero(block < UNKNOWN, axis=1) for block in blocks]
    return np.concatenate([np.empty(0, np.int64), *counts])


def shifted(codes: Codes, shift: Int64) -> Codes:
    """Windows moved to the right over their sequences, by a number of bases each.

    Parameters
    ----------
    codes : uint8 array, [n, window]
    shift : int64 array, [n]
        Negative to the left.

    Returns
    -------
    uint8 array, [n, window]
        Code 4 where the window leaves the sequence.
    """
    most = int(np.abs(shift).max(initial=0))
    if most == 0:
        return codes
    padded = np.pad(codes, ((0, 0), (most, most)), constant_values=UNKNOWN)
    views = np.lib.stride_tricks.sliding_window_view(padded, codes.shape[1], axis=1)
    return views[np.arange(len(codes)), most + shift]
