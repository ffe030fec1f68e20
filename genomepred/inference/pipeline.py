"""Reader thread -> engine -> writer thread, with bounded queues between them.

The reader turns row ranges into compute batches of codes, the engine (on the calling thread) turns
these into predictions, the writer collects them into shards. A window's slot within its compute
batch is fixed by its number in the grid, so that its prediction does not depend on which rows are
computed. A base crosses to the device once, however many windows overlap on it: windows are strided
views of a buffer, cut where the model runs.

Who waits for whom, and who may fail:

========  ==========================================  =========================================
thread    waits for                                   ends early by
========  ==========================================  =========================================
reader    the engine (a full queue); other processes  a sequence file, a claim, a BED, publishing
          that hold shards; the disk
engine    the reader (an empty queue), the writer     the model, memory, a signal (it is the
          (a full queue)                              thread that Python gives signals to)
writer    the engine (an empty queue); compressors;   a full disk, publishing
          the disk
========  ==========================================  =========================================

Nobody waits for a queue, a time or another process but through the run's one :class:`Stop`, which
the first failure or signal sets: every such wait then ends by :class:`Stopped`. What is left is the
disk: a thread in a system call goes on when that returns, and meets the stop at its next wait. The
calling thread allows the others a moment for that and then leaves them; they are daemons. Whoever
is the last to leave the pipeline gives back what the run has claimed.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from genomepred.errors import GenomepredError, OutputError, PrecisionError
from genomepred.inference.engine import Batches, Engine
from genomepred.sequences.grid import Geometry, Grid, Span, real_counts
from genomepred.sequences.source import SequenceSource

# Buffers of codes waiting for the engine, and results waiting for the writer: enough that neither
# side waits on a hiccup of the other, few enough to cost nothing (a code is 1 byte a base).
_QUEUED = 4
# Seconds between looks at the stop while waiting for a queue, and for a thread to leave after it:
# as long as slow disks take for a call or two.
_LOOK, _LEAVE = 0.1, 3.0
# How full shared compute batches will be is seen in the first rows: of so many full ones.
_ROWS_COUNTED = 64


class Stop(threading.Event):
    """Whether a run is to end now, and the first error that says why.

    One object for all threads of a run; whatever waits, waits through it.
    """

    error: BaseException | None = None
    _setting = threading.Lock()

    def set(self, error: BaseException | None = None) -> None:
        """End all waits; only the first error is kept."""
        with self._setting:
            if not self.is_set():
                self.error = error
            super().set()

    def until(self, call: Callable[..., Any], *arguments: object) -> Any:
        """Return what a queue's ``get`` or ``put`` does, or raise :class:`Stopped` before."""
        while not self.is_set():
            with suppress(queue.Empty, queue.Full):
                return call(*arguments, timeout=_LOOK)
        raise Stopped


class Stopped(Exception):  # noqa: N818 - a signal between threads, not an error
    """Another thread has failed; its error is the one that counts."""


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


class ShardJob(Protocol):
    """A row range to compute, and what to do with the outcome."""

    @property
    def genome(self) -> SequenceSource:
        """The source of the codes."""

    grid: Grid
    first: int
    last: int

    def finish(self, values: NDArray[np.float32]) -> None:
        """Take the predictions ``[last - first, tracks]``; called on the writer thread."""

    def fail(self, error: GenomepredError) -> None:
        """Take note that the genome cannot be predicted; its further windows are dropped."""


def run(
    jobs: Iterable[ShardJob],
    engine: Engine,
    *,
    slots: int,
    min_bases: int,
    progress: Callable[[int], object] = lambda rows: None,
    stop: Stop | None = None,
    last: Callable[[], object] = lambda: None,
) -> None:
    """Compute all jobs: the reader iterates over them, the engine runs on the calling thread.

    Parameters
    ----------
    jobs : iterable of ShardJob
        Consumed on the reader thread, so making a job (opening a genome) overlaps computing.
    engine : Engine
        Called here and nowhere else.
    slots : int
        Windows handed to the engine at a time, a multiple of the compute batch.
    min_bases : int
        Windows with fewer real bases are missing.
    progress : callable
        Told of rows that are done, how many more.
    stop : Stop, optional
        The run's, through which ``jobs`` waits for whatever it has to wait for.
    last : callable
        Called once, when no thread is at work any more: by the last of them, if the run ends while
        one is held up by the disk.

    Raises
    ------
    GenomepredError
        What a job's ``finish`` raises, or an error that is not one genome's alone.
    """
    stop = stop or Stop()
    line = _Line(jobs, engine, slots, min_bases, progress, stop)
    with _beside(stop, last, line.read, line.write):
        while (entry := stop.until(line.to_engine.get)) is not None:
            job, content = entry
            result = engine.submit(content.batches) if isinstance(content, Windows) else None
            stop.until(line.to_writer.put, (job, content, result))
        stop.until(line.to_writer.put, None)


