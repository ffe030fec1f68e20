"""Cohort files for tests: random classes of haplotypes, values, and the file that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genomepred.sequences.grid import Grid
from genomepred.store.cohort_writing import join_cohort, write_cohort_part
from genomepred.store.schema import Layout

_SHARD = 512  # windows


def write_cohort(
    path: Path,
    grid: Grid,
    haplotypes: Sequence[tuple[str, int]],
    tracks: Sequence[str],
    seed: int = 0,
    values: NDArray[np.float32] | None = None,
) -> Path:
    """A panel of up to four classes a window; one haplotype is absent at the end.

    ``values`` [haplotypes, rows, tracks] are random by default; of a class they are its leader's.
    """
    rng = np.random.default_rng(seed)
    bins = grid.geometry.bins
    windows = grid.rows // bins
    groups = np.repeat(rng.integers(0, 4, (len(haplotypes), -(-windows // 7))), 7, 1)[:, :windows]
    if values is None:
        shape = len(haplotypes), grid.rows, len(tracks)
        values = rng.normal(size=shape).astype(np.float32)
        values[rng.random(shape) < 0.1] = np.nan
    layout, none = Layout(len(tracks), bins=bins), 65_535
    parts, told = [], []
    for first in range(0, windows, _SHARD):
        last = min(first + _SHARD, windows)
        index = np.empty((len(haplotypes), last - first), np.uint16)
        rows, counts, leaders = [], [], []
        for w in range(first, last):
            number = np.argmax(groups[:, w] == groups[:, w][:, None], axis=1)
            if w >= windows - 40 and len(haplotypes) > 1:
                number[-1] = none
            index[:, w - first] = number
            found = np.unique(number[number != none])
            leaders += found.tolist()
            counts.append(len(found))
            rows.append(values[found, w * bins : (w + 1) * bins].reshape(-1, len(tracks)))
        parts.append(path.parent / f"{path.stem}.{first}.part")
        told.append({"first": first})
        write_cohort_part(
            parts[-1],
            np.concatenate(rows),
            np.array(counts),
            np.array(leaders, np.uint16),
            index,
            layout,
            told[-1],
        )
    described = [(track, f"{track} of a test") for track in tracks]
    join_cohort(parts, path, layout, grid, described, haplotypes, {"genome": "panel"}, told)
    for part in parts:
        part.unlink()
    return path
