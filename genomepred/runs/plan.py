"""Estimates of a run, before anything is written."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genomepred.errors import GenomepredError, StoreError
from genomepred.inference.engine import Batches, Engine, Numerics
from genomepred.inference.pipeline import count_batches
from genomepred.runs.folder import PARTS, files_in, make_grid
from genomepred.runs.setup import Setup
from genomepred.runs.spec import GenomePath, RunSpec
from genomepred.sequences.fasta import Genome
from genomepred.store.schema import encode_chunk, read_sidecar, sidecar_path

# Coordinates, tracks and dimension scales of one file, of a few contigs.
_FILE_BYTES = 8_000


@dataclass(frozen=True)
class GenomePlan:
    """Estimate of predicting one genome."""

    name: str
    contigs: int
    bases: int
    windows: int
    rows: int
    shards: int
    batches: int
    finished: int = 0  # of the shards
    error: str = ""

    @property
    def left(self) -> float:
        """Share of the work that is left."""
        return 1 - self.finished / self.shards if self.shards else 0.0


@dataclass(frozen=True)
class Estimate:
    """Estimate of a run: see :func:`plan`.

    ``saving`` is how many times the work it would take without sharing overlap: multiply-adds,
    and what phases cost beside them. ``why_alone`` tells why ``auto`` shares none.
    """

    genomes: list[GenomePlan]
    numerics: Numerics
    workers: int
    saving: float
    why_alone: str
    samples: bool
    bytes_on_disk: int
    seconds: float
    bases_per_second: float


def plan(spec: RunSpec) -> Estimate:
    """Rows, shards, bytes and time of a run, from its grids and a short probe; writes nothing.

    The probe times a few compute batches and compresses the predictions of random sequence; the
    time is the engine's alone, at full use of all workers, and for shards that are not done yet.
    """
    setup = Setup(spec, writes=False)
    numerics, saving = setup.decide()
    genomes = [_plan_genome(setup, numerics, source) for source in spec.genomes]
    engine = setup.engine(numerics)
    batches = sum(genome.batches * genome.left for genome in genomes) / spec.shard[1]
    rows = sum(genome.rows for genome in genomes) / spec.shard[1]
    files = sum(genome.rows > 0 for genome in genomes)
    seconds = batches * engine.seconds_per_batch() / setup.workers
    bases = sum(genome.bases * genome.left for genome in genomes) / spec.shard[1]
    return Estimate(
        genomes=genomes,
        numerics=numerics,
        workers=setup.workers,
        saving=saving,
        why_alone=setup.why_alone(numerics),
        samples=setup.geometry.samples,
        bytes_on_disk=int(rows * _bytes_per_row(setup, engine) + files * _FILE_BYTES)
        if rows
        else 0,
        seconds=seconds,
        bases_per_second=bases / seconds if seconds else 0.0,
    )


def _plan_genome(setup: Setup, numerics: Numerics, source: GenomePath) -> GenomePlan:
    spec = setup.spec
    try:
        with Genome(source.path, name=source.name, write=False) as genome:
            contigs = genome.contigs
        grid = make_grid(contigs, setup.geometry, spec.regions, spec.center)
    except GenomepredError as error:
        return GenomePlan(source.name, 0, 0, 0, 0, 0, 0, error=str(error))
    step = setup.layout.shard_rows(numerics.compute_batch)
    shards = -(-grid.rows // step)
    shared = numerics.overlap == "share"
    batch = numerics.compute_batch
    windows, batches = count_batches(
        grid, list(contigs), grid.rows, batch, setup.slots(batch), shared
    )
    bases = sum(contigs.values())
    finished = _finished(spec.out, source.name, grid.rows, step)
    return GenomePlan(
        source.name, len(contigs), bases, windows, grid.rows, shards, batches, finished
    )


def _finished(out: Path, name: str, rows: int, step: int) -> int:
    """Shards of a genome that are done: all of a published one, those with parts of another."""
    final = out / f"{name}.h5"
    with suppress(StoreError, OSError):
        noted = read_sidecar(sidecar_path(final))
        if noted["outcome"] == "finished" and final.stat().st_size == noted["bytes"]:
            return -(-rows // step)
    with suppress(OSError):
        there = files_in(out / PARTS / name)
        return sum(f"{k}-{min(k + step, rows)}.h5" in there for k in range(0, rows, step))
    return 0


def _bytes_per_row(setup: Setup, engine: Engine) -> float:
    """Stored bytes of a row, from one chunk of predictions of random sequence."""
    layout, numerics = setup.layout, engine.numerics
    if layout.compression == "none":
        return float(layout.tracks * np.dtype(layout.dtype).itemsize)
    g, batch, shared = setup.geometry, numerics.compute_batch, numerics.overlap == "share"
    count = -(-min(layout.chunk_rows, 4096) // (batch * g.bins))
    batches = (Batches.random(batch, g, shared, seed) for seed in range(count))
    values = np.concatenate([engine.submit(one)().reshape(-1, layout.tracks) for one in batches])
    values = values[: layout.chunk_rows]
    # The chunk is padded with NaN, which compresses to next to nothing.
    return len(encode_chunk(values, layout)) / len(values)
