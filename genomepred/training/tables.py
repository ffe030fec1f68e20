"""Tables: their columns by name, and what the texts in them are as codes and as numbers."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from genomepred.errors import DataError, DependencyError
from genomepred.sequences.decode import CODE_OF_BYTE, INVALID, UNKNOWN
from genomepred.training.examples import Codes

# Columns that are looked for, whatever their case, when none is named.
SEQUENCE_COLUMNS = ("sequence", "seq", "seqs", "utr")
SPLIT_COLUMNS = ("dataset", "split")
NAME_COLUMNS = ("name", "id", "Geneid", "gene_id")
_MISSING = ("", "na", "n/a", "nan", "null", "none")
_TRUTH = {"true": "1", "false": "0"}
# What the libraries raise for files that are not what their names say; of XML a SyntaxError.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, SyntaxError),
    *(BadZipFile, zlib.error, pd.errors.ParserWarning),
)
# Rows read at once.
_BATCH = 1 << 16

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
            self._sheet = self._workbook() if self._kind == "xlsx" else None
            self.columns = self._header()
        twice = [c for i, c in enumerate(self.columns) if c and c in self.columns[:i]]
        if twice:
            raise DataError(f"{path}: two columns are named {twice[0]!r}; rename one")

    def find(self, asked: str | None, usual: Sequence[str]) -> str | None:
        """The column asked for, or else the first of the usual ones that there is, in any case.

        Raises
        ------
        DataError
            If the column asked for does not exist.
        """
        if asked is not None:
            if asked not in self.columns:
                raise DataError(f"{self.path}: no column {asked!r}; {self._there_are()}")
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
        with self._readable():
            return _texts(self._columns(list(columns)))

    def batches(self, column: str) -> Iterator[list[str]]:
        """One column, a batch of rows at a time, without the blanks around its texts."""
        with self._readable():
            for frame in self._frames(column):
                yield list(map(str.strip, _texts(frame)[column]))

    def _there_are(self) -> str:
        shown = ", ".join(repr(column) for column in self.columns[:20])
        rest = f" and {len(self.columns) - 20} more" if len(self.columns) > 20 else ""
        return f"there are {shown}{rest}"

    @property
    def _csv(self) -> dict[str, Any]:
        return {
            "sep": "," if self._kind == "csv" else "\t",
            "dtype": str,
            "keep_default_na": False,
            "encoding": "utf-8-sig",
            "index_col": False,
        }

    def _workbook(self) -> pd.DataFrame:
        try:
            return pd.read_excel(self.path, header=None, dtype=str, keep_default_na=False)
        except ImportError as error:
            raise DependencyError(
                f"{self.path}: reading it needs openpyxl: pip install 'genomepred[train]'"
            ) from error

    def _parquet(self) -> Any:
        try:
            from pyarrow import parquet  # type: ignore[import-untyped]  # ships no stubs
        except ImportError as error:
            raise DependencyError(
                f"{self.path}: reading it needs pyarrow: pip install 'genomepred[train]'"
            ) from error
        return parquet.ParquetFile(self.path)

    def _header(self) -> list[str]:
        if self._sheet is not None:
            if not len(self._sheet):
                raise DataError(f"{self.path}: the first sheet is empty")
            names = self._sheet.iloc[0]
        elif self._kind == "parquet":
            with self._parquet() as file:
                return list(file.schema_arrow.names)
        else:
            names = pd.read_csv(self.path, header=None, nrows=1, **self._csv).iloc[0]
        return ["" if pd.isna(name) else str(name).strip() for name in names]

    def _columns(self, columns: list[str]) -> pd.DataFrame:
        if self._sheet is not None:
            body = self._sheet.iloc[1:, [self.columns.index(c) for c in columns]]
            return body.set_axis(columns, axis=1).reset_index(drop=True)
        if self._kind == "parquet":
            with self._parquet() as file:
                frame: pd.DataFrame = file.read(columns=columns).to_pandas()
            return frame[columns]
        return pd.concat(list(self._csv_frames(columns)), ignore_index=True)[columns]

    def _frames(self, column: str) -> Iterator[pd.DataFrame]:
        if self._sheet is not None:
            yield self._columns([column])
        elif self._kind == "parquet":
            with self._parquet() as file:
                for batch in file.iter_batches(_BATCH, columns=[column]):
                    yield batch.to_pandas()
        else:
            yield from self._csv_frames([column])

    def _csv_frames(self, columns: list[str]) -> Iterator[pd.DataFrame]:
        # All columns are parsed: of some only, rows with too many fields would go unnoticed.
        names = range(len(self.columns))
        with pd.read_csv(self.path, header=0, names=names, chunksize=_BATCH, **self._csv) as frames:
            while True:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", pd.errors.ParserWarning)
                    frame = next(frames, None)
                if frame is None:
                    return
                yield frame.rename(columns=dict(enumerate(self.columns)))[columns]

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except _UNREADABLE as error:
            reason = re.sub(r"\s+", " ", str(error)).strip()
            raise DataError(
                f"{self.path}: cannot be read as {self._kind}: {reason}; save it again as "
                f"{self._kind}, or rename it to what it is"
            ) from error


def _texts(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype("string").fillna("")


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
                f"{path}: row {row + 1}, column {column!r}: {frame[column].iloc[row]!r} is no "
                "finite number; correct it, or leave it empty if it is missing"
            )
        values[:, i] = numbers
    return values
