"""Cohort files for tests: founders whose haplotypes the samples share, stretch by stretch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genomepred.sequences.distinct import leader_type
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store.cohort_writing import join_cohort, write_cohort_part
from genomepred.store.schema import Layout
from tests.store_files import ATTRIBUTES

SHARD = 512


def founders_of(grid: Grid, lines: int, founders: int, seed: int) -> NDArray[np.int64]:
    """Founder of each line in each window, [lines, windows]; stretches of 100 windows."""
    rng = np.random.default_rng(seed)
    windows = grid.rows // grid.geometry.bins
    stretches = rng.integers(0, founders, (lines, -(-windows // 100) + 1))
    return np.repeat(stretches, 100, axis=1)[:, 37 : 37 + windows]


def write_cohort(
    path: Path,
    contigs: Mapping[str, int],
    geometry: Geometry,
    haplotypes: Sequence[tuple[str, int]],
    founders: int = 4,
    tracks: tuple[str, ...] = ("CTCF",),
    seed: int = 0,
    missing: float = 0.05,
) -> NDArray[np.float32]:
    """Write a cohort's file; values of all lines, [lines, rows, tracks]."""
    grid = Grid.whole(contigs, geometry)
    rng = np.random.default_rng(seed)
    owner = founders_of(grid, len(haplotypes), founders, seed)
    values = rng.gamma(0.3, 1.0, (founders, grid.rows, len(tracks))).astype(np.float32)
    values[rng.random(values.shape) < missing] = np.nan
    kind = leader_type(len(haplotypes))
    windows = owner.shape[1]
    lowest = np.zeros((founders, windows), np.int64)
    for line in range(len(owner) - 1, -1, -1):
        lowest[owner[line], np.arange(windows)] = line
    index = lowest[owner, np.arange(windows)].astype(kind)
    layout = Layout(len(tracks), bins=geometry.bins)
    parts, told = [], []
    for first in range(0, windows, SHARD):
        part = np.ascontiguousarray(index[:, first : first + SHARD])
        leads = part == np.arange(len(part))[:, None]
        window, leader = np.nonzero(leads.T)
        row = (first + window)[:, None] * geometry.bins + np.arange(geometry.bins)
        flat = values[owner[leader, first + window][:, None], row].reshape(-1, len(tracks))
        parts.append(path.parent / f"{first}.part")
        told.append({"first": first})
        write_cohort_part(
            parts[-1], flat, leads.sum(axis=0), leader.astype(kind), part, layout, told[-1]
        )
    described = [(name, f"{name} occupancy") for name in tracks]
    attributes = {**ATTRIBUTES, "genome": path.stem}
    join_cohort(parts, path, layout, grid, described, haplotypes, attributes, told)
    for part_path in parts:
        part_path.unlink()
    lines = np.repeat(owner, geometry.bins, axis=1)
    return np.take_along_axis(values, lines[..., None], axis=0)
