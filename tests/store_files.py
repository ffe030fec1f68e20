"""Prediction files for tests: a grid, values, and the file that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genomepred.documents import seal
from genomepred.files import write_whole
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store.hdf5 import join, opened_part, write_part
from genomepred.store.schema import (
    Attribute,
    Layout,
    encode_chunk,
    read_attributes,
    sidecar_path,
)

ATTRIBUTES = {
    "genome": "Nipponbare é",
    "model": "ctcf",
    "sequence_digest": "0123abcd",
    "weights_sha256": "feed",
    "strand": "forward",
    "precision": "fp32",
    "package_version": "0.1.0",
}
CONTIGS = {"chr2": 1003, "chr10:1-9": 640, "empty": 0, "ctg-é": 57}


def random_values(rows: int, tracks: int = 1, seed: int = 0) -> NDArray[np.float32]:
    """Predictions with an exact zero, infinities and runs of missing rows."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, tracks)).astype(np.float32)
    values[rng.random((rows, tracks)) < 0.2] = np.nan
    values[rows // 3 : rows // 2] = np.nan
    values[:1] = 0
    return values


def write_parts(
    folder: Path, values: NDArray[np.float32], layout: Layout, shard: int | None = None
) -> list[Path]:
    """Values as parts of ``shard`` rows each."""
    shard = shard or layout.shard_rows(1)
    paths = []
    for first in range(0, len(values), shard):
        rows = values[first : first + shard]
        blocks = [rows[i : i + layout.chunk_rows] for i in range(0, len(rows), layout.chunk_rows)]
        path = folder / f"{first}-{first + len(rows)}.part"
        chunks = [encode_chunk(block, layout) for block in blocks]
        write_part(path, chunks, len(rows), layout, {"first_row": first})
        paths.append(path)
    return paths


def part_attributes(path: Path) -> dict[str, Attribute]:
    """Attributes of a part, which is read whole and checked."""
    with opened_part(path) as (file, _):
        return read_attributes(file)


def write_store(
    path: Path,
    grid: Grid | None = None,
    values: NDArray[np.float32] | None = None,
    tracks: tuple[str, ...] = ("CTCF",),
    layout: Layout | None = None,
) -> Path:
    """A finished file with its sidecar; by default of three contigs at stride 20."""
    grid = grid or Grid.whole(CONTIGS, Geometry(window=100, stride=20))
    if values is None:
        values = random_values(grid.rows, len(tracks))
    layout = layout or Layout(len(tracks), bins=grid.geometry.bins)
    parts = write_parts(path.parent, values, layout)
    described = [(name, f"{name} occupancy") for name in tracks]
    digest = join(parts, path, layout, grid, described, ATTRIBUTES)
    for part in parts:
        part.unlink()
    identity = {"path": "g.fa", "size": 1, "mtime_ns": 1, "digest": ATTRIBUTES["sequence_digest"]}
    noted = {
        "outcome": "finished",
        "sha256": digest,
        "bytes": path.stat().st_size,
        "rows": grid.rows,
        "bases": int(grid.length.sum()),
        "genome": identity,
        "signature": {"strand": "forward", "weights_sha256": "feed", "threads": 1},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:00:01+00:00",
    }
    write_whole(sidecar_path(path), seal(noted))
    return path
