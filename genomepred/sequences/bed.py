"""BED files: the one reader of regions, plain or gzip, line by line and bounded.

The format is stated, by the file's name (``.narrowPeak``) or by a header (``track
type=narrowPeak``), and never guessed from the number of columns.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from genomepred.errors import GenomepredError, RegionError
from genomepred.files import open_regular
from genomepred.sequences.names import absent_contig, shown

_GZIP = b"\x1f\x8b"
_NARROW_PEAK = re.compile(r"\.narrowPeak(\.b?gz)?$", re.IGNORECASE)
_NARROW_PEAK_TRACK = re.compile(r"track\s(.*\s)?type\s*=\s*[\"']?narrowPeak\b", re.IGNORECASE)
_HEADER = re.compile(
    r"track\s+\w+\s*=|browser\s+(position|hide|dense|pack|squish|full)\b|(track|browser)\s*$"
)
# First line of copies whose names do not tell what the original's did; it is not counted.
_MARK = "#genomepred format=narrowPeak\n"
_NUMBER = re.compile(r"[0-9]{1,18}")
_SUMMIT = re.compile(r"-1|[0-9]{1,18}")
_MOST_LINE = 1 << 20  # characters


class BedRecord(NamedTuple):
    """One line of a BED file, 0-based half-open.

    ``strand`` is ``+``, ``-`` or ``.``; ``center`` the base a window is centered on: a narrowPeak's
    summit, else the middle; ``line`` the line's number; ``columns`` all of its text.
    """

    contig: str
    start: int
    end: int
    name: str = ""
    strand: str = "."
    center: int = 0
    line: int = 0
    columns: tuple[str, ...] = ()


def bed_records(
    path: Path | str,
    *,
    called: Path | str | None = None,
    narrow_peak: bool | None = None,
    error: type[GenomepredError] = RegionError,
) -> Iterator[BedRecord]:
    """Records of a BED file in file order, whatever genome they are of.

    Parameters
    ----------
    path : path
        A regular file, plain or gzip.
    called : path, optional
        What messages call it, and whose ending tells the format; by default its path.
    narrow_peak : bool, optional
        Whether the tenth column is a summit; by default as name and header say.
    error : type
        What is raised.

    Raises
    ------
    GenomepredError
        Of the given type, naming file and line, if the file or a record is malformed.
    """
    called = called or path
    if narrow_peak is None:
        narrow_peak = _is_narrow_peak(path) or _is_narrow_peak(called)
    for number, line in numbered_lines(path, called, "BED", error):
        narrow_peak = narrow_peak or line == _MARK
        fields = _fields(line)
        if fields is not None:
            yield _record(fields, f"{called} line {number}", number, narrow_peak, error)
        elif _NARROW_PEAK_TRACK.match(line):
            narrow_peak = True


def _is_narrow_peak(path: Path | str) -> bool:
    return _NARROW_PEAK.search(str(path)) is not None


def numbered_lines(
    path: Path | str, called: Path | str, kind: str, error: type[GenomepredError]
) -> Iterator[tuple[int, str]]:
    """Lines of a regular text file, plain or gzip, with their numbers.

    Raises
    ------
    GenomepredError
        Of the given type, if it cannot be read as text of this ``kind``, or a line is too long.
    """
    number = 0
    try:
        with _binary(Path(path)) as (file, packed):
            plain: BinaryIO = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
            with io.TextIOWrapper(plain, encoding="utf-8-sig") as lines:
                while line := lines.readline(_MOST_LINE + 1):
                    number += line != _MARK
                    if len(line) > _MOST_LINE:
                        raise error(
                            f"{called} line {number}: longer than {_MOST_LINE:,} characters"
                        )
                    yield number, line
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as problem:
        raise error(f"{called}: cannot be read as {kind}: {_reason(problem)}") from problem


def _reason(problem: Exception) -> str:
    """The cause why a text file cannot be read, for messages."""
    if isinstance(problem, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return str(problem.strerror if isinstance(problem, OSError) and problem.strerror else problem)


@contextmanager
def _binary(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The open file, and whether it is gzip."""
    with open(open_regular(path), "rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        yield file, packed


def _fields(line: str) -> list[str] | None:
    """Columns of a record; None for blank lines, comments and headers.

    A line that begins with ``track`` or ``browser`` is a header only if it goes on like one: it may
    be a record on a contig of that name.
    """
    words = line.split(None, 1)
    if not words or words[0].startswith("#") or _HEADER.match(line):
        return None
    fields = line.rstrip("\r\n").split("\t")
    return fields if len(fields) > 2 else line.split()


def _record(
    fields: list[str], where: str, number: int, narrow_peak: bool, error: type[GenomepredError]
) -> BedRecord:
    if len(fields) < 3 or not all(map(_NUMBER.fullmatch, fields[1:3])):
        raise error(
            f"{where}: expected contig, start and end between tabs, found "
            f"{shown(' '.join(fields[:12]))}"
        )
    contig, start, end = fields[0], int(fields[1]), int(fields[2])
    if not start < end:
        raise error(
            f"{where}: {shown(contig)} {start}-{end} is empty; start is 0-based, end exclusive"
        )
    center = (start + end) // 2
    if narrow_peak:
        summit = _summit(fields, end - start, where, error)
        center = center if summit < 0 else start + summit
    strand = fields[5] if len(fields) > 5 and fields[5] in ("+", "-") else "."
    name = fields[3] if len(fields) > 3 else ""
    return BedRecord(contig, start, end, name, strand, center, number, tuple(fields))


def _summit(fields: list[str], length: int, where: str, error: type[GenomepredError]) -> int:
    text = fields[9] if len(fields) > 9 else ""
    if _SUMMIT.fullmatch(text) is None or int(text) >= length:
        raise error(
            f"{where}: column 10 of a narrowPeak is the summit's distance from the start, or -1; "
            f"found {shown(text)} in {len(fields)} columns; rename a file of another format"
        )
    return int(text)


def read_bed(
    path: Path | str, contigs: Mapping[str, int], called: Path | str | None = None
) -> list[BedRecord]:
    """Records of a BED file, checked against a genome's contigs.

    A record that begins on its contig and ends past it, as peak callers write them, is cut there,
    and centered on the last base if its center lies past it; how many are is told in a warning.

    Parameters
    ----------
    path : path
        Plain or gzip.
    contigs : mapping of str to int
        Lengths of the genome's contigs.
    called : path, optional
        What messages call the file; by default its path.

    Returns
    -------
    list of BedRecord
        Without ``columns``.

    Raises
    ------
    RegionError
        Naming file and line, if a record is malformed, empty, on an unknown contig or outside it.
    """
    called = called or path
    found, cut = [], 0
    for record in bed_records(path, called=called):
        length = contigs.get(record.contig)
        if length is None:
            raise RegionError(
                f"{called} line {record.line}: "
                + absent_contig(record.contig, contigs, hint="use the genome of these regions")
            )
        if record.start >= length:
            raise RegionError(
                f"{called} line {record.line}: {shown(record.contig)} {record.start}-{record.end} "
                f"lies outside the contig, which has {length} bases"
            )
        cut += record.end > length
        end, center = min(record.end, length), min(record.center, length - 1)
        found.append(record._replace(end=end, center=center, columns=()))
    if not found:
        raise RegionError(f"{called}: no BED records; a record is contig, start, end and tabs")
    if cut:
        warnings.warn(
            f"{called}: {cut:,} of {len(found):,} records end past their contig and are cut there",
            stacklevel=2,
        )
    return found


def self_described(path: Path) -> Iterator[bytes]:
    """Bytes of a BED file for a copy of any name: its format is in it, as a first line if need be.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with _binary(path) as (file, packed):
        if _is_narrow_peak(path):
            mark = _MARK.encode()
            yield gzip.compress(mark, mtime=0) if packed else mark
        while block := file.read(1 << 20):
            yield block


def described_sha256(path: Path) -> str:
    """The sha256 of :func:`self_described`, in hexadecimal: of what the file means.

    Raises
    ------
    RegionError
        If it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for block in self_described(path):
            digest.update(block)
    except OSError as problem:
        raise RegionError(f"{path}: cannot be read as BED: {_reason(problem)}") from problem
    return digest.hexdigest()
