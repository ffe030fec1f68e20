"""Writing prediction files: parts, their joining into one HDF5 file a genome, verification.

Chunks arrive encoded (see :mod:`genomepred.store.schema`) and are copied as they are, so joining
costs no compression. Equal work gives equal bytes: files hold no times, no paths, no padding that
depends on the process, and metadata in one fixed version of the format.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from genomepred.errors import GenomepredError, StoreError
from genomepred.files import publishing, read_small, require_space, sha256_of, write_all
from genomepred.sequences.grid import SIZES, Grid
from genomepred.store.reader import FORMAT, FORMAT_VERSION, READ_ERRORS, first_line
from genomepred.store.schema import (
    DATASET,
    FILTERS,
    Attribute,
    Layout,
    filter_bytes,
    open_predictions,
    read_attributes,
    read_sidecar,
    sidecar_path,
)

# Metadata arrays are deflated whatever the predictions are, so that every tool can read them.
_TABLE = Layout(tracks=1, compression="deflate-4")
_TABLE_BYTES = 1 << 19  # of a chunk


# A part ends with this and the sha256 of all bytes before: fletcher32 cannot tell 0x0000 from
# 0xffff. HDF5 reads a file no further than its own end, so any tool reads parts as they are.
_SEAL = b"genomepred part "
_TRAILER = len(_SEAL) + hashlib.sha256().digest_size
_LARGEST_PART = 1 << 34


class DamagedPartError(StoreError):
    """A part that is absent, truncated or damaged; ``path`` says which, to compute it again."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: damaged part ({self.reason}); delete it and run predict again"


