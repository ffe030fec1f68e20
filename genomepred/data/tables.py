"""Tables: their columns by name, and what the texts in them are as codes and as numbers."""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from genomepred.data.examples import Codes
from genomepred.data.rows import Row, parquet_file, sheet_rows, text_rows
from genomepred.errors import DataError, optional
from genomepred.messages import listed
from genomepred.sequences.codes import CODE_OF_BYTE, INVALID, UNKNOWN
from genomepred.sequences.names import shown

# Columns that are looked for, whatever their case, when none is named.
SEQUENCE_COLUMNS = ("sequence", "seq", "seqs", "utr")
SPLIT_COLUMNS = ("dataset", "split")
NAME_COLUMNS = ("name", "id", "Geneid", "gene_id")
_MISSING = ("", "na", "n/a", "nan", "null", "none")
_TRUTH = {"true": "1", "false": "0"}
# What the libraries raise for files that are not what their names say; of XML a SyntaxError.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, SyntaxError),
    *(BadZipFile, zlib.error, csv.Error, RuntimeError, NotImplementedError),
)
# Rows read at once.
_BATCH = 1 << 16
# Characters of a text or reason that a message shows.
_MOST_SHOWN = 200

TABLE = re.compile(r"\.((csv|tsv)(\.gz)?|xlsx|parquet)$", re.IGNORECASE)


