"""Rows of table files as texts, streamed: nothing here holds more than a row's worth of a file.

Each reader yields the row that names the columns, then the others, as lists of texts; rows of
nothing but blanks, as spreadsheets leave behind, are left out.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any
from xml.etree.ElementTree import iterparse
from zipfile import BadZipFile, ZipFile

from genomepred.files import open_regular

Row = list[str]

# Characters of a line, and of a field: more than any window has bases.
_LONGEST = 1 << 26
# What a compressed file may become: so much in any case, above it so many times its own size.
# Tables of sequences shrink to a third or less; with many blank rows XML shrinks to a fiftieth.
_SMALL, _MOST_TIMES = 64 << 20, 200
# A spreadsheet's columns, by its format; its number of shared texts is bounded by their bytes.
_MOST_CELLS = 16_384


class TooLargeError(ValueError):
    """A file that grows out of proportion when it is decompressed."""


def text_rows(path: Path, separator: str) -> Iterator[Row]:
    """Rows of a text, plain or gzip, whose fields lie between commas or tabs.

    Between commas, a field may stand in quotes and then hold commas and line ends. Between tabs a
    line is a row and quotes are text, but for a field wholly in quotes, as R writes them.

    Raises
    ------
    ValueError
        Of a line too long, a field that holds what looks like rows, or text that is not UTF-8.
    OSError, EOFError, zlib.error
        If the file cannot be read.
    """
    with ExitStack() as stack:
        raw = stack.enter_context(open(open_regular(path), "rb"))
        if path.name.lower().endswith(".gz"):
            bounded = _Bounded(gzip.GzipFile(fileobj=raw), os.fstat(raw.fileno()).st_size)
            raw = stack.enter_context(io.BufferedReader(bounded))
        lines = _lines(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""))
        split = _split_commas if separator == "," else _split_tabs
        for fields in split(lines):
            if any(map(str.strip, fields)):
                yield fields


class _Bounded(io.RawIOBase):
    """Content of a compressed file, up to some times its size."""

    def __init__(self, file: gzip.GzipFile, size: int) -> None:
        self._file, self._left = file, max(_SMALL, _MOST_TIMES * size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise TooLargeError(f"it becomes more than {_MOST_TIMES} times as large uncompressed")
        buffer[: len(data)] = data
        return len(data)


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    for number in count(1):
        line = file.readline(_LONGEST)
        if not line:
            return
        if len(line) == _LONGEST:
            raise TooLargeError(f"line {number} has more than {_LONGEST:,} characters")
        yield line


def _split_tabs(lines: Iterator[str]) -> Iterator[Row]:
    for line in lines:
        fields = line.rstrip("\r\n").split("\t")
        yield [_unquoted(field) if field[:1] == '"' else field for field in fields]


def _unquoted(field: str) -> str:
    inside = field[1:-1].replace('""', "")
    if len(field) > 1 and field[-1] == '"' and '"' not in inside:
        return field[1:-1].replace('""', '"')
    return field


def _split_commas(lines: Iterator[str]) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST)
    reader = csv.reader(lines, strict=True)
    columns, first = 0, 1
    for fields in reader:
        columns = columns or len(fields)
        if reader.line_num > first and columns > 1:
            swallowed = (_holds_rows(x.splitlines(), i, columns) for i, x in enumerate(fields))
            if len(fields) < columns or any(swallowed):
                raise ValueError(
                    f"the quote in line {first} closes only after further rows; put texts that "
                    "have double quotes in quotes, and double those inside"
                )
        first = reader.line_num + 1
        yield fields


def _holds_rows(lines: list[str], place: int, columns: int) -> bool:
    """Whether the lines of one field are those of rows, which a stray quote has swallowed."""
    if len(lines) < 2:
        return False
    commas = [line.count(",") for line in lines]
    ends = commas[0] >= columns - 1 - place and commas[-1] >= place
    return ends or any(number >= columns - 1 for number in commas[1:-1])


def sheet_rows(path: Path) -> Iterator[Row]:
    """Rows of the first sheet of an .xlsx file; a cell without a text or value is ``""``.

    Raises
    ------
    ValueError
        If it is out of all proportion, or no workbook.
    OSError, KeyError, SyntaxError, BadZipFile, zlib.error
        If the file cannot be read as the format.
    """
    with open(open_regular(path), "rb") as raw, ZipFile(raw) as archive:
        size = os.fstat(raw.fileno()).st_size
        whole = sum(member.file_size for member in archive.infolist())
        if whole > max(_SMALL, _MOST_TIMES * size):
            raise TooLargeError(f"it becomes more than {_MOST_TIMES} times as large uncompressed")
        sheet = _first_sheet(archive)
        shared = list(_shared(archive)) if _SHARED in archive.namelist() else []
        with archive.open(sheet) as file:
            for row in _cells(file, shared):
                if any(map(str.strip, row)):
                    yield row


_SHARED = "xl/sharedStrings.xml"
_RELATIONS = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_STRICT = "{http://purl.oclc.org/ooxml/officeDocument/relationships}"


def _first_sheet(archive: ZipFile) -> str:
    """Name of the member that holds the first sheet."""
    key = None
    with archive.open("xl/workbook.xml") as file:
        for name, element in _elements(file):
            if name == "sheet" and key is None:
                key = element.get(f"{_RELATIONS}id") or element.get(f"{_STRICT}id")
    with archive.open("xl/_rels/workbook.xml.rels") as file:
        targets = {e.get("Id"): e.get("Target", "") for name, e in _elements(file) if e.get("Id")}
    if key not in targets:
        raise BadZipFile("it has no sheet")
    target = targets[key]
    return target.lstrip("/") if target.startswith("/") else f"xl/{target}"


def _elements(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Name and element of the end of each element; what is inside is forgotten by then."""
    above: list[Any] = []
    for event, element in iterparse(file, ("start", "end")):
        if event == "start":
            above.append(element)
            continue
        above.pop()
        yield element.tag.rpartition("}")[2], element
        if above:
            del above[-1][:]


