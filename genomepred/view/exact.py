"""One row of one line, exactly as it is stored; without what would make the server large."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from genomepred.errors import StoreError
from genomepred.files import open_regular
from genomepred.store.opening import is_cohort
from genomepred.store.reader import READ_ERRORS, Float32, PredictionStore
from genomepred.store.schema import open_dataset, open_group, open_predictions, read_attributes
from genomepred.view.maps import Map


def exact_values(shown: Map, line: int, row: int) -> Float32:
    """Values of a row of the grid of one line, float32 [tracks], NaN where missing.

    Raises
    ------
    StoreError
        If the file is damaged there.
    """
    files = shown.files
    if is_cohort(files[0]):
        try:
            return _cohort_values(files[0], line, row)
        except IndexError:  # the line behind the haplotypes
            files = ()
        except READ_ERRORS as error:
            raise StoreError(f"{files[0]}: cannot be read at row {row} ({error})") from error
    path = files[line] if line < len(files) else shown.reference
    if path is None:
        raise StoreError(f"there is no line {line}")
    with PredictionStore(path) as store:
        found: Float32 = store.read(row, row + 1)[0]
        return found


def _cohort_values(path: Path, line: int, row: int) -> Float32:
    """Values of a haplotype: its leader's place among those of the window is the distinct number.

    Raises
    ------
    IndexError
        If there are fewer haplotypes.
    """
    with open(open_regular(path), "rb") as raw, h5py.File(raw, "r") as file:
        bins = int(read_attributes(file)["bins"])
        group, window = open_group(file, "cohort"), row // bins
        index = open_dataset(group, "index", 2)
        if line >= index.shape[0]:
            raise IndexError(line)
        first, leaders = open_dataset(group, "first", 1), open_dataset(group, "leader", 1)
        bounds = first[window : window + 2].tolist()
        begin, end = (*bounds, leaders.shape[0])[:2]
        leader = index[line, window]
        data = open_predictions(file)
        if leader == np.iinfo(leader.dtype).max:
            return np.full(data.shape[1], np.nan, np.float32)
        place = int(np.searchsorted(leaders[begin:end], leader))
        return np.asarray(data[(begin + place) * bins + row % bins], np.float32)
