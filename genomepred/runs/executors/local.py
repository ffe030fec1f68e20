"""Execution in this process, which shares the shards of a folder with others by locks.

A lock is held by the process that computes a shard and released by the kernel when that process
ends, however it ends. Where the file system has no locks, two processes may compute the same shard;
the bytes are the same, so whoever renames last changes nothing. A :class:`Watch` is told how it
gets on, by this executor as by the others.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from genomepred.files import Claim, open_regular, own_folder
from genomepred.inference.pipeline import Stop
from genomepred.messages import counted
from genomepred.progress import Progress
from genomepred.runs.executors import Job
from genomepred.runs.folder import PARTS
from genomepred.runs.work import Rows, Shard, Work, failing_alone

# Seconds between looks at what other processes have done. A look at a work is a few calls of the
# file system: many are looked at less often.
_SHORTEST_WAIT, _LONGEST_WAIT, _WAIT_A_WORK = 0.01, 0.5, 0.01


@dataclass(eq=False)
class Watch:
    """Told by several threads how a run gets on; this one only counts the bases.

    Attributes
    ----------
    bases : int
        Computed so far.
    workers : int
        Of a cluster, the most that were at it at once.
    """

    bases: int = field(default=0, init=False)
    workers: int = field(default=0, init=False)
    _counting: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def done(self, bases: int) -> None:
        """So many bases more are computed."""
        with self._counting:
            self.bases += bases

    def see(self, name: str, bases: int) -> None:
        """Take note of a genome at first sight, and of the bases that are to be computed of it."""

    def tell_workers(self, count: int) -> None:
        """Take note of how many workers of a cluster are at it."""
        self.workers = max(self.workers, count)

    def note(self, text: str) -> None:
        """Say more of what is done than bases tell."""

    def wait(self) -> None:
        """Take note that nothing is left to do but to wait for others."""


class Outlook(Watch):
    """Work that a run still has to do, told to its bar from the start.

    Genomes that are not looked at yet count as the mean of those that are. Of one that several
    processes of the run look at counts what the first of them found to do.

    Parameters
    ----------
    bar : Progress
        Its total becomes the bases of all genomes, its postfix the genomes seen.
    genomes : int
        How many there are.
    workers : int, optional
        Processes that this one has started, itself included.
    """

    def __init__(self, bar: Progress, genomes: int, workers: int = 1) -> None:
        super().__init__()
        self._others = "the other workers" if workers > 1 else "other processes on this run"
        self._bar, self._genomes = bar, genomes
        self._seen: dict[str, int] = {}
        self._to_do = self._open = 0

    def done(self, bases: int) -> None:
        """Count bases, and show them."""
        with self._counting:
            self.bases += bases
            self._bar.total = max(self._bar.total or 0, self.bases)
            self._bar.update(bases)

    def see(self, name: str, bases: int) -> None:
        """Take note of a genome, and of the bases that are to be computed of it."""
        with self._counting:
            before = self._seen.get(name, -1)
            if bases <= before:
                return
            self._seen[name] = bases
            self._to_do += bases - max(before, 0)
            self._open += before <= 0 < bases
            mean = self._to_do / max(self._open, 1)
            total = round(self._to_do + mean * (self._genomes - len(self._seen)))
            self._bar.total = max(total, self.bases)
            self._bar.set_postfix_str(f"genome {len(self._seen):,} of {self._genomes:,}", False)

    def note(self, text: str) -> None:
        """Say it behind the bar, in place of the genomes seen."""
        with self._counting:
            self._bar.set_postfix_str(text, refresh=False)

    def tell_workers(self, count: int) -> None:
        """Say how many workers of a cluster are at it."""
        super().tell_workers(count)
        self._bar.set_description_str(counted(count, "worker"), refresh=False)

    def wait(self) -> None:
        """Say that nothing is left to do but to wait."""
        self._bar.set_description_str(f"waiting for {self._others}")


def compute(job: Job, watch: Watch, waiting: Callable[[], object] = lambda: None) -> None:
    """Compute what nobody else computes of a job, until all of it is done (an ``Executor``).

    ``waiting`` is called again and again while there is nothing to do but to wait for others.
    """
    helds, leaving = [], ExitStack()
    for work in job.works:
        if job.terms.share[1] == 1 or _may_have(work, *job.terms.share):
            helds.append(_Held(work))
            leaving.callback(work.close)
            leaving.callback(helds[-1].release)  # what is not finished is for whoever comes next
        else:
            watch.see(work.name, 0)
    stop = Stop()
    claimed = _claimed(helds, job.step, stop, watch, waiting)
    job.compute(claimed, stop, lambda rows: watch.done(rows * job.step), leaving.close)
    twice = sum(work.duplicates for work in job.works)
    if twice:
        warnings.warn(
            f"{twice} shards were computed by another process too: locks on the file system of "
            f"{job.terms.out} do not keep processes apart; give each its part with --shard I/N",
            stacklevel=2,
        )


def _may_have(work: Work, i: int, n: int) -> bool:
    """False if a genome's file is so small that its shards are those of other shares than ``i``.

    A record of plain FASTA takes three bytes or more, and has two windows beside those that its
    bases fill at the stride, at most.
    """
    terms = work.terms
    try:
        with open(open_regular(work.path), "rb") as file:
            if terms.center or file.read(1) != b">":
                return True
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return True
    most = (size // terms.geometry.stride + size) * terms.geometry.bins
    return (i - work.number) % n * terms.layout.shard_rows(terms.signature.compute_batch) < most


@dataclass(eq=False)
class _Held:
    """A work, and what this process holds of it.

    ``open`` are the shards that are not known to be on disk, as of the last look; None before the
    first. ``mine`` are all of our share.
    """

    work: Work
    open: set[Rows] | None = None
    mine: list[Rows] = field(default_factory=list)
    claims: dict[Rows, Claim] = field(default_factory=dict)

    def shards(self, step: int, watch: Watch) -> Iterator[Shard]:
        """Claim shards of our share that nobody else is computing."""
        work = self.work
        if work.settled():
            watch.see(work.name, 0)
            return
        if not work.prepare():
            return
        if self.open is None:
            (i, n), number = work.terms.share, work.number
            self.open = set(work.missing())
            self.mine = [rows for k, rows in enumerate(work.parts) if (k + number) % n == i]
        left = [rows for rows in self.mine if rows in self.open and rows not in self.claims]
        watch.see(work.name, sum(last - first for first, last in left) * step)
        own_folder(work.terms.out, PARTS, work.name)
        if work.settled():  # whoever has published it has cleared its folder away
            return
        for rows in left:
            if work.error is not None:
                return
            if (shard := self.claim(rows, self.open)) is not None:
                yield shard

    def claim(self, rows: Rows, still: set[Rows]) -> Shard | None:
        """The shard, unless another process has it or it is on disk, and so no longer open."""
        claim, shard = Claim.take(self.work.folder / f"{rows[0]}-{rows[1]}.lock"), None
        if claim is None:
            return None
        self.claims[rows] = claim
        try:
            if self.work.has(*rows):
                still.discard(rows)
            else:
                shard = Shard(self.work, *rows, self.landed)
        finally:
            if shard is None:
                self.release(rows)
        return shard

    def settle(self) -> bool:
        """Publish if all is there; whether the work needs no further look by this process."""
        work = self.work
        if self.claims:  # the thread that writes them needs what would be forgotten
            return False
        work.close()  # all that was claimed has been read
        if not work.settled():
            if self.open is None:  # another process prepares it
                return False
            self.open = set(work.missing())
            if not self.open:
                work.publish()
                return False  # another process may be at it, or a part may prove damaged
            if not self.open.isdisjoint(self.mine):
                return False
        elif work.published is not None:
            work.clear()
        work.close(forget=True)
        self.mine.clear()
        return True

    def landed(self, rows: Rows) -> None:
        """Publish with the last shard, whoever has computed it; be done with this one."""
        try:
            assert self.open is not None
            with failing_alone(self.work):
                if self.work.has(*rows):
                    self.open.discard(rows)
                if not self.open and self.work.error is None:
                    self.work.publish()
        finally:
            self.release(rows)

    def release(self, *shards: Rows) -> None:
        """Be done with some shards, by default with all: on disk, or given up."""
        for rows in shards or tuple(self.claims):
            if (claim := self.claims.pop(rows, None)) is not None:
                claim.release()


def _claimed(
    helds: Sequence[_Held], step: int, stop: Stop, watch: Watch, waiting: Callable[[], object]
) -> Iterator[Shard]:
    """Claim shards until every work is published, failed, or left to other shares."""
    delay, unsettled = _SHORTEST_WAIT, list(helds)
    while unsettled:
        again, moved = [], False
        for held in unsettled:
            if stop.is_set():
                return
            with failing_alone(held.work):
                for shard in held.shards(step, watch):
                    moved = True
                    yield shard
                if not held.settle():
                    again.append(held)
        unsettled = again
        longest = max(_LONGEST_WAIT, _WAIT_A_WORK * len(unsettled))
        delay = _SHORTEST_WAIT if moved else min(2 * delay, longest)
        if unsettled and not moved:
            if delay == longest:
                watch.wait()
            waiting()
            stop.wait(delay)
