"""The folder of a run: its places, and what all genomes of the run have in common."""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from math import lcm
from pathlib import Path
from typing import Any

from genomepred.errors import OutputError
from genomepred.files import own_folder, sha256_of, sweep_abandoned
from genomepred.sequences.bed import read_bed
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store.chunks import Layout

RUN_FILE, PARTS, CACHE = "run.json", ".parts", ".cache"


@dataclass(frozen=True)
class RunPlan:
    """The plan that all genomes of a run have in common.

    ``regions`` is the run's own copy of a BED that messages call ``regions_called``.
    ``share`` is ``(i, n)``: of every genome, this process computes the shards whose number plus
    the genome's number is ``i`` modulo ``n``. ``session`` tells failures of this command, its
    workers included, from those of an earlier one. ``compressors`` threads encode chunks.
    ``run_id`` tells the run's folder from others, ``fingerprint`` engines that compute its bits.
    """

    out: Path
    geometry: Geometry
    layout: Layout
    regions: Path | None
    center: bool
    signature: dict[str, Any]
    tracks: tuple[tuple[str, str], ...]
    regions_called: str | None = None
    share: tuple[int, int] = (0, 1)
    compressors: int = 4
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str = ""
    fingerprint: str = ""

    @property
    def shard_rows(self) -> int:
        """Rows of a shard."""
        return shard_rows(self.layout, self.signature["compute_batch"])

    @property
    def cache(self) -> Path:
        """Folder of indexes and expanded sequences."""
        return self.out / CACHE

    @cached_property
    def signature_text(self) -> str:
        """The signature as parts carry it."""
        return json.dumps(self.signature, sort_keys=True)

    def grid(self, contigs: dict[str, int]) -> Grid:
        """Grid of a genome with the given contig lengths.

        Raises
        ------
        OutputError
            If the run's copy of the BED is not what the run was started with.
        """
        if self.regions is not None:
            check_regions(self.regions, self.signature["regions"])
        return make_grid(contigs, self.geometry, self.regions, self.center, self.regions_called)


def shard_rows(layout: Layout, compute_batch: int) -> int:
    """Rows of a shard: whole chunks, windows and compute batches.

    A compute batch that two shards cut would be computed twice.
    """
    return lcm(layout.shard_rows, compute_batch * layout.bins)


def make_grid(
    contigs: dict[str, int],
    geometry: Geometry,
    regions: Path | None,
    center: bool,
    called: str | None = None,
) -> Grid:
    """Grid of a genome: all of it, the rows that meet a BED's regions, or one window a record."""
    if regions is None:
        return Grid.whole(contigs, geometry)
    records = read_bed(regions, contigs, called)
    make = Grid.centered if center else Grid.of_regions
    return make(contigs, geometry, records)


def regions_path(out: Path, sha256: str) -> Path:
    """Where a run keeps its copy of a BED: at a name that no genome's folder can have."""
    return out / PARTS / f".regions-{sha256[:16]}.bed"


def check_regions(path: Path, sha256: str) -> None:
    """Raise an OutputError unless a run's copy of its BED is what the run was started with."""
    with suppress(OSError):
        if sha256_of(path, follow=False) == sha256:
            return
    raise OutputError(f"{path}: the run's copy of the BED is missing or altered; run predict again")


def refuse_links(out: Path) -> None:
    """Refuse a folder whose own places are links or no folders: they would lead out of it."""
    for name in (PARTS, CACHE):
        if os.path.lexists(out / name):
            own_folder(out, name)


def sweep(out: Path) -> None:
    """Remove temporaries that killed processes have left anywhere in a run, in one pass."""
    sweep_abandoned(out)
    sweep_abandoned(out / PARTS)
    with suppress(OSError), os.scandir(out / PARTS) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                sweep_abandoned(Path(entry.path))


def now() -> str:
    """The time, as records say it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
