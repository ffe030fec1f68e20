"""Claims: any number of processes share the shards of a folder by locks.

A lock is held by the process that computes a shard and released by the kernel when that process
ends, however it ends. Where the file system has no locks, two processes may compute the same shard;
the bytes are the same, so whoever renames last changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from genomepred.errors import GenomepredError, OutputError
from genomepred.files import Claim, own_folder
from genomepred.inference.pipeline import Stop
from genomepred.progress import Outlook
from genomepred.runs.folder import PARTS
from genomepred.runs.genome import GenomeWork
from genomepred.runs.publish import publish
from genomepred.runs.shards import Shard, output_error

# Seconds between looks at what other processes have done.
_SHORTEST_WAIT, _LONGEST_WAIT, _WAIT_A_GENOME = 0.01, 0.5, 0.01


def claimed(
    works: Sequence[GenomeWork],
    stop: Stop,
    outlook: Outlook | None = None,
    waiting: Callable[[], object] = lambda: None,
) -> Iterator[Shard]:
    """Claim shards until every genome is published, failed, or left to other shares.

    The last shard of a genome, whoever has computed it, publishes it.

    Parameters
    ----------
    works : sequence of GenomeWork
    stop : Stop
        The run's, through which is waited.
    outlook : Outlook, optional
        Told what there is to do of every genome at first sight.
    waiting : callable
        Called again and again while there is nothing to do but to wait for other processes.
    """
    unsettled = list(works)
    delay = _SHORTEST_WAIT
    while unsettled:
        again, moved = [], False
        for work in unsettled:
            stop.check()
            try:
                for shard in _claimed(work, outlook):
                    moved = True
                    yield shard
                if not _settle(work):
                    again.append(work)
            except OSError as error:
                raise output_error(error, work) from error
            except OutputError:
                raise
            except GenomepredError as error:
                work.fail(error)
        unsettled = again
        # A look at a genome is a few calls of the file system: many are looked at less often.
        longest = max(_LONGEST_WAIT, _WAIT_A_GENOME * len(unsettled))
        delay = _SHORTEST_WAIT if moved else min(2 * delay, longest)
        if unsettled and not moved:
            if delay == longest and outlook is not None:
                outlook.wait()
            waiting()
            stop.wait(delay)


def _claimed(work: GenomeWork, outlook: Outlook | None) -> Iterator[Shard]:
    """Shards of this process's share of a genome that nobody else is computing."""
    settled = work.settled()
    if not settled and not work.prepare():
        return
    if outlook is not None:
        missing = [] if settled else work.missing(work.plan.share)
        rows = sum(last - first for first, last in missing)
        outlook.see(work.name, rows * work.plan.geometry.step)
    if settled:
        return
    own_folder(work.plan.out, PARTS, work.name)
    if work.settled():  # whoever has published it has cleared its folder away
        return
    for first, last in work.missing(work.plan.share):
        if work.error is not None:
            return
        claim = Claim.take(work.folder / f"{first}-{last}.lock")
        if claim is None:
            continue
        if work.has(first, last):
            work.written(first, last)
            claim.release()
            continue
        yield Shard(work, first, last, claim, _publish_when_complete)


def _publish_when_complete(shard: Shard) -> None:
    if shard.work.complete() and shard.work.error is None:
        publish(shard.work, shard.prepared)


def _settle(work: GenomeWork) -> bool:
    """Publish if all is there; whether the genome needs no further look by this process."""
    if not work.at_work():
        work.close()  # all that was claimed has been read
    if work.settled():
        work.forget()
        return True
    if work.prepared is None or work.at_work():
        return False
    work.look()
    if work.complete():
        publish(work, work.prepared)
        return False  # another process may be at it, or a part may prove damaged
    if work.plan.share[1] > 1 and not work.missing(work.plan.share):
        work.forget()
        return True
    return False
