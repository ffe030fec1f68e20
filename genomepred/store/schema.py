"""The schema of a prediction file and of its sidecar: chunks as they are stored, and checks.

Chunks are encoded outside HDF5, to the exact bytes that its own filters would store, so that worker
threads compress at the same time: HDF5 runs its filters under one lock. The bytes are a function of
the values, the layout and the zlib in use.

A file is checked once, when it is opened; later reads trust it. Nothing is read before its type and
size are known: no link leads to another object or file, no type refers to memory of the file
(variable-length data, references), no filter loads code, and no size is larger than what the file
can hold. A sidecar tells what became of a genome: sealed JSON, ``<file>.json``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import lcm, log, prod
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from genomepred.documents import COUNT, DocumentError, check_document, read_document
from genomepred.errors import OutputError, PrecisionError, StoreError
from genomepred.sequences.grid import SIZES, Geometry, Grid
from genomepred.store import zstd

Attribute = str | int | float | bool

DATASET = "predictions"

# -- chunks --------------------------------------------------------------------------------------

# Values in a chunk: 256 KB of float32. Large enough that the index of a 3-Gb genome at stride 20
# has 2,300 entries, small enough that a query of one gene decodes little.
CHUNK_VALUES = 65536

# Strategy of plain "deflate". Shuffled predictions are planes of exponent bytes, which repeat, and
# of mantissa bytes, which are noise: searching for matches costs time and finds none. Measured on
# chr22:20-21 Mb with the two-block CNN, one core, float32; random weights but for the last line:
#
#   output              level 1        level 4        level 6        run lengths
#   sigmoid, 1 track    79 MB/s 0.859  69 MB/s 0.852  40 MB/s 0.851  219 MB/s 0.834
#   sigmoid, 3 tracks   73 MB/s 0.857  63 MB/s 0.850  29 MB/s 0.847  192 MB/s 0.832
#   ReLU, 3 tracks      64 MB/s 0.604  40 MB/s 0.585  11 MB/s 0.575  107 MB/s 0.514
#   softmax, 3 tracks   57 MB/s 0.738  41 MB/s 0.730  24 MB/s 0.723  156 MB/s 0.720
#   18 scales           68 MB/s 0.794  60 MB/s 0.777  38 MB/s 0.767  197 MB/s 0.850
#   trained CTCF        72 MB/s 0.762  63 MB/s 0.753  36 MB/s 0.750  158 MB/s 0.754
#
# With many tracks of different scales the exponents repeat at a distance, so matches pay again.
RUN_LENGTH_TRACKS = 4
# Level of zlib, by compression.
_LEVELS = {"deflate": 4} | {f"deflate-{level}": level for level in range(1, 10)}
_CHECKED: dict[str, Any] = {"shuffle": True, "fletcher32": True}
#: Filters of a dataset, by compression, as ``create_dataset`` takes them.
FILTERS = {
    **{k: _CHECKED | {"compression": "gzip", "compression_opts": v} for k, v in _LEVELS.items()},
    "zstd": _CHECKED | {"compression": zstd.FILTER, "compression_opts": (zstd.LEVEL,)},
    "none": _CHECKED,
}


@dataclass(frozen=True)
class Layout:
    """Layout of predictions in a file: shape, type and compression of chunks.

    Parameters
    ----------
    tracks : int
        Columns of the matrix.
    dtype : {"float32", "float16"}
        Type of the stored values.
    compression : str
        ``"deflate"`` (the measured default), ``"deflate-1"`` to ``"deflate-9"`` (that zlib level),
        ``"zstd"`` (needs the extra ``zstd`` to write and to read) or ``"none"``.
    bins : int
        Bins of a window; whole windows share a chunk where they fit.

    Attributes
    ----------
    chunk_rows : int
        Rows of a chunk: a power of two of windows, or a divisor of a window too large for one.
        About ``CHUNK_VALUES`` values; rows of shards then always begin at a chunk.
    run_lengths : bool
        Whether chunks are deflated by run lengths alone.

    Raises
    ------
    OutputError
        If the type or compression is not one of these.
    DependencyError
        If zstd is asked for and not installed.
    """

    tracks: int
    dtype: Literal["float32", "float16"] = "float32"
    compression: str = "deflate"
    bins: int = 1
    chunk_rows: int = field(init=False)
    run_lengths: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16"):
            raise OutputError(f"store type {self.dtype!r} is unknown; use float32 or float16")
        if self.compression not in FILTERS:
            raise OutputError(
                f"compression {self.compression!r} is unknown; use deflate, deflate-1 to "
                "deflate-9, zstd or none"
            )
        if min(self.tracks, self.bins) < 1:
            raise OutputError(f"a layout needs tracks and bins, got {self.tracks} and {self.bins}")
        if self.compression == "zstd":
            zstd.require()
        if most := CHUNK_VALUES // (self.tracks * self.bins):
            rows = self.bins << (most.bit_length() - 1)
        else:
            divisors = [d for d in range(1, self.bins + 1) if self.bins % d == 0]
            rows = min(divisors, key=lambda d: abs(log(d * self.tracks / CHUNK_VALUES)))
        object.__setattr__(self, "chunk_rows", rows)
        few = self.compression == "deflate" and self.tracks <= RUN_LENGTH_TRACKS
        object.__setattr__(self, "run_lengths", few)

    def shard_rows(self, compute_batch: int) -> int:
        """Rows of a shard: about two chunks, and whole chunks, windows and compute batches.

        A compute batch that two shards cut would be computed twice.
        """
        unit = lcm(self.chunk_rows, self.bins)
        return lcm(unit * max(1, 2 * self.chunk_rows // unit), compute_batch * self.bins)


def encode_chunk(values: NDArray[np.floating[Any]], layout: Layout) -> bytes:
    """Rows as one full HDF5 chunk: padded, shuffled, compressed, checksummed.

    Parameters
    ----------
    values : float array, [rows <= layout.chunk_rows, layout.tracks]
        Predictions; NaN is missing. Every NaN is stored as the same bits.

    Returns
    -------
    bytes
        What ``write_direct_chunk`` takes.

    Raises
    ------
    PrecisionError
        If a finite value is too large for the type.
    """
    rows = values.shape[0]
    block = np.full((layout.chunk_rows, layout.tracks), np.nan, np.dtype(layout.dtype))
    with np.errstate(over="ignore"):
        np.copyto(block[:rows], values, casting="same_kind", where=~np.isnan(values))
    if block.itemsize < values.itemsize:
        _require_range(values, block[:rows])
    little_endian = block.astype(block.dtype.newbyteorder("<"), copy=False)
    return filter_bytes(little_endian, layout)


def _require_range(values: NDArray[np.floating[Any]], stored: NDArray[np.floating[Any]]) -> None:
    too_large = np.isinf(stored) & np.isfinite(values)
    if too_large.any():
        raise PrecisionError(
            f"a prediction of {values[too_large][0]:g} does not fit {stored.dtype}, whose largest "
            f"value is {np.finfo(stored.dtype).max:g}; use --store-dtype float32"
        )


def filter_bytes(array: NDArray[Any], layout: Layout) -> bytes:
    """A C-contiguous array through the layout's filters: shuffle, compression, fletcher32."""
    packed = array.reshape(-1, 1).view(np.uint8).T.tobytes()
    if layout.compression == "zstd":
        import zstandard

        packed = zstandard.ZstdCompressor(level=zstd.LEVEL).compress(packed)
    elif level := _LEVELS.get(layout.compression):
        strategy = zlib.Z_RLE if layout.run_lengths else zlib.Z_DEFAULT_STRATEGY
        deflate = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 8, strategy)
        packed = deflate.compress(packed) + deflate.flush()
    return packed + fletcher32(packed).to_bytes(4, "little")


