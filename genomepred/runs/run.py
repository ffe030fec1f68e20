"""Runs: genomes in, published prediction files out; resumed, merged and verified."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from genomepred.compiled import tell_of_compiling
from genomepred.errors import GenomepredError, GenomesFailedError, OutputError
from genomepred.files import own_folder, user_path
from genomepred.inference import pipeline
from genomepred.inference.engine import Numerics
from genomepred.progress import Outlook, Progress
from genomepred.runs.genome import (
    PARTS,
    GenomeWork,
    RunPlan,
    Shard,
    check_regions,
    output_error,
    refuse_links,
    regions_path,
    sweep,
)
from genomepred.runs.inputs import GenomePath, find_genomes, for_any_process
from genomepred.runs.setup import Options, Setup
from genomepred.runs.signature import RUN_FILE, read_run
from genomepred.runs.workers import Workers, serving
from genomepred.sequences.grid import Geometry
from genomepred.store.hdf5 import (
    DamagedPartError,
    Layout,
    check_part,
    read_sidecar,
    verify_file,
)

# Seconds between looks at what other processes have done.
_SHORTEST_WAIT, _LONGEST_WAIT, _WAIT_A_GENOME = 0.01, 0.5, 0.01


@dataclass(frozen=True)
class GenomeResult:
    """Outcome of one genome: ``finished``, ``failed``, or ``partial`` (other shares are open)."""

    name: str
    outcome: str
    path: Path
    rows: int = 0
    bases: int = 0
    error: str = ""


def predict(
    genomes: str | Path | Iterable[str | Path],
    model: str | Path,
    out: str | Path,
    *,
    stride: int | None = None,
    regions: str | Path | None = None,
    centre: bool = False,
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
    centre : bool
        Instead predict one window centred on each BED record, in BED order.
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
    options = Options(
        genomes=tuple(find_genomes(paths)),
        model=str(model),
        out=user_path(os.fspath(out)),
        stride=stride,
        regions=None if regions is None else for_any_process(user_path(os.fspath(regions))),
        centre=centre,
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
    return run(options, progress).genomes


@dataclass(frozen=True)
class RunReport:
    """Outcomes of all genomes, and the bases that this command and its workers have computed."""

    genomes: list[GenomeResult]
    computed: int


def run(options: Options, progress: bool = False) -> RunReport:
    """Start or continue the run that the options describe; see :func:`predict`."""
    threads = torch.get_num_threads()
    try:
        return _run(options, progress)
    finally:
        torch.set_num_threads(threads)


def _run(options: Options, progress: bool) -> RunReport:
    setup = Setup(options)
    plan = setup.open()
    sweep(options.out)
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
    workers = Workers(options, plan.session, setup.workers - 1, count)
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
    numerics = Numerics(
        precision=plan.signature["precision"],
        kernels=plan.signature["kernels"],
        compute_batch=plan.signature["compute_batch"],
        strand=plan.signature["strand"],
        overlap=plan.signature["overlap"],
    )
    engine = setup.engine(numerics)
    works = [GenomeWork(source, plan, k) for k, source in enumerate(setup.options.genomes)]
    outlook = None if bar is None else Outlook(bar, len(works))

    def abandon() -> None:
        for work in works:
            work.abandon()

    stop = pipeline.Stop()
    pipeline.run(
        _shards(works, stop, bar, outlook, waiting),
        engine,
        slots=setup.slots(numerics.compute_batch),
        min_bases=setup.card.min_bases,
        progress=progress,
        stop=stop,
        last=abandon,
    )
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


def _shards(
    works: Sequence[GenomeWork],
    stop: pipeline.Stop,
    bar: Progress | None,
    outlook: Outlook | None,
    waiting: Callable[[], object],
) -> Iterator[Shard]:
    """Claim shards until every genome is published, failed, or left to other shares."""
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
                if not work.settle():
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
            if delay == longest and bar is not None:
                bar.set_description_str("waiting for other processes on this run")
            waiting()
            stop.wait(delay)


def _claimed(work: GenomeWork, outlook: Outlook | None) -> Iterator[Shard]:
    """Shards of a genome; what there is to do of it is told at first sight."""
    settled = work.settled()
    if not settled and not work.prepare():
        return
    if outlook is not None:
        missing = [] if settled else work.missing(work.plan.share)
        rows = sum(last - first for first, last in missing)
        outlook.see(work.name, rows * work.plan.geometry.step)
    if settled:
        return
    yield from work.claim_shards()


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
    with serving() as (options, session, report):
        setup = Setup(options)
        plan = replace(setup.open(), session=session)
        step = setup.geometry.step
        _compute(setup, plan, lambda rows: report(rows * step))


def merge(out: str | Path) -> list[GenomeResult]:
    """Publish every genome of a run whose shards are all there.

    Returns
    -------
    list of GenomeResult
        Of the genomes that had not been published.

    Raises
    ------
    GenomesFailedError
        If any cannot be published; the message says how many, and of the first why.
    """
    folder = user_path(os.fspath(out))
    plan = _plan_of(folder)
    refuse_links(folder)
    sweep(folder)
    results = [_merge_genome(GenomeWork(GenomePath(n, Path()), plan)) for n in _begun(folder)]
    unfinished = [result for result in results if result.outcome != "finished"]
    if unfinished:
        raise GenomesFailedError(
            f"{len(unfinished)} of {len(results)} genomes are not published; first: "
            f"{unfinished[0].name}: {unfinished[0].error}",
            results,
        )
    return results


def _begun(out: Path) -> list[str]:
    """Names of the genomes that have shards, or have begun to."""
    folders = sorted((out / PARTS).glob("*/"))
    return [folder.name for folder in folders if os.path.lexists(folder / "genome.json")]


def _merge_genome(work: GenomeWork) -> GenomeResult:
    def unfinished(outcome: str, why: str) -> GenomeResult:
        return GenomeResult(work.name, outcome, work.final, error=why)

    try:
        own_folder(work.plan.out, PARTS, work.name)
        record = work.read_record()
        if record is not None:
            work.path = Path(record["path"])
            work.adopt(record)
            assert work.prepared is not None
            missing = len(work.missing())
            if missing:
                why = f"{missing} of {len(work.prepared.ranges)} shards are missing"
                return unfinished("partial", f"{why}; run predict on this --out again")
            if not work.publish(work.prepared):
                why = "a part was damaged and is removed, or another process is publishing"
                return unfinished("partial", f"{why}; run predict on this --out again")
        noted = read_sidecar(work.sidecar)
    except OSError as error:
        raise output_error(error, work) from error
    except OutputError:
        raise
    except GenomepredError as error:
        return unfinished("failed", str(error))
    return GenomeResult(work.name, "finished", work.final, noted["rows"], noted["bases"])


def _plan_of(out: Path) -> RunPlan:
    document = read_run(out)
    signature = document["signature"]
    regions = None
    if signature["regions"]:
        regions = regions_path(out, signature["regions"])
        check_regions(regions, signature["regions"])
    return RunPlan(
        out=out,
        geometry=Geometry(
            **{key: signature[key] for key in ("window", "stride", "crop", "bins", "bin_size")}
        ),
        layout=Layout(
            tracks=len(document["tracks"]),
            dtype=signature["store_dtype"],
            compression=signature["compression"],
            bins=signature["bins"],
        ),
        regions=regions,
        regions_called=str(regions),
        centre=signature["centre"],
        signature=signature,
        tracks=tuple((name, text) for name, text in document["tracks"]),
    )


@dataclass(frozen=True)
class FileReport:
    """What ``verify`` found of one genome: ``problems`` is empty for a sound file."""

    name: str
    path: Path
    problems: list[str]


def verify(out: str | Path) -> list[FileReport]:
    """Check every file of a run against its sidecar: bytes first, then structure.

    Returns
    -------
    list of FileReport
        One for each genome with a file, a sidecar or parts.
    """
    folder = user_path(os.fspath(out))
    if not folder.is_dir():
        raise OutputError(f"{folder}: not a folder; give the --out of a run")
    reports = []
    sidecars = {path.name[: -len(".h5.json")] for path in folder.glob("*.h5.json")}
    files = {path.name[: -len(".h5")] for path in folder.glob("*.h5")}
    begun = set(read_run(folder)["genomes"]) if os.path.lexists(folder / RUN_FILE) else set()
    if not sidecars | files | begun:
        raise OutputError(f"{folder}: nothing to verify; give the --out of a run")
    for name in sorted(sidecars | files | begun):
        path, sidecar = folder / f"{name}.h5", folder / f"{name}.h5.json"
        if name in sidecars:
            problems = verify_file(path, sidecar)
        elif name in files:
            problems = [f"{sidecar.name} is missing: run predict again to check and publish it"]
        else:
            damaged = _damaged_parts(folder / PARTS / name)
            problems = ["unfinished: run predict again to finish it", *damaged]
        reports.append(FileReport(name, path, problems))
    return reports


def _damaged_parts(folder: Path) -> list[str]:
    found = []
    for part in sorted(folder.glob("*-*.h5")):
        try:
            check_part(part)
        except DamagedPartError as error:
            found.append(str(error))
    return found
