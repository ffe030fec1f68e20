"""Reading prediction files by coordinates or by rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from genomepred.errors import ModelError, RegionError, StoreError, optional
from genomepred.files import open_regular
from genomepred.sequences.grid import Region, parse_region
from genomepred.store import zstd
from genomepred.store.schema import (
    DATASET,
    open_group,
    open_predictions,
    read_attributes,
    read_grid,
    read_texts,
)

if TYPE_CHECKING:
    import pandas as pd
    import xarray

FORMAT = "genomepred"
FORMAT_VERSION = 1

Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

# What HDF5 and h5py raise on files that are damaged or not what they claim to be.
READ_ERRORS = (
    *(OSError, LookupError, ValueError, RuntimeError, TypeError, AttributeError),
    *(ArithmeticError, MemoryError),
)

# An end that a region string leaves open.
_OPEN = 1 << 62

# Values decoded at a time when a file is walked: 256 KB of float32, 8 MB once they are text.
_BLOCK_VALUES = 1 << 16

# Decoded chunks kept: exports sorted by contig name jump between the chunks of many scaffolds.
_CACHE_BYTES = 32 << 20
_CACHE_SLOTS = 10007


@dataclass(frozen=True)
class Predictions:
    """Rows that intersect a region, with the bases each describes.

    Attributes
    ----------
    contig : str
    start, end : int64 array, [rows]
        0-based half-open, not past the ends of the contig.
    values : float32 array, [rows, tracks]
        NaN where missing.
    tracks : tuple of str
        Names of the columns of ``values``.
    names : array of str objects, [rows], optional
        Names of the BED records (files made with ``--center``).
    """

    contig: str
    start: Int64
    end: Int64
    values: Float32
    tracks: tuple[str, ...]
    names: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        return len(self.start)

    def to_frame(self) -> pd.DataFrame:
        """Table with columns contig, start, end, name (where there are names) and the tracks."""
        import pandas as pd

        table = pd.DataFrame(self.values, columns=pd.Index(self.tracks))
        left: dict[str, Any] = {"contig": self.contig, "start": self.start, "end": self.end}
        if self.names is not None:
            left["name"] = self.names
        return pd.concat([pd.DataFrame(left, index=table.index), table], axis=1)

    def to_records(self, columns: Sequence[int]) -> list[dict[str, Any]]:
        """Rows as plain values: contig, start, end, name (where there are names), the columns."""
        # Through text, for the shortest decimal that reads back as the same float32.
        values = self.values[:, columns].astype(np.str_).astype(np.float64).tolist()
        tracks = [self.tracks[k] for k in columns]
        names = [{}] * len(self) if self.names is None else [{"name": str(n)} for n in self.names]
        return [
            {"contig": self.contig, "start": start, "end": end, **name}
            | dict(zip(tracks, row, strict=True))
            for start, end, name, row in zip(
                self.start.tolist(), self.end.tolist(), names, values, strict=True
            )
        ]


class PredictionStore:
    """One genome's predictions, opened for reading.

    ``store[contig, start:end]`` is the rows that intersect a region, ``store[contig, base]`` those
    that describe one base; ``store.read(first, last)`` is rows by number. Use it as a context
    manager, or call :meth:`close`. Any number of readers may open one file: no locks are taken.

    Parameters
    ----------
    path : Path or str
        A file that ``genomepred predict`` wrote.

    Attributes
    ----------
    path : Path
    attributes : dict
        Root attributes: genome, model, sizes, strand, precision and so on.
    tracks : tuple of str
        Names of the columns.
    descriptions : tuple of str
        What the columns hold.
    grid : Grid
        Rows <-> coordinates.
    predictions : h5py.Dataset, [rows, tracks]

    Raises
    ------
    StoreError
        If the file is absent, damaged, incomplete, of a newer format, or not ours.
    """

    _file: Any = None

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        with self._reading("opened"):
            if self.path.is_dir():
                raise IsADirectoryError
            # As a Python file: HDF5 itself lets one process open a file only in one way of
            # locking, so that a file that other code has open could not be opened here.
            self._bytes = open(open_regular(self.path), "rb")  # noqa: SIM115  (closed by close)
        try:
            with self._reading("opened"):
                self._file = h5py.File(
                    self._bytes, "r", rdcc_nbytes=_CACHE_BYTES, rdcc_nslots=_CACHE_SLOTS
                )
            with self._reading("read"):
                self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        self.attributes = read_attributes(self._file)
        self._require_format()
        self.predictions = open_predictions(self._file)
        if _compression(self.predictions) == "zstd":
            zstd.require()
        count = self.predictions.shape[1]
        self.rows: int = self._row_count()
        tracks = open_group(self._file, "tracks")
        self.tracks = tuple(read_texts(tracks, "name", count).tolist())
        self.descriptions = tuple(read_texts(tracks, "description", count).tolist())
        self.grid = read_grid(self._file, self.attributes, self.rows)

    #: What the file says that it is.
    format = FORMAT

    def _row_count(self) -> int:
        return int(self.predictions.shape[0])

    def _require_format(self) -> None:
        if self.attributes.get("format") != self.format:
            raise StoreError(
                f"{self.path}: HDF5, but not a genomepred prediction file; give one that "
                "`genomepred predict` wrote"
            )
        version = self.attributes.get("format_version")
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{self.path}: format version {version}, but this genomepred reads "
                f"{FORMAT_VERSION}; update genomepred"
            )

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """One clear line in place of whatever is raised on files that are not right."""
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(f"{self.path}: no such file") from error
        except IsADirectoryError as error:
            raise StoreError(f"{self.path}: a folder; give one of its .h5 files") from error
        except PermissionError as error:
            raise StoreError(f"{self.path}: no permission to read it") from error
        except (*READ_ERRORS, ModelError) as error:
            raise StoreError(
                f"{self.path}: cannot be {what}, so it is no prediction file or a damaged one "
                f"({first_line(error)}); check it with `genomepred verify`"
            ) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._bytes.close()

    def __enter__(self) -> PredictionStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def contigs(self) -> dict[str, int]:
        """Length in bases of each contig that has predictions, in the file's order."""
        return dict(zip(self.grid.contigs.tolist(), self.grid.length.tolist(), strict=True))

    def read(self, first: int, last: int) -> Float32:
        """Rows ``[first, last)`` as float32, [rows, tracks].

        Raises
        ------
        RegionError
            If the rows are not in the file.
        StoreError
            If the file is damaged there.
        """
        if not 0 <= first <= last <= self.rows:
            raise RegionError(f"rows {first}-{last} asked for, {self.path} has 0-{self.rows}")
        with self._reading(f"read at rows {first}-{last}"):
            return np.asarray(self.predictions[first:last], np.float32)

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, Float32]]:
        """Consecutive blocks of rows as (number of the first row, values), each chunk read once."""
        last = self.rows if last is None else last
        chunk = int(self.predictions.chunks[0])
        step = max(_BLOCK_VALUES // (chunk * max(len(self.tracks), 1)), 1) * chunk
        while first < last:
            stop = min((first // step + 1) * step, last)
            yield first, self.read(first, stop)
            first = stop

    def ranges(self, region: Region | None = None) -> list[tuple[int, int]]:
        """Row ranges in the file's order, one an interval: of a region, or all of the file."""
        if region is not None:
            found = self.grid.query(region.contig, region.start, region.end)
            return found if region.start < region.end else []
        first = self.grid.first_row
        ends = first + self.grid.row_counts
        return [(a, b) for a, b in zip(first.tolist(), ends.tolist(), strict=True) if a < b]

    def region(self, text: str) -> Region:
        """Region of a string such as ``chr1:1,001-2,000`` (1-based inclusive) or a contig's name.

        Its end may lie past the contig's, as samtools takes it; rows are those there are.

        Raises
        ------
        RegionError
            If the contig has no predictions here, or the range is malformed, empty or outside it.
        """
        try:
            region = parse_region(text, dict.fromkeys(self.contigs, _OPEN))
        except RegionError:
            return parse_region(text, self.contigs)  # whose error tells the contig's length
        length = self.contigs[region.contig]
        if region.end == _OPEN:
            region = region._replace(end=length)
        if region.start and region.start >= length:
            raise RegionError(
                f"region {text!r} lies outside {region.contig!r}, which has bases 1-{length}"
            )
        return region

    def columns(self, tracks: Sequence[str] = ()) -> list[int]:
        """Columns of the named tracks, each once, in the order given; of all if none is named.

        Raises
        ------
        StoreError
            If a track is not in the file.
        """
        for track in tracks:
            if track not in self.tracks:
                raise StoreError(
                    f"{self.path}: no track {track!r}; there are {', '.join(self.tracks)}"
                )
        return [self.tracks.index(track) for track in dict.fromkeys(tracks or self.tracks)]

    def __getitem__(self, key: str | tuple[str, slice | int]) -> Predictions:
        contig, start, end = self._bounds(key)
        rows, values = self._gathered(Region(contig, start, end))
        names = self.grid.names
        return Predictions(
            contig,
            *self.grid.described(rows),
            values,
            self.tracks,
            None if names is None else names[self.grid.interval_of(rows)],
        )

    def _gathered(self, region: Region | None) -> tuple[Int64, Float32]:
        """Rows of a region, or all, by number and as values."""
        ranges = self.ranges(region)
        rows = np.concatenate([np.arange(0), *(np.arange(*r) for r in ranges)]).astype(np.int64)
        values = [np.empty((0, len(self.tracks)), np.float32), *(self.read(*r) for r in ranges)]
        return rows, np.concatenate(values)

    def _places(self, rows: Int64) -> dict[str, NDArray[Any]]:
        """Contig, start, end and name (where there are names) of rows."""
        start, end = self.grid.described(rows)
        interval, names = self.grid.interval_of(rows), self.grid.names
        places = {"contig": self.grid.contigs[interval], "start": start, "end": end}
        return places if names is None else {**places, "name": names[interval]}

    def to_frame(self, region: str | None = None) -> pd.DataFrame:
        """All rows, or those of a region string, with contig, start, end, name and the tracks."""
        import pandas as pd

        rows, values = self._gathered(None if region is None else self.region(region))
        table = pd.DataFrame(values, columns=pd.Index(self.tracks))
        return pd.concat([pd.DataFrame(self._places(rows)), table], axis=1)

    def to_xarray(self, region: str | None = None) -> xarray.DataArray:
        """All rows, or those of a region string, [row, track].

        The rows have the coordinates contig, start, end and name (where there are names), the
        tracks their names; the file's attributes are the array's.

        Raises
        ------
        DependencyError
            If xarray is not installed.
        """
        with optional("to_xarray", "xarray"):
            import xarray
        rows, values = self._gathered(None if region is None else self.region(region))
        places = {name: ("row", column) for name, column in self._places(rows).items()}
        return xarray.DataArray(
            values,
            dims=("row", "track"),
            coords={**places, "track": list(self.tracks)},
            attrs=self.attributes,
            name=DATASET,
        )

    def summary(self) -> dict[str, Any]:
        """Facts about the file as plain values; reads all of it to count what is missing."""
        missing = sum(int(np.isnan(values).sum()) for _, values in self.blocks())
        data = self.predictions
        return {
            "file": str(self.path),
            "bytes": self.path.stat().st_size,
            "attributes": self.attributes,
            "contigs": len(self.contigs),
            "bases": sum(self.contigs.values()),
            "intervals": len(self.grid.contigs),
            "rows": self.rows,
            "tracks": [
                {"name": name, "description": text}
                for name, text in zip(self.tracks, self.descriptions, strict=True)
            ],
            "missing": missing / max(self.rows * len(self.tracks), 1),
            "dtype": data.dtype.name,
            "compression": _compression(data),
        }

    def _bounds(self, key: str | tuple[str, slice | int]) -> tuple[str, int, int]:
        contig, bases = key if isinstance(key, tuple) else (key, slice(None))
        length = self.contigs.get(contig, 0)
        if not isinstance(bases, slice):
            base = index(bases)
            if contig in self.contigs and not 0 <= base < length:
                raise RegionError(f"{contig}[{base}]: the contig has bases 0-{length - 1}, 0-based")
            bases = slice(base, base + 1)
        start = bases.start or 0
        end = max(start, length) if bases.stop is None else bases.stop
        if bases.step is not None or not 0 <= start <= end:
            raise RegionError(f"{contig}[{start}:{end}]: write store[contig, start:end], 0-based")
        return contig, start, end


def _compression(data: h5py.Dataset) -> str:
    """Name of a dataset's compression filter: deflate-4, zstd, none."""
    filters = data.id.get_create_plist()
    for i in range(filters.get_nfilters()):
        code, _, options, name = filters.get_filter(i)
        if code == h5py.h5z.FILTER_DEFLATE:
            return f"deflate-{options[0]}"
        if code == zstd.FILTER:
            return "zstd"
        if code not in (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32):
            return str(name)
    return "none"


def first_line(error: BaseException) -> str:
    """First line of an error's message, without the quotes of a KeyError."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = text.splitlines()
    return lines[0] if lines else type(error).__name__
