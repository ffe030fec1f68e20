"""Runs: genomes in, published prediction files out; planned, resumed, merged and verified."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from genomepred.errors import GenomepredError, GenomesFailedError, ModelError, OutputError
from genomepred.inference import pipeline
from genomepred.inference.engine import (
    STRANDS,
    Block,
    Engine,
    Numerics,
    choose_numerics,
    compute_batch,
    find_device,
)
from genomepred.inference.inputs import GenomePath, find_genomes
from genomepred.inference.shards import CACHE, PARTS, GenomeWork, RunPlan, Shard, make_grid
from genomepred.inference.signature import facts, open_run, read_run
from genomepred.models.card import Card, load_model
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Geometry
from genomepred.store.hdf5 import Layout, encode_chunk, read_sidecar, verify_file

# Compute batches handed to the device at a time, unless --batch-size says otherwise.
_BATCHES_A_BLOCK = {"cpu": 4, "cuda": 2}
# A worker costs about 4 s of start-up on one core; it is started only for work worth that.
_WINDOWS_A_WORKER = 100_000
# Seconds between looks at what other processes have done.
_SHORTEST_WAIT, _LONGEST_WAIT = 0.01, 0.5


@dataclass(frozen=True)
class Options:
    """What a run is asked to do; see :func:`predict` for the meaning of each."""

    genomes: tuple[GenomePath, ...]
    model: str
    out: Path
    stride: int | None = None
    regions: Path | None = None
    centre: bool = False
    strand: str = "forward"
    batch_size: int | None = None
    device: str = "auto"
    precision: str = "auto"
    store_dtype: Literal["float32", "float16"] = "float32"
    compression: str = "deflate"
    shard: tuple[int, int] = (1, 1)
    jobs: int | None = None

    def __post_init__(self) -> None:
        i, n = self.shard
        if not 1 <= i <= n:
            raise ModelError(f"--shard {i}/{n}: write I/N with 1 <= I <= N")
        if self.strand not in STRANDS:
            raise ModelError(f"--strand {self.strand!r}: one of {', '.join(STRANDS)}")
        if self.centre and self.regions is None:
            raise ModelError("--centre needs --regions: one window is centred on each BED record")


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
        BED: predict only the rows of the whole-genome grid that meet its regions.
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
        Type of the stored predictions.
    compression : str
        ``deflate``, ``deflate-1`` to ``deflate-9``, ``zstd`` or ``none``.
    shard : (int, int)
        ``(i, n)``: compute the i-th of n shares, counted from 1.
    jobs : int, optional
        Worker processes; by default one a CPU core (one a GPU), but none without enough work.
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
        out=Path(out),
        stride=stride,
        regions=Path(regions) if regions is not None else None,
        centre=centre,
        strand=strand,
        batch_size=batch_size,
        device=device,
        precision=precision,
        store_dtype=store_dtype,
        compression=compression,
        shard=shard,
        jobs=jobs,
    )
    return run(options, progress)


def run(options: Options, progress: bool = False) -> list[GenomeResult]:
    """Start or continue the run that the options describe; see :func:`predict`."""
    threads = torch.get_num_threads()
    try:
        return _run(options, progress)
    finally:
        torch.set_num_threads(threads)


def _run(options: Options, progress: bool) -> list[GenomeResult]:
    setup = _Setup(options)
    plan = setup.open()
    bar = tqdm(
        total=0, unit=" bases", unit_scale=True, disable=None if progress else True, smoothing=0.05
    )
    step = setup.geometry.step
    with bar, _Workers(options, plan.session, setup.workers - 1, bar.update):
        works = _compute(setup, plan, lambda rows: bar.update(rows * step), bar)
    return _results(works)


class _Setup:
    """Model, device and layout of a run, before anything is written."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device = find_device(options.device)
        self.model = load_model(options.model)
        card = self.model.card
        assert isinstance(card, Card)
        self.card = card
        self.geometry = card.geometry(options.stride)
        tracks = [(track.name, track.description) for track in card.tracks]
        if options.strand == "each":
            tracks = [(name + sign, text) for sign in "+-" for name, text in tracks]
        self.tracks = tuple(tracks)
        self.layout = Layout(
            tracks=len(tracks),
            dtype=options.store_dtype,
            compression=options.compression,
            bins=card.bins,
        )
        self.windows = _estimated_bases(options) / self.geometry.stride / options.shard[1]
        self.workers = self._workers()

    def _workers(self) -> int:
        if self.options.jobs is not None:
            return max(self.options.jobs, 1)
        if self.device.type == "cuda":
            return torch.cuda.device_count() if self.options.device in ("auto", "cuda") else 1
        return max(1, min(len(os.sched_getaffinity(0)), int(self.windows / _WINDOWS_A_WORKER)))

    def open(self) -> RunPlan:
        """Create the run in its output folder, or join the one that is there."""
        options = self.options
        about = {"model": self.card.name, "tracks": self.tracks, "command": sys.argv}
        expected = facts(
            self.card,
            self.geometry,
            self.layout,
            self.device,
            strand=options.strand,
            regions=options.regions,
            centre=options.centre,
        )
        asked = {"precision": options.precision} if options.precision != "auto" else {}
        signature = open_run(options.out, expected, asked, lambda: self.decide(self._sample), about)
        i, n = options.shard
        return RunPlan(
            out=options.out,
            geometry=self.geometry,
            layout=self.layout,
            regions=_keep_regions(options, signature["regions"]),
            centre=options.centre,
            signature=signature,
            model=self.card.name,
            tracks=self.tracks,
            share=(i - 1, n),
        )

    def decide(self, sample: Callable[[int], Block]) -> Numerics:
        """Choose precision and form by probing (see :func:`engine.choose_numerics`)."""
        return choose_numerics(
            self.model,
            self.card,
            self.geometry,
            self.device,
            precision=self.options.precision,
            strand=self.options.strand,
            windows=self.windows / self.workers,
            sample=sample,
        )

    def _sample(self, windows: int) -> Block:
        """Windows evenly spread over the grid of the first genome that can be read."""
        for name, path in self.options.genomes:
            options = self.options
            cache = options.out / CACHE
            with (
                contextlib.suppress(GenomepredError),
                Genome(path, name=name, cache=cache) as genome,
            ):
                grid = make_grid(genome.contigs, self.geometry, options.regions, options.centre)
                if grid.rows:
                    return pipeline.sample(genome, grid, windows)
        raise GenomepredError(
            f"--precision {self.options.precision}: none of the genomes can be read to check it on"
        )

    def random_block(self, windows: int) -> Block:
        """Windows of random sequence, side by side."""
        size = windows * self.geometry.window
        codes = np.random.default_rng(0).integers(0, 4, size, dtype=np.uint8)
        batches = windows // compute_batch(self.geometry.window, self.device.type)
        starts = np.arange(windows, dtype=np.int64) * self.geometry.window
        needed = np.ones(batches, np.bool_)
        return Block(torch.from_numpy(codes), starts, self.geometry.window, needed)

    def engine(self, numerics: Numerics) -> Engine:
        """The engine that obeys the given numerics."""
        return Engine(self.model, self.card, self.geometry, numerics, self.device)

    def slots(self, batch: int) -> int:
        """Windows of one block: the batch size, rounded up to whole compute batches."""
        asked = self.options.batch_size or batch * _BATCHES_A_BLOCK[self.device.type]
        return -(-asked // batch) * batch


def _estimated_bases(options: Options) -> float:
    """Bases of all genomes by their file sizes: compressed files hold about four bases a byte."""
    total = 0
    for _, path in options.genomes:
        with contextlib.suppress(OSError), path.open("rb") as file:
            magic = file.read(6)
            packed = magic.startswith((b"\x1f\x8b", b"\xfd7zXZ\x00"))
            total += path.stat().st_size * (4 if packed else 1)
    return float(total)


def _keep_regions(options: Options, sha256: str | None) -> Path | None:
    """A copy of the BED within the run, so that merging needs nothing else."""
    if options.regions is None or sha256 is None:
        return None
    kept = options.out / PARTS / f"regions-{sha256[:16]}.bed{options.regions.suffix[-3:]}"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        temporary = kept.with_name(f"{kept.name}.{os.getpid()}.tmp")
        shutil.copyfile(options.regions, temporary)
        os.replace(temporary, kept)
    return kept


def _compute(
    setup: _Setup, plan: RunPlan, progress: Callable[[int], object], bar: Any = None
) -> list[GenomeWork]:
    """Compute this process's part of a run, beside any number of others on the same folder."""
    numerics = Numerics(
        precision=plan.signature["precision"],
        form=plan.signature["form"],
        compute_batch=plan.signature["compute_batch"],
        strand=plan.signature["strand"],
    )
    engine = setup.engine(numerics)
    works = [GenomeWork(source, plan, k) for k, source in enumerate(setup.options.genomes)]
    try:
        pipeline.run(
            _shards(works, bar),
            engine,
            slots=setup.slots(numerics.compute_batch),
            min_bases=setup.card.min_bases,
            progress=progress,
        )
    finally:
        for work in works:
            work.abandon()
    return works


def _shards(works: Sequence[GenomeWork], bar: Any = None) -> Iterator[Shard]:
    """Claim shards until every genome is published, failed, or left to other shares."""
    waiting = list(works)
    delay = _SHORTEST_WAIT
    while waiting:
        again, moved = [], False
        for work in waiting:
            try:
                for shard in work.claim_shards(bar):
                    moved = True
                    yield shard
                if not work.settle():
                    again.append(work)
            except OSError as error:
                raise _output_error(error, work) from error
            except OutputError:
                raise
            except GenomepredError as error:
                work.fail(error)
        waiting = again
        delay = _SHORTEST_WAIT if moved else min(2 * delay, _LONGEST_WAIT)
        if waiting and not moved:
            if delay == _LONGEST_WAIT and bar is not None:
                bar.set_description_str("waiting for other processes on this run")
            time.sleep(delay)


def _output_error(error: OSError, work: GenomeWork) -> OutputError:
    return OutputError(
        f"{error.filename or work.plan.out}: {error.strerror or error} while working on "
        f"{work.name}; finished shards are kept: mend it and run the same command again"
    )


def _results(works: Sequence[GenomeWork]) -> list[GenomeResult]:
    results = []
    for work in works:
        if work.failed():
            results.append(GenomeResult(work.name, "failed", work.final, error=str(work.error)))
        elif work.finished():
            sidecar = read_sidecar(work.sidecar)
            rows, bases = sidecar["rows"], sidecar["bases"]
            results.append(GenomeResult(work.name, "finished", work.final, rows, bases))
        else:
            results.append(GenomeResult(work.name, "partial", work.final))
    failed = [work for work in works if work.failed()]
    if failed:
        first = failed[0].error
        assert first is not None
        if len(works) == 1:
            raise first
        raise GenomesFailedError(
            f"{len(failed)} of {len(works)} genomes failed, the others are done; first: "
            f"{failed[0].name}: {first}",
            results,
        )
    return results


# -- workers: the same run in further processes ------------------------------------------------


class _Workers:
    """Further processes on the same run; they end with this one, however it ends."""

    def __init__(
        self, options: Options, session: str, count: int, progress: Callable[[int], object]
    ) -> None:
        self._progress = progress
        self._options = [
            _to_json(replace(options, device=_device_of(options.device, k + 1)), session)
            for k in range(count)
        ]
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> None:
        for text in self._options:
            process = subprocess.Popen(
                [sys.executable, "-c", "from genomepred.inference.run import work; work()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdin is not None
            process.stdin.write(text + "\n")
            process.stdin.flush()
            thread = threading.Thread(target=self._listen, args=(process,), daemon=True)
            thread.start()
            self._processes.append(process)
            self._threads.append(thread)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._progress(int(line))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for process in self._processes:
            if kind is not None:
                process.terminate()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        for thread in self._threads:
            thread.join()


def _device_of(device: str, worker: int) -> str:
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{worker % torch.cuda.device_count()}"
    return device


def _to_json(options: Options, session: str) -> str:
    return json.dumps({**asdict(options), "session": session}, default=str)


def work() -> None:
    """Body of a worker process: options on the first line of stdin, whose end means stop."""
    fields = json.loads(sys.stdin.readline())
    session = fields.pop("session")
    options = Options(
        **{
            **fields,
            "genomes": tuple(GenomePath(name, Path(path)) for name, path in fields["genomes"]),
            "out": Path(fields["out"]),
            "regions": Path(fields["regions"]) if fields["regions"] else None,
            "shard": tuple(fields["shard"]),
        }
    )
    done = threading.Event()

    def stop_with_parent() -> None:
        sys.stdin.read()
        if not done.is_set():
            os._exit(1)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    setup = _Setup(options)
    plan = replace(setup.open(), session=session)
    step = setup.geometry.step
    try:
        _compute(setup, plan, lambda rows: print(rows * step, flush=True))
    except GenomepredError as error:
        # The parent takes over what is left and meets the same obstacle, if it is one.
        sys.exit(error.exit_code)
    done.set()


# -- plan, merge, verify -----------------------------------------------------------------------


@dataclass(frozen=True)
class GenomePlan:
    """What predicting one genome amounts to."""

    name: str
    contigs: int
    bases: int
    windows: int
    rows: int
    shards: int
    error: str = ""


@dataclass(frozen=True)
class Estimate:
    """What a run would do: see :func:`plan`."""

    genomes: list[GenomePlan]
    numerics: Numerics
    workers: int
    samples: bool
    bytes_on_disk: int
    seconds: float
    bases_per_second: float


def plan(options: Options) -> Estimate:
    """Rows, shards, bytes and time of a run, from its grids and a short probe; writes nothing.

    The probe times a few compute batches and compresses the predictions of random sequence; the
    time is the engine's alone, at full use of all workers.
    """
    setup = _Setup(options)
    genomes = [_plan_genome(setup, source) for source in options.genomes]
    numerics = setup.decide(setup.random_block)
    engine = setup.engine(numerics)
    windows = sum(genome.windows for genome in genomes) / options.shard[1]
    rows = sum(genome.rows for genome in genomes)
    seconds = windows / numerics.compute_batch * engine.seconds_per_batch() / setup.workers
    bases = sum(genome.bases for genome in genomes) / options.shard[1]
    return Estimate(
        genomes=genomes,
        numerics=numerics,
        workers=setup.workers,
        samples=setup.geometry.samples,
        bytes_on_disk=int(rows * _bytes_per_row(setup, engine)) if rows else 0,
        seconds=seconds,
        bases_per_second=bases / seconds if seconds else 0.0,
    )


def _plan_genome(setup: _Setup, source: GenomePath) -> GenomePlan:
    options = setup.options
    try:
        with Genome(source.path, name=source.name, write=False) as genome:
            contigs = genome.contigs
        grid = make_grid(contigs, setup.geometry, options.regions, options.centre)
    except GenomepredError as error:
        return GenomePlan(source.name, 0, 0, 0, 0, 0, str(error))
    windows = sum(span.windows for span in grid.spans(0, grid.rows))
    shards = -(-grid.rows // setup.layout.shard_rows)
    bases = sum(contigs.values())
    return GenomePlan(source.name, len(contigs), bases, windows, grid.rows, shards)


def _bytes_per_row(setup: _Setup, engine: Engine) -> float:
    """Stored bytes of a row, from one chunk of predictions of random sequence."""
    layout, batch = setup.layout, engine.numerics.compute_batch
    if layout.compression == "none":
        return float(layout.tracks * np.dtype(layout.dtype).itemsize)
    rows = min(layout.chunk_rows, 4096)
    block = setup.random_block(-(-rows // (batch * setup.geometry.bins)) * batch)
    values = engine.submit(block)().reshape(-1, layout.tracks)[: layout.chunk_rows]
    # The chunk is padded with NaN, which compresses to next to nothing.
    return len(encode_chunk(values, layout)) / len(values)


def merge(out: str | Path) -> list[GenomeResult]:
    """Publish every genome of a run whose shards are all there.

    Raises
    ------
    GenomesFailedError
        If shards are missing; the message says how many of which genomes.
    """
    folder = Path(out)
    plan = _plan_of(folder)
    results = []
    for parts in sorted((folder / PARTS).glob("*/genome.json")):
        record = json.loads(parts.read_text())
        work = GenomeWork(GenomePath(record["name"], Path(record["path"])), plan)
        work.adopt(record)
        missing = len(work.missing())
        if missing:
            note = f"{missing} of {len(work.ranges())} shards are missing"
            results.append(GenomeResult(work.name, "partial", work.final, error=note))
        else:
            work.publish()
            results.append(GenomeResult(work.name, "finished", work.final))
    open_ = [result for result in results if result.outcome != "finished"]
    if open_:
        raise GenomesFailedError(
            f"{len(open_)} of {len(results)} genomes are unfinished; first: {open_[0].name}: "
            f"{open_[0].error}; run predict on this --out again to compute them",
            results,
        )
    return results


def _plan_of(out: Path) -> RunPlan:
    document = read_run(out)
    signature = document["signature"]
    regions = None
    if signature["regions"]:
        regions = next((out / PARTS).glob(f"regions-{signature['regions'][:16]}.bed*"), None)
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
        centre=signature["centre"],
        signature=signature,
        model=document["model"],
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
    folder = Path(out)
    if not folder.is_dir():
        raise OutputError(f"{folder}: not a folder; give the --out of a run")
    reports = []
    sidecars = {path.name[: -len(".h5.json")] for path in folder.glob("*.h5.json")}
    files = {path.name[: -len(".h5")] for path in folder.glob("*.h5")}
    parts = {path.parent.name for path in (folder / PARTS).glob("*/genome.json")}
    if not sidecars | files | parts:
        raise OutputError(f"{folder}: nothing to verify; give the --out of a run")
    for name in sorted(sidecars | files | parts):
        path, sidecar = folder / f"{name}.h5", folder / f"{name}.h5.json"
        if name in sidecars:
            problems = verify_file(path, sidecar)
        elif name in files:
            problems = [f"{sidecar.name} is missing: run predict again to check and publish it"]
        else:
            problems = ["unfinished: run predict again to finish it"]
        reports.append(FileReport(name, path, problems))
    return reports
