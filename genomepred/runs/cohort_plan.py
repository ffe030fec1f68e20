"""Estimate of a cohort run: sharing, bytes and time, from stretches of its grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from genomepred.inference.cohort import TILES
from genomepred.runs.cohort_setup import CohortSetup
from genomepred.runs.cohort_work import shard_windows
from genomepred.runs.spec import RunSpec
from genomepred.sequences.cohort import PanelOptions


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


def plan_cohort(spec: RunSpec, variants: Path, options: PanelOptions) -> CohortEstimate:
    """Distinct windows, bytes and time of a cohort run; writes nothing but temporary files."""
    setup = CohortSetup(spec, variants, options, writes=False)
    try:
        panel, found, (numerics, saving) = setup.panel, setup.sharing, setup.decide()
        windows, haplotypes = setup.grid.rows // setup.geometry.bins, len(panel.haplotypes)
        tiled = numerics.overlap == TILES
        rows = windows * found.each
        batch = setup.engine(replace(numerics, overlap="naive")).seconds_per_batch()
        values = rows * setup.geometry.bins * setup.layout.tracks
        size = np.dtype(setup.layout.dtype).itemsize
        return CohortEstimate(
            haplotypes=haplotypes,
            windows=windows,
            shards=-(-windows // shard_windows(haplotypes, setup.layout.tracks)),
            workers=setup.workers,
            distinct=found.each,
            tiles=found.pieces[1] / max(found.windows, 1) if tiled else 0.0,
            saving=haplotypes / max(found.each, 1e-9) * saving,
            missing=panel.counts.missing,
            unphased=panel.counts.unphased,
            # Leaders and their index: two bytes, and a bit for every haplotype.
            bytes_on_disk=int(values * size + 2 * rows + windows * (8 + haplotypes / 8)),
            seconds=rows / numerics.compute_batch * batch / saving / setup.workers,
            warnings=panel.warnings(),
        )
    finally:
        setup.close()
