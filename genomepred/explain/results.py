"""Files of explanations: HDF5 with a row a window, and a table with a line a base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import h5py
import numpy as np
from numpy.typing import NDArray

from genomepred import __version__
from genomepred.errors import DataError, OutputError
from genomepred.explain.windows import Window
from genomepred.models.card import Card
from genomepred.store.files import publishing

_FORMAT_VERSION = 1
# Numbers of one chunk, at most: what is read for a single window stays small.
_CHUNK = 1 << 16


class Results:
    """``OUT/<kind>.h5`` and ``OUT/<kind>.tsv``, whole or as they were before.

    The HDF5 file has one row a window in ``names``, ``contigs``, ``starts`` (0-based, of the
    window), ``asked`` ``[windows, 2]`` (0-based half-open, within the window), ``codes``
    ``[windows, window]`` and the arrays of the kind. The table has a line for each known base:
    name, contig, its 0-based start, the base, and the columns of the kind.

    Parameters
    ----------
    folder : Path
        Made if absent.
    kind : str
        ``ism``, ``gradients`` or ``attention``.
    card : Card
    columns : sequence of str
        Columns of the table.
    attributes : mapping
        Of the HDF5 file, beside those of the model.

    Raises
    ------
    OutputError
        If the folder or the files cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        card: Card,
        columns: Sequence[str],
        attributes: Mapping[str, str | int],
    ) -> None:
        make_folder(folder)
        self.paths = [folder / f"{kind}.h5", folder / f"{kind}.tsv"]
        self._attributes = {
            "format": "genomepred explain",
            "format_version": _FORMAT_VERSION,
            "kind": kind,
            "model": card.name,
            "weights_sha256": card.weights_sha256,
            "window": card.window,
            "package_version": __version__,
            **attributes,
        }
        self._columns = columns
        self._names: list[str] = []
        self._contigs: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Results:
        data, table = (self._stack.enter_context(publishing(path)) for path in self.paths)
        self._file = self._stack.enter_context(h5py.File(data, "w-"))
        self._file.attrs.update(self._attributes)
        self._table: TextIO = self._stack.enter_context(open(table, "x", encoding="utf-8"))
        print("name", "contig", "start", "base", *self._columns, sep="\t", file=self._table)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and not self.windows:
            kind, error = DataError, DataError("the input holds no sequences; nothing is written")
            self._stack.__exit__(kind, error, None)
            raise error
        if kind is None:
            for name, texts in (("names", self._names), ("contigs", self._contigs)):
                encoded = [text.encode() for text in texts]
                self._file[name] = np.array(encoded, f"S{max(map(len, encoded), default=1)}")
        self._stack.__exit__(kind, error, traceback)

    @property
    def windows(self) -> int:
        """Windows written so far."""
        return len(self._names)

    def add(
        self,
        window: Window,
        arrays: Mapping[str, NDArray[np.floating[Any]] | np.float32],
        lines: NDArray[np.float32],
    ) -> None:
        """Write one window.

        Parameters
        ----------
        window : Window
        arrays : mapping
            Its row of each array; the same shapes for all windows.
        lines : float32 array, [window, columns]
            The table's columns.
        """
        self._names.append(window.name)
        self._contigs.append(window.contig)
        rows = {
            "starts": np.int64(window.start),
            "asked": np.array(window.asked, np.int32),
            "codes": window.codes,
            **arrays,
        }
        for name, row in rows.items():
            self._append(name, np.asarray(row))
        for place in np.flatnonzero(window.codes < 4).tolist():
            numbers = "\t".join(f"{value:.6g}" for value in lines[place].tolist())
            base = "ACGT"[window.codes[place]]
            start = window.start + place
            print(window.name, window.contig, start, base, numbers, sep="\t", file=self._table)

    def _append(self, name: str, row: NDArray[np.generic]) -> None:
        if name not in self._file:
            chunk = max(1, _CHUNK // max(row.size, 1))
            self._file.create_dataset(
                name,
                (0, *row.shape),
                row.dtype,
                maxshape=(None, *row.shape),
                chunks=(chunk, *row.shape),
                compression="gzip",
                compression_opts=4,
                shuffle=True,
                fletcher32=True,
            )
        data = self._file[name]
        data.resize(self.windows, axis=0)
        data[self.windows - 1] = row


def make_folder(folder: Path) -> None:
    """Make an output folder if it is absent.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
