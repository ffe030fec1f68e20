"""Tables of samples: what is known of the lines of a picture, to sort and group them by."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from genomepred.errors import DataError
from genomepred.files import read_small

_LARGEST = 1 << 26


def read_samples(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Columns of a table but for the first, and each sample's values.

    The first column names samples; fields are apart by tabs, or by commas in a ``.csv``.

    Raises
    ------
    DataError
        If the table has no header, no second column, lines of other lengths, or a sample twice.
    """
    try:
        text = read_small(path, _LARGEST).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        raise DataError(f"{path}: cannot be read: {why}") from error
    delimiter = "," if path.suffix.lower() == ".csv" else "\t"
    lines = [line for line in csv.reader(io.StringIO(text), delimiter=delimiter) if line]
    if not lines or len(lines[0]) < 2:
        raise DataError(f"{path}: needs a header with a column of samples and one more")
    header, found = lines[0], {}
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise DataError(f"{path}, line {number}: {len(line)} fields, the header {len(header)}")
        if line[0] in found:
            raise DataError(f"{path}, line {number}: sample {line[0]!r} stands there twice")
        found[line[0]] = line[1:]
    if len(set(header[1:])) < len(header) - 1:
        raise DataError(f"{path}: two columns have one name")
    return header[1:], found


def columns_of(
    table: tuple[list[str], dict[str, list[str]]], lines: Sequence[str]
) -> dict[str, list[str]]:
    """Values of each column for lines; empty where a line has none.

    A line S.1 takes what the table says of S.1, or of S.
    """
    names, found = table
    empty = [""] * len(names)
    rows = [found.get(line) or found.get(line.rpartition(".")[0]) or empty for line in lines]
    return {name: [row[k] for row in rows] for k, name in enumerate(names)}