# Words summed at once: few enough for L2 (half the speed with 2**12), and the sum of their sums
# stays far below 2**64.
_BLOCK = 1 << 14


def fletcher32(data: bytes | memoryview) -> int:
    """Checksum that HDF5's fletcher32 filter appends, over big-endian 16-bit words.

    An odd last byte counts as the upper half of a word.
    """
    view = memoryview(data).cast("B")
    words = np.frombuffer(view[: len(view) // 2 * 2], ">u2")
    first = second = 0  # Python's numbers, which hold any sum
    for begin in range(0, len(words), _BLOCK):
        sums = np.cumsum(words[begin : begin + _BLOCK].astype(np.uint64))
        second += len(sums) * first + int(sums.sum())
        first += int(sums[-1])
    if len(view) % 2:
        first += view[-1] << 8
        second += first
    # Remainders modulo 65535, but 65535 for its multiples above 0, as folding gives.
    first, second = (total and (total - 1) % 65535 + 1 for total in (first, second))
    return second << 16 | first


# -- files that are read -------------------------------------------------------------------------

_READABLE = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_MOST_ATTRIBUTES, _MOST_TEXT = 1000, 1 << 16  # of the root; bytes of one text
_MOST_INTERVALS = 1 << 27
_MOST_BASES = 1 << 48  # positions stay exact in any sum
_MOST_CHUNK = 1 << 26  # bytes of a decoded chunk: ours have 256 KB, or one row
_LEAST_STORED = 4  # bytes of a stored chunk: its checksum
_COLUMNS = ("start", "end", "first_row", "first_window", "contig_length")


class SchemaError(ValueError):
    """A file that is no prediction file; says what and where."""


def read_attributes(file: h5py.File, *only: str) -> dict[str, Attribute]:
    """Root attributes, all or some, as plain values: scalars of fixed size, none large.

    Raises
    ------
    SchemaError
        If there is another kind of attribute.
    """
    count = h5py.h5a.get_num_attrs(file.id)
    if count > _MOST_ATTRIBUTES:
        raise SchemaError(f"{count:,} attributes")
    names: list[bytes] = []
    h5py.h5a.iterate(file.id, names.append)  # to open one by its number sorts them all
    found: dict[str, Attribute] = {}
    for name in (name for name in names if not only or name.decode() in only):
        attribute = h5py.h5a.open(file.id, name)
        kind = attribute.get_type()
        dtype = _plain_type(kind)
        if attribute.shape != () or dtype is None:
            raise SchemaError(
                f"attribute {name.decode()!r} is no text of fixed length and no number"
            )
        read = np.zeros((), dtype)
        attribute.read(read, mtype=kind)
        value = read.item()
        found[name.decode()] = value.decode() if isinstance(value, bytes) else value
    return found


def _plain_type(kind: Any) -> np.dtype[Any] | None:
    """NumPy's type of a number, a truth value or a text of a fixed size; None of any other."""
    size = kind.get_size()
    if size > _MOST_TEXT:
        return None
    if isinstance(kind, h5py.h5t.TypeStringID):  # h5py takes longer for it than to read a value
        return None if kind.is_variable_str() else np.dtype(f"S{size}")
    if isinstance(kind, h5py.h5t.TypeEnumID):
        return np.dtype(np.bool_) if kind.dtype == np.bool_ else None
    numbers = h5py.h5t.TypeIntegerID | h5py.h5t.TypeFloatID
    return kind.dtype if isinstance(kind, numbers) else None


def open_dataset(parent: h5py.Group, name: str, dimensions: int) -> h5py.Dataset:
    """A dataset that lies whole in this file, in chunks that filters of HDF5 itself decode.

    Raises
    ------
    SchemaError
        If it is absent or another kind of dataset.
    """
    # By HDF5's own calls: those of h5py take several times as long, and a run has many files.
    where = f"{parent.name.rstrip('/')}/{name}"
    data = _own(parent, name, where)
    if not isinstance(data, h5py.h5d.DatasetID):
        raise SchemaError(f"{where} is no dataset")
    created, kind, shape = data.get_create_plist(), data.get_type(), data.shape
    chunked = created.get_layout() == h5py.h5d.CHUNKED
    chunks = created.get_chunk() if chunked else None
    if len(shape) != dimensions or 0 in (chunks or (0,)):
        raise SchemaError(f"{where} has shape {shape} and chunks {chunks}")
    if created.get_external_count():
        raise SchemaError(f"{where} lies outside the file")
    if isinstance(kind, h5py.h5t.TypeEnumID) or _plain_type(kind) is None:
        raise SchemaError(f"{where} is of type {kind.dtype}, or of variable length")
    filters = {created.get_filter(i)[0] for i in range(created.get_nfilters())}
    if filters - _READABLE - {zstd.FILTER}:
        raise SchemaError(f"{where} is stored through filters {sorted(filters)}")
    _require_chunks(data, shape, chunks, where)
    return h5py.Dataset(data)


def _own(parent: h5py.Group, name: str, where: str) -> Any:
    """Identifier of an object of a group, not through links that lead elsewhere."""
    key = name.encode()
    if not parent.id.links.exists(key):
        raise SchemaError(f"{where} is absent")
    if parent.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise SchemaError(f"{where} is a link")
    return h5py.h5o.open(parent.id, key)


def _require_chunks(data: Any, shape: tuple[int, ...], chunks: Any, where: str) -> None:
    """Every chunk is there, so that the sizes are those of data and not of a claim."""
    size = data.get_type().get_size() * prod(chunks)
    if size > _MOST_CHUNK:
        raise SchemaError(f"{where} has chunks of {size:,} bytes")
    expected = 1
    for length, chunk in zip(shape, chunks, strict=True):
        expected *= -(-length // chunk)
    if expected > h5py.h5i.get_file_id(data).get_filesize() // _LEAST_STORED:
        raise SchemaError(f"{where} has more chunks ({expected:,}) than the file can hold")
    stored = data.get_num_chunks()
    if stored != expected:
        raise SchemaError(f"{where}: {stored:,} chunks of {expected:,} are present")


def open_group(file: h5py.File, name: str) -> h5py.Group:
    """A group of the file's root.

    Raises
    ------
    SchemaError
        If it is absent, a link or no group.
    """
    group = _own(file, name, f"/{name}")
    if not isinstance(group, h5py.h5g.GroupID):
        raise SchemaError(f"/{name} is no group")
    return h5py.Group(group)


def open_predictions(file: h5py.File) -> h5py.Dataset:
    """The matrix of predictions, [rows, tracks], float32 or float16, whole rows in a chunk.

    Raises
    ------
    SchemaError
        If it is absent or not as this package writes it.
    """
    data = open_dataset(file, DATASET, 2)
    if data.dtype not in (np.dtype("<f4"), np.dtype("<f2")):
        raise SchemaError(f"predictions are {data.dtype}, neither float32 nor float16")
    if data.chunks[1] != data.shape[1] or not data.shape[1]:
        raise SchemaError(f"predictions have chunks {data.chunks} for shape {data.shape}")
    return data


def read_texts(group: h5py.Group, name: str, count: int) -> NDArray[np.object_]:
    """A column of texts, held by their own lengths.

    Raises
    ------
    SchemaError
        If it is none of ``count`` texts of fixed length.
    """
    data = open_dataset(group, name, 1)
    if data.shape != (count,):
        raise SchemaError(f"{data.name} has shape {data.shape}, not {count:,} entries")
    kind = data.id.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID):
        raise SchemaError(f"{data.name} is {data.dtype}, not text")
    return np.array([text.decode() for text in _entries(data, kind)], object)


def _entries(data: h5py.Dataset, kind: Any) -> Iterator[bytes]:
    step, count = data.chunks[0], data.shape[0]
    if count <= step:
        read = np.empty(count, f"S{kind.get_size()}")
        data.id.read(h5py.h5s.ALL, h5py.h5s.ALL, read, mtype=kind)
        yield from read.tolist()
        return
    for first in range(0, count, step):
        yield from data[first : first + step].tolist()


def _read_numbers(group: h5py.Group, name: str, count: int) -> NDArray[np.int64]:
    data = open_dataset(group, name, 1)
    if data.shape != (count,) or not data.id.get_type().equal(h5py.h5t.STD_I64LE):
        raise SchemaError(
            f"{data.name} is {data.dtype} of shape {data.shape}, not int64 of {count:,}: columns "
            "of /intervals differ in length or type"
        )
    numbers = np.empty(count, np.int64)
    data.id.read(h5py.h5s.ALL, h5py.h5s.ALL, numbers)
    return numbers


def read_grid(file: h5py.File, attributes: dict[str, Attribute], rows: int) -> Grid:
    """Rows and coordinates, each number within its bounds.

    Raises
    ------
    SchemaError
        If anything is absent, of another type or out of its bounds.
    ModelError
        If sizes contradict each other.
    """
    geometry = _geometry(attributes)
    intervals = open_group(file, "intervals")
    count = open_dataset(intervals, "contig", 1).shape[0]
    if count > _MOST_INTERVALS:
        raise SchemaError(f"{count:,} intervals")
    columns = {name: _read_numbers(intervals, name, count) for name in _COLUMNS}
    has_names = intervals.id.links.exists(b"name")
    grid = Grid(
        geometry=geometry,
        contigs=read_texts(intervals, "contig", count),
        start=columns["start"],
        first_row=columns["first_row"],
        rows=rows,
        length=columns["contig_length"],
        first_window=columns["first_window"],
        names=read_texts(intervals, "name", count) if has_names else None,
    )
    _require_bounds(grid, columns["end"])
    return grid


def _geometry(attributes: dict[str, Attribute]) -> Geometry:
    sizes = {}
    for name in SIZES:
        value = attributes.get(name)
        if type(value) is not int or not 0 <= value <= _MOST_BASES:
            raise SchemaError(f"attribute {name} is {value!r}, not a number of bases")
        sizes[name] = value
    return Geometry(**sizes)


def _require_bounds(grid: Grid, end: NDArray[np.int64]) -> None:
    """Rows add up, and lie where their contigs are, so that no arithmetic can overflow."""
    g, first = grid.geometry, grid.first_row
    if max(g.window, g.stride, g.span) > _MOST_BASES:
        raise SchemaError(f"sizes too large: {g}")
    counts = np.diff(first, append=np.int64(grid.rows))
    if (counts < 0).any() or (first[:1] != 0).any() or (grid.rows and not first.size):
        raise SchemaError(f"/intervals do not add up to {grid.rows} rows")
    length = grid.length
    if (length < 0).any() or (length > _MOST_BASES).any() or (grid.first_window < 0).any():
        raise SchemaError("/intervals/contig_length or first_window is out of bounds")
    beyond = length + g.span + 2 * g.stride
    if (grid.start < -g.span).any() or (grid.start > beyond).any():
        raise SchemaError("/intervals/start is out of bounds")
    if (counts > (beyond - grid.start) // g.step).any():
        raise SchemaError("/intervals have more rows than their contigs have room for")
    if (grid.end != end).any():
        raise SchemaError("/intervals/end does not follow from start and rows")
    pairs = list(zip(grid.contigs.tolist(), length.tolist(), strict=True))
    if dict(pairs) != dict(reversed(pairs)):
        raise SchemaError("/intervals/contig_length differs within a contig")


# -- sidecars ------------------------------------------------------------------------------------

# Values of a signature.
_SIGNATURE = {str: (str, int, bool, float, None, [str])}
_OUTCOMES = {
    "finished": {
        "sha256": str,
        "bytes": COUNT,
        "rows": COUNT,
        "bases": COUNT,
        "genome": {"path": str, "size": COUNT, "mtime_ns": int, "digest": str},
        "signature": _SIGNATURE,
        "started": str,
        "finished": str,
    },
    "failed": {
        "error": str,
        "session": str,
        "genome": {"path": str},
        "signature": _SIGNATURE,
        "finished": str,
    },
}
# A failed genome's message may quote what it found; everything else is small.
_LARGEST_SIDECAR = 1 << 22


def sidecar_path(path: Path) -> Path:
    """Path of the sidecar, which holds the outcome of a prediction file."""
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """Contents of a sidecar: what its outcome requires, each value of its own kind.

    Raises
    ------
    StoreError
        If it is absent, unreadable, no such document, or altered since it was written.
    """
    try:
        noted = read_document(path, {"outcome": str}, sealed=True, limit=_LARGEST_SIDECAR)
        if noted["outcome"] not in _OUTCOMES:
            raise DocumentError(f"outcome is {noted['outcome'][:40]!r}")
        check_document(noted, _OUTCOMES[noted["outcome"]])
        return noted
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise StoreError(
            f"{path}: damaged sidecar ({error}); delete it and run predict again"
        ) from error
