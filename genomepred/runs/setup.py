"""What a run is asked to do, and the model, device, layout and signature that follow from it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from genomepred.errors import (
    GenomepredError,
    ModelError,
    OutputError,
    PrecisionError,
    RegionError,
    SequenceError,
)
from genomepred.files import open_regular, own_folder, publishing
from genomepred.inference import batching
from genomepred.inference.engine import (
    STRANDS,
    Block,
    Engine,
    Numerics,
    choose_numerics,
    compute_batch,
    find_device,
    resolve_kernels,
)
from genomepred.inference.overlap_choice import OVERLAPS, Blocks, Filled, choose_blocks
from genomepred.inference.overlap_work import multiply_adds
from genomepred.kernels.dispatch import ASKED, PRECISIONS
from genomepred.machine import usable_cpus, usable_memory
from genomepred.models.card import Card
from genomepred.models.checkpoint import load_model
from genomepred.models.external import External
from genomepred.runs.genome import (
    CACHE,
    PARTS,
    RunPlan,
    check_regions,
    make_grid,
    refuse_links,
    regions_path,
)
from genomepred.runs.inputs import GenomePath, is_own_place
from genomepred.runs.signature import RUN_FILE, facts, open_run
from genomepred.sequences.bed import self_described
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Grid
from genomepred.store.hdf5 import Layout

T = TypeVar("T")

# Compute batches handed to the device at a time, unless --batch-size says otherwise. One thread, a
# single linear layer at stride 20: 4, 16, 64 a block gave 22-25, 28, 29-32 million bases/s.
_BATCHES_A_BLOCK = {"cpu": 16, "cuda": 2}
# A worker costs about 4 s of start-up on one core; it is started only for work worth that: so many
# windows, which reading and writing take, or the multiply-adds of so many of the two-block CNN.
_WINDOWS_A_WORKER = 100_000
_MULTIPLY_ADDS_A_WORKER = 2.5e11
# Bytes that a worker holds, about: 0.33 GB with torch and a model, 0.12 GB for blocks and shards.
_MEMORY_A_WORKER = 600_000_000


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
    trust_code: str | None = None
    overlap: str = "auto"
    kernels: str = "auto"

    def __post_init__(self) -> None:
        i, n = self.shard
        if not 1 <= i <= n:
            raise ModelError(f"--shard {i}/{n}: write I/N with 1 <= I <= N")
        if self.strand not in STRANDS:
            raise ModelError(f"--strand {self.strand!r}: one of {', '.join(STRANDS)}")
        if self.precision not in ("auto", *PRECISIONS):
            raise ModelError(
                f"--precision {self.precision!r}: one of auto, {', '.join(PRECISIONS)}"
            )
        if self.overlap not in OVERLAPS:
            raise ModelError(f"--overlap {self.overlap!r}: one of {', '.join(OVERLAPS)}")
        if self.kernels not in ASKED:
            raise ModelError(f"--kernels {self.kernels!r}: one of {', '.join(ASKED)}")
        if self.overlap == "share" and self.centre:
            raise ModelError("--overlap share: windows of --centre lie anywhere; leave it out")
        if self.regions is not None and not self.regions.is_file():
            raise RegionError(f"--regions {self.regions}: no such file, or no regular one")
        if self.centre and self.regions is None:
            raise ModelError("--centre needs --regions: one window is centred on each BED record")


class Setup:
    """Model, device and layout of a run, before anything is written.

    Parameters
    ----------
    options : Options
        What is asked for.
    writes : bool, optional
        Whether indexes of genomes may be kept in the output folder.
    """

    def __init__(self, options: Options, writes: bool = True) -> None:
        self.options, self._writes = options, writes
        self.device = find_device(options.device)
        self.model = load_model(options.model, trust_code=options.trust_code)
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
        self.windows = _estimated_windows(options, self.geometry.stride) / options.shard[1]
        self.workers = self._workers()

    def _workers(self) -> int:
        paths = [path for _, path in self.options.genomes]
        if any(map(is_own_place, filter(None, [*paths, self.options.regions]))):
            return 1  # what this process reads there is another file, or none, in a worker
        if self.options.jobs is not None:
            return max(self.options.jobs, 1)
        if self.device.type == "cuda":
            return torch.cuda.device_count() if self.options.device in ("auto", "cuda") else 1
        most = max(min(usable_cpus().amount, usable_memory().amount // _MEMORY_A_WORKER), 1)
        worth = self.windows / _WINDOWS_A_WORKER
        if worth < most:
            work = self.windows * multiply_adds(self.model, self.geometry.window)
            work /= self._full_blocks.saving if self._full_blocks is not None else 1
            worth = max(worth, work / _MULTIPLY_ADDS_A_WORKER)
        return max(1, min(most, int(worth)))

    def open(self) -> RunPlan:
        """Create the run in its output folder, or join the one that is there."""
        options = self.options
        refuse_links(options.out)
        names = [genome.name for genome in options.genomes]
        about: dict[str, Any] = {"tracks": self.tracks, "command": sys.argv, "genomes": names}
        expected = facts(
            self.card,
            self.geometry,
            self.layout,
            self.device,
            strand=options.strand,
            regions=options.regions,
            centre=options.centre,
            code_sha256=self.model.code.sha256 if isinstance(self.model, External) else None,
        )
        choices = {"precision": options.precision, "overlap": options.overlap}
        asked = {name: choice for name, choice in choices.items() if choice != "auto"}
        if options.kernels != "auto":
            asked["kernels"] = resolve_kernels(self.model, options.kernels, self.device, "fp32")
        if options.regions is not None and not (options.out / RUN_FILE).exists():
            self._with_first_genome(lambda genome, grid: None)  # a wrong BED must start no run

        def decide() -> Numerics:
            numerics = self.decide(self._sample)
            about["saving"] = self.saving(numerics)
            return numerics

        signature = open_run(options.out, expected, asked, decide, about)
        i, n = options.shard
        return RunPlan(
            out=options.out,
            geometry=self.geometry,
            layout=self.layout,
            regions=_keep_regions(options, signature["regions"]),
            regions_called=str(options.regions),
            centre=options.centre,
            signature=signature,
            tracks=self.tracks,
            share=(i - 1, n),
        )

    @property
    def _guards_precision(self) -> bool:
        """Whether anything but float32 may be used: then real windows decide, else random do."""
        return self.device.type != "cpu" or self.options.precision not in ("auto", "fp32")

    @cached_property
    def blocks(self) -> Blocks | None:
        """Blocks to share overlap by, unless a guard decides against them; None: no sharing."""
        if self._full_blocks is None:
            return None

        def choose(genome: Genome, grid: Grid) -> list[Blocks | None]:
            """Short contigs, and regions far apart, leave blocks half empty."""
            grids = (Grid.whole(genome.contigs, self.geometry), grid)
            contigs, batches = list(genome.contigs), _BATCHES_A_BLOCK[self.device.type]
            fills = [partial(batching.filled, g, contigs, batches=batches) for g in grids]
            return [self._choose_blocks(*fills)]

        found = self._with_first_genome(choose)
        return self._full_blocks if found is None else found[0]

    @cached_property
    def _full_blocks(self) -> Blocks | None:
        """What :attr:`blocks` would be if every window of every block were asked for."""
        return self._choose_blocks(lambda windows: 1.0)

    def _choose_blocks(self, whole: Filled, asked: Filled | None = None) -> Blocks | None:
        overlap = "naive" if self.options.centre else self.options.overlap
        kind = self.device.type
        return choose_blocks(self.model, self.geometry, kind, overlap, whole, asked)

    def saving(self, numerics: Numerics) -> float:
        """How many times the work of a run it would be without sharing, in multiply-adds."""
        blocks = self.blocks if numerics.overlap == "share" else None
        return blocks.saving if blocks is not None else 1.0

    def decide(self, sample: Callable[[int, bool], Block]) -> Numerics:
        """Choose overlap, precision and kernels (see :func:`engine.choose_numerics`).

        Raises
        ------
        PrecisionError
            If precision, kernels or sharing that are asked for differ too much from the model.
        DeviceError
            If the kernels that are asked for do not run on the device.
        """
        numerics = choose_numerics(
            self.model,
            self.card,
            self.geometry,
            self.device,
            precision=self.options.precision,
            kernels=self.options.kernels,
            strand=self.options.strand,
            windows=self.windows / self.workers,
            sample=sample if self._guards_precision else self.random_block,
            blocks=self.blocks,
        )
        if self.options.overlap == "share" and numerics.overlap != "share":
            raise PrecisionError(
                f"--overlap share: {self.card.name!r} is not what it is window by window, as the "
                "warning says; use --overlap auto or naive"
            )
        return numerics

    def _sample(self, windows: int, consecutive: bool) -> Block:
        """Windows of the first genome that can be read: from its middle, or all over it."""
        sample = batching.sample_shared if consecutive else batching.sample
        block = self._with_first_genome(partial(sample, windows=windows))
        if block is None:
            raise GenomepredError(
                f"--precision {self.options.precision}: no genome can be read to check it on"
            )
        return block

    def _with_first_genome(self, use: Callable[[Genome, Grid], T]) -> T | None:
        """Result for the first genome that can be read and has rows; None if there is none.

        Raises
        ------
        RegionError
            If the BED does not fit that genome.
        """
        options = self.options
        for name, path in options.genomes:
            cache = options.out / CACHE if self._writes else None
            with (
                contextlib.suppress(SequenceError),
                Genome(path, name=name, cache=cache, write=self._writes) as genome,
            ):
                grid = make_grid(genome.contigs, self.geometry, options.regions, options.centre)
                if grid.rows:
                    return use(genome, grid)
        return None

    def random_block(self, windows: int, consecutive: bool = False, seed: int = 0) -> Block:
        """Windows of random sequence, side by side or ``consecutive`` ones of a grid."""
        window, stride = self.geometry.window, self.geometry.window
        batch = compute_batch(window, self.device.type, self.geometry.bins)
        if consecutive:
            stride, batch = self.geometry.stride, windows
        return batching.random_block(windows, window, stride, batch, seed)

    def engine(self, numerics: Numerics) -> Engine:
        """The engine that obeys the given numerics."""
        return Engine(self.model, self.card, self.geometry, numerics, self.device)

    def slots(self, batch: int) -> int:
        """Windows of one block: the batch size, rounded up to whole compute batches."""
        asked = self.options.batch_size or batch * _BATCHES_A_BLOCK[self.device.type]
        return -(-asked // batch) * batch


def _estimated_windows(options: Options, stride: int) -> float:
    """About how many windows there are, from sizes of files alone.

    Compressed sequence has about four bases a byte; a BED record has about 20 bytes, and 10 kb.
    """
    total = 0
    for _, path in options.genomes:
        with contextlib.suppress(OSError), open(open_regular(path), "rb") as file:
            magic = file.read(6)
            packed = magic.startswith((b"\x1f\x8b", b"\xfd7zXZ\x00"))
            total += path.stat().st_size * (4 if packed else 1)
    windows = total / stride
    if options.regions is not None:
        records = len(options.genomes) * options.regions.stat().st_size / 20
        windows = min(windows, records if options.centre else records * 10_000 / stride)
    return windows


def _keep_regions(options: Options, sha256: str | None) -> Path | None:
    """A copy of the BED within the run, so that merging needs nothing else."""
    if options.regions is None or sha256 is None:
        return None
    kept = regions_path(options.out, sha256)
    try:
        check_regions(kept, sha256)
    except OutputError:
        own_folder(options.out, PARTS)
        with publishing(kept) as temporary, open(temporary, "xb") as copy:
            copy.writelines(self_described(options.regions))
        check_regions(kept, sha256)
    return kept