def write_part(
    path: Path,
    chunks: Sequence[bytes],
    rows: int,
    layout: Layout,
    attributes: Mapping[str, Attribute],
    more: Callable[[h5py.File], object] | None = None,
    entry: bool = False,
) -> None:
    """Publish consecutive rows as a small HDF5 file of their own, which its sha256 follows.

    Parameters
    ----------
    path : Path
        Where the part appears once it is complete and synced. Without ``entry`` its name may be
        gone after a power cut, and with it what it held.
    chunks : sequence of bytes
        What :func:`genomepred.store.schema.encode_chunk` made of the rows, in order.
    rows : int
        Rows of the part; the last chunk may be partly filled.
    layout : Layout
        The layout the chunks were encoded with.
    attributes : mapping
        Root attributes: text, numbers, truth values.
    more : callable, optional
        Writes what else the part holds.
    entry : bool
        Wait until its name is on the disk too.

    Raises
    ------
    OutputError
        If the disk is full or the folder not writable; nothing is left behind.
    ValueError
        If the chunks are not as many as the rows fill.
    """
    if len(chunks) != -(-rows // layout.chunk_rows):
        raise ValueError(f"{len(chunks)} chunks of {layout.chunk_rows} rows given for {rows} rows")
    # Built in memory, so that only complete images meet the file system. (HDF5's own in-memory
    # files are no help: before 2.0 their image had a superblock with a wrong checksum.)
    image = io.BytesIO()
    with _hdf5_in(image, attributes) as file:
        data = create_predictions(file, rows, layout)
        for i, chunk in enumerate(chunks):
            data.id.write_direct_chunk((i * layout.chunk_rows, 0), chunk)
        if more is not None:
            more(file)
    with (
        publishing(path, entry=entry) as temporary,
        open(temporary, "xb", buffering=0) as target,
    ):
        write_all(target.fileno(), image.getbuffer())
        write_all(target.fileno(), _SEAL + hashlib.sha256(image.getbuffer()).digest())


@contextmanager
def opened_part(
    path: Path, like: h5py.Dataset | None = None
) -> Iterator[tuple[h5py.File, list[bytes]]]:
    """The HDF5 file of a part, opened from the very bytes whose digest was checked, and its chunks.

    Parameters
    ----------
    path : Path
    like : Dataset, optional
        Predictions whose type, width, chunks and filters the part must share.

    Raises
    ------
    DamagedPartError
        If anything is missing, truncated or altered, or whatever is raised on reading.
    """
    try:
        whole = memoryview(read_small(path, _LARGEST_PART, follow=False))
        if whole[-_TRAILER:] != _SEAL + hashlib.sha256(whole[:-_TRAILER]).digest():
            raise DamagedPartError(path, "its bytes do not match their sha256")
        with h5py.File(io.BytesIO(whole[:-_TRAILER]), "r") as file:
            data, facts = file[DATASET], []
            for one in (data, data if like is None else like):
                made = one.id.get_create_plist()
                filters = [made.get_filter(i)[:3] for i in range(made.get_nfilters())]
                facts.append((one.dtype, one.shape[1:], one.chunks, filters))
            if facts[0] != facts[1]:
                raise DamagedPartError(path, "another type, width, chunk size or compression")
            steps = range(0, data.shape[0], data.chunks[0])
            stored = [data.id.read_direct_chunk((row, 0)) for row in steps]
            if any(skipped_filters for skipped_filters, _ in stored):
                raise DamagedPartError(path, "a chunk without its filters")
            yield file, [chunk for _, chunk in stored]
    except READ_ERRORS as error:
        raise DamagedPartError(path, _reason(error)) from error


def join(
    parts: Sequence[Path],
    path: Path,
    layout: Layout,
    grid: Grid,
    tracks: Sequence[tuple[str, str]],
    attributes: Mapping[str, Attribute],
    told: Sequence[Mapping[str, Attribute]] | None = None,
) -> str:
    """Write the parts of one genome as one file, copying compressed chunks as they are.

    It is synced, whole or absent; its name is not, for whoever calls this gives it another.

    Each part is read once; what is checked is what is copied. The chunks of the finished file are
    compared with those of the parts once more before it appears.

    Parameters
    ----------
    parts : sequence of Path
        The parts in row order; each but the last fills whole chunks.
    path : Path
        The finished file.
    layout : Layout
        The layout of the parts.
    grid : Grid
        Rows and coordinates.
    tracks : sequence of (name, description)
        One for each column.
    attributes : mapping
        Root attributes beside the format's and the grid's own.
    told : sequence of mapping, optional
        What each part must say of itself, in its attributes.

    Returns
    -------
    str
        sha256 of the file, in hexadecimal.

    Raises
    ------
    DamagedPartError
        If a part is absent, damaged, of another layout, or says something else of itself.
    StoreError
        If the parts do not add up to the grid.
    OutputError
        If the disk is full or the folder not writable; nothing is left behind.
    """
    with publishing(path, entry=False) as temporary:
        size = 0
        for part in parts:
            with suppress(OSError):  # told when it is read
                size += part.stat().st_size
        require_space(path.parent, size)
        about: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
        about |= {name: getattr(grid.geometry, name) for name in SIZES}
        with new_file(temporary, {**about, **attributes}) as file:
            describe(file, grid, tracks)
            copied = _copy_parts(file, parts, layout, grid.rows, told)
            name_dimensions(file, [name for name, _ in tracks])
        written = xxhash.xxh3_128()
        with h5py.File(temporary, "r", locking=False) as file:
            data = file[DATASET]
            for row in range(0, data.shape[0], data.chunks[0]):
                written.update(data.id.read_direct_chunk((row, 0))[1])
        if written.digest() != copied:
            raise StoreError(
                f"{path}: what was written is not what was joined; check the disk and the memory "
                "of this machine, then run predict again"
            )
        return sha256_of(temporary)


def verify_file(path: Path, sidecar: Path | None = None) -> list[str]:
    """Problems of a finished file: its hash first, then, if that holds, what it contains.

    Parameters
    ----------
    path : Path
        The prediction file.
    sidecar : Path, optional
        Its sidecar; ``<path>.json`` by default.

    Returns
    -------
    list of str
        One line a problem; empty if there is none.
    """
    try:
        noted = read_sidecar(sidecar or sidecar_path(path))
        if noted["outcome"] != "finished":
            return [f"{path}: not finished (outcome {noted['outcome']!r}: {noted['error']})"]
        digest = sha256_of(path)
    except OSError as error:
        return [f"{path}: cannot be read: {error.strerror}"]
    except StoreError as error:
        return [str(error)]
    if digest != noted["sha256"]:
        return [
            f"{path}: altered since it was written (sha256 {digest}, not {noted['sha256']}); "
            "remove it and run predict again"
        ]
    return _content_problems(path, noted)


def _content_problems(path: Path, noted: Mapping[str, Any]) -> list[str]:
    try:
        if noted["signature"].get("panel") is not None:
            from genomepred.store.cohort import cohort_problems  # compiled: takes a while

            return cohort_problems(path, noted)
        # The grid and its bounds are what a reader checks: they cannot differ from the sidecar, and
        # would take as long as hashing megabytes.
        with h5py.File(path, "r", locking=False) as file:
            return [f"{path}: {problem}" for problem in _structure_problems(file, noted)]
    except GenomepredError as error:
        return [str(error)]
    except READ_ERRORS as error:
        return [f"{path}: {_reason(error)}"]


def _structure_problems(file: h5py.File, noted: Mapping[str, Any]) -> list[str]:
    attributes, data, problems = read_attributes(file), open_predictions(file), []
    rows = data.shape[0]
    if rows != noted["rows"]:
        problems.append(f"{rows} rows, but the sidecar says {noted['rows']}")
    if not (data.shuffle and data.fletcher32):
        problems.append("chunks are not shuffled and checksummed")
    expectations = {**noted["signature"], "sequence_digest": noted["genome"]["digest"]}
    for name, value in expectations.items():
        if value is not None and attributes.get(name, value) != value:
            problems.append(f"{name} is {attributes[name]!r}, the sidecar says {value!r}")
    return problems


class _Target(io.FileIO):
    """File for HDF5 that never fails: the first error is kept and raised when HDF5 is done.

    HDF5 cannot close a file whose last flush failed: it would hold it open and try again until the
    process ends. So it is told that all went well, and the file is thrown away.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                write_all(self.fileno(), data)
            except OSError as error:
                self.failure = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


@contextmanager
def new_file(
    path: Path,
    attributes: Mapping[str, Attribute] = MappingProxyType({}),
    begin: Callable[[h5py.File], object] | None = None,
) -> Iterator[h5py.File]:
    """A new HDF5 file, whole when the block ends.

    Parameters
    ----------
    path : Path
    attributes : mapping
        Root attributes, which are written first.
    begin : callable, optional
        Writes what HDF5 reads back while it writes, as texts without a fixed length: in memory, for
        a disk that is full cannot be hidden from that.

    Raises
    ------
    OSError
        What the disk answered first, whatever HDF5 made of it.
    """
    image = io.BytesIO()
    if begin is not None:
        with _hdf5_in(image, attributes) as file:
            begin(file)
    with _Target(path, "x+b") as target:
        write_all(target.fileno(), image.getbuffer())
        try:
            with _hdf5_in(target, None if begin else attributes) as file:
                yield file
        finally:
            if target.failure is not None:
                raise target.failure


def _hdf5_in(target: io.IOBase, attributes: Mapping[str, Attribute] | None) -> h5py.File:
    """Start an HDF5 file with root attributes in a Python file; go on with one for None.

    In HDF5 1.10's version of the format, the oldest in which every piece of metadata is
    checksummed; all releases since 2016 read it.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, target)
    called = repr(target).encode()  # never stored
    if attributes is None:
        return h5py.File(h5py.h5f.open(called, h5py.h5f.ACC_RDWR, fapl=access))
    created = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    created.set_obj_track_times(False)
    file = h5py.File(h5py.h5f.create(called, h5py.h5f.ACC_TRUNC, fcpl=created, fapl=access))
    for name, value in sorted(attributes.items()):
        if isinstance(value, str):
            data = value.encode()
            kind = h5py.string_dtype("utf-8", max(len(data), 1))
            file.attrs.create(name, np.array(data, kind), dtype=kind)
        else:
            file.attrs[name] = value
    return file


