"""Genome: contigs, lengths and codes of a FASTA file, however it is compressed or wrapped."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import xxhash

from genomepred.errors import OutputError, RegionError, SequenceError
from genomepred.files import discard_abandoned, own_folder, read_small, write_whole
from genomepred.sequences.byte_source import (
    BgzipSource,
    ByteSource,
    PlainSource,
    inflate,
    kind_of,
    stamp_of,
    walk_blocks,
)
from genomepred.sequences.codes import UNKNOWN, Codes, sequence_digest
from genomepred.sequences.expanded import (
    DamagedCodesError,
    ExpandedCodes,
    discard,
    discard_damaged,
    open_expanded,
)
from genomepred.sequences.index import (
    Record,
    format_fai,
    format_gzi,
    lists_blocks,
    most_fai,
    parse_fai,
)
from genomepred.sequences.names import absent_contig, shown

if TYPE_CHECKING:
    from genomepred.sequences.scan import Scan

_SUFFIX = re.compile(r"(\.(fa|fasta|fna|fas))?(\.(gz|bgz|xz))?$", re.IGNORECASE)
# Codes hashed at once.
_BLOCK = 1 << 20


class _Reader(Protocol):
    """Codes inside contigs."""

    contigs: dict[str, int]

    def read(self, contig: str, start: int, out: Codes) -> None: ...

    def close(self) -> None: ...


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
        absent, no link. Without it a temporary folder that goes with this object is used if needed.
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
        self.stamp = stamp_of(self.path)
        self._cache = None if cache is None else Path(cache)
        self._write = write
        self._files = _IndexFiles(self.path, self.stamp, self._cache)
        self._private: tempfile.TemporaryDirectory[str] | None = None
        self._digest: str | None = None
        self._lock = threading.Lock()  # readers reuse their buffers
        self._reader: _Reader | None = self._open()
        self.contigs = self._reader.contigs

    def _open(self) -> _Reader:
        kind = kind_of(self.path)
        source: ByteSource | None = None
        if kind in ("plain", "bgzip"):
            source = PlainSource(self.path) if kind == "plain" else self._open_bgzip()
        if source is None:
            stream = inflate(self.path, "xz" if kind == "xz" else "gzip")
            return self._open_stream(stream)
        for index in self._files.current(".fai", most_fai(source)):
            if (records := parse_fai(index, source)) is not None:
                return _IndexedReader(self.path, source, records)
        from genomepred.sequences.scan import scan  # compiled kernels take a while to load

        result = scan(self.path, source.pieces(0, source.size))
        self._digest = result.digest
        if not result.even:
            return self._open_stream(source.pieces(0, source.size))
        if self._write:
            self._files.store(".fai", format_fai(result.records))
        return _IndexedReader(self.path, source, result.records)

    def _open_bgzip(self) -> ByteSource | None:
        """The blocks of a bgzip file; None if other gzip members are among them."""
        blocks = walk_blocks(self.path)
        if blocks is None:
            return None
        found = self._files.current(".gzi", len(format_gzi(blocks)))
        if self._write and not any(lists_blocks(index, blocks) for index in found):
            self._files.store(".gzi", format_gzi(blocks))
        return BgzipSource(self.path, blocks)

    def _open_stream(self, pieces: Iterator[Codes]) -> _Reader:
        """A reader for bytes that no index can address: through a file of codes."""
        from genomepred.sequences.scan import scan

        if not self._write:
            result = scan(self.path, pieces)
            self._digest = result.digest
            return _LengthsOnly(self.path, result)
        target = self._files.cached(self._expanded_folder(), ".codes")
        size, modified = self.stamp
        identity = {"path": str(self.path.resolve()), "size": size, "mtime_ns": modified}
        reader = open_expanded(target, identity, lambda sink: scan(self.path, pieces, sink))
        self._digest = reader.digest
        return reader

    def _expanded_folder(self) -> Path:
        if self._cache is None:
            if self._private is None:
                self._private = _temporary_folder()
            return Path(self._private.name)
        try:
            return _cache_folder(self._cache)
        except OSError as error:
            raise OutputError(f"{self._cache}: cannot be made: {error.strerror}") from None

    def _expand_again(self, damaged: ExpandedCodes) -> _Reader:
        """Another reader in place of one whose codes file proved damaged."""
        discard_damaged(self._files.cached(self._expanded_folder(), ".codes"), damaged)
        damaged.close()
        expected, self._reader = self._digest, None
        self._reader = self._open()
        if self._digest != expected:
            raise SequenceError(f"{self.path}: changed while it was open; run again")
        return self._reader

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
            raise RegionError(f"{self.path}: {absent_contig(contig, self.contigs)}")
        if end < start:
            raise RegionError(f"{self.path}: {shown(contig)}: {start}-{end} ends before it starts")
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
        if self._reader is None:
            raise ValueError(f"{self.path}: is closed")
        try:
            self._reader.read(contig, start, out)
        except DamagedCodesError:
            assert isinstance(self._reader, ExpandedCodes)
            self._expand_again(self._reader).read(contig, start, out)

    def digest(self) -> str:
        """XXH3-128 of names, lengths and codes, as 32 hexadecimal digits.

        Compression, line width and case do not matter. Takes a pass over the file unless opening
        it has taken one.
        """
        if self._digest is None:
            digest = xxhash.xxh3_128()
            buffer = np.empty(_BLOCK, np.uint8)
            for contig, length in self.contigs.items():
                for start in range(0, length, _BLOCK):
                    end = min(start + _BLOCK, length)
                    digest.update(self.codes(contig, start, end, buffer[: end - start]).data)
            self._digest = sequence_digest(digest, self.contigs.items())
        return self._digest

    def discard_cache(self) -> None:
        """Remove this genome's expanded codes from the cache; open readers can go on reading."""
        if self._cache is not None:
            discard(self._files.cached(self._cache, ".codes"))

    def close(self) -> None:
        """Close the file; removes a private temporary folder."""
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            if self._private is not None:
                self._private.cleanup()
                self._private = None

    def __enter__(self) -> Genome:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _IndexFiles:
    """Paths of the indexes of one FASTA: beside it, or in a cache folder if they cannot be there.

    Parameters
    ----------
    fasta : Path
    stamp : tuple of int
        Size and modification time in nanoseconds of the FASTA.
    cache : Path, optional
    """

    fasta: Path
    stamp: tuple[int, int]
    cache: Path | None

    def _places(self, suffix: str) -> list[Path]:
        beside = self.fasta.with_name(self.fasta.name + suffix)
        return [beside] if self.cache is None else [beside, self.cached(self.cache, suffix)]

    def cached(self, cache: Path, suffix: str) -> Path:
        """A path in a cache folder that belongs to this version of the FASTA alone."""
        told = f"{os.fsdecode(self.fasta.resolve())}\n{self.stamp}"
        key = xxhash.xxh3_64_hexdigest(os.fsencode(told))
        return cache / f"{self.fasta.name[:40]}.{key}{suffix}"

    def current(self, suffix: str, limit: int) -> Iterator[bytes]:
        """Contents of indexes that are not older than the FASTA, best place first.

        What is no regular file or larger than ``limit`` bytes counts as absent.
        """
        for place in self._places(suffix):
            with suppress(OSError):
                if place.stat().st_mtime_ns >= self.stamp[1]:
                    yield read_small(place, limit, follow=place.parent != self.cache)

    def store(self, suffix: str, data: bytes) -> None:
        """Write an index where possible; without one the next start only takes longer."""
        for place in self._places(suffix):
            with suppress(OSError, OutputError):
                if place.parent == self.cache:
                    _cache_folder(place.parent)
                # A folder that nobody may write to is left alone by root too.
                if place.parent.stat().st_mode & 0o222:
                    discard_abandoned(place)
                    write_whole(place, data)
                    return