@dataclass
class _Line:
    """Both ends of a run's pipeline, and the queues between them and the engine.

    ``dropped`` is the job that has failed, of which reading on is pointless.
    """

    jobs: Iterable[ShardJob]
    engine: Engine
    slots: int
    min_bases: int
    progress: Callable[[int], object]
    stop: Stop
    to_engine: queue.Queue[Any] = field(default_factory=partial(queue.Queue, _QUEUED))
    to_writer: queue.Queue[Any] = field(default_factory=partial(queue.Queue, _QUEUED))
    dropped: ShardJob | None = None

    def read(self) -> None:
        """Cut the windows of all jobs; after a job's own comes None, or its error."""
        engine, put = self.engine, partial(self.stop.until, self.to_engine.put)
        shared, pinned = engine.numerics.overlap == "share", engine.device.type == "cuda"
        if pinned:
            torch.cuda.set_device(engine.device)  # pinned memory belongs to the thread's device
        how = engine.numerics.compute_batch, self.slots, self.min_bases, shared, pinned
        for job in self.jobs:
            try:
                for windows in cut(job.genome, job.grid, job.first, job.last, *how):
                    if job is self.dropped:
                        break
                    put((job, windows))
            except OutputError:
                raise
            except GenomepredError as error:
                put((job, error))
            else:
                put((job, None))
        put(None)

    def write(self) -> None:
        """Gather results into the values of one shard at a time."""
        values: Any = None
        while (entry := self.stop.until(self.to_writer.get)) is not None:
            job, content, result = entry
            if job is self.dropped:
                continue
            error = content if isinstance(content, GenomepredError) else None
            if values is None and error is None:
                values = np.full((job.last - job.first, self.engine.tracks), np.nan, np.float32)
            if content is None:
                job.finish(values)
                values = None
            elif error is None:
                try:
                    self.progress(self._place(values, job, content, result()))
                except PrecisionError as found:
                    error = found
            if error is not None:
                values, self.dropped = None, job
                job.fail(error)

    def _place(
        self,
        shard: NDArray[np.float32],
        job: ShardJob,
        windows: Windows,
        values: NDArray[np.float32],
    ) -> int:
        bins = values.shape[1]
        placed = 0
        for slot, span in windows.pieces:
            run = values[slot : slot + span.windows].reshape(span.windows * bins, -1)
            absent = windows.missing[slot : slot + span.windows].reshape(-1)
            # Shards and regions may begin or end inside a window of several bins.
            begin, end = max(span.first - span.row, 0), min(span.last - span.row, len(run))
            offset = span.row - job.first
            target = shard[offset + begin : offset + end]
            target[:] = np.where(absent[begin:end, None], np.float32(np.nan), run[begin:end])
            bad = ~np.isfinite(target).all(axis=1) & ~absent[begin:end]
            if bad.any():
                row = span.row + begin + int(bad.argmax())
                raise PrecisionError(_not_finite(job, row, self.engine.numerics.precision))
            placed += end - begin
        return placed


def _not_finite(job: ShardJob, row: int, precision: str) -> str:
    rows = np.array([row], np.int64)
    contig = job.grid.contigs[job.grid.interval_of(rows)[0]]
    start = int(job.grid.starts(rows)[0])
    remedy = (
        "the model itself overflows here"
        if precision == "fp32"
        else "start again in a new --out with --precision fp32"
    )
    return (
        f"{job.genome.name}: the model returned NaN or infinity in {precision} at "
        f"{contig}:{start + 1}-{start + job.grid.geometry.bin_size}; {remedy}"
    )


@contextmanager
def _beside(stop: Stop, last: Callable[[], object], *bodies: Callable[[], None]) -> Iterator[None]:
    """Context with threads beside its own; all of them stop as soon as one fails.

    The first error is raised at the end, and ``last`` is called by the last thread that leaves.
    """
    threads = list[threading.Thread]()
    inside, latest = [True], math.inf  # one entry a thread: who takes the first one out is the last
    try:
        try:
            for body in bodies:
                name, how = f"genomepred-{body.__name__}", (body, stop, inside, last)
                threads.append(threading.Thread(target=_guarded, args=how, name=name, daemon=True))
                inside.append(False)
                try:
                    threads[-1].start()
                except (RuntimeError, MemoryError):  # there is none; a signal leaves one behind
                    inside.pop()
                    raise
            yield
        except BaseException as error:
            stop.set(None if isinstance(error, Stopped) else error)
        for thread in threads:  # after a stop only as long as a slow disk may take
            while thread.is_alive() and time.monotonic() < latest:
                thread.join(_LOOK)
                latest = min(latest, time.monotonic() + _LEAVE) if stop.is_set() else latest
    except BaseException as later:  # a signal while joining
        stop.set(later)
        raise
    finally:
        if inside.pop():
            last()
    if stop.error is not None:
        raise stop.error


def _guarded(
    body: Callable[[], None], stop: Stop, inside: list[bool], last: Callable[[], object]
) -> None:
    """Body of a thread, whose error stops all."""
    try:
        body()
    except Stopped:
        pass
    except BaseException as error:  # handed to the calling thread
        stop.set(error)
    finally:
        if inside.pop():
            last()


# -- rows to slots: which windows of a grid go into which compute batch, and their codes --------


def cut(
    genome: SequenceSource,
    grid: Grid,
    first: int,
    last: int,
    batch: int,
    slots: int,
    min_bases: int,
    shared: bool = False,
    pinned: bool = False,
) -> Iterator[Windows]:
    """All windows of rows ``[first, last)`` in order, some compute batches at a time.

    ``slots``, a multiple of ``batch``, is the most at a time. With ``shared``, windows of a compute
    batch lie in one buffer as they do in their contig, for an engine that shares overlap.
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
        together = span.windows if g.stride <= g.window else 1
        for k in range(0, span.windows, together):
            start, at = span.start + k * g.stride, int(starts[slot + k])
            end = start + (together - 1) * g.stride + g.window
            genome.codes(span.contig, start, end, out=buffer[at : at + end - start])
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


def filled(grid: Grid, contigs: Sequence[str], together: int, windows: int) -> float:
    """Share of its ``windows`` windows that a shared compute batch holds on average.

    Of the first rows of a grid; ``together`` compute batches are placed at a time.
    """
    last = min(grid.rows, _ROWS_COUNTED * windows * grid.geometry.bins)
    found, count = count_batches(grid, contigs, last, windows, together * windows, shared=True)
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
    return next(cut(genome, grid, first, last, windows, windows, 0, shared=True)).batches