def create_predictions(file: h5py.File, rows: int, layout: Layout) -> Any:
    """Create the matrix of predictions, which holds nothing yet."""
    return file.create_dataset(
        DATASET,
        shape=(rows, layout.tracks),
        maxshape=(None, layout.tracks),
        chunks=(layout.chunk_rows, layout.tracks),
        dtype=np.dtype(layout.dtype).newbyteorder("<"),
        fillvalue=np.nan,
        **FILTERS[layout.compression],
    )


def describe(file: h5py.File, grid: Grid, tracks: Sequence[tuple[str, str]]) -> None:
    """Write the coordinates of rows, and what the tracks are."""
    columns: dict[str, Sequence[str] | NDArray[Any]] = {"contig": grid.contigs.tolist()}
    numbers = {
        "start": grid.start,
        "end": grid.end,
        "first_row": grid.first_row,
        "first_window": grid.first_window,
        "contig_length": grid.length,
    }
    columns |= {name: values.astype(np.int64, copy=False) for name, values in numbers.items()}
    if grid.names is not None:
        columns["name"] = grid.names.tolist()
    write_tables(file, "intervals", columns)
    names, descriptions = [name for name, _ in tracks], [text for _, text in tracks]
    write_tables(file, "tracks", {"name": names, "description": descriptions})


