"""Runs: genomes in, published prediction files out; stopped anywhere, continued."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from genomepred.compiled import tell_of_compiling
from genomepred.errors import GenomepredError, GenomesFailedError
from genomepred.files import user_path
from genomepred.inference import pipeline
from genomepred.progress import Outlook, Progress
from genomepred.runs.claims import claimed
from genomepred.runs.compute import Computer
from genomepred.runs.folder import RunPlan, sweep
from genomepred.runs.genome import GenomeResult, GenomeWork
from genomepred.runs.inputs import find_genomes, for_any_process
from genomepred.runs.setup import Setup
from genomepred.runs.spec import RunSpec
from genomepred.runs.workers import Workers, serving


def predict(
    genomes: str | Path | Iterable[str | Path],
    model: str | Path,
    out: str | Path,
    *,
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
    progress: bool = False,
) -> list[GenomeResult]:
    """Predict genomes into ``out``, one HDF5 file each; call again to continue after a crash.

    Parameters
    ----------
    genomes : path or paths
        FASTA files (plain, gzip, bgzip, xz), folders, globs or TSV manifests.
    model : str or path
        Checkpoint directory, or the name of a bundled model.
    out : path
        Output folder. A run is continued there with the same arguments.
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
    paths = [genomes] if isinstance(genomes, str | Path) else list(genomes)
    spec = RunSpec(
        genomes=tuple(find_genomes(paths)),
        model=str(model),
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
        jobs=jobs,
        trust_code=trust_code,
        overlap=overlap,
        kernels=kernels,
    )
    return run(spec, progress).genomes


@dataclass(frozen=True)
class RunReport:
    """Outcomes of all genomes, and the bases that this command and its workers have computed."""

    genomes: list[GenomeResult]
    computed: int


def run(spec: RunSpec, progress: bool = False) -> RunReport:
    """Start or continue the run that the options describe; see :func:`predict`."""
    threads = torch.get_num_threads()
    try:
        return _run(spec, progress)
    finally:
        torch.set_num_threads(threads)


def _run(spec: RunSpec, progress: bool) -> RunReport:
    setup = Setup(spec)
    plan = setup.open()
    sweep(spec.out)
    if progress and setup.geometry.samples:
        tqdm.write("the stride leaves bases between windows: this samples the genome", sys.stderr)
    if progress:
        tell_of_compiling()
    bar = Progress(total=0, unit=" bases", unit_scale=True, shown=progress, smoothing=0.05)
    computed, counting = 0, threading.Lock()

    def count(bases: int) -> None:
        nonlocal computed
        with counting:  # called by several threads
            computed += bases
            bar.update(bases)

    step = setup.geometry.step
    workers = Workers(spec, setup.workers - 1, count, __name__, session=plan.session)
    with bar, workers:
        works = _compute(setup, plan, lambda rows: count(rows * step), bar, workers.look)
    return RunReport(_results(works), computed)


def _compute(
    setup: Setup,
    plan: RunPlan,
    progress: Callable[[int], object],
    bar: Progress | None = None,
    waiting: Callable[[], object] = lambda: None,
) -> list[GenomeWork]:
    """Compute this process's part of a run, beside any number of others on the same folder.

    ``waiting`` is called again and again while there is nothing to do but to wait for them.
    """
    works = [GenomeWork(source, plan, k) for k, source in enumerate(setup.spec.genomes)]
    outlook = None if bar is None else Outlook(bar, len(works))

    def abandon() -> None:
        for work in works:
            work.abandon()

    stop = pipeline.Stop()
    shards = claimed(works, stop, outlook, waiting)
    Computer(setup, plan).compute(shards, stop, progress, abandon)
    _tell_duplicates(works, plan)
    return works


def _tell_duplicates(works: Sequence[GenomeWork], plan: RunPlan) -> None:
    twice = sum(work.duplicates for work in works)
    if twice:
        warnings.warn(
            f"{twice} shards were computed by another process too: locks on the file system of "
            f"{plan.out} do not keep processes apart; give each its part with --shard I/N",
            stacklevel=2,
        )


def _results(works: Sequence[GenomeWork]) -> list[GenomeResult]:
    results = [_result(work) for work in works]
    failed = [work for work in works if work.error is not None]
    if failed:
        first = failed[0].error
        if first is not None and len(works) == 1:
            raise first
        raise GenomesFailedError(
            f"{len(failed)} of {len(works)} genomes failed, the others are done; first: "
            f"{failed[0].name}: {first}",
            results,
        )
    return results


def _result(work: GenomeWork) -> GenomeResult:
    try:
        work.settled()  # another share may have published it meanwhile
    except GenomepredError as error:
        work.error = error
    if work.error is not None:
        return GenomeResult(work.name, "failed", work.final, error=str(work.error))
    if (noted := work.published) is not None:
        return GenomeResult(work.name, "finished", work.final, noted["rows"], noted["bases"])
    return GenomeResult(work.name, "partial", work.final)


def work() -> None:
    """Body of a worker process: options on the first line of stdin, whose end means stop."""
    with serving(RunSpec.of_json) as (spec, told, report):
        setup = Setup(spec)
        plan = replace(setup.open(), session=told["session"])
        step = setup.geometry.step
        _compute(setup, plan, lambda rows: report(rows * step))
