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
from types import MappingProxyType
from typing import Any, NamedTuple

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
from genomepred.inference import batching
from genomepred.inference.engine import (
    Batches,
    Engine,
    Numerics,
    compute_batch,
    describe_device,
    find_device,
)
from genomepred.inference.numerics import Candidates, GuardWindows, Subject, decide
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
    RunPlan,
    check_regions,
    join_run,
    make_grid,
    refuse_links,
    regions_path,
    restart_if_mistaken,
    start_run,
)
from genomepred.runs.inputs import is_own_place
from genomepred.runs.spec import RunSpec
from genomepred.sequences.bed import described_sha256, self_described
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Grid
from genomepred.sequences.source import SequenceSource
from genomepred.store.hdf5 import Layout

# Compute batches handed to the device at a time, unless --batch-size says otherwise. One thread, a
# single linear layer at stride 20: 4, 16, 64 of them gave 22-25, 28, 29-32 million bases/s.
_BATCHES_TOGETHER = {"cpu": 16, "cuda": 2}
# A worker costs about 4 s of start-up on one core; it is started only for work worth that: so many
# windows, which reading and writing take, or the multiply-adds of so many of the two-block CNN.
_WINDOWS_A_WORKER = 100_000
_MULTIPLY_ADDS_A_WORKER = 2.5e11
# Threads that encode chunks, of all workers together no more than processors.
_COMPRESSORS = 4
# Bytes that a worker holds, about: 0.33 GB with torch and a model, 0.12 GB for windows and shards.
_MEMORY_A_WORKER = 600_000_000


