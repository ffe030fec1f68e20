"""What computes shards: a model on a device, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from genomepred.errors import SignatureError
from genomepred.inference import pipeline
from genomepred.runs.folder import RunPlan
from genomepred.runs.genome import GenomeWork
from genomepred.runs.setup import Setup
from genomepred.runs.shards import Shard
from genomepred.runs.signature import numerics_of


class Computer:
    """Model, device and numerics of a run, ready to compute any of its shards.

    Parameters
    ----------
    setup : Setup
        Model and device.
    plan : RunPlan
        The run, whose signature is obeyed.

    Raises
    ------
    SignatureError
        If the engine computes other bits than that with which the run was started.
    """

    def __init__(self, setup: Setup, plan: RunPlan) -> None:
        numerics = numerics_of(plan.signature)
        self.plan = plan
        self._engine = setup.engine(numerics)
        if plan.fingerprint and setup.fingerprint(self._engine) != plan.fingerprint:
            raise SignatureError(
                f"{plan.out}: this machine computes other last bits than the one that started the "
                f"run, though both are {plan.signature['device']}: leave it out, or use another "
                "--out"
            )
        self._slots, self._min_bases = setup.slots(numerics.compute_batch), setup.card.min_bases

    def compute(
        self,
        shards: Iterable[Shard],
        stop: pipeline.Stop | None = None,
        progress: Callable[[int], object] = lambda rows: None,
        last: Callable[[], object] = lambda: None,
    ) -> None:
        """Compute shards as they come, into their parts: reading, computing and writing overlap.

        Parameters
        ----------
        shards : iterable of Shard
            Consumed on the reader thread.
        stop : Stop, optional
            The run's, if ``shards`` waits for anything.
        progress : callable
            Told the number of rows of every block that is done.
        last : callable
            Called once, when no thread is at work any more.
        """
        pipeline.run(
            shards,
            self._engine,
            slots=self._slots,
            min_bases=self._min_bases,
            progress=progress,
            stop=stop,
            last=last,
        )


def compute_shard(computer: Computer, work: GenomeWork, rows: tuple[int, int]) -> None:
    """Compute one shard into its part, unless that is there.

    Nothing is locked, waited for or published: whoever calls this has decided that it is to be
    done, and any number of times gives the same bytes.

    Parameters
    ----------
    computer : Computer
    work : GenomeWork
        A genome of the computer's run.
    rows : (int, int)
        One of the ``ranges`` of what the genome is prepared as.

    Raises
    ------
    GenomepredError
        If the genome or the whole run cannot be computed.
    """
    work.prepare()
    if not work.has(*rows):
        computer.compute([Shard(work, *rows)])
    if work.error is not None:
        raise work.error