class Table:
    """Columns of a table as text, read when asked for.

    Parameters
    ----------
    path : Path
        .csv or .tsv, also with .gz; .xlsx (the first sheet); .parquet. The first row names the
        columns.

    Raises
    ------
    DataError
        If the file cannot be read as what its name says, or two columns have one name.
    DependencyError
        If a library for its format is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = TABLE.search(path.name)
        if found is None:
            raise DataError(
                f"{path}: no kind of table; its name must end in .csv, .tsv, .csv.gz, .tsv.gz, "
                ".xlsx or .parquet"
            )
        self._kind = found[1].lower().removesuffix(".gz")
        with self._readable():
            self.columns = self._header()
        known: set[str] = set()
        for column in filter(None, self.columns):
            if column in known:
                raise DataError(f"{path}: two columns are named {shown(column)}; rename one")
            known.add(column)

    def find(self, asked: str | None, usual: Sequence[str]) -> str | None:
        """The column asked for, or else the first of the usual ones that there is, in any case.

        Raises
        ------
        DataError
            If the column asked for does not exist.
        """
        if asked is not None:
            if asked not in self.columns:
                raise DataError(f"{self.path}: no column {shown(asked)}; {self._there_are()}")
            return asked
        by_lower = {column.lower(): column for column in reversed(self.columns)}
        return next((by_lower[name.lower()] for name in usual if name.lower() in by_lower), None)

    def need(self, asked: str | None, usual: Sequence[str], what: str, option: str) -> str:
        """As :meth:`find`, but there must be one."""
        column = self.find(asked, usual)
        if column is None:
            raise DataError(
                f"{self.path}: no column of {what} (looked for {', '.join(usual)}); "
                f"{self._there_are()}: name one with {option}"
            )
        return column

    def read(self, columns: Sequence[str]) -> pd.DataFrame:
        """Some columns of all rows, as text; nothing is ``""``."""
        texts: list[list[str]] = [[] for _ in columns]
        with self._readable():
            for batch in self._batches(columns):
                for column, more in zip(texts, batch, strict=True):
                    column.extend(more)
        return pd.DataFrame(dict(zip(columns, texts, strict=True)), dtype="string")

    def batches(self, column: str) -> Iterator[list[str]]:
        """One column, a batch of rows at a time, without the blanks around its texts."""
        with self._readable():
            for (texts,) in self._batches([column]):
                yield list(map(str.strip, texts))

    def _there_are(self) -> str:
        return f"there are {listed(list(map(shown, self.columns)), 20)}"

    def _rows(self) -> Iterator[Row]:
        """Rows of all columns, the names first."""
        if self._kind == "xlsx":
            return sheet_rows(self.path)
        return text_rows(self.path, "," if self._kind == "csv" else "\t")

    def _header(self) -> list[str]:
        if self._kind == "parquet":
            with self._parquet() as file:
                return list(file.schema_arrow.names)
        names = next(self._rows(), None)
        if names is None:
            raise DataError(f"{self.path}: is empty; the first row names the columns")
        return list(map(str.strip, names))

    def _batches(self, columns: Sequence[str]) -> Iterator[list[list[str]]]:
        """Texts of some columns, a batch of rows at a time."""
        if self._kind == "parquet":
            with self._parquet() as file:
                for batch in file.iter_batches(_BATCH, columns=list(columns)):
                    # Without pandas' own notes, by which a column may become the index.
                    frame = batch.to_pandas(ignore_metadata=True).astype("string").fillna("")
                    yield [frame[column].tolist() for column in columns]
            return
        places = [self.columns.index(column) for column in columns]
        rows = islice(self._rows(), 1, None)
        for number in count(1, _BATCH):
            texts: list[list[str]] = [[] for _ in columns]
            for row_number, row in enumerate(islice(rows, _BATCH), number):
                self._check_width(row, row_number)
                for column, place in zip(texts, places, strict=True):
                    column.append(row[place] if place < len(row) else "")
            if not texts or not texts[0]:
                return
            yield texts

    def _check_width(self, row: Row, number: int) -> None:
        width = len(self.columns)
        if len(row) > width and any(map(str.strip, row[width:])):
            raise ValueError(f"row {number} has {len(row)} fields, the names are {width}")

    @contextmanager
    def _parquet(self) -> Iterator[Any]:
        reading = optional(f"{self.path}: reading it", "train")
        with reading, parquet_file(self.path) as file:
            yield file

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except _UNREADABLE as error:
            reason = re.sub(r"\s+", " ", str(error)).strip()[:_MOST_SHOWN]
            raise DataError(
                f"{self.path}: cannot be read as {self._kind}: {reason}; save it again as "
                f"{self._kind}, or rename it to what it is"
            ) from error


def encode_rows(
    texts: Sequence[str], out: Codes, pad: str | None, called: Callable[[int], str]
) -> None:
    """Codes of sequences, one a row.

    Parameters
    ----------
    texts : sequence of str
        Nucleotides in either case; U is T, ambiguity codes and gaps are 4.
    out : uint8 array, [n, window]
        Receives the codes.
    pad : {"left", "right"} or None
        Side on which shorter sequences get code 4; without it all must have the window's length.
    called : callable
        ``called(i)`` says in messages where the i-th sequence stands.

    Raises
    ------
    DataError
        If a sequence is missing, has a character that is no nucleotide, or another length.
    """
    window = out.shape[1]
    # "NA" and "NaN" are of IUPAC codes, and yet no sequences.
    texts = ["" if len(text) < 4 and text.lower() in _MISSING else text for text in texts]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    codes = CODE_OF_BYTE[np.frombuffer("".join(texts).encode("ascii", "replace"), np.uint8)]
    ends = np.cumsum(lengths)
    bad = np.flatnonzero(codes == INVALID)
    if len(bad):
        row = int(np.searchsorted(ends, bad[0], side="right"))
        place = int(bad[0] - ends[row] + lengths[row])
        raise DataError(
            f"{called(row)}: {texts[row][place]!r} at position {place + 1} is no "
            "nucleotide; sequences are of ACGTU and IUPAC codes"
        )
    misfit = (lengths == 0) | ((lengths > window) if pad else (lengths != window))
    if misfit.any():
        row = int(np.argmax(misfit))
        check_length(int(lengths[row]), window, pad, called(row))
    column = np.arange(window)
    is_base = column >= window - lengths[:, None] if pad == "left" else column < lengths[:, None]
    out[:] = UNKNOWN
    out[is_base] = codes


def check_length(length: int, window: int, pad: str | None, where: str) -> None:
    """Refuse a sequence that does not fill its window, or cannot be padded to.

    Raises
    ------
    DataError
        Naming the sequence by ``where``.
    """
    if length == 0:
        raise DataError(f"{where}: no sequence; fill it in or remove it")
    if length > window:
        raise DataError(
            f"{where}: mixed lengths: {length} bases, but the window has {window}; give a longer "
            "--window, with --pad left or --pad right for shorter sequences"
        )
    if length < window and pad is None:
        raise DataError(
            f"{where}: mixed lengths: {length} bases, but the window has {window}; give --pad left "
            "or --pad right to fill shorter sequences with unknown bases"
        )


def parse_numbers(frame: pd.DataFrame, path: Path) -> NDArray[np.float64]:
    """Numbers in columns of text; NaN where there is none (empty, NA, N/A, NaN, null, None).

    Raises
    ------
    DataError
        Naming file, row and column of what is no finite number.
    """
    values = np.empty(frame.shape, np.float64)
    for i, column in enumerate(frame.columns):
        texts = frame[column].str.strip().str.lower().replace(_TRUTH)
        numbers = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        wrong = ~np.isfinite(numbers) & ~texts.isin(_MISSING).to_numpy()
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{path}: row {row + 1}, column {shown(column)}: "
                f"{shown(frame[column].iloc[row])} is no finite number; correct it, or leave it "
                "empty if it is missing"
            )
        values[:, i] = numbers
    return values
