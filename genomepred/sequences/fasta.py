"""Genome: contigs, lengths and codes of a FASTA file, however it is compressed or wrapped."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash

from genomepred.errors import OutputError, RegionError, SequenceError
from genomepred.sequences.codes import UNKNOWN, Codes, decode
from genomepred.sequences.expanded import ExpandedCodes, discard, expand
from genomepred.sequences.index import (
    format_fai,
    format_gzi,
    read_fai,
    read_gzi,
    write_atomically,
)
from genomepred.sequences.scan import Record, Scan, SequenceDigest, scan
from genomepred.sequences.sources import (
    BgzipSource,
    PlainSource,
    Source,
    inflate,
    kind_of,
    unreadable,
    walk_blocks,
)

_SUFFIX = re.compile(r"(\.(fa|fasta|fna|fas))?(\.(gz|bgz|xz))?$", re.IGNORECASE)
# Codes hashed at once.
_BLOCK = 1 << 20


class Genome:
    """A FASTA file as contigs of codes.

    Parameters
    ----------
    path : path
        FASTA: plain, bgzip, gzip or xz, told apart by content.
    name : str, optional
        Name of the genome; by default the file name without .fa, .gz and the like.
    cache : path, optional
        Folder for indexes that cannot be written beside the FASTA and for expanded codes; made if
        absent. Without it a temporary folder that goes with this object is used if needed.
    write : bool
        False writes nothing anywhere; ``codes`` of gzip, xz and unevenly wrapped files are then
        not available, their contigs and lengths are.

    Attributes
    ----------
    path : Path
    name : str
    contigs : dict of str to int
        Length of each contig in file order.
    stamp : tuple of int
        Size in bytes and modification time in nanoseconds of the file when it was opened.

    Raises
    ------
    SequenceError
        If the file is no FASTA of nucleotides; names contig, line and byte offset.
    OutputError
        If the cache cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        cache: str | Path | None = None,
        write: bool = True,
    ) -> None:
        self.path = Path(path)
        self.name = name if name is not None else _SUFFIX.sub("", self.path.name)
        self._kind = kind_of(self.path)
        try:
            status = self.path.stat()
        except OSError as error:
            raise unreadable(self.path, error) from None
        self.stamp = (status.st_size, status.st_mtime_ns)
        self._cache = None if cache is None else Path(cache)
        self._write = write
        self._lock = threading.Lock()
        self._private: tempfile.TemporaryDirectory[str] | None = None
        self._source: Source | None = None
        self._expanded: ExpandedCodes | None = None
        self._digest: str | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if self._kind == "plain":
            self._source = PlainSource(self.path)
        elif self._kind == "bgzip":
            self._source = BgzipSource(self.path, self._blocks())
        records = None if self._source is None else self._records(self._source)
        if records is None:
            self._open_expanded()
        else:
            self._record = {record.name: record for record in records}
            self.contigs = {record.name: record.length for record in records}

    def _records(self, source: Source) -> list[Record] | None:
        """Records from an index that fits or from a pass that writes one; None if uneven."""
        for place in self._places(".fai"):
            if self._is_newer(place) and (records := read_fai(place, source)) is not None:
                return records
        result = scan(self.path, source.pieces(0, source.size))
        self._digest = result.digest
        if not result.indexable:
            self.contigs = {record.name: record.length for record in result.records}
            return None
        self._store(".fai", format_fai(result.records))
        return result.records

    def _blocks(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        for place in self._places(".gzi"):
            if self._is_newer(place) and (blocks := read_gzi(place, self.path)) is not None:
                return blocks
        blocks = walk_blocks(self.path, np.zeros((1, 2), np.int64))
        self._store(".gzi", format_gzi(blocks))
        return blocks

    def _open_expanded(self) -> None:
        if not self._write:
            if self._source is None:
                result = self._scan_stream(None)
                self._digest = result.digest
                self.contigs = {record.name: record.length for record in result.records}
            return
        target = self._expanded_path()
        while self._expanded is None:
            expand(target, self._scan_stream)
            try:
                self._expanded = ExpandedCodes(target)
            except FileNotFoundError:  # discarded by another process in between
                continue
        self.contigs, self._digest = self._expanded.contigs, self._expanded.digest

    def _scan_stream(self, sink: Callable[[Codes], object] | None) -> Scan:
        return scan(self.path, self._stream(), sink)

    def _stream(self) -> Iterator[Codes]:
        if self._source is not None:
            return self._source.pieces(0, self._source.size)
        assert self._kind in ("gzip", "xz")
        return inflate(self.path, self._kind)

    def _places(self, suffix: str) -> list[Path]:
        """Where an index may lie, best place first."""
        beside = self.path.with_name(self.path.name + suffix)
        return [beside] if self._cache is None else [beside, self._cached(suffix)]

    def _cached(self, suffix: str) -> Path:
        """Path in the cache that belongs to this very version of the file."""
        assert self._cache is not None
        key = xxhash.xxh3_64_hexdigest(f"{self.path.resolve()}\n{self.stamp}".encode())
        return self._cache / f"{self.path.name[:40]}.{key}{suffix}"

    def _is_newer(self, index: Path) -> bool:
        try:
            return index.stat().st_mtime_ns >= self.stamp[1]
        except OSError:
            return False

    def _store(self, suffix: str, data: bytes) -> None:
        """Write an index where possible; without one the next start only takes longer."""
        if not self._write:
            return
        for place in self._places(suffix):
            try:
                if place.parent == self._cache:
                    self._cache.mkdir(parents=True, exist_ok=True)
                write_atomically(place, data)
                return
            except OSError:
                continue

    def _expanded_path(self) -> Path:
        if self._cache is None:
            self._private = tempfile.TemporaryDirectory(prefix="genomepred-")
            self._cache = Path(self._private.name)
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._cache}: cannot be made: {error.strerror}") from None
        return self._cached(".codes")

    def codes(self, contig: str, start: int, end: int, out: Codes | None = None) -> Codes:
        """Codes of ``[start, end)``; 4 outside the contig.

        Parameters
        ----------
        contig : str
        start, end : int
            0-based half-open; may reach outside the contig.
        out : uint8 array, [end - start], optional
            C-contiguous buffer to fill.

        Returns
        -------
        uint8 array, [end - start]
            ``out`` if given.

        Raises
        ------
        RegionError
            If there is no such contig or ``end < start``.
        SequenceError
            If the file changed, is damaged or does not fit its index.
        """
        if contig not in self.contigs:
            raise RegionError(f"{self.path}: no contig {contig!r}; see its .contigs")
        if end < start:
            raise RegionError(f"{self.path}: {contig}:{start}-{end} ends before it starts")
        out = np.empty(end - start, np.uint8) if out is None else out
        if out.shape != (end - start,) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be a contiguous uint8 array of {end - start} codes")
        first = min(max(start, 0), end)
        last = max(min(end, self.contigs[contig]), first)
        out[: first - start] = UNKNOWN
        out[last - start :] = UNKNOWN
        if first < last:
            with self._lock:
                self._read(contig, first, out[first - start : last - start])
        return out

    def _read(self, contig: str, start: int, out: Codes) -> None:
        if self._expanded is not None:
            self._expanded.read(contig, start, out)
        elif self._source is not None and hasattr(self, "_record"):
            self._read_indexed(self._source, self._record[contig], start, out)
        else:
            raise SequenceError(
                f"{self.path}: was opened without writing, and its codes need an expanded copy"
            )

    def _read_indexed(self, source: Source, record: Record, start: int, out: Codes) -> None:
        _, _, offset, bases, width = record
        line, column = divmod(start, bases)
        last_line, last_column = divmod(start + len(out) - 1, bases)
        position = offset + line * width + column
        done = 0
        for piece in source.pieces(position, offset + last_line * width + last_column + 1):
            count = decode(piece, column, bases, width, out[done:])
            if count < 0:
                raise SequenceError(
                    f"{self.path}: byte offset {position - 1 - count} in contig {record.name!r} is "
                    "no nucleotide; the file changed, or its .fai is wrong: remove that"
                )
            done += count
            position += len(piece)
            column = (column + len(piece)) % width

    def digest(self) -> str:
        """XXH3-128 of names, lengths and codes, as 32 hexadecimal digits.

        Compression, line width and case do not matter. Computed by a pass over the file unless
        opening it has needed one.
        """
        if self._digest is None:
            digest = SequenceDigest()
            buffer = np.empty(_BLOCK, np.uint8)
            for contig, length in self.contigs.items():
                for start in range(0, length, _BLOCK):
                    end = min(start + _BLOCK, length)
                    digest.update(self.codes(contig, start, end, buffer[: end - start]))
            self._digest = digest.finish(self.contigs.items())
        return self._digest

    def discard_cache(self) -> None:
        """Remove the expanded codes from the cache; this object can still be read."""
        if self._expanded is not None:
            discard(self._cached(".codes"))

    def close(self) -> None:
        """Close the file; removes a private temporary folder."""
        for held in (self._source, self._expanded):
            if held is not None:
                held.close()
        if self._private is not None:
            self._private.cleanup()
        self._source = self._expanded = self._private = None

    def __enter__(self) -> Genome:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
