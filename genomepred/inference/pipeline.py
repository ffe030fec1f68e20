"""Reader thread -> engine -> writer thread, with bounded queues between them.

The reader turns row ranges into compute batches of codes, the engine (on the calling thread) turns
these into predictions, the writer collects them into shards. A base crosses to the device once,
however many windows overlap on it: windows are strided views of a buffer, cut where the model runs.

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

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from genomepred.errors import GenomepredError, OutputError, PrecisionError
from genomepred.inference.batching import Windows, cut
from genomepred.inference.engine import Engine
from genomepred.sequences.grid import Grid
from genomepred.sequences.source import SequenceSource

# Buffers of codes waiting for the engine, and results waiting for the writer: enough that neither
# side waits on a hiccup of the other, few enough to cost nothing (a code is 1 byte a base).
_QUEUED = 4
# Seconds between looks at the stop while waiting for a queue, and for a thread to leave after it:
# as long as slow disks take for a call or two.
_LOOK, _LEAVE = 0.1, 3.0


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

    def check(self, seconds: float = 0) -> None:
        """Raise :class:`Stopped` if the run is to end, now or within some seconds of waiting."""
        if self.wait(seconds):
            raise Stopped

    def until(self, call: Callable[..., Any], *arguments: object) -> Any:
        """Return what a queue's ``get`` or ``put`` does, unless the run is to end before."""
        while True:
            self.check()
            with suppress(queue.Empty, queue.Full):
                return call(*arguments, timeout=_LOOK)


class Stopped(Exception):  # noqa: N818 - a signal between threads, not an error
    """Another thread has failed; its error is the one that counts."""


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
    to_engine, to_writer = queue.Queue[Any](_QUEUED), queue.Queue[Any](_QUEUED)
    collector = _Collector(engine.numerics.precision, engine.tracks, progress)
    cutting: dict[str, Any] = {
        "batch": engine.numerics.compute_batch,
        "slots": slots,
        "min_bases": min_bases,
        "shared": engine.numerics.overlap == "share",
        "pinned": engine.device.type == "cuda",
    }

    def read() -> None:
        if engine.device.type == "cuda":
            torch.cuda.set_device(engine.device)  # pinned memory belongs to the thread's device
        for job in jobs:
            try:
                for windows in cut(job.genome, job.grid, job.first, job.last, **cutting):
                    if job is collector.dropped:
                        break
                    stop.until(to_engine.put, (job, windows))
            except OutputError:
                raise
            except GenomepredError as error:
                stop.until(to_engine.put, (job, error))
            else:
                stop.until(to_engine.put, (job, None))
            stop.check()
        stop.until(to_engine.put, None)

    def write() -> None:
        while (entry := stop.until(to_writer.get)) is not None:
            collector.take(*entry)

    with _beside(stop, last, read, write):
        while (entry := stop.until(to_engine.get)) is not None:
            job, content = entry
            result = engine.submit(content.batches) if isinstance(content, Windows) else None
            stop.until(to_writer.put, (job, content, result))
        stop.until(to_writer.put, None)


@dataclass
class _Collector:
    """Gathers results into the values of one shard at a time (on the writer thread).

    ``dropped`` is the job that has failed, of which reading on is pointless.
    """

    precision: str
    tracks: int
    progress: Callable[[int], object]
    values: NDArray[np.float32] | None = None
    dropped: ShardJob | None = None

    def take(
        self,
        job: ShardJob,
        content: Windows | GenomepredError | None,
        result: Callable[[], NDArray[np.float32]] | None,
    ) -> None:
        """Take the result of some windows, the end of a job (no content), or its error."""
        if job is self.dropped:
            return
        if isinstance(content, GenomepredError):
            self._drop(job, content)
            return
        if self.values is None:
            self.values = np.full((job.last - job.first, self.tracks), np.nan, np.float32)
        if content is None:
            values, self.values = self.values, None
            job.finish(values)
            return
        assert result is not None
        try:
            rows = self._place(job, content, result())
        except PrecisionError as error:
            self._drop(job, error)
            return
        self.progress(rows)

    def _drop(self, job: ShardJob, error: GenomepredError) -> None:
        self.values, self.dropped = None, job
        job.fail(error)

    def _place(self, job: ShardJob, windows: Windows, values: NDArray[np.float32]) -> int:
        assert self.values is not None
        bins = values.shape[1]
        placed = 0
        for slot, span in windows.pieces:
            run = values[slot : slot + span.windows].reshape(span.windows * bins, -1)
            absent = windows.missing[slot : slot + span.windows].reshape(-1)
            # Shards and regions may begin or end inside a window of several bins.
            begin, end = max(span.first - span.row, 0), min(span.last - span.row, len(run))
            offset = span.row - job.first
            target = self.values[offset + begin : offset + end]
            target[:] = np.where(absent[begin:end, None], np.float32(np.nan), run[begin:end])
            bad = ~np.isfinite(target).all(axis=1) & ~absent[begin:end]
            if bad.any():
                row = span.row + begin + int(bad.argmax())
                raise PrecisionError(_not_finite(job, row, self.precision))
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
    threads, inside, lock = list[threading.Thread](), 1, threading.Lock()

    def leave() -> None:
        nonlocal inside
        with lock:
            inside -= 1
            over = not inside
        if over:
            last()

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except Stopped:
            pass
        except BaseException as error:  # handed to the calling thread
            stop.set(error)
        finally:
            leave()

    try:
        try:
            for body in bodies:
                name = f"genomepred-{body.__name__}"
                thread = threading.Thread(target=guarded, args=(body,), name=name, daemon=True)
                threads.append(thread)
                with lock:
                    inside += 1
                try:
                    thread.start()
                except BaseException:  # "can't start new thread"
                    leave()
                    raise
            yield
        except BaseException as error:
            stop.set(None if isinstance(error, Stopped) else error)
        _join(threads, stop)
    except BaseException as later:  # a signal while joining
        stop.set(later)
        raise
    finally:
        leave()
    if stop.error is not None:
        raise stop.error


def _join(threads: Sequence[threading.Thread], stop: Stop) -> None:
    """Wait for threads, after a stop only as long as a slow disk may take."""
    left = None
    for thread in threads:
        while thread.is_alive():
            if left is None and stop.is_set():
                left = time.monotonic() + _LEAVE
            if left is not None and time.monotonic() > left:
                return
            thread.join(_LOOK)
