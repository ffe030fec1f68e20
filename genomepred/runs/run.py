"""Runs: genomes in, published prediction files out; stopped anywhere, continued."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm import tqdm

from genomepred.compiled import tell_of_compiling
from genomepred.errors import (
    GenomepredError,
    GenomesFailedError,
    OptionError,
    SignatureError,
)
from genomepred.files import user_path
from genomepred.inference import pipeline
from genomepred.inference.engine import Engine
from genomepred.models.card import Card
from genomepred.models.checkpoint import model_in_memory
from genomepred.models.layers import SequenceModel
from genomepred.progress import Progress
from genomepred.runs.executors import Executor, Job, local, processes
from genomepred.runs.executors.local import Outlook, Watch
from genomepred.runs.setup import Setup
from genomepred.runs.spec import RunSpec, find_genomes, for_any_process
from genomepred.runs.work import GenomeResult, Shard, Work, failing_alone


def predict(
    genomes: str | Path | Iterable[str | Path],
    model: str | Path | nn.Module,
    out: str | Path,
    *,
    card: Card | None = None,
    stride: int | None = None,
    regions: str | Path | None = None,
    center: bool = False,
    strand: str = "forward",
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    store_dtype: Literal["float32", "float16"] = "float32",
    compression: str = "deflate",
    shard: tuple[int, int] = (1, 1),
    jobs: int | None = None,
    trust_code: str | None = None,
    overlap: str = "auto",
    kernels: str = "auto",
    cluster: str | None = None,
    progress: bool = False,
) -> list[GenomeResult]:
    """Predict genomes into ``out``, one HDF5 file each; call again to continue after a crash.

    Parameters
    ----------
    genomes : path or paths
        FASTA files (plain, gzip, bgzip, xz), folders, globs or TSV manifests.
    model : str, path or nn.Module
        Checkpoint directory, the name of a bundled model, or a module in memory, which is copied.
        A module is computed by this process alone, and is told apart by its weights, its structure
        and the source of its classes.
    out : path
        Output folder. A run is continued there with the same arguments.
    card : Card, optional
        Of a module in memory that has no attribute ``card``.
    stride : int, optional
        Distance in bases between windows; by default the model card's.
    regions : path, optional
        BED: predict only the rows of the whole-genome grid that meet its regions. With an explicit
        ``overlap`` they have the same bits as in a run without.
    center : bool
        Instead predict one window centered on each BED record, in BED order.
    strand : {"forward", "reverse", "mean", "each"}
        ``mean`` averages both strands after activation; ``each`` doubles the tracks.
    batch_size : int, optional
        Windows handed to the device at a time, rounded up to whole compute batches. Never changes
        a value.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    precision : {"auto", "fp32", "fp16", "bf16"}
        ``auto``: fp32 on the CPU; on a GPU the fastest that stays within the card's tolerance.
    store_dtype : {"float32", "float16"}
        Type of the stored predictions. float16 keeps 11 bits: values below 6.1e-5 lose more, those
        below 3e-8 become 0, one above 65,504 fails its genome.
    compression : str
        ``deflate``, ``deflate-1`` to ``deflate-9``, ``zstd`` or ``none``.
    shard : (int, int)
        ``(i, n)``: compute the i-th of n shares, counted from 1.
    jobs : int, optional
        Worker processes; by default one a CPU core (one a GPU), but none without enough work.
    trust_code : str, optional
        Code of a model that comes with its own, which is executed: ``PATH[:CLASS]`` of a Python
        file, or ``MODULE:CLASS`` of an installed module.
    overlap : {"auto", "share", "naive"}
        Whether a base is convolved once for all windows that see it. ``auto``: where that is
        clearly faster for the rows asked for; the values are the same within 1e-5 of their scale.
    kernels : {"auto", "triton", "cudnn", "cpu", "reference"}
        What computes the model's convolutions. ``auto``: for each the fastest that is known for
        the device; ``reference``: the model as written.
    cluster : str, optional
        Compute on a Ray cluster: ``HOST:PORT`` of its head, or ``auto`` for the one that
        ``RAY_ADDRESS`` names, else one on this machine.
    progress : bool
        Show progress on stderr.

    Returns
    -------
    list of GenomeResult
        One for each genome, in the order given.

    Raises
    ------
    GenomesFailedError
        After all others are finished, if some genomes failed (of a single genome, its own error).
    GenomepredError
        Whatever stops the whole run: a bad model or option, a full disk, another signature.
    """
    held = None
    if isinstance(model, nn.Module) or card is not None:
        held = in_memory(model, card, jobs=jobs, cluster=cluster, trust_code=trust_code)
    paths = [genomes] if isinstance(genomes, str | Path) else list(genomes)
    spec = RunSpec(
        genomes=tuple(find_genomes(paths)),
        model=str(model) if held is None else held.card.name,
        out=user_path(os.fspath(out)),
        stride=stride,
        regions=None if regions is None else for_any_process(user_path(os.fspath(regions))),
        center=center,
        strand=strand,
        batch_size=batch_size,
        device=device,
        precision=precision,
        store_dtype=store_dtype,
        compression=compression,
        shard=shard,
        jobs=jobs if held is None else 1,
        trust_code=trust_code,
        overlap=overlap,
        kernels=kernels,
        cluster=cluster,
    )
    return run(spec, progress, model=held).genomes


def in_memory(model: str | Path | nn.Module, card: Card | None, **refused: object) -> SequenceModel:
    """A module in memory, ready to run in this process.

    Raises
    ------
    OptionError
        If an option is given that needs a model on disk, or the model is one and has its own card.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"card: model {str(model)!r} has its own; leave it out")
    for name, value in refused.items():
        if value not in (None, 1):
            raise OptionError(
                f"{name}={value!r}: a module in memory is computed by this process alone; leave it "
                "out, or save the weights, import them (`genomepred models import`) and name that "
                "folder"
            )
    return model_in_memory(model, card)


