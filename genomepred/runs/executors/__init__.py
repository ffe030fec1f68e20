"""Executors of a run's shards: this process, further ones here, or many machines.

A :class:`Job` is the run as one process sees it: its works, and what computes their shards. An
executor is a function of a job: it decides who computes which shard (``Job.compute``, or
:func:`compute_shard` for one that has been assigned) and who publishes (``Work.publish``). Another
process joins the same job by :func:`told` and :func:`join`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from genomepred.runs.folder import RunTerms
from genomepred.runs.spec import RunSpec
from genomepred.runs.work import Rows, Shard, Work

if TYPE_CHECKING:
    from genomepred.inference.engine import Engine
    from genomepred.inference.pipeline import Stop
    from genomepred.runs.executors.local import Watch

Self = TypeVar("Self")


class Job(Protocol):
    """A run in one process: model, device and numerics, and what is to be computed.

    Making one creates the run or joins it (``init``); it is made anew in every process.
    """

    spec: RunSpec
    terms: RunTerms
    #: Processes that are worth starting here, this one included.
    workers: int
    #: Bases of one row of a shard.
    step: int

    @property
    def works(self) -> Sequence[Work]:
        """Works of the run: each becomes a file."""

    @property
    def engine(self) -> Engine:
        """The computer of shards; made on the thread that will use it.

        Raises
        ------
        SignatureError
            If it computes other bits than that with which the run was started.
        """

    def work(self, number: int, name: str, path: Path) -> Work:
        """One of the run's works, made anew: ``works`` of a process that is told so lacks it."""

    def compute(
        self,
        shards: Iterable[Shard],
        stop: Stop | None = None,
        progress: Callable[[int], object] = lambda rows: None,
        last: Callable[[], object] = lambda: None,
    ) -> None:
        """Compute shards as they come, each until its ``finish`` or ``fail`` is called.

        Parameters
        ----------
        shards : iterable of Shard
            May be consumed on another thread.
        stop : Stop, optional
            The run's, if ``shards`` waits for anything.
        progress : callable
            Told of rows that are done, how many more.
        last : callable
            Called once, when no thread is at work any more.
        """

    def more(self) -> dict[str, Any]:
        """Words for another process beside the spec, as JSON holds them."""

    @classmethod
    def join(cls: type[Self], spec: RunSpec, told: Mapping[str, Any]) -> Self:
        """The same job in another process, which was told :meth:`more`."""


class Executor(Protocol):
    """An executor of a job: computes all of its share, and publishes what is complete."""

    def __call__(self, job: Job, watch: Watch) -> None:
        """Compute and publish; returns when there is nothing more to do here."""


def compute_shard(job: Job, work: Work, rows: Rows) -> None:
    """Compute one shard into its part, unless that is there.

    Nothing is locked, waited for or published: whoever calls this has decided that it is to be
    done, and any number of times gives the same bytes.

    Parameters
    ----------
    job : Job
    work : Work
        One of the job's.
    rows : (int, int)
        One of the work's ``parts``.

    Raises
    ------
    GenomepredError
        If the work or the whole run cannot be computed.
    """
    work.prepare()
    if not work.has(*rows):
        job.compute([Shard(work, *rows)])
    if work.error is not None:
        raise work.error


def told(job: Job, spec: RunSpec) -> str:
    """One line by which another process joins a job, perhaps on another device."""
    kind = type(job)
    return spec.to_json(**job.more(), job=f"{kind.__module__}:{kind.__qualname__}")


def join(told: Mapping[str, Any]) -> Job:
    """The job of which :func:`told` has told."""
    module, kind = told["job"].split(":")
    joined: Job = getattr(import_module(module), kind).join(RunSpec.of_json(told), told)
    return joined
