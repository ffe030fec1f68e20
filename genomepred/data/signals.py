"""Signals along genomes: means of bigWig files over windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genomepred.data.bigwig import BigWig, BigWigError
from genomepred.data.contigs import match_names
from genomepred.errors import DataError
from genomepred.files import open_regular
from genomepred.sequences.grid import Region

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def window_means(path: Path, regions: Sequence[Region]) -> Float64:
    """Mean of a bigWig over each region, of the bases for which it has a value.

    A base without a value is missing, not 0: where the file leaves out zeros, write them first. A
    value that is not finite is missing too. A record has no influence on windows that it does not
    touch, whatever its value.

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
    try:
        with open(open_regular(path), "rb") as file:
            bigwig = BigWig(file)
            names = match_names(rows, bigwig.contigs, "the set of peaks", str(path))
            for label, name in names.items():
                here = np.array(rows[label], np.int64)
                starts = np.array([regions[i].start for i in here], np.int64)
                ends = np.array([regions[i].end for i in here], np.int64)
                records = bigwig.records(name)
                means[here] = _means(records[np.isfinite(records["value"])], starts, ends)
    except BigWigError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read as bigWig: {error.strerror}") from error
    return means


def _means(records: NDArray[Any], starts: Int64, ends: Int64) -> Float64:
    """Means over ``[start, end)`` of sorted records, which do not overlap."""
    means = np.full(len(starts), np.nan)
    first = np.searchsorted(records["end"], starts, side="right")
    last = np.searchsorted(records["start"], ends, side="left") - 1
    touched = np.flatnonzero(first <= last)
    if not touched.size:
        return means
    first, last = first[touched], last[touched]

    def overlap(record: Int64) -> Int64:
        """Bases that a record shares with each window."""
        stop: Int64 = np.minimum(records["end"][record], ends[touched])
        first_base: Int64 = np.maximum(records["start"][record], starts[touched])
        return stop - first_base

    several, inner = last > first, last > first + 1
    sizes = records["end"] - records["start"]
    known = overlap(first) + several * overlap(last) + _sums(sizes, first + 1, last, inner)
    weighted = sizes * records["value"]
    total = overlap(first) * records["value"][first]
    total += several * overlap(last) * records["value"][last]
    total += _sums(weighted, first + 1, last, inner)
    means[touched] = np.where(known > 0, total / np.maximum(known, 1), np.nan)
    return means


def _sums(values: NDArray[Any], first: Int64, last: Int64, asked: NDArray[np.bool_]) -> Any:
    """Sums of ``values[first:last]``, each on its own, where asked; elsewhere 0."""
    sums = np.zeros(len(first), values.dtype)
    pairs = np.stack([first[asked], last[asked]], 1).ravel()
    if pairs.size:
        sums[asked] = np.add.reduceat(values, pairs)[::2]
    return sums
