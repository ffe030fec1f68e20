"""Files of explanations: HDF5 with a row a window, and a table with a line a base."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import h5py
import numpy as np
from numpy.typing import NDArray

from genomepred import __version__
from genomepred.errors import DataError
from genomepred.explain.windows import Window
from genomepred.files import discard_abandoned, make_folder, publishing
from genomepred.models.card import Card
from genomepred.tsv import tab_separated

_FORMAT_VERSION = 1
# Numbers of one chunk, at most: what is read for a single window stays small.
_CHUNK = 1 << 16
# Numbers gathered before they are written: one by one, rows took longer than their gradients.
_BLOCK = 1 << 20


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
    pictures : int
        Windows that are drawn: the first so many.

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
        pictures: int,
    ) -> None:
        make_folder(folder)
        self.paths = [folder / f"{kind}.h5", folder / f"{kind}.tsv"]
        for path in self.paths:
            discard_abandoned(path)
        self._pictures = (folder / f"{kind}-{number + 1:04d}-" for number in range(pictures))
        self._attributes = {**file_attributes(kind, card), **attributes}
        self._columns = columns
        self._names: list[str] = []
        self._contigs: list[str] = []
        self._rows: list[dict[str, NDArray[Any]]] = []
        self._line = "%s%d\t%s\t" + "\t".join(["%.6g"] * len(columns)) + "\n"
        self._stack = ExitStack()

    def __enter__(self) -> Results:
        data, table = (
            self._stack.enter_context(publishing(path, follow=True)) for path in self.paths
        )
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
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            if not self.windows:
                raise DataError("the input holds no sequences; nothing is written")
            self._write_rows()
            for name, texts in (("names", self._names), ("contigs", self._contigs)):
                encoded = [text.encode() for text in texts]
                self._file[name] = np.array(encoded, f"S{max(map(len, encoded), default=1)}")

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
        row = {
            "starts": np.int64(window.start),
            "asked": np.array(window.asked, np.int32),
            "codes": window.codes,
            **arrays,
        }
        self._rows.append({name: np.asarray(values) for name, values in row.items()})
        if len(self._rows) * sum(values.size for values in self._rows[-1].values()) >= _BLOCK:
            self._write_rows()
        known = np.flatnonzero(window.codes < 4)
        bases = (window.start + known, window.codes[known], lines[known])
        begin, line = f"{tab_separated([window.name, window.contig])}\t", self._line
        self._table.writelines(
            line % (begin, start, "ACGT"[code], *numbers)
            for start, code, numbers in zip(*(column.tolist() for column in bases), strict=True)
        )

    def picture(self, window: Window) -> Path | None:
        """Name of a window's picture, which is then one of ``paths``; None if it has none."""
        begin = next(self._pictures, None)
        if begin is None:
            return None
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", window.name)[:80]
        self.paths.append(begin.with_name(f"{begin.name}{name}.png"))
        return self.paths[-1]

    def _write_rows(self) -> None:
        """Append the gathered rows to their datasets."""
        for name in self._rows[0] if self._rows else ():
            rows = np.stack([row[name] for row in self._rows])
            if name not in self._file:
                self._create(name, rows)
            data = self._file[name]
            data.resize(self.windows, axis=0)
            data[self.windows - len(rows) :] = rows
        self._rows.clear()

    def _create(self, name: str, rows: NDArray[Any]) -> None:
        shape = rows.shape[1:]
        self._file.create_dataset(
            name,
            (0, *shape),
            rows.dtype,
            maxshape=(None, *shape),
            chunks=(max(1, _CHUNK // max(rows[0].size, 1)), *shape),
            compression="gzip",
            compression_opts=4,
            shuffle=True,
            fletcher32=True,
        )


def file_attributes(kind: str, card: Card) -> dict[str, str | int]:
    """Root attributes of every HDF5 file of an explanation."""
    return {
        "format": "genomepred explain",
        "format_version": _FORMAT_VERSION,
        "kind": kind,
        "model": card.name,
        "weights_sha256": card.weights_sha256,
        "window": card.window,
        "package_version": __version__,
    }
