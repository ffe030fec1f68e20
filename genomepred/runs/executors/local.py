"""Execution in this process, which shares the shards of a folder with others by locks.

A lock is held by the process that computes a shard and released by the kernel when that process
ends, however it ends. Where the file system has no locks, two processes may compute the same shard;
the bytes are the same, so whoever renames last changes nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from genomepred.files import Claim, own_folder
from genomepred.inference.pipeline import Stop
from genomepred.progress import Watch
from genomepred.runs.executors import Job
from genomepred.runs.folder import PARTS
from genomepred.runs.work import Rows, Shard, Work, failing_alone

# Seconds between looks at what other processes have done. A look at a work is a few calls of the
# file system: many are looked at less often.
_SHORTEST_WAIT, _LONGEST_WAIT, _WAIT_A_WORK = 0.01, 0.5, 0.01


def compute(job: Job, watch: Watch, waiting: Callable[[], object] = lambda: None) -> None:
    """Compute what nobody else computes of a job, until all of it is done (an ``Executor``).

    ``waiting`` is called again and again while there is nothing to do but to wait for others.
    """
    helds, leaving = [], ExitStack()
    for work in job.works:
        if job.plan.share[1] == 1 or work.may_have(job.plan.share):
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
            f"{job.plan.out} do not keep processes apart; give each its part with --shard I/N",
            stacklevel=2,
        )


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
            (i, n), number = work.plan.share, work.number
            self.open = set(work.missing())
            self.mine = [rows for k, rows in enumerate(work.parts) if (k + number) % n == i]
        left = [rows for rows in self.mine if rows in self.open and rows not in self.claims]
        watch.see(work.name, sum(last - first for first, last in left) * step)
        own_folder(work.plan.out, PARTS, work.name)
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
                shard = Shard(self.work, *rows, self.written, self.release)
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

    def written(self, rows: Rows) -> None:
        """Publish with the last shard, whoever has computed it."""
        assert self.open is not None
        self.open.discard(rows)
        if not self.open and self.work.error is None:
            self.work.publish()

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