class GenomeRun:
    """A run on genomes, in one process (an ``executors.Job``).

    Making one creates the run in its output folder, or joins the one that is there.

    Parameters
    ----------
    spec : RunSpec
        What is asked for.
    told : mapping, optional
        What :meth:`more` of another process has told, which has created the run.
    model : SequenceModel, optional
        A model in memory, in place of the spec's.
    """

    def __init__(
        self,
        spec: RunSpec,
        told: Mapping[str, Any] | None = None,
        model: SequenceModel | None = None,
    ) -> None:
        self.spec, self.setup = spec, Setup(spec, model=model)
        self.terms, self.workers = self.setup.open(told), self.setup.workers
        self.works: Sequence[Work] = [
            Work(*genome, self.terms, k) for k, genome in enumerate(spec.genomes)
        ]
        self.step = self.setup.geometry.step

    def more(self) -> dict[str, Any]:
        """Words for another process beside the spec."""
        return {"session": self.terms.session, "run": self.terms.run_id}

    @classmethod
    def join(cls, spec: RunSpec, told: Mapping[str, Any]) -> GenomeRun:
        """The same run in another process."""
        return cls(spec, told)

    def work(self, number: int, name: str, path: Path) -> Work:
        """A genome of the run, which ``works`` need not have."""
        return Work(name, path, self.terms, number)

    @cached_property
    def engine(self) -> Engine:
        """The computer of shards; made on the thread that will use it.

        Raises
        ------
        SignatureError
            If it computes other bits than that with which the run was started.
        """
        engine, terms = self.setup.engine(self.terms.signature.numerics), self.terms
        if terms.fingerprint and engine.fingerprint != terms.fingerprint:
            raise SignatureError(
                f"{terms.out}: this machine computes other last bits than the one that started the "
                f"run, though both are {terms.signature.device}: leave it out, or use another "
                "--out"
            )
        return engine

    def compute(
        self,
        shards: Iterable[Shard],
        stop: pipeline.Stop | None = None,
        progress: Callable[[int], object] = lambda rows: None,
        last: Callable[[], object] = lambda: None,
    ) -> None:
        """Compute shards as they come: reading, computing and writing overlap (see ``Job``)."""
        engine = self.engine
        pipeline.run(
            shards,
            engine,
            slots=self.setup.slots(engine.numerics.compute_batch),
            min_bases=self.setup.card.min_bases,
            progress=progress,
            stop=stop,
            last=last,
        )


@dataclass(frozen=True)
class RunReport:
    """Outcomes of all genomes, and the bases that this command and its workers have computed.

    ``workers`` are the processes of this command, or the most that a cluster had at it at once.
    """

    genomes: list[GenomeResult]
    computed: int
    workers: int


def run(
    spec: RunSpec,
    progress: bool = False,
    executor: Executor | None = None,
    model: SequenceModel | None = None,
) -> RunReport:
    """Start or continue the run that the options describe; see :func:`predict`."""
    threads = torch.get_num_threads()
    if progress:
        tell_of_compiling()
    try:
        if spec.cluster is not None:
            executor = cluster_of(spec)  # which may be absent, before anything is written
        job = GenomeRun(spec, model=model)
        if progress and job.setup.geometry.samples:
            tqdm.write(
                "the stride leaves bases between windows: this samples the genome", sys.stderr
            )
        return execute(job, progress, executor)
    finally:
        torch.set_num_threads(threads)


def cluster_of(spec: RunSpec) -> Executor:
    """Return the executor of a run that asks for a cluster."""
    from genomepred.runs.executors import ray

    assert spec.cluster is not None
    return partial(ray.compute, address=ray.address_of(spec.cluster))


def _is_open(work: Work) -> bool:
    settled = True
    with failing_alone(work):
        settled = work.settled()
    return not settled


def execute(job: Job, progress: bool = False, executor: Executor | None = None) -> RunReport:
    """Have a job computed, by default on this machine, and tell how its genomes came out.

    Raises
    ------
    GenomesFailedError
        If some genomes failed; of a single genome, its own error.
    """
    if executor is None:
        worth = job.workers > 1 and any(map(_is_open, job.works))  # else workers find nothing to do
        executor = processes.compute if worth else local.compute
    with ExitStack() as shown:
        watch = Watch()
        if progress:
            bar = Progress(total=0, unit=" bases", unit_scale=True, smoothing=0.05)
            watch = Outlook(shown.enter_context(bar), len(job.works), job.workers)
        executor(job, watch)
    for work in job.works:
        try:
            work.settled()  # another share may have published it meanwhile
        except GenomepredError as error:
            work.error = error
    results = [work.result() for work in job.works]
    failed = [work for work in job.works if work.error is not None]
    if failed:
        raise _failure(failed, results)
    workers = job.workers if job.spec.cluster is None else watch.workers
    return RunReport(results, watch.bases, workers)


def _failure(failed: Sequence[Work], results: list[GenomeResult]) -> GenomepredError:
    """The error of a run's only genome, or one that counts those that failed."""
    first = failed[0].error
    if first is not None and len(results) == 1:
        return first
    shared = any(result.outcome == "partial" for result in results)
    done = "this share of the others is done" if shared else "the others are done"
    return GenomesFailedError(
        f"{len(failed)} of {len(results)} genomes failed, {done}; first: {failed[0].name}: {first}",
        results,
    )
