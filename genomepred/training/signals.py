"""Signals along genomes: means of bigWig files over windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pybigtools
from numpy.typing import NDArray

from genomepred.errors import DataError
from genomepred.sequences.grid import Region
from genomepred.training.contigs import match_names

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_RECORD = np.dtype([("start", "i8"), ("end", "i8"), ("value", "f8")])


def window_means(path: Path, regions: Sequence[Region]) -> Float64:
    """Mean of a bigWig over each region, of the bases for which it has a value.

    A base without a value is missing, not 0: where the file leaves out zeros, write them first.

    Parameters
    ----------
    path : Path
        bigWig; its names of contigs may differ from the regions' by ``chr`` and leading zeros.
    regions : sequence of Region
        In any order; may reach outside their contigs.

    Returns
    -------
    float64 array, [regions]
        NaN where the file has no value in the region, or lacks its contig.

    Raises
    ------
    DataError
        If the file is no bigWig or has none of the contigs; both sides are shown.
    """
    rows: dict[str, list[int]] = {}
    for i, region in enumerate(regions):
        rows.setdefault(region.contig, []).append(i)
    means = np.full(len(regions), np.nan)
    with _open(path) as file:
        names = match_names(rows, file.chroms(), "the set of peaks", str(path))
        for label, name in names.items():
            here = np.array(rows[label], np.int64)
            starts = np.array([regions[i].start for i in here], np.int64)
            ends = np.array([regions[i].end for i in here], np.int64)
            means[here] = _means(_records(path, file, name), starts, ends)
    return means


def _open(path: Path) -> Any:
    try:
        file = pybigtools.open(str(path))
    except (OSError, ValueError, pybigtools.BBIReadError) as error:
        raise DataError(f"{path}: cannot be read as bigWig: {error}") from error
    if not file.is_bigwig:
        raise DataError(f"{path}: is a bigBed, whose records have no signal; give a bigWig")
    return file


def _records(path: Path, file: Any, contig: str) -> NDArray[Any]:
    try:
        return np.fromiter(file.records(contig), _RECORD)
    except (OSError, ValueError, pybigtools.BBIReadError) as error:
        raise DataError(f"{path}: contig {contig!r} cannot be read: {error}") from error


def _means(records: NDArray[Any], starts: Int64, ends: Int64) -> Float64:
    """Means over ``[start, end)`` of sorted records, which do not overlap."""
    if not len(records):
        return np.full(len(starts), np.nan)
    sizes = records["end"] - records["start"]
    covered = np.concatenate([[0], np.cumsum(sizes)])
    total = np.concatenate([[0.0], np.cumsum(sizes * records["value"])])

    def before(position: Int64) -> tuple[Int64, Float64]:
        """Bases with a value before a position, and the sum of their values."""
        record = np.searchsorted(records["start"], position, side="left") - 1
        inside = np.minimum(position - records["start"][record], sizes[record])
        known = covered[record] + inside
        sums = total[record] + inside * records["value"][record]
        return np.where(record < 0, 0, known), np.where(record < 0, 0.0, sums)

    (known_from, sum_from), (known_to, sum_to) = before(starts), before(ends)
    known = known_to - known_from
    return np.where(known > 0, (sum_to - sum_from) / np.maximum(known, 1), np.nan)
