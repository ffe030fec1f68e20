"""What a run is asked to do, and the model, device, layout and signature that follow from it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from genomepred.errors import (
    GenomepredError,
    OutputError,
    PrecisionError,
    SequenceError,
)
from genomepred.files import open_regular, own_folder, publishing
from genomepred.inference import batching
from genomepred.inference.engine import Block, Engine, Numerics, compute_batch, find_device
from genomepred.inference.numerics import (
    Candidates,
    GuardWindows,
    Subject,
    decide,
    resolve_kernels,
)
from genomepred.inference.overlap_choice import Blocks, Filled, choose_blocks
from genomepred.inference.overlap_work import multiply_adds
from genomepred.machine import usable_cpus, usable_memory
from genomepred.models.card import Card
from genomepred.models.checkpoint import load_model
from genomepred.models.external import External
from genomepred.runs.folder import (
    CACHE,
    PARTS,
    RUN_FILE,
    RunPlan,
    check_regions,
    make_grid,
    refuse_links,
    regions_path,
)
from genomepred.runs.inputs import is_own_place
from genomepred.runs.signature import facts, join_run, start_run
from genomepred.runs.spec import RunSpec
from genomepred.runs.status import restart_if_mistaken
from genomepred.sequences.bed import self_described
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Grid
from genomepred.store.hdf5 import Layout

# Compute batches handed to the device at a time, unless --batch-size says otherwise. One thread, a
# single linear layer at stride 20: 4, 16, 64 a block gave 22-25, 28, 29-32 million bases/s.
_BATCHES_A_BLOCK = {"cpu": 16, "cuda": 2}
# A worker costs about 4 s of start-up on one core; it is started only for work worth that: so many
# windows, which reading and writing take, or the multiply-adds of so many of the two-block CNN.
_WINDOWS_A_WORKER = 100_000
_MULTIPLY_ADDS_A_WORKER = 2.5e11
# Threads that encode chunks, of all workers together no more than processors.
_COMPRESSORS = 4
# Bytes that a worker holds, about: 0.33 GB with torch and a model, 0.12 GB for blocks and shards.
_MEMORY_A_WORKER = 600_000_000


class _Looked(NamedTuple):
    """What a look at the first genome gives to the decision."""

    blocks: Blocks | None
    windows: GuardWindows


class Setup:
    """Model, device and layout of a run, before anything is written.

    Parameters
    ----------
    spec : RunSpec
        What is asked for.
    writes : bool, optional
        Whether indexes of genomes may be kept in the output folder.
    """

    def __init__(self, spec: RunSpec, writes: bool = True) -> None:
        self.spec, self._writes = spec, writes
        self.device = find_device(spec.device)
        self.model = load_model(spec.model, trust_code=spec.trust_code)
        card = self.model.card
        assert isinstance(card, Card)
        self.card = card
        self.geometry = card.geometry(spec.stride)
        tracks = [(track.name, track.description) for track in card.tracks]
        if spec.strand == "each":
            tracks = [(name + sign, text) for sign in "+-" for name, text in tracks]
        self.tracks = tuple(tracks)
        self.layout = Layout(
            tracks=len(tracks),
            dtype=spec.store_dtype,
            compression=spec.compression,
            bins=card.bins,
        )
        self.windows = _estimated_windows(spec, self.geometry.stride) / spec.shard[1]
        self.workers = self._workers()

    def _workers(self, saving: float | None = None) -> int:
        """Processes that are worth starting; ``saving``: how much less work than windows alone."""
        paths = [path for _, path in self.spec.genomes]
        if any(map(is_own_place, filter(None, [*paths, self.spec.regions]))):
            return 1  # what this process reads there is another file, or none, in a worker
        if self.spec.jobs is not None:
            return max(self.spec.jobs, 1)
        if self.device.type == "cuda":
            return torch.cuda.device_count() if self.spec.device in ("auto", "cuda") else 1
        most = self._most_workers()
        worth = self.windows / _WINDOWS_A_WORKER
        if worth < most:
            work = self.windows * multiply_adds(self.model, self.geometry.window)
            if saving is None:
                saving = self._full_blocks.saving if self._full_blocks is not None else 1.0
            work /= saving
            worth = max(worth, work / _MULTIPLY_ADDS_A_WORKER)
        return max(1, min(most, int(worth)))

    @staticmethod
    def _most_workers() -> int:
        """Processes that processors and memory are enough for."""
        return max(min(usable_cpus().amount, usable_memory().amount // _MEMORY_A_WORKER), 1)

    @property
    def names(self) -> list[str]:
        """Files that the run publishes, without their ending."""
        return [genome.name for genome in self.spec.genomes]

    def asked(self) -> dict[str, Any]:
        """What the user has fixed of what is otherwise decided."""
        spec = self.spec
        choices = {"precision": spec.precision, "overlap": spec.overlap}
        asked: dict[str, Any] = {k: choice for k, choice in choices.items() if choice != "auto"}
        if spec.kernels != "auto":
            asked["kernels"] = list(resolve_kernels(self.model, spec.kernels, self.device, "fp32"))
        return asked

    def open(self) -> RunPlan:
        """Create the run in its output folder, or join the one that is there."""
        spec = self.spec
        refuse_links(spec.out)
        names = self.names
        about: dict[str, Any] = {"tracks": self.tracks, "command": sys.argv, "genomes": names}
        expected, asked = self.facts(), self.asked()
        restart_if_mistaken(spec.out, {**expected, **asked}, names)
        if not os.path.lexists(spec.out / RUN_FILE):
            numerics = self.decide()
            about["saving"] = self.saving(numerics)
            about["fingerprint"] = self.fingerprint(self.engine(numerics))
            start_run(spec.out, expected, numerics, about)
        return self.join(asked)

    def join(self, asked: Mapping[str, Any] = MappingProxyType({})) -> RunPlan:
        """Join the run that is in the output folder; ``asked``: what the user has fixed of it."""
        spec = self.spec
        document = join_run(spec.out, self.facts(), asked)
        signature = document["signature"]
        i, n = spec.shard
        return RunPlan(
            out=spec.out,
            geometry=self.geometry,
            layout=self.layout,
            regions=_keep_regions(spec, signature["regions"]),
            regions_called=str(spec.regions),
            center=spec.center,
            signature=signature,
            tracks=self.tracks,
            share=(i - 1, n),
            compressors=max(1, min(_COMPRESSORS, usable_cpus().amount // self.workers)),
            run_id=document.get("id", ""),
            fingerprint=document.get("fingerprint", ""),
        )

    def facts(self) -> dict[str, Any]:
        """What of the signature follows from the command and the machine."""
        spec = self.spec
        return facts(
            self.card,
            self.geometry,
            self.layout,
            self.device,
            strand=spec.strand,
            regions=spec.regions,
            center=spec.center,
            code_sha256=self.model.code.sha256 if isinstance(self.model, External) else None,
        )

    @cached_property
    def blocks(self) -> Blocks | None:
        """Blocks to share overlap by, unless a guard decides against them; None: no sharing."""
        return self._looked.blocks

    @cached_property
    def _looked(self) -> _Looked:
        """What the first genome that can be read and has rows tells; of random windows if none.

        Raises
        ------
        RegionError
            If the BED does not fit that genome.
        GenomepredError
            If no genome can be read to check a precision on.
        """
        spec = self.spec
        guards = self.device.type != "cpu" or spec.precision not in ("auto", "fp32")
        real = guards and self._writes  # random windows guard float32, and estimates
        if not (real or self._full_blocks is not None or spec.regions is not None):
            return _Looked(None, self._random_windows(None))
        for name, path in spec.genomes:
            cache = spec.out / CACHE if self._writes else None
            with (
                contextlib.suppress(SequenceError),
                Genome(path, name=name, cache=cache, write=self._writes) as genome,
            ):
                grid = make_grid(genome.contigs, self.geometry, spec.regions, spec.center)
                if grid.rows:
                    blocks = self._blocks_of(genome, grid)
                    random = None if real else self._random_windows(blocks)
                    return _Looked(blocks, random or self._windows_of(genome, grid, blocks))
        if real:
            raise GenomepredError(
                f"--precision {spec.precision}: no genome can be read to check it on"
            )
        return _Looked(self._full_blocks, self._random_windows(self._full_blocks))

    def _blocks_of(self, genome: Genome, grid: Grid) -> Blocks | None:
        """Blocks as full as a genome's are: short contigs, and regions far apart, leave gaps."""
        if self._full_blocks is None:
            return None
        grids = (Grid.whole(genome.contigs, self.geometry), grid)
        contigs, batches = list(genome.contigs), _BATCHES_A_BLOCK[self.device.type]
        fills = [partial(batching.filled, g, contigs, batches=batches) for g in grids]
        return self._choose_blocks(*fills)

    def _windows_of(self, genome: Genome, grid: Grid, blocks: Blocks | None) -> GuardWindows:
        spread = batching.sample(genome, grid, self.subject.compute_batch)
        following = blocks and batching.sample_shared(genome, grid, blocks.windows)
        return GuardWindows(spread, following)

    def _random_windows(self, blocks: Blocks | None) -> GuardWindows:
        spread = self.random_block(self.subject.compute_batch)
        return GuardWindows(spread, blocks and self.random_block(blocks.windows, True))

    @cached_property
    def _full_blocks(self) -> Blocks | None:
        """What :attr:`blocks` would be if every window of every block were asked for."""
        return self._choose_blocks(lambda windows: 1.0)

    def _choose_blocks(self, whole: Filled, asked: Filled | None = None) -> Blocks | None:
        overlap = "naive" if self.spec.center else self.spec.overlap
        kind = self.device.type
        return choose_blocks(self.model, self.geometry, kind, overlap, whole, asked)

    def saving(self, numerics: Numerics) -> float:
        """How many times the work of a run it would be without sharing, in multiply-adds."""
        blocks = self.blocks if numerics.overlap == "share" else None
        return blocks.saving if blocks is not None else 1.0

    @property
    def subject(self) -> Subject:
        """What is to be computed, and where."""
        return Subject(self.model, self.card, self.geometry, self.device)

    def decide(self) -> Numerics:
        """Choose overlap, precision and kernels (see :func:`genomepred.inference.numerics.decide`).

        Raises
        ------
        PrecisionError
            If precision, kernels or sharing that are asked for differ too much from the model.
        DeviceError
            If the kernels that are asked for do not run on the device.
        """
        spec, looked = self.spec, self._looked
        windows = self.windows / self.workers
        candidates = Candidates(spec.precision, spec.kernels, spec.strand, looked.blocks, windows)
        numerics = decide(self.subject, candidates, looked.windows)
        if spec.overlap == "share" and numerics.overlap != "share":
            raise PrecisionError(
                f"--overlap share: {self.card.name!r} is not what it is window by window, as the "
                "warning says; use --overlap auto or naive"
            )
        return numerics

    def random_block(self, windows: int, consecutive: bool = False, seed: int = 0) -> Block:
        """Windows of random sequence, side by side or ``consecutive`` ones of a grid."""
        window, stride = self.geometry.window, self.geometry.window
        batch = compute_batch(window, self.device.type, self.geometry.bins)
        if consecutive:
            stride, batch = self.geometry.stride, windows
        return batching.random_block(windows, window, stride, batch, seed)

    def engine(self, numerics: Numerics) -> Engine:
        """The engine that obeys the given numerics."""
        return self.subject.engine(numerics)

    def fingerprint(self, engine: Engine) -> str:
        """Hash of what an engine makes of one fixed compute batch.

        Processors of one description may differ in last bits by maker and generation.
        """
        numerics = engine.numerics
        block = self.random_block(numerics.compute_batch, numerics.overlap == "share")
        return hashlib.sha256(engine.submit(block)().tobytes()).hexdigest()

    def slots(self, batch: int) -> int:
        """Windows of one block: the batch size, rounded up to whole compute batches."""
        asked = self.spec.batch_size or batch * _BATCHES_A_BLOCK[self.device.type]
        return -(-asked // batch) * batch


def _estimated_windows(spec: RunSpec, stride: int) -> float:
    """About how many windows there are, from sizes of files alone.

    Compressed sequence has about four bases a byte; a BED record has about 20 bytes, and 10 kb.
    """
    total = 0
    for _, path in spec.genomes:
        with contextlib.suppress(OSError), open(open_regular(path), "rb") as file:
            magic = file.read(6)
            packed = magic.startswith((b"\x1f\x8b", b"\xfd7zXZ\x00"))
            total += path.stat().st_size * (4 if packed else 1)
    windows = total / stride
    if spec.regions is not None:
        records = len(spec.genomes) * spec.regions.stat().st_size / 20
        windows = min(windows, records if spec.center else records * 10_000 / stride)
    return windows


def _keep_regions(spec: RunSpec, sha256: str | None) -> Path | None:
    """A copy of the BED within the run, so that merging needs nothing else."""
    if spec.regions is None or sha256 is None:
        return None
    kept = regions_path(spec.out, sha256)
    try:
        check_regions(kept, sha256)
    except OutputError:
        own_folder(spec.out, PARTS)
        with publishing(kept) as temporary, open(temporary, "xb") as copy:
            copy.writelines(self_described(spec.regions))
        check_regions(kept, sha256)
    return kept
