"""Rows to slots: which windows of a grid go into which compute batch, and their codes.

A window's slot within its compute batch is fixed by its number in the grid, so that its prediction
does not depend on which rows are computed. Whole compute batches go through the engine at a time;
their windows are strided views of one buffer, cut where the model runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from genomepred.inference.engine import Batches
from genomepred.sequences.grid import Geometry, Grid, Span, real_counts
from genomepred.sequences.source import SequenceSource

# How full shared compute batches will be is seen in the first rows: of so many full ones.
_ROWS_COUNTED = 64


@dataclass(frozen=True)
class Windows:
    """Compute batches, and which rows their slots hold.

    Parameters
    ----------
    batches : Batches
        Codes and window starts.
    pieces : list of (slot, Span)
        Consecutive windows, and the slot of the first of them.
    missing : bool array, [slots, bins]
        Bins with too few real bases, which stay NaN, and all bins of slots that are not in use.
    """

    batches: Batches
    pieces: list[tuple[int, Span]]
    missing: NDArray[np.bool_]


def cut(
    genome: SequenceSource,
    grid: Grid,
    first: int,
    last: int,
    *,
    batch: int,
    slots: int,
    min_bases: int,
    shared: bool = False,
    pinned: bool = False,
) -> Iterator[Windows]:
    """All windows of rows ``[first, last)`` in order, some compute batches at a time.

    A window's slot within its compute batch of ``batch`` windows is fixed by its number in the
    grid, so that its prediction does not depend on which rows are computed. ``slots``, a multiple
    of ``batch``, is the most at a time. With ``shared``, windows of a compute batch lie in one
    buffer as they do in their contig, for an engine that shares overlap.
    """
    if shared:
        places = place_shared(grid, first, last, list(genome.contigs), batch, slots)
    else:
        places = place(grid, first, last, batch, slots)
    for placed in places:
        yield _fill(genome, grid, placed, batch, min_bases, shared, pinned)


Placed = list[tuple[int, Span]]


def place(grid: Grid, first: int, last: int, batch: int, slots: int) -> Iterator[Placed]:
    """Slots, and the consecutive windows that start there, at a time; see :func:`cut`."""
    placed: Placed = []
    position = 0
    for span in grid.spans(first, last):
        while span.windows:
            slot = position - position % batch + span.number % batch
            slot += batch if slot < position else 0
            if slot >= slots:
                yield placed
                placed, position = [], 0
                continue
            count = min(span.windows, slots - slot)
            part, span = span.cut(count, grid.geometry)  # noqa: PLW2901 - what is left of it
            placed.append((slot, part))
            position = slot + count
    if placed:
        yield placed


def place_shared(
    grid: Grid, first: int, last: int, contigs: Sequence[str], batch: int, slots: int
) -> Iterator[Placed]:
    """As :func:`place`; the windows of a compute batch lie as far apart as in their contig.

    Windows of different contigs, or of regions in different batches of the grid, must not overlap:
    contigs are numbered as if ``gap`` windows lay between them, and regions keep that distance
    where they share a batch of slots.
    """
    g = grid.geometry
    gap = (g.window - 1) // g.stride
    order = {contig: i for i, contig in enumerate(contigs)}
    placed: Placed = []
    batches: list[tuple[int, int]] = []  # the first free slot, and whose batch of the grid it is
    for span in grid.spans(first, last):
        number = span.number + gap * order[span.contig]
        while span.windows:
            whose, slot = divmod(number, batch)
            fitting = [
                (free, k)
                for k, (free, owner) in enumerate(batches)
                if owner == whose or free + gap <= slot
            ]
            k = max(fitting)[1] if fitting else len(batches)
            if k == slots // batch:
                yield placed
                placed, batches = [], []
                continue
            count = min(span.windows, batch - slot)
            part, span = span.cut(count, g)  # noqa: PLW2901 - what is left of it
            placed.append((k * batch + slot, part))
            batches[k : k + 1] = [(slot + count, whose)]
            number += count
    if placed:
        yield placed


def count_batches(
    grid: Grid, contigs: Sequence[str], last: int, batch: int, slots: int, shared: bool
) -> tuple[int, int]:
    """Windows of rows ``[0, last)``, and the compute batches that hold them; see :func:`cut`."""
    if shared:
        places = place_shared(grid, 0, last, contigs, batch, slots)
    else:
        places = place(grid, 0, last, batch, slots)
    windows = count = 0
    for placed in places:
        taken = set[int]()
        for slot, span in placed:
            taken.update(range(slot // batch, -(-(slot + span.windows) // batch)))
            windows += span.windows
        count += len(taken)
    return windows, count


def filled(grid: Grid, contigs: Sequence[str], windows: int, batches: int) -> float:
    """Share of its ``windows`` windows that a shared compute batch holds on average.

    Of the first rows of a grid; ``batches`` compute batches are placed at a time.
    """
    last = min(grid.rows, _ROWS_COUNTED * windows * grid.geometry.bins)
    found, count = count_batches(grid, contigs, last, windows, batches * windows, shared=True)
    return found / (windows * count)


def sample(genome: SequenceSource, grid: Grid, windows: int) -> Batches:
    """One compute batch of ``windows`` windows, evenly spread over the rows of a grid."""
    rows = np.linspace(0, grid.rows - 1, windows).astype(np.int64).tolist()
    spans = (next(grid.spans(row, row + 1)) for row in rows)
    placed = [(slot, span._replace(windows=1)) for slot, span in enumerate(spans)]
    return _fill(genome, grid, placed, windows, 0, False, False).batches


def sample_shared(genome: SequenceSource, grid: Grid, windows: int) -> Batches:
    """One compute batch of up to ``windows`` windows that follow each other, from the middle."""
    first = grid.rows // 2
    last = min(first + windows * grid.geometry.bins, grid.rows)
    found = cut(genome, grid, first, last, batch=windows, slots=windows, min_bases=0, shared=True)
    return next(found).batches


def _fill(
    genome: SequenceSource,
    grid: Grid,
    placed: Placed,
    batch: int,
    min_bases: int,
    shared: bool,
    pinned: bool,
) -> Windows:
    """Read the codes of placed windows into one buffer and count their real bases."""
    g = grid.geometry
    slots = -(-max(slot + span.windows for slot, span in placed) // batch) * batch
    starts, size, pitch = _layout(placed, slots, batch, g, shared)
    codes = torch.full((size,), 4, dtype=torch.uint8, pin_memory=pinned)
    buffer = codes.numpy()
    used: NDArray[np.bool_] = np.zeros(slots, np.bool_)
    for slot, span in placed:
        used[slot : slot + span.windows] = True
        _read(genome, span, g.stride, g.window, buffer, int(starts[slot]))
    missing: NDArray[np.bool_] = np.ones((slots, g.bins), np.bool_)
    missing[used] = missing_bins(buffer, starts[used], g, min_bases)
    needed = np.any(~missing.reshape(-1, batch * g.bins), axis=1)
    return Windows(Batches(codes, starts, pitch, needed), placed, missing)


def missing_bins(
    codes: NDArray[np.uint8], starts: NDArray[np.int64], g: Geometry, min_bases: int
) -> NDArray[np.bool_]:
    """Bins without a prediction, ``bool [windows, bins]``: too few of their bases are known.

    Parameters
    ----------
    codes : uint8 array, [bases]
    starts : int64 array, [windows]
        Where each window starts in ``codes``.
    min_bases : int
        A window with fewer known bases has none, nor has one of several bins without a known base;
        with 0 every bin of every window has one.
    """
    few = real_counts(codes, starts, g.window) < min_bases
    missing: NDArray[np.bool_] = np.repeat(few[:, None], g.bins, axis=1)
    if g.bins > 1 and min_bases:
        bins = starts[:, None] + g.crop + np.arange(g.bins) * g.bin_size
        empty = real_counts(codes, bins.reshape(-1), g.bin_size) == 0
        missing |= empty.reshape(-1, g.bins)
    return missing


def random_batches(windows: int, window: int, stride: int, batch: int, seed: int = 0) -> Batches:
    """Windows of random sequence ``stride`` apart, in whole compute batches of ``batch``."""
    size = (windows - 1) * stride + window
    codes = np.random.default_rng(seed).integers(0, 4, size, dtype=np.uint8)
    starts = np.arange(windows, dtype=np.int64) * stride
    return Batches(torch.from_numpy(codes), starts, stride, np.ones(windows // batch, np.bool_))


def _layout(
    placed: Placed, slots: int, batch: int, g: Geometry, shared: bool
) -> tuple[NDArray[np.int64], int, int]:
    """Start of each slot's window in a buffer, its size, and the windows' pitch or 0."""
    slot = np.arange(slots, dtype=np.int64)
    if shared:
        bases = (batch - 1) * g.stride + g.window
        return slot // batch * bases + slot % batch * g.stride, slots // batch * bases, g.stride
    pitch = min(g.stride, g.window)  # windows that do not overlap are laid side by side
    if len(placed) == 1:
        return slot * pitch, (slots - 1) * pitch + g.window, pitch
    starts, size = np.zeros(slots, np.int64), 0
    for first, span in placed:
        starts[first : first + span.windows] = size + np.arange(span.windows) * pitch
        size += (span.windows - 1) * pitch + g.window
    return starts, size, 0


def _read(
    genome: SequenceSource, span: Span, stride: int, window: int, buffer: NDArray[np.uint8], at: int
) -> None:
    if stride <= window:
        end = span.start + (span.windows - 1) * stride + window
        genome.codes(span.contig, span.start, end, out=buffer[at : at + end - span.start])
        return
    for k in range(span.windows):
        start, here = span.start + k * stride, at + k * window
        genome.codes(span.contig, start, start + window, out=buffer[here : here + window])