def _shared(archive: ZipFile) -> Iterator[str]:
    """The texts that cells refer to by number."""
    with archive.open(_SHARED) as file:
        text: list[str] = []
        for name, element in _elements(file):
            _add_text(text, name, element)
            if name == "si":
                yield "".join(text)
                text.clear()


def _add_text(text: list[str], name: str, element: Any) -> None:
    if name == "t":
        text.append(element.text or "")
    elif name == "rPh":  # how the text before it is pronounced
        del text[-1:]


def _cells(file: IO[bytes], shared: list[str]) -> Iterator[Row]:
    row: dict[int, str] = {}
    value, column = "", 0
    text: list[str] = []
    for name, element in _elements(file):
        _add_text(text, name, element)
        if name == "v":
            value = element.text or ""
        elif name == "c":
            place = element.get("r")
            column = _column(place) if place else column + 1
            if column > _MOST_CELLS:
                raise ValueError(f"a row has more than {_MOST_CELLS:,} columns")
            found = _cell_text(element.get("t", "n"), value, text, shared)
            if found:
                row[column] = found
            value = ""
            text.clear()
        elif name == "row":
            yield [row.get(i, "") for i in range(1, max(row, default=0) + 1)]
            row, column = {}, 0


def _cell_text(kind: str, value: str, text: list[str], shared: list[str]) -> str:
    if kind == "inlineStr":
        return "".join(text)
    if not value:
        return ""
    if kind == "s":
        return shared[int(value)]
    if kind == "b":
        return "True" if value == "1" else "False"
    if kind == "n":
        number = float(value)
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return value


def _column(place: str) -> int:
    """Number, from 1, of the column of a place such as ``AB12``."""
    number = 0
    for letter in place.rstrip("0123456789")[:4].upper():
        number = 26 * number + ord(letter) - 64
    return number


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """An open parquet file that is in proportion to its size.

    Raises
    ------
    ValueError
        If it says that it holds much more.
    ImportError
        If pyarrow is not installed.
    """
    from pyarrow import parquet

    with open(open_regular(path), "rb") as raw, parquet.ParquetFile(raw) as file:
        size, facts = os.fstat(raw.fileno()).st_size, file.metadata
        groups = (facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
        if facts.num_rows > max(_SMALL, size) or sum(groups) > max(_SMALL, _MOST_TIMES * size):
            raise TooLargeError(f"it becomes more than {_MOST_TIMES} times as large uncompressed")
        yield file
