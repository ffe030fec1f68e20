"""Writing cohort files: shards of a panel as parts, and parts joined into one file."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from genomepred.errors import StoreError
from genomepred.files import publishing, require_space, sha256_of, write_all
from genomepred.sequences.distinct import leader_type
from genomepred.sequences.grid import Grid
from genomepred.store import hdf5
from genomepred.store.chunks import Layout, encode_chunk, filter_bytes
from genomepred.store.hdf5 import DamagedPartError
from genomepred.store.opening import COHORT_FORMAT
from genomepred.store.reader import Float32, Int64
from genomepred.store.schema import Attribute, read_attributes

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
    step = layout.chunk_rows
    image = io.BytesIO()
    with hdf5._create_file(image) as file:
        hdf5._write_attributes(file, attributes)
        rows = (len(leader) + fill) * layout.bins
        data = hdf5._create_predictions(file, rows, layout)
        for row in range(0, rows, step):
            chunk = encode_chunk(values[row : row + step], layout)
            data.id.write_direct_chunk((row, 0), chunk)
        whole = np.concatenate([leader, np.full(fill, none, leader.dtype)])
        hdf5._write_table(file, "counts", counts.astype(np.int64, copy=False))
        hdf5._write_table(file, "leader", whole)
        table = _create_index(file, "index", index.shape, index.dtype)
        for h in range(0, index.shape[0], INDEX_CHUNK):
            for w in range(0, index.shape[1], INDEX_CHUNK):
                block = np.full((INDEX_CHUNK, INDEX_CHUNK), none, index.dtype)
                part = index[h : h + INDEX_CHUNK, w : w + INDEX_CHUNK]
                block[: part.shape[0], : part.shape[1]] = part
                table.id.write_direct_chunk((h, w), filter_bytes(block, _INDEX_LAYOUT))
    with publishing(path) as temporary, open(temporary, "xb", buffering=0) as target:
        write_all(target.fileno(), image.getbuffer())
        write_all(target.fileno(), hdf5._SEAL + hashlib.sha256(image.getbuffer()).digest())


def _create_index(group: Any, name: str, shape: tuple[int, int], kind: np.dtype[Any]) -> Any:
    return group.create_dataset(
        name,
        shape=shape,
        maxshape=(None, None),
        chunks=(INDEX_CHUNK, INDEX_CHUNK),
        dtype=kind.newbyteorder("<"),
        fillvalue=np.iinfo(kind).max,
        shuffle=True,
        compression="gzip",
        compression_opts=_INDEX_LAYOUT.level,
        fletcher32=True,
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
        require_space(path.parent, sum(hdf5._size(part) for part in parts))
        with hdf5.new_file(temporary) as file:
            hdf5.describe(file, grid, tracks, {**attributes, "format": COHORT_FORMAT})
            group = hdf5._create_group(file, "haplotypes")
            hdf5._write_table(group, "sample", [sample for sample, _ in haplotypes])
            hdf5._write_table(group, "copy", np.array([copy for _, copy in haplotypes], np.int32))
            _copy_cohort(file, parts, layout, len(haplotypes), windows, told)
            hdf5._name_dimensions(file, [name for name, _ in tracks])
        return sha256_of(temporary)


def _copy_cohort(
    file: h5py.File,
    parts: Sequence[Path],
    layout: Layout,
    haplotypes: int,
    windows: int,
    told: Sequence[Mapping[str, Attribute]],
) -> None:
    data = hdf5._create_predictions(file, 0, layout)
    group = hdf5._create_group(file, "cohort")
    kind = leader_type(haplotypes)
    index = _create_index(group, "index", (haplotypes, windows), kind)
    counts, leaders, firsts = [], [np.empty(0, kind)], [np.empty(0, np.int64)]
    row = window = 0
    for part, expected in zip(parts, told, strict=True):
        with hdf5._opened_part(part) as source:
            if read_attributes(source) != expected:
                raise DamagedPartError(part, "of another run or another panel")
            values = source["predictions"]
            if hdf5._layout_facts(values) != hdf5._layout_facts(data):
                raise DamagedPartError(part, "another type, width, chunk size or compression")
            data.resize(row + values.shape[0], axis=0)
            for at in range(0, values.shape[0], layout.chunk_rows):
                _, chunk = values.id.read_direct_chunk((at, 0))
                data.id.write_direct_chunk((row + at, 0), chunk)
            count, found = source["counts"][:], source["index"]
            for h in range(0, haplotypes, INDEX_CHUNK):
                for w in range(0, found.shape[1], INDEX_CHUNK):
                    _, chunk = found.id.read_direct_chunk((h, w))
                    index.id.write_direct_chunk((h, window + w), chunk)
            leaders.append(source["leader"][:])
            firsts.append(row // layout.bins + np.cumsum(count) - count)
            counts.append(count)
            row += values.shape[0]
            window += len(count)
    if window != windows:
        raise StoreError(f"{len(parts)} parts hold {window} of {windows} windows; predict again")
    first, leader = np.concatenate(firsts), np.concatenate(leaders)
    hdf5._write_table(group, "first", first.astype(np.int64, copy=False))
    hdf5._write_table(group, "leader", leader)
