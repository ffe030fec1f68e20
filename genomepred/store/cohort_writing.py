"""Writing cohort files: shards of a panel as parts, and parts joined into one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from genomepred.errors import StoreError
from genomepred.files import publishing, require_space, sha256_of
from genomepred.sequences.distinct import leader_type
from genomepred.sequences.grid import Grid
from genomepred.store import hdf5
from genomepred.store.hdf5 import DamagedPartError
from genomepred.store.opening import COHORT_FORMAT
from genomepred.store.reader import FORMAT_VERSION, Float32, Int64
from genomepred.store.schema import (
    DATASET,
    FILTERS,
    Attribute,
    Layout,
    encode_chunk,
    filter_bytes,
    read_attributes,
)

# Haplotypes and windows of a chunk of the index: 128 kB, of which a haplotype's stretch decodes
# little and a stretch of all haplotypes little more than it needs.
INDEX_CHUNK = 256
# Of the simulated panel level 3 takes 0.56 bits an entry, level 4 0.66 and twice as long.
_INDEX_LAYOUT = Layout(tracks=1, compression="deflate-3")


def padded(distinct: int, layout: Layout) -> int:
    """Distinct windows of a shard with those that fill its last chunk."""
    rows = -(-distinct * layout.bins // layout.chunk_rows) * layout.chunk_rows
    return rows // layout.bins


def write_cohort_part(
    path: Path,
    values: Float32,
    counts: Int64,
    leader: NDArray[Any],
    index: NDArray[Any],
    layout: Layout,
    attributes: Mapping[str, Attribute],
) -> None:
    """Publish a shard, with its sha256 behind it as any part.

    Parameters
    ----------
    path : Path
    values : float32 array, [distinct x bins, tracks]
    counts : int64 array, [windows]
        Distinct predictions of each window.
    leader : uint array, [distinct]
    index : uint array, [haplotypes, windows]
    layout : Layout
    attributes : mapping
        What the part says of itself.
    """
    fill = padded(len(leader), layout) - len(leader)
    none = np.iinfo(leader.dtype).max
    rows, step = (len(leader) + fill) * layout.bins, layout.chunk_rows
    chunks = [encode_chunk(values[row : row + step], layout) for row in range(0, rows, step)]

    def write_index(file: h5py.File) -> None:
        whole = np.concatenate([leader, np.full(fill, none, leader.dtype)])
        tables = {"counts": counts.astype(np.int64, copy=False), "leader": whole}
        hdf5.write_tables(file, "", tables)
        table = _create_index(file, index.shape, index.dtype)
        for h, w in _corners(index.shape):
            block = np.full((INDEX_CHUNK, INDEX_CHUNK), none, index.dtype)
            part = index[h : h + INDEX_CHUNK, w : w + INDEX_CHUNK]
            block[: part.shape[0], : part.shape[1]] = part
            table.id.write_direct_chunk((h, w), filter_bytes(block, _INDEX_LAYOUT))

    hdf5.write_part(path, chunks, rows, layout, attributes, more=write_index, entry=True)


def _corners(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """First haplotype and window of every chunk of an index."""
    return product(range(0, shape[0], INDEX_CHUNK), range(0, shape[1], INDEX_CHUNK))


def _create_index(group: h5py.Group, shape: tuple[int, int], kind: np.dtype[Any]) -> Any:
    return group.create_dataset(
        "index",
        shape=shape,
        maxshape=(None, None),
        chunks=(INDEX_CHUNK, INDEX_CHUNK),
        dtype=kind.newbyteorder("<"),
        fillvalue=np.iinfo(kind).max,
        **FILTERS[_INDEX_LAYOUT.compression],
    )


def join_cohort(
    parts: Sequence[Path],
    path: Path,
    layout: Layout,
    grid: Grid,
    tracks: Sequence[tuple[str, str]],
    haplotypes: Sequence[tuple[str, int]],
    attributes: Mapping[str, Attribute],
    told: Sequence[Mapping[str, Attribute]],
) -> str:
    """Publish the shards of a panel as one file; its sha256.

    Parameters
    ----------
    parts : sequence of Path
        In order of windows.
    path : Path
    layout : Layout
    grid : Grid
    tracks : sequence of (name, description)
    haplotypes : sequence of (sample, copy)
    attributes : mapping
        Root attributes beside those of format and grid.
    told : sequence of mapping
        What each part must say of itself.

    Raises
    ------
    DamagedPartError
        If a part is absent, damaged or another one.
    StoreError
        If the parts do not add up to the grid.
    """
    windows = grid.rows // grid.geometry.bins
    with publishing(path) as temporary:
        size = sum(part.stat().st_size for part in parts if part.exists())
        require_space(path.parent, size)
        about = {"format": COHORT_FORMAT, "format_version": FORMAT_VERSION, **asdict(grid.geometry)}
        with hdf5.new_file(temporary, {**about, **attributes}) as file:
            hdf5.describe(file, grid, tracks)
            samples = [sample for sample, _ in haplotypes]
            copies = np.array([copy for _, copy in haplotypes], np.int32)
            hdf5.write_tables(file, "haplotypes", {"sample": samples, "copy": copies})
            _copy_cohort(file, parts, layout, len(haplotypes), windows, told)
            hdf5.name_dimensions(file, [name for name, _ in tracks])
        return sha256_of(temporary)


def _copy_cohort(
    file: h5py.File,
    parts: Sequence[Path],
    layout: Layout,
    haplotypes: int,
    windows: int,
    told: Sequence[Mapping[str, Attribute]],
) -> None:
    data = hdf5.create_predictions(file, 0, layout)
    group = hdf5.write_tables(file, "cohort", {})
    kind = leader_type(haplotypes)
    index = _create_index(group, (haplotypes, windows), kind)
    leaders, firsts = [np.empty(0, kind)], [np.empty(0, np.int64)]
    row = window = 0
    for part, expected in zip(parts, told, strict=True):
        with hdf5.opened_part(part, data) as (source, chunks):
            if read_attributes(source) != expected:
                raise DamagedPartError(part, "of another run or another panel")
            rows = len(source[DATASET])
            data.resize(row + rows, axis=0)
            for k, chunk in enumerate(chunks):
                data.id.write_direct_chunk((row + k * layout.chunk_rows, 0), chunk)
            for h, w in _corners((haplotypes, source["index"].shape[1])):
                _, chunk = source["index"].id.read_direct_chunk((h, w))
                index.id.write_direct_chunk((h, window + w), chunk)
            count = source["counts"][:]
            leaders.append(source["leader"][:])
            firsts.append(row // layout.bins + np.cumsum(count) - count)
            row += rows
            window += len(count)
    if window != windows:
        raise StoreError(f"{len(parts)} parts hold {window} of {windows} windows; predict again")
    first = np.concatenate(firsts).astype(np.int64, copy=False)
    hdf5.write_tables(group, "", {"first": first, "leader": np.concatenate(leaders)})