class _Looked(NamedTuple):
    """Facts of the first genome for the decision."""

    stretches: Stretches | None
    windows: GuardWindows


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
        alone = spec.center or spec.kernels == REFERENCE[0]
        self._overlap = "naive" if alone else spec.overlap
        self.device = find_device(spec.device)
        self.model = load_model(spec.model, trust_code=spec.trust_code) if model is None else model
        card = self.model.card
        assert isinstance(card, Card)
        self.card = card
        self.geometry = card.geometry(spec.stride)
        self.subject = Subject(self.model, card, self.geometry, self.device)
        self.engine = self.subject.engine
        self._sizes = StretchSizes(self.model, self.geometry, self.device.type)
        self._fingerprints: dict[Engine, str] = {}  # of the last engine asked for
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
                saving = self._full_stretches.saving if self._full_stretches is not None else 1.0
            work /= saving
            worth = max(worth, work / _MULTIPLY_ADDS_A_WORKER)
        return max(1, min(most, int(worth)))

    @staticmethod
    def _most_workers() -> int:
        """Processes that processors and memory are enough for."""
        return max(min(usable_cpus().amount, usable_memory().amount // _MEMORY_A_WORKER), 1)

    def asked(self) -> dict[str, Any]:
        """Return what the user has fixed of what is otherwise decided."""
        spec = self.spec
        choices = {"precision": spec.precision, "overlap": spec.overlap}
        asked: dict[str, Any] = {k: choice for k, choice in choices.items() if choice != "auto"}
        if spec.kernels != "auto":
            asked["kernels"] = resolve_kernels(self.model, spec.kernels, self.device, "fp32")
        return asked

    def open(self, told: Mapping[str, Any] | None = None) -> RunPlan:
        """Create the run in its output folder, or join the one that is there.

        Raises
        ------
        OutputError
            If it is another one than that which ``told``, another process's words, are of.
        """
        spec = self.spec
        if told is not None:
            plan = replace(self.join(), session=told["session"])
            if plan.run_id != told["run"]:
                raise OutputError(f"{spec.out}: another run than that which was started is here")
            return plan
        refuse_links(spec.out)
        names = self.names
        about: dict[str, Any] = {"tracks": self.tracks, "command": sys.argv, "genomes": names}
        expected, asked = self.facts(), self.asked()
        if os.path.lexists(spec.out / RUN_FILE):
            restart_if_mistaken(spec.out, {**expected, **asked}, names)
        if not os.path.lexists(spec.out / RUN_FILE):
            numerics = self.decide()
            about["saving"] = self.saving(numerics)
            about["fingerprint"] = self.fingerprint(self.engine(numerics))
            start_run(spec.out, {**expected, **asdict(numerics)}, about)
        return self.join(asked)

    def join(self, asked: Mapping[str, Any] = MappingProxyType({})) -> RunPlan:
        """Join the run that is in the output folder; ``asked``: what the user has fixed of it."""
        spec = self.spec
        signature, document = join_run(spec.out, {**self.facts(), **asked})
        i, n = spec.shard
        return RunPlan(
            out=spec.out,
            geometry=self.geometry,
            layout=self.layout,
            regions=spec.regions and _keep_regions(spec.out, spec.regions, signature.regions),
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
        """Return what of the signature follows from the command and the machine."""
        spec, card, geometry, layout = self.spec, self.card, self.geometry, self.layout
        described = asdict(card)
        for prose in ("training", "metrics", "license", "name"):
            described.pop(prose, None)
        on_cpu, packed = self.device.type == "cpu", layout.compression == "zstd"
        return {
            "model": card.name,
            "weights_sha256": card.weights_sha256,
            "code": self.model.code and self.model.code.sha256,
            "card": hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
            "window": geometry.window,
            "crop": geometry.crop,
            "bins": geometry.bins,
            "bin_size": geometry.bin_size,
            "stride": geometry.stride,
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
        }

    @cached_property
    def _looked(self) -> _Looked:
        """Facts of the first genome that can be read and has rows, else of random windows.

        Raises
        ------
        RegionError
            If the BED does not fit that genome.
        GenomepredError
            If no genome can be read to check a precision on.
        """
        spec, full = self.spec, self._full_stretches
        guards = self.device.type != "cpu" or spec.precision not in ("auto", "fp32")
        real = guards and self._writes  # random windows guard float32, and estimates
        stretches, found = full, None
        if real or full is not None or spec.regions is not None:
            cache = spec.out / CACHE if self._writes else None
            for name, path in spec.genomes:
                with (
                    suppress(SequenceError),
                    Genome(path, name=name, cache=cache, write=self._writes) as source,
                ):
                    grid = make_grid(source.contigs, self.geometry, spec.regions, spec.center)
                    if grid.rows:
                        stretches = full and self._stretches_of(source.contigs, grid)
                        found = self._windows_of(source, grid, stretches) if real else None
                        break
            else:
                if real:
                    raise GenomepredError(
                        f"--precision {spec.precision}: no genome can be read to check it on"
                    )
        if found is None:
            following = stretches and self.random_batches(stretches.windows, consecutive=True)
            found = GuardWindows(self.random_batches(self.subject.compute_batch), following)
        return _Looked(stretches, found)

    def _stretches_of(self, contigs: Mapping[str, int], grid: Grid) -> Stretches | None:
        """Stretches as full as a genome's are: short contigs, and regions far apart, leave gaps."""
        grids = (Grid.whole(contigs, self.geometry), grid)
        batches = _BATCHES_TOGETHER[self.device.type]
        fills = [partial(batching.filled, g, list(contigs), batches=batches) for g in grids]
        return self._sizes.choose(self._overlap, *fills)

    def _windows_of(
        self, source: SequenceSource, grid: Grid, stretches: Stretches | None
    ) -> GuardWindows:
        spread = batching.sample(source, grid, self.subject.compute_batch)
        windows = stretches and batching.sample_shared(source, grid, stretches.windows)
        return GuardWindows(spread, windows)

    @cached_property
    def _full_stretches(self) -> Stretches | None:
        """Stretches to share overlap by if every window of each were asked for."""
        return self._sizes.choose(self._overlap, lambda windows: 1.0)

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

    def saving(self, numerics: Numerics) -> float:
        """Work of a run without sharing over that with it, in multiply-adds."""
        stretches = self._looked.stretches if numerics.overlap == "share" else None
        return stretches.saving if stretches is not None else 1.0

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
        asked = spec.precision, spec.kernels, spec.strand
        candidates = Candidates(*asked, looked.stretches, windows)
        numerics = decide(self.subject, candidates, looked.windows)
        if spec.overlap == "share" and numerics.overlap != "share":
            raise PrecisionError(
                f"--overlap share: {self.card.name!r} is not what it is window by window, as the "
                "warning says; use --overlap auto or naive"
            )
        return numerics

    def random_batches(self, windows: int, consecutive: bool = False, seed: int = 0) -> Batches:
        """Windows of random sequence, side by side or ``consecutive`` ones of a grid."""
        window, stride = self.geometry.window, self.geometry.window
        batch = compute_batch(window, self.device.type, self.geometry.bins)
        if consecutive:
            stride, batch = self.geometry.stride, windows
        return batching.random_batches(windows, window, stride, batch, seed)

    def fingerprint(self, engine: Engine) -> str:
        """Hash of what an engine makes of one fixed compute batch.

        Processors of one description may differ in last bits by maker and generation.
        """
        if engine not in self._fingerprints:
            numerics = engine.numerics
            batches = self.random_batches(numerics.compute_batch, numerics.overlap == "share")
            found = hashlib.sha256(engine.submit(batches)().tobytes()).hexdigest()
            self._fingerprints = {engine: found}
        return self._fingerprints[engine]

    def slots(self, batch: int) -> int:
        """Windows handed to the engine at a time: the batch size, in whole compute batches."""
        asked = self.spec.batch_size or batch * _BATCHES_TOGETHER[self.device.type]
        return -(-asked // batch) * batch


def _estimated_windows(spec: RunSpec, stride: int) -> float:
    """About how many windows there are, from sizes of files alone.

    Compressed sequence has about four bases a byte; a BED record has about 20 bytes, and 10 kb.
    """
    total = 0
    for _, path in spec.genomes:
        with suppress(OSError), open(open_regular(path), "rb") as file:
            magic = file.read(6)
            packed = magic.startswith((b"\x1f\x8b", b"\xfd7zXZ\x00"))
            total += path.stat().st_size * (4 if packed else 1)
    windows = total / stride
    if spec.regions is not None:
        records = len(spec.genomes) * spec.regions.stat().st_size / 20
        windows = min(windows, records if spec.center else records * 10_000 / stride)
    return windows


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
