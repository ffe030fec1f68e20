"""A device of a Ray cluster: an actor that computes what the driver tells it to.

Nothing is locked: the driver gives a shard to one device. Nothing larger than a tuple goes through
Ray: sequences are read from, and parts written to, the folder that all nodes see.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genomepred.errors import OutputError
from genomepred.messages import described
from genomepred.runs.executors import Job, join
from genomepred.runs.work import Rows, Shard, Work, failing_alone

# Genomes whose state a device keeps: more than it can have calls for.
_KEPT = 8
# Seconds between looks at a genome that another command has locked.
_WAIT = 0.2

#: Number, name and sequence file of a genome.
GenomeCall = tuple[int, str, str]
#: First row, last row and rows of a shard, of shards that follow each other.
Stretch = tuple[int, int, int]


class _AwaitedShard(Shard):
    """A shard whose end, good or bad, somebody waits for."""

    def __init__(self, work: Work, rows: Rows) -> None:
        self.done: Future[None] = Future()
        super().__init__(work, *rows, landed=lambda _: self.done.set_result(None))


class Device:
    """One device of one node, with an engine that is ready to compute any shard of a run.

    Several calls may be under way at once: reading, computing, compressing and writing overlap.

    Parameters
    ----------
    told : str
        The run (see :func:`genomepred.runs.executors.told`), and the current ``folder`` of the
        command.
    """

    def __init__(self, told: str) -> None:
        self._told: dict[str, Any] = json.loads(told)
        self._job: Job | None = None
        self._works: OrderedDict[int, Work] = OrderedDict()
        self._shards: queue.SimpleQueue[_AwaitedShard] = queue.SimpleQueue()
        self._waiting: set[_AwaitedShard] = set()
        self._broken: BaseException | None = None
        self._lock = threading.Lock()

    def join(self) -> None:
        """Join the run, and make the engine.

        Raises
        ------
        GenomepredError
            If this node does not see the run, or would compute other bits.
        """
        try:
            os.chdir(self._told["folder"])
        except OSError as error:
            raise OutputError(f"{self._told['folder']}: {error.strerror}") from error
        self._job, ready = join(self._told), Future[None]()
        threading.Thread(target=self._serve, args=(self._job, ready), daemon=True).start()
        ready.result()

    def _serve(self, job: Job, ready: Future[None]) -> None:
        try:
            assert job.engine  # made on the thread that will use it
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            job.compute(iter(self._shards.get, None))
        except BaseException as error:
            with self._lock:
                self._broken = error
                for shard in self._waiting:
                    if not shard.done.done():
                        shard.done.set_result(None)

    def prepare(self, genome: GenomeCall) -> tuple[int, list[Stretch] | None]:
        """Rows that were open, and those that still are; None if the genome is settled.

        What is left of a genome, if it is a single shard, is done at once: small genomes are one
        call.
        """
        work, rows = self._work(genome), 0
        with _telling(work):
            while not work.settled() and not work.prepare():
                time.sleep(_WAIT)  # another command digests it
            if work.settled():
                return 0, None
            missing = work.missing()
            rows = sum(last - first for first, last in missing)
            if len(missing) > 1:
                return rows, _joined(missing)
            for shard in missing:
                self._compute(work, shard)
            return rows, _publish(work)

    def compute(self, genome: GenomeCall, rows: Rows) -> None:
        """Compute a shard into its part, unless that is there."""
        work = self._work(genome)
        with _telling(work):
            if self._is_open(work):
                self._compute(work, rows)

    def publish(self, genome: GenomeCall) -> list[Stretch] | None:
        """Publish a genome whose shards are all there; the rows of damaged ones, if any."""
        work = self._work(genome)
        with _telling(work):
            return _publish(work) if self._is_open(work) else None

    def _is_open(self, work: Work) -> bool:
        """Whether a genome is not settled; it is prepared then."""
        with self._lock:
            if work.settled():
                return False
            while not work.prepare():
                time.sleep(_WAIT)
            return True

    def _compute(self, work: Work, rows: Rows) -> None:
        if work.has(*rows):
            return
        shard = _AwaitedShard(work, rows)
        with self._lock:
            self._waiting.add(shard)
            broken = self._broken
        if broken is None:
            self._shards.put(shard)
            shard.done.result()
        with self._lock:
            self._waiting.discard(shard)
            broken = self._broken
        if isinstance(broken, OutputError):
            raise broken
        if broken is not None:
            raise RuntimeError(described(broken)[0]) from broken
        if work.error is not None:
            raise work.error

    def _work(self, genome: GenomeCall) -> Work:
        number, name, path = genome
        assert self._job is not None
        with self._lock:
            work = self._works.pop(number, None)
            if work is None:
                work = self._job.work(number, name, Path(path))
            self._works[number] = work
            for old in list(self._works)[:-_KEPT]:
                self._works.pop(old).close(forget=True)
            return work


@contextmanager
def _telling(work: Work) -> Iterator[None]:
    """Note what makes a genome fail, and tell the driver too."""
    with failing_alone(work):
        yield
    if work.error is not None:
        raise work.error


def _publish(work: Work) -> list[Stretch] | None:
    while not work.publish():
        if missing := work.missing():
            return _joined(missing)
        time.sleep(_WAIT)  # another command publishes it
    return None


def _joined(shards: list[Rows]) -> list[Stretch]:
    """Shards that follow each other as one: all are of one size, but for a work's last."""
    joined: list[Stretch] = []
    for first, last in shards:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last, joined[-1][2])
        else:
            joined.append((first, last, last - first))
    return joined