def name_dimensions(file: h5py.File, tracks: Sequence[str]) -> None:
    """Call the dimensions of the predictions row and track, as programs that read netCDF do.

    The scale of the tracks holds their names; that of the rows, as netCDF has it, nothing.
    """
    data = file[DATASET]
    rows = file.create_dataset("row", shape=data.shape[:1], dtype=">f4")
    write_tables(file, "", {"track": tracks})
    label = f"This is a netCDF dimension but not a netCDF variable.{len(rows):10d}"
    for dimension, (scale, name) in enumerate([(rows, label), (file["track"], "track")]):
        h5py.h5ds.set_scale(scale.id, name.encode())
        h5py.h5ds.attach_scale(data.id, scale.id, dimension)


def write_tables(
    file: h5py.Group, place: str, tables: Mapping[str, Sequence[str] | NDArray[Any]]
) -> h5py.Group:
    """Write texts or numbers by our own filters: their bytes must not depend on HDF5's zlib.

    Parameters
    ----------
    file : Group
    place : str
        A new group of it, or nothing.
    tables : mapping
        Columns by name.

    Returns
    -------
    Group
        The one that they are in.
    """
    if place:
        created = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        created.set_obj_track_times(False)  # older releases of h5py do
        file = h5py.Group(h5py.h5g.create(file.id, place.encode(), gcpl=created))
    for name, column in tables.items():
        values: Any = column
        if isinstance(column, np.ndarray):
            kind = column.dtype.newbyteorder("<")
        else:
            values = [text.encode() for text in column]
            kind = h5py.string_dtype("utf-8", max(map(len, values), default=0) or 1)
        chunk = min(max(len(values), 1), max(_TABLE_BYTES // kind.itemsize, 1))
        form = {"shape": (len(values),), "maxshape": (None,), "chunks": (chunk,), "dtype": kind}
        data = file.create_dataset(name, **form, **FILTERS[_TABLE.compression])
        for first in range(0, len(values), chunk):
            block = np.zeros(chunk, kind)
            block[: len(values) - first] = values[first : first + chunk]
            data.id.write_direct_chunk((first,), filter_bytes(block, _TABLE))
    return file


def _copy_parts(
    file: h5py.File,
    parts: Sequence[Path],
    layout: Layout,
    rows: int,
    told: Sequence[Mapping[str, Attribute]] | None,
) -> bytes:
    """Copy all chunks; a digest of them in order."""
    data, digest = create_predictions(file, rows, layout), xxhash.xxh3_128()
    row = 0
    for k, part in enumerate(parts):
        with opened_part(part, data) as (opened, chunks):
            if told is not None and read_attributes(opened) != told[k]:
                raise DamagedPartError(part, "of another run or another sequence")
            count = len(opened[DATASET])
        if row % layout.chunk_rows or row + count > rows:
            raise StoreError(
                f"{part}: its {count} rows do not follow the {row} rows before it in a file of "
                f"{rows}; delete the parts of this genome and run predict again"
            )
        for i, chunk in enumerate(chunks):
            data.id.write_direct_chunk((row + i * layout.chunk_rows, 0), chunk)
            digest.update(chunk)
        row += count
    if row != rows:
        raise StoreError(f"{len(parts)} parts hold {row} of {rows} rows; run predict again")
    return digest.digest()


def _reason(error: BaseException) -> str:
    told = error.strerror if isinstance(error, OSError) else None
    return told or first_line(error)
