"""Cohort runs: a reference and a panel in, one file out; each distinct window computed once.

A shard is a range of windows of the grid, fixed by the number of haplotypes and the model, so that
what it holds is a function of reference, panel and signature alone. Any number of processes work
on the shards of one folder; whoever finds the last one finished joins them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from genomepred.errors import (
    ModelError,
    OutputError,
    PrecisionError,
    SequenceError,
    StoreError,
)
from genomepred.files import Claim, output_error, own_folder, sync_folder
from genomepred.inference.batching import missing_bins
from genomepred.inference.engine import Block, Engine, Numerics
from genomepred.inference.tiles import PAYS, Pieces, Tiles, cut_windows, tile_work
from genomepred.lowering.receptive_field import CannotShareError
from genomepred.lowering.select import REFERENCE, resolve_kernels
from genomepred.models.agreement import difference
from genomepred.progress import Progress
from genomepred.runs.executors.processes import Workers, devices_of, serving
from genomepred.runs.folder import (
    CACHE,
    PARTS,
    RUN_FILE,
    join_run,
    now,
    refuse_links,
    start_run,
)
from genomepred.runs.run import RunReport
from genomepred.runs.setup import Setup
from genomepred.runs.signature import Signature
from genomepred.runs.spec import RunSpec
from genomepred.runs.work import GenomeResult
from genomepred.sequences.cohort import Panel, PanelOptions
from genomepred.sequences.distinct import Chunk, distinct_windows, leader_type
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store.cohort import INDEX_CHUNK, join_cohort, write_cohort_part
from genomepred.store.hdf5 import (
    DamagedPartError,
    Layout,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)

# Bytes that the values of all haplotypes of a shard may take if no two are equal, and windows of a
# shard at most: what a kill loses, and what is read again for its margins.
_SHARD_BYTES = 1 << 28
_SHARD_WINDOWS = 1 << 12
_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 1.0
_MOST_DAMAGES = 3
# Distinct windows that go through tiles at a time: of each such group one batch of pieces is not
# full.
_TILE_ROWS = 1 << 16
# Haplotype windows that a guard compares.
_GUARDED = 1 << 14
TILES = "tiles"
# Stretches of a grid that a plan looks at, and windows of each.
_STRETCHES, _STRETCH = 8, 256


def shard_windows(haplotypes: int, tracks: int) -> int:
    """Windows of a shard: whole chunks of the index, as many as memory may hold."""
    fitting = _SHARD_BYTES // (4 * haplotypes * tracks)
    return max(min(fitting, _SHARD_WINDOWS) // INDEX_CHUNK, 1) * INDEX_CHUNK


@dataclass(frozen=True, eq=False)
class ShardResult:
    """Predictions of a range of windows.

    Attributes
    ----------
    values : float32 array, [distinct x bins, tracks]
        NaN where missing.
    counts : int64 array, [windows]
        Distinct predictions of each window.
    leader : uint array, [distinct]
    index : uint array, [haplotypes, windows]
    """

    values: NDArray[np.float32]
    counts: NDArray[np.int64]
    leader: NDArray[Any]
    index: NDArray[Any]


def compute_shard(
    engine: Engine, panel: Panel, grid: Grid, first: int, last: int, slots: int
) -> ShardResult:
    """Distinct predictions of windows ``[first, last)`` of a whole grid.

    A window's slot in its compute batch is fixed by its place among the shard's distinct windows.
    """
    rows: _Rows | _TileRows
    rows = _TileRows(engine) if engine.numerics.overlap == TILES else _Rows(engine, slots)
    kind = leader_type(len(panel.haplotypes))
    counts, leader, index = [], [np.empty(0, kind)], []
    for contig, begin, end in _pieces(grid, first, last):
        for chunk in distinct_windows(panel, grid.geometry, contig, begin, end):
            counts.append(np.diff(chunk.begin))
            leader.append(chunk.leader)
            index.append(chunk.index)
            rows.take(chunk, contig)
    return ShardResult(
        rows.finish(), np.concatenate(counts), np.concatenate(leader), np.concatenate(index, axis=1)
    )


def _pieces(grid: Grid, first: int, last: int) -> Iterator[tuple[str, int, int]]:
    """Contigs and their own windows in a range of a grid's windows."""
    ends = np.append(grid.first_window[1:], grid.rows // grid.geometry.bins)
    k = int(np.searchsorted(ends, first, side="right"))
    while first < last:
        origin, end = int(grid.first_window[k]), min(int(ends[k]), last)
        if first < end:
            yield str(grid.contigs[k]), first - origin, end - origin
            first = end
        k += 1


class _TileRows:
    """Distinct windows on their way through tiles, some ten thousand at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._tiles = engine, Tiles(engine)
        self._contig, self._waiting = "", 0
        self._real: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float32]] = []

    def take(self, chunk: Chunk, contig: str) -> None:
        """Note a chunk's rows, and compute what waits if it is enough."""
        if contig != self._contig:  # keys are places on a contig
            self._compute()
            self._tiles.reset()
            self._contig = contig
        self._tiles.take(chunk)
        self._real.append(chunk.real_bases())
        self._waiting += len(chunk.leader)
        if self._waiting >= _TILE_ROWS:
            self._compute()

    def finish(self) -> NDArray[np.float32]:
        """Values of everything taken, [rows, tracks]."""
        self._compute()
        return np.concatenate([np.empty((0, self._engine.tracks), np.float32), *self._values])

    def _compute(self) -> None:
        if not self._waiting:
            return
        values = self._tiles.values()
        missing = (np.concatenate(self._real) < self._engine.card.min_bases)[:, None]
        self._values.append(_checked(self._engine, values, missing, self._contig))
        self._real, self._waiting = [], 0


def _checked(
    engine: Engine, found: NDArray[np.float32], missing: NDArray[np.bool_], contig: str
) -> NDArray[np.float32]:
    """Values ``[windows, bins, tracks]`` as rows, NaN where missing.

    Raises
    ------
    PrecisionError
        If another value is not finite.
    """
    values = np.where(missing[..., None], np.float32(np.nan), found)
    if (~np.isfinite(values).all(axis=2) & ~missing).any():
        raise PrecisionError(
            f"{engine.card.name!r} gives values that are not finite on {contig!r} in "
            f"{engine.numerics.precision}; start again in a new --out with --precision fp32, if "
            "this is not what it was"
        )
    return values.reshape(-1, values.shape[2])


class _Rows:
    """Distinct windows on their way through the engine, a block at a time."""

    def __init__(self, engine: Engine, slots: int) -> None:
        self._engine, self._slots = engine, slots
        window = engine.geometry.window
        self._codes = torch.full((slots * window,), 4, dtype=torch.uint8)
        self._table = self._codes.numpy().reshape(slots, window)
        self._used = 0
        self._values: list[NDArray[np.float32]] = []

    def take(self, chunk: Chunk, contig: str) -> None:
        """Compute a chunk's rows, as far as they fill a block."""
        done, count = 0, len(chunk.leader)
        while done < count:
            more = min(count - done, self._slots - self._used)
            self._table[self._used : self._used + more] = chunk.codes(done, done + more)
            self._used += more
            done += more
            if self._used == self._slots:
                self._compute(contig)

    def finish(self) -> NDArray[np.float32]:
        """Values of everything taken, [rows, tracks]."""
        if self._used:
            self._compute("the shard's end")
        empty = np.empty((0, self._engine.tracks), np.float32)
        return np.concatenate([empty, *self._values])

    def _compute(self, contig: str) -> None:
        g, batch, count = self._engine.geometry, self._engine.numerics.compute_batch, self._used
        slots = ceil(count / batch) * batch
        self._table[count:slots] = 4
        flat = self._table[:slots].reshape(-1)
        starts = np.arange(slots, dtype=np.int64) * g.window
        missing = np.ones((slots, g.bins), np.bool_)
        missing[:count] = missing_bins(flat, starts[:count], g, self._engine.card.min_bases)
        needed = np.any(~missing.reshape(-1, batch * g.bins), axis=1)
        codes = self._codes[: slots * g.window]
        found = self._engine.submit(Block(codes, starts, g.window, needed))()
        self._values.append(_checked(self._engine, found[:count], missing[:count], contig))
        self._used = 0


@dataclass(frozen=True)
class Sharing:
    """Counted work of stretches of a panel.

    Parameters
    ----------
    windows, distinct : int
        Windows of the grid that were looked at, and distinct ones of them.
    pieces : tuple of int
        Distinct left ends, tiles and right ends; empty if the model has none.
    saving : float
        How many times less multiply-adds through tiles than for distinct windows by themselves;
        0 without tiles.
    """

    windows: int
    distinct: int
    pieces: tuple[int, ...]
    saving: float


def look(setup: Setup, panel: Panel, grid: Grid, stretches: int = _STRETCHES) -> Sharing:
    """Find what is distinct in stretches of the grid; nothing is computed."""
    windows = grid.rows // grid.geometry.bins
    stride = grid.geometry.stride
    step = max((windows - _STRETCH) // max(stretches - 1, 1), _STRETCH)
    kinds: tuple[Pieces, ...] = ()
    works: tuple[int, ...] = ()
    head = alone = 0
    with suppress(CannotShareError):
        works, head, alone = tile_work(setup.model, stride)
        kinds = cut_windows(setup.model, stride)
    looked = distinct = 0
    pieces = [0] * len(kinds)
    for first in range(0, windows, step):
        for contig, a, b in _pieces(grid, first, min(first + _STRETCH, windows)):
            found: list[set[bytes]] = [set() for _ in kinds]
            for chunk in distinct_windows(panel, grid.geometry, contig, a, b):
                looked += len(chunk.begin) - 1
                distinct += len(chunk.leader)
                for kind, seen in zip(kinds, found, strict=True):
                    key, _, _ = chunk.piece_keys(kind.offsets, kind.length)
                    seen.update(np.unique(key.reshape(-1).view("V16")).tolist())
            pieces = [n + len(seen) for n, seen in zip(pieces, found, strict=True)]
    if not kinds:
        return Sharing(looked, distinct, (), 0.0)
    work = sum(n * w for n, w in zip(pieces, works, strict=True)) + distinct * head
    return Sharing(looked, distinct, tuple(pieces), distinct * alone / max(work, 1))


def decide(setup: Setup, panel: Panel, grid: Grid, overlap: str, found: Sharing) -> Numerics:
    """Numerics of a cohort run: tiles where counted work says that they pay and a guard agrees.

    ``found`` is what :func:`look` has counted.

    Raises
    ------
    ModelError
        If sharing is asked for and the model has no tiles.
    PrecisionError
        If it is asked for and the guard is against it, or as for other runs.
    """
    numerics = setup.decide()
    if overlap == "naive" or not grid.rows:
        return numerics
    if not found.pieces and overlap == "share":
        raise ModelError(
            f"--overlap share: {setup.card.name!r} has no trunk whose stretches windows share, or "
            "its windows are too short; use --overlap auto or naive"
        )
    if not found.pieces or (overlap == "auto" and found.saving < PAYS):
        return numerics
    kernels = resolve_kernels(setup.model, setup.spec.kernels, setup.device, numerics.precision)
    tiles = replace(numerics, kernels=kernels, overlap=TILES)
    differ = _difference_of_tiles(setup, panel, grid, tiles)
    allowed = setup.card.tolerance[numerics.precision]
    if differ <= allowed:
        return tiles
    why = f"tiles differ from windows by themselves by {differ:.2g}, allowed are {allowed:.2g}"
    if overlap == "share":
        raise PrecisionError(f"--overlap share: {why}; use --overlap auto or naive")
    warnings.warn(f"overlap is not shared: {why}", stacklevel=2)
    return numerics


def _difference_of_tiles(setup: Setup, panel: Panel, grid: Grid, tiles: Numerics) -> float:
    """Largest difference between a stretch through tiles and as the model is written."""
    windows = grid.rows // grid.geometry.bins
    first = windows // 2
    last = min(first + max(_GUARDED // len(panel.haplotypes), 8), windows)
    alone = setup.engine(replace(tiles, kernels=REFERENCE, overlap="naive", precision="fp32"))
    slots = setup.slots(tiles.compute_batch)
    expected = compute_shard(alone, panel, grid, first, last, slots).values
    found = compute_shard(setup.engine(tiles), panel, grid, first, last, slots).values
    known = ~np.isnan(expected)
    return difference(found[known], expected[known])


class CohortRun:
    """A run on one reference and one panel.

    Parameters
    ----------
    options : RunSpec
        Of one genome, the reference.
    variants : Path
        VCF or BCF.
    panel_options : PanelOptions

    Raises
    ------
    GenomepredError
        If model, reference, panel or options do not fit, or the run was started with others.
    """

    def __init__(self, options: RunSpec, variants: Path, panel_options: PanelOptions) -> None:
        if len(options.genomes) != 1:
            raise ModelError(
                f"--variants: one genome is the reference, but {len(options.genomes)} are given"
            )
        if options.regions is not None:
            raise ModelError("--variants with --regions: a panel is predicted whole; leave one out")
        self._started = now()
        self.options = options
        self.out = options.out
        refuse_links(self.out)
        self.setup = Setup(replace(options, overlap="naive"))
        self.geometry: Geometry = self.setup.geometry
        self.layout: Layout = self.setup.layout
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            cache = own_folder(self.out, CACHE)
        except OSError as error:
            raise output_error(self.out, error) from error
        self.genome = options.genomes[0].open(cache)
        self.panel = Panel(self.genome, variants, panel_options, cache=cache)
        self.grid = Grid.whole(self.genome.contigs, self.geometry)
        self.windows = self.grid.rows // self.geometry.bins
        self.signature = self._open()
        self.name = self.panel.name
        self.folder = own_folder(self.out, PARTS, self.name)
        self.final = self.out / f"{self.name}.h5"
        self.step = shard_windows(len(self.panel.haplotypes), self.layout.tracks)

    def _open(self) -> Signature:
        setup, options = self.setup, self.options
        expected = setup.facts() | {"reference": self.genome.digest(), "panel": self.panel.digest}
        asked: dict[str, Any] = {}
        if options.overlap != "auto":
            asked["overlap"] = {"naive": "naive", "share": TILES}[options.overlap]
        if options.precision != "auto":
            asked["precision"] = options.precision
        about = {"tracks": setup.tracks, "command": sys.argv, "genomes": [self.panel.name]}
        if not os.path.lexists(self.out / RUN_FILE):
            start_run(self.out, {**expected, **asdict(self._decide())}, about)
        return join_run(self.out, expected | asked)[0]

    def _decide(self) -> Numerics:
        found = look(self.setup, self.panel, self.grid)
        return decide(self.setup, self.panel, self.grid, self.options.overlap, found)

    @cached_property
    def engine(self) -> Engine:
        """The engine that obeys the run's signature."""
        return self.setup.engine(self.signature.numerics)

    def ranges(self) -> list[tuple[int, int]]:
        """Windows of all shards."""
        return [
            (first, min(first + self.step, self.windows))
            for first in range(0, self.windows, self.step)
        ]

    def part(self, first: int, last: int) -> Path:
        """Path of a finished shard."""
        return self.folder / f"{first}-{last}.h5"

    def part_attributes(self, first: int, last: int) -> dict[str, str | int]:
        """Attributes of a part."""
        return {
            "genome": self.name,
            "first_window": first,
            "last_window": last,
            "signature": self.signature.text,
        }

    def finished(self) -> dict[str, Any] | None:
        """The sidecar, if the file is published and what it says."""
        sidecar = sidecar_path(self.final)
        if not sidecar.exists() or not self.final.exists():
            return None
        try:
            noted = read_sidecar(sidecar)
        except StoreError:
            return None  # damaged: the file is published again, with the same bytes
        same = noted["outcome"] == "finished" and noted["signature"] == self.signature.to_json()
        return noted if same and self.final.stat().st_size == noted["bytes"] else None

    def missing(self) -> list[tuple[int, int]]:
        """Shards of this process's share that are not on disk."""
        i, n = self.options.shard
        return [
            shard
            for k, shard in enumerate(self.ranges())
            if k % n == i - 1 and not self.part(*shard).exists()
        ]

    def compute(self, progress: Callable[[int, int], object] = lambda *_: None) -> None:
        """Compute the shards of this process's share that nobody else is at.

        ``progress`` is told windows, and distinct windows of them, of every shard that is done.
        """
        for first, last in self.missing():
            claim = Claim.take(self.folder / f"{first}-{last}.lock")
            if claim is None:
                continue
            try:
                if not self.part(first, last).exists():
                    distinct = self._compute(first, last)
                    progress(last - first, distinct)
            finally:
                claim.release()

    def _compute(self, first: int, last: int) -> int:
        slots = self.setup.slots(self.signature.compute_batch)
        found = compute_shard(self.engine, self.panel, self.grid, first, last, slots)
        self._check_sources()
        write_cohort_part(
            self.part(first, last),
            found.values,
            found.counts,
            found.leader,
            found.index,
            self.layout,
            self.part_attributes(first, last),
        )
        return len(found.leader)

    def _check_sources(self) -> None:
        for path, stamp in (
            (self.genome.path, self.genome.stamp),
            (self.panel.path, self.panel.stamp),
        ):
            found = path.stat() if path.exists() else None
            if found is None or (found.st_size, found.st_mtime_ns) != stamp:
                raise SequenceError(
                    f"{path} changed while it was being predicted: restore it and run again, or "
                    "use another --out"
                )

    def publish(self) -> bool:
        """Join all shards into the file; False if some are missing, or one proved damaged."""
        claim = Claim.take(self.folder / "publish.lock", wait=True)
        try:
            if self.finished() is not None:
                return True
            ranges = self.ranges()
            if not all(self.part(*shard).exists() for shard in ranges):
                return False
            self._check_sources()
            said = self.signature
            attributes: dict[str, Any] = {
                "genome": self.name,
                "sequence_digest": said.reference,
                "panel": said.panel,
                "model": said.model,
                "weights_sha256": said.weights_sha256,
                "strand": said.strand,
                "precision": said.precision,
                "package_version": said.genomepred,
            }
            try:
                digest = join_cohort(
                    [self.part(*shard) for shard in ranges],
                    self.final,
                    self.layout,
                    self.grid,
                    self.setup.tracks,
                    self.panel.haplotypes,
                    attributes,
                    [self.part_attributes(*shard) for shard in ranges],
                )
            except DamagedPartError as error:
                error.path.unlink(missing_ok=True)
                return False
            sync_folder(self.out)
            self._write_outcome(digest)
            self._clear()
            return True
        finally:
            if claim is not None:
                claim.release()

    def _write_outcome(self, digest: str) -> None:
        size, mtime_ns = self.genome.stamp
        document = {
            "outcome": "finished",
            "sha256": digest,
            "bytes": self.final.stat().st_size,
            "rows": self.grid.rows,
            "bases": sum(self.genome.contigs.values()),
            "genome": {
                "path": str(self.genome.path),
                "size": size,
                "mtime_ns": mtime_ns,
                "digest": self.signature.reference,
            },
            "signature": self.signature.to_json(),
            "started": self._started,
            "finished": now(),
        }
        write_sidecar(sidecar_path(self.final), document)

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except OSError:
            return  # another process is about to look

    def result(self) -> GenomeResult:
        """Outcome as other runs report it."""
        noted = self.finished()
        if noted is None:
            return GenomeResult(self.name, "partial", self.final)
        return GenomeResult(self.name, "finished", self.final, noted["rows"], noted["bases"])

    def close(self) -> None:
        """Close reference and panel."""
        self.panel.close()
        self.genome.close()


def run_cohort(
    options: RunSpec, variants: Path, panel_options: PanelOptions, progress: bool = False
) -> RunReport:
    """Start or continue a cohort run; see :func:`predict_cohort`."""
    threads = torch.get_num_threads()
    run = CohortRun(options, variants, panel_options)
    try:
        if progress:
            for line in run.panel.warnings():
                tqdm.write(f"genomepred: {variants}: {line}", sys.stderr)
        return _run(run, progress)
    finally:
        torch.set_num_threads(threads)
        run.close()


def _run(run: CohortRun, progress: bool) -> RunReport:
    computed = 0
    if run.finished() is None:
        haplotypes, stride = len(run.panel.haplotypes), run.geometry.stride
        left = sum(last - first for first, last in run.missing()) * stride
        bar = Progress(total=left, unit=" bases", unit_scale=True, shown=progress, smoothing=0.05)
        done, counting = [0, 0], threading.Lock()

        def count(bases: int) -> None:
            nonlocal computed
            with counting:  # called by several threads
                computed += bases
                bar.update(bases)

        def count_own(windows: int, distinct: int) -> None:
            done[0] += windows
            done[1] += distinct
            share = f"{done[1] / done[0]:.1f} of {haplotypes:,} haplotypes distinct"
            bar.set_postfix_str(share, refresh=False)
            count(windows * stride)

        helping = max(min(run.setup.workers, len(run.missing())) - 1, 0)
        told = {"variants": str(run.panel.path), "panel": asdict(run.panel.options)}
        devices = devices_of(run.options.device, helping + 1)[1:]
        specs = [replace(run.options, device=device).to_json(**told) for device in devices]
        workers = Workers(specs, count, __name__)
        with bar, workers:
            for _ in range(_MOST_DAMAGES):
                run.compute(count_own)
                _await_others(run, workers)
                if run.publish() or run.options.shard[1] > 1:
                    break
            else:
                raise OutputError(
                    f"{run.folder}: parts prove damaged again and again; check the disk"
                )
    return RunReport([run.result()], computed)


def work() -> None:
    """Body of a worker process: computes shards until none are left."""
    with serving() as (told, report):
        panel_options = PanelOptions(**told["panel"])
        run = CohortRun(RunSpec.of_json(told), Path(told["variants"]), panel_options)
        run.compute(lambda windows, _: report.done(windows * run.geometry.stride))


def _await_others(run: CohortRun, workers: Workers) -> None:
    """Wait for shards that others are computing; take over those that they give up."""
    delay = _SHORTEST_WAIT
    while run.missing() and run.finished() is None:
        workers.look()
        time.sleep(delay)
        delay = min(2 * delay, _LONGEST_WAIT)
        run.compute()


def predict_cohort(
    reference: str | Path,
    variants: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    missing: str = "reference",
    unphased: str = "error",
    inbred: bool = False,
    samples: tuple[str, ...] | None = None,
    progress: bool = False,
    **options: Any,
) -> GenomeResult:
    """Predict all haplotypes of a panel into one file in ``out``; call again to continue.

    Parameters
    ----------
    reference : path
        FASTA that the panel was called on.
    variants : path
        VCF or BCF; plain, gzip or bgzip.
    model : str or path
        Checkpoint directory, or the name of a bundled model.
    out : path
        Output folder.
    missing : {"reference", "n"}
        What a missing allele is.
    unphased : {"error", "first", "n"}
        What heterozygotes without phase are.
    inbred : bool
        One haplotype a sample.
    samples : tuple of str, optional
        Selected samples; all by default.
    progress : bool
        Show progress on stderr.
    **options
        As of :func:`genomepred.predict`: stride, strand, device, precision, jobs and so on.

    Returns
    -------
    GenomeResult

    Raises
    ------
    GenomepredError
        Whatever stops the run, as in :func:`genomepred.predict`.
    """
    from genomepred.runs.inputs import find_genomes

    asked = RunSpec(
        genomes=tuple(find_genomes([reference])), model=str(model), out=Path(out), **options
    )
    panel_options = PanelOptions(missing, unphased, inbred, samples)  # type: ignore[arg-type]
    return run_cohort(asked, Path(variants), panel_options, progress).genomes[0]


@dataclass(frozen=True)
class CohortEstimate:
    """Estimate of a cohort run, from stretches of its grid.

    Parameters
    ----------
    haplotypes, windows, shards, workers : int
    distinct : float
        Distinct windows a grid window.
    tiles : float
        Distinct trunk tiles a grid window; 0 where windows are computed by themselves.
    saving : float
        How many times less work than every window of every haplotype by itself.
    missing, unphased : int
        Missing alleles and heterozygotes without phase of the panel.
    bytes_on_disk : int
    seconds : float
        Of all workers, start-up not included.
    """

    haplotypes: int
    windows: int
    shards: int
    workers: int
    distinct: float
    tiles: float
    saving: float
    missing: int
    unphased: int
    bytes_on_disk: int
    seconds: float
    warnings: list[str]


def plan_cohort(options: RunSpec, variants: Path, panel_options: PanelOptions) -> CohortEstimate:
    """Distinct windows, bytes and time of a cohort run; writes nothing but temporary files."""
    setup = Setup(replace(options, overlap="naive"), writes=False)
    with options.genomes[0].open() as genome, Panel(genome, variants, panel_options) as panel:
        grid = Grid.whole(genome.contigs, setup.geometry)
        windows, haplotypes = grid.rows // setup.geometry.bins, len(panel.haplotypes)
        found = look(setup, panel, grid)
        numerics = decide(setup, panel, grid, options.overlap, found)
        engine = setup.engine(replace(numerics, overlap="naive"))
        each = found.distinct / max(found.windows, 1)
        rows = windows * each
        saving = found.saving if numerics.overlap == TILES else 1.0
        seconds = rows / numerics.compute_batch * engine.seconds_per_batch() / saving
        seconds /= setup.workers
        values = rows * setup.geometry.bins * setup.layout.tracks
        size = np.dtype(setup.layout.dtype).itemsize
        return CohortEstimate(
            haplotypes=haplotypes,
            windows=windows,
            shards=-(-windows // shard_windows(haplotypes, setup.layout.tracks)),
            workers=setup.workers,
            distinct=each,
            tiles=found.pieces[1] / max(found.windows, 1) if numerics.overlap == TILES else 0.0,
            saving=haplotypes / max(each, 1e-9) * saving,
            missing=panel.counts.missing,
            unphased=panel.counts.unphased,
            # Leaders and their index: two bytes, and a bit for every haplotype.
            bytes_on_disk=int(values * size + 2 * rows + windows * (8 + haplotypes / 8)),
            seconds=seconds,
            warnings=panel.warnings(),
        )