def _cache_folder(path: Path) -> Path:
    """A cache folder, made if absent.

    Raises
    ------
    OutputError
        If it is a link or no folder.
    OSError
        If it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return own_folder(path.parent, path.name)


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="genomepred-")
    except OSError as error:
        raise OutputError(
            f"no folder for temporary files: {error.strerror or error}; set TMPDIR, or give a cache"
        ) from None


class _IndexedReader:
    """Codes by arithmetic on lines."""

    def __init__(self, path: Path, source: ByteSource, records: list[Record]) -> None:
        self._path, self._source = path, source
        self._records = {record.name: record for record in records}
        self.contigs = {record.name: record.length for record in records}

    def read(self, contig: str, start: int, out: Codes) -> None:
        _, _, offset, bases, width = self._records[contig]
        line, column = divmod(start, bases)
        last_line, last_column = divmod(start + len(out) - 1, bases)
        position = offset + line * width + column
        if line > 0 and column == 0:  # who reads line after line must see every line end too
            position, column = position - (width - bases), bases
        from genomepred.sequences.decode import decode

        done = 0
        for piece in self._source.pieces(position, offset + last_line * width + last_column + 1):
            count = decode(piece, column, bases, width, out[done:])
            if count < 0:
                raise SequenceError(
                    f"{self._path}: byte offset {position - 1 - count}, contig {shown(contig)}: no "
                    "nucleotide, or no line end where one must be; the file has changed, or its "
                    ".fai is wrong and must be removed"
                )
            done += count
            position += len(piece)
            column = (column + len(piece)) % width

    def close(self) -> None:
        self._source.close()


class _LengthsOnly:
    """Contigs of a file whose codes could only be read after writing."""

    def __init__(self, path: Path, result: Scan) -> None:
        self._path = path
        self.contigs = {record.name: record.length for record in result.records}

    def read(self, contig: str, start: int, out: Codes) -> None:
        raise SequenceError(
            f"{self._path}: codes of {shown(contig)} need an expanded copy, but it was opened not "
            "to write; open it with write=True"
        )

    def close(self) -> None:
        pass


def discard_codes(path: Path, stamp: tuple[int, int], cache: Path) -> None:
    """Remove a FASTA's expanded codes from a cache; open readers can go on reading."""
    if cache.is_dir():
        discard(_IndexFiles(path, stamp, None).cached(cache, ".codes"))
