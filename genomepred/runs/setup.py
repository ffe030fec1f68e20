"""The declaration of a run, and the model, device, layout and signature that follow from it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import torch

from genomepred import __version__
from genomepred.errors import (
    GenomepredError,
    OptionError,
    OutputError,
    PrecisionError,
    SequenceError,
)
from genomepred.files import open_regular, own_folder, publishing
from genomepred.inference.engine import (
    Batches,
    Numerics,
    compute_batch,
    describe_device,
    find_device,
)
from genomepred.inference.numerics import Candidates, GuardWindows, Subject, decide
from genomepred.inference.pipeline import filled, sample, sample_shared
from genomepred.lowering.fuse import REFERENCE, resolve_kernels
from genomepred.lowering.receptive_field import multiply_adds
from genomepred.lowering.shared import Stretches, StretchSizes
from genomepred.machine import usable_cpus, usable_memory
from genomepred.machine_code import numba_version
from genomepred.models.card import Card
from genomepred.models.checkpoint import load_model
from genomepred.models.layers import SequenceModel
from genomepred.runs.folder import (
    CACHE,
    PARTS,
    RUN_FILE,
    RunTerms,
    check_regions,
    join_run,
    make_grid,
    regions_path,
    restart_if_mistaken,
    start_run,
    tidy,
)
from genomepred.runs.spec import OWN_PLACES, RunSpec
from genomepred.sequences.bed import described_sha256, self_described
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Grid
from genomepred.sequences.source import SequenceSource
from genomepred.store.schema import Layout

# Compute batches handed to the device at a time, unless --batch-size says otherwise. One thread, a
# single linear layer at stride 20: 4, 16, 64 of them gave 22-25, 28, 29-32 million bases/s.
_BATCHES_TOGETHER = {"cpu": 16, "cuda": 2}
# A worker costs about 4 s of start-up on one core; it is started only for work worth that: so many
# windows, which reading and writing take, or the multiply-adds of so many of the two-block CNN.
_WINDOWS_A_WORKER = 100_000
_MULTIPLY_ADDS_A_WORKER = 2.5e11
# Threads of a worker that encode chunks, of all workers together no more than processors. For a CPU
# and chunks of run lengths one is enough: it deflates 29 million rows of one track a second, and a
# core computes 1.5 million of a single linear layer.
_COMPRESSORS = 4
# What a signature says of the geometry.
_SIZES = ("window", "crop", "bins", "bin_size", "stride")
# What a card says to people alone.
_PROSE = ("training", "metrics", "license", "name")
# Bytes that a worker holds, about: 0.33 GB with torch and a model, 0.12 GB for windows and shards.
_MEMORY_A_WORKER = 600_000_000


class Setup:
    """Model, device and layout of a run, before anything is written.

    Parameters
    ----------
    spec : RunSpec
        What is asked for.
    writes : bool, optional
        Whether indexes of genomes may be kept in the output folder.
    model : SequenceModel, optional
        A model in memory, in place of the spec's.
    """

    def __init__(
        self, spec: RunSpec, writes: bool = True, model: SequenceModel | None = None
    ) -> None:
        self.spec, self._writes = spec, writes
        #: Files that the run publishes, without their ending.
        self.names = [genome.name for genome in spec.genomes]
        if spec.kernels == REFERENCE[0] and spec.overlap == "share":
            raise OptionError(
                "--overlap share: --kernels reference computes every window by itself, as written; "
                "leave one of them out"
            )
        if spec.out.exists() and not spec.out.is_dir():  # a cache in it would be met first
            raise OutputError(f"{spec.out} is a file; name a folder")
        self.device = find_device(spec.device)
        self.model = load_model(spec.model, trust_code=spec.trust_code) if model is None else model
        card = self.model.card
        assert isinstance(card, Card)
        self.card = card
        self.geometry = card.geometry(spec.stride)
        self.subject = Subject(self.model, card, self.geometry, self.device)
        self.engine = self.subject.engine
        alone = spec.center or spec.kernels == REFERENCE[0]
        self._overlap = "naive" if alone else spec.overlap
        self._sizes = StretchSizes(self.model, self.geometry, self.device.type)
        self.tracks = tuple((track.name, track.description) for track in card.tracks)
        if spec.strand == "each":
            self.tracks = tuple((name + sign, text) for sign in "+-" for name, text in self.tracks)
        self.layout = Layout(len(self.tracks), spec.store_dtype, spec.compression, bins=card.bins)
        read = [path for _, path in spec.genomes] + ([spec.regions] if spec.regions else [])
        #: Processes asked for: one if what this one reads there is another file in a worker.
        self.jobs = 1 if any(OWN_PLACES.fullmatch(str(path)) for path in read) else spec.jobs
        self.workers = self.jobs or self._workers()

    @cached_property
    def windows(self) -> float:
        """About how many windows its share has, from sizes of files alone.

        Compressed sequence has about four bases a byte; a BED record has about 20 bytes, and 10 kb.
        """
        spec, stride, total = self.spec, self.geometry.stride, 0
        for _, path in spec.genomes:
            with suppress(OSError), open(open_regular(path), "rb") as file:
                magic = file.read(6)
                packed = magic.startswith((b"\x1f\x8b", b"\xfd7zXZ\x00"))
                total += path.stat().st_size * (4 if packed else 1)
        windows = total / stride
        if spec.regions is not None:
            records = len(spec.genomes) * spec.regions.stat().st_size / 20
            windows = min(windows, records if spec.center else records * 10_000 / stride)
        return windows / spec.shard[1]

    def _workers(self, saving: float | None = None) -> int:
        """Processes that are worth starting; ``saving``: how much less work than windows alone."""
        if self.device.type == "cuda":
            return torch.cuda.device_count() if self.spec.device in ("auto", "cuda") else 1
        most = self._most_workers()
        worth = self.windows / _WINDOWS_A_WORKER
        if worth < most:
            work = self.windows * multiply_adds(self.model, self.geometry.window)
            if saving is None:
                full = self._sizes.choose(self._overlap, lambda windows: 1.0)
                saving = full.saving if full is not None else 1.0
            work /= saving
            worth = max(worth, work / _MULTIPLY_ADDS_A_WORKER)
        return max(1, min(most, int(worth)))

    @staticmethod
    def _most_workers() -> int:
        """Processes that processors and memory are enough for."""
        return max(min(usable_cpus().amount, usable_memory().amount // _MEMORY_A_WORKER), 1)

    def open(self, told: Mapping[str, Any] | None = None) -> RunTerms:
        """Create the run in its output folder, or join the one that is there.

        Raises
        ------
        OutputError
            If it is another one than that which ``told``, another process's words, are of.
        """
        spec = self.spec
        if told is not None:
            terms = replace(self._join(self.facts()), session=told["session"])
            if terms.run_id != told["run"]:
                raise OutputError(f"{spec.out}: another run than that which was started is here")
            return terms
        tidy(spec.out)
        wanted, names = self.facts(), self.names
        about: dict[str, Any] = {"tracks": self.tracks, "command": sys.argv, "genomes": names}
        if os.path.lexists(spec.out / RUN_FILE):
            restart_if_mistaken(spec.out, wanted, names)
        if not os.path.lexists(spec.out / RUN_FILE):
            numerics, about["saving"] = self.decide()
            about["fingerprint"] = self.engine(numerics).fingerprint
            start_run(spec.out, {**wanted, **asdict(numerics)}, about)
        return self._join(wanted)

    def _join(self, wanted: Mapping[str, Any]) -> RunTerms:
        """Join the run that is in the output folder."""
        spec = self.spec
        signature, document = join_run(spec.out, wanted)
        i, n = spec.shard
        light = self.layout.run_lengths or spec.compression == "none"
        most = 1 if light and self.device.type == "cpu" else _COMPRESSORS
        return RunTerms(
            out=spec.out,
            geometry=self.geometry,
            layout=self.layout,
            regions=spec.regions and _keep_regions(spec.out, spec.regions, signature.regions),
            regions_called=str(spec.regions),
            center=spec.center,
            signature=signature,
            tracks=self.tracks,
            share=(i - 1, n),
            compressors=1 if most == 1 else max(1, min(most, usable_cpus().amount // self.workers)),
            run_id=document.get("id", ""),
            fingerprint=document.get("fingerprint", ""),
        )

    def facts(self) -> dict[str, Any]:
        """Return what of the signature follows from the command and the machine.

        Of what is otherwise decided, the user may have fixed some: it comes last.
        """
        spec, card, geometry, layout = self.spec, self.card, self.geometry, self.layout
        fixed: dict[str, Any] = {"precision": spec.precision, "overlap": spec.overlap}
        fixed = {name: choice for name, choice in fixed.items() if choice != "auto"}
        if spec.kernels != "auto":
            fixed["kernels"] = resolve_kernels(self.model, spec.kernels, self.device, "fp32")
        described = {name: value for name, value in asdict(card).items() if name not in _PROSE}
        on_cpu, packed = self.device.type == "cpu", layout.compression == "zstd"
        return {
            "model": card.name,
            "weights_sha256": card.weights_sha256,
            "code": self.model.code and self.model.code.sha256,
            "card": hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
            **{name: getattr(geometry, name) for name in _SIZES},
            "regions": described_sha256(spec.regions) if spec.regions else None,
            "center": spec.center,
            "strand": spec.strand,
            "store_dtype": layout.dtype,
            "compression": layout.compression,
            "device": describe_device(self.device),
            "threads": 1,
            "genomepred": __version__,
            "torch": torch.__version__,
            "triton": None if on_cpu else _triton_version(),
            "numba": numba_version() if on_cpu else None,
            "zlib": zlib.ZLIB_RUNTIME_VERSION,
            "zstandard": version("zstandard") if packed else None,
            "hdf5": h5py.version.hdf5_version,
            **fixed,
        }

    def _look(self, batch: int, real: bool) -> tuple[Stretches | None, GuardWindows | None]:
        """Stretches to share overlap by, and if they are to be ``real``, windows for a guard.

        As full as those of the first genome that can be read and has rows: short contigs, and
        regions far apart, leave gaps.

        Raises
        ------
        RegionError
            If the BED does not fit that genome.
        GenomepredError
            If no genome can be read to check a precision on.
        """
        spec, geometry, together = self.spec, self.geometry, _BATCHES_TOGETHER[self.device.type]
        stretches = self._sizes.choose(self._overlap, lambda windows: 1.0)
        if not real and stretches is None and spec.regions is None:
            return None, None
        cache = spec.out / CACHE if self._writes else None
        how: dict[str, Any] = {"cache": cache, "write": self._writes}
        for name, path in spec.genomes:
            with suppress(SequenceError), Genome(path, name=name, **how) as source:
                grid = make_grid(source.contigs, geometry, spec.regions, spec.center)
                if grid.rows and stretches is not None:
                    grids, contigs = (Grid.whole(source.contigs, geometry), grid), [*source.contigs]
                    fills = [partial(filled, each, contigs, together) for each in grids]
                    stretches = self._sizes.choose(self._overlap, *fills)
                if grid.rows:
                    return stretches, _windows_of(source, grid, batch, stretches) if real else None
        if real:
            raise GenomepredError(
                f"--precision {spec.precision}: no genome can be read to check it on"
            )
        return stretches, None

    def why_alone(self, numerics: Numerics) -> str:
        """Reason for which a run that might share overlap does not; empty if it does."""
        if numerics.overlap == "share" or self.spec.overlap == "naive":
            return ""
        if self.spec.center:
            return "windows of --center lie anywhere"
        if numerics.kernels == REFERENCE:
            return "the model is computed as written"
        found = self._sizes.why_alone(lambda windows: 1.0)
        return found or "the regions or short contigs leave too little, or its values differ"

    def decide(self) -> tuple[Numerics, float]:
        """Choose overlap, precision and kernels (see :func:`genomepred.inference.numerics.decide`).

        Returns
        -------
        Numerics
        float
            Work of a run without sharing over that with it, in multiply-adds.

        Raises
        ------
        PrecisionError
            If precision, kernels or sharing that are asked for differ too much from the model.
        DeviceError
            If the kernels that are asked for do not run on the device.
        """
        spec, g, device = self.spec, self.geometry, self.device.type
        batch = compute_batch(g.window, device, g.bins)
        guards = device != "cpu" or spec.precision not in ("auto", "fp32")
        stretches, windows = self._look(batch, real=guards and self._writes)
        if windows is None:  # random ones guard float32, and estimates
            following = stretches and Batches.random(stretches.windows, g, shared=True)
            windows = GuardWindows(Batches.random(batch, g), following)
        asked, each = (spec.precision, spec.kernels, spec.strand), self.windows / self.workers
        numerics = decide(self.subject, Candidates(*asked, stretches, each), windows)
        if stretches is not None and numerics.overlap == "share":
            return numerics, stretches.saving
        if spec.overlap == "share":
            raise PrecisionError(
                f"--overlap share: {self.card.name!r} is not what it is window by window, as the "
                "warning says; use --overlap auto or naive"
            )
        return numerics, 1.0

    def slots(self, batch: int) -> int:
        """Windows handed to the engine at a time: the batch size, in whole compute batches."""
        asked = self.spec.batch_size or batch * _BATCHES_TOGETHER[self.device.type]
        return -(-asked // batch) * batch


def _windows_of(
    source: SequenceSource, grid: Grid, batch: int, stretches: Stretches | None
) -> GuardWindows:
    following = stretches and sample_shared(source, grid, stretches.windows)
    return GuardWindows(sample(source, grid, batch), following)


def _triton_version() -> str | None:
    try:
        import triton  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    return str(triton.__version__)


def _keep_regions(out: Path, bed: Path, sha256: str | None) -> Path:
    """A copy of the BED within the run, so that merging needs nothing else."""
    assert sha256 is not None
    kept = regions_path(out, sha256)
    try:
        check_regions(kept, sha256)
    except OutputError:
        own_folder(out, PARTS)
        with publishing(kept) as temporary, open(temporary, "xb") as copy:
            copy.writelines(self_described(bed))
        check_regions(kept, sha256)
    return kept
