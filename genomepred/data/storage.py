"""Room for codes: in memory, or mapped from an HDF5 file when they are many."""

from __future__ import annotations

from math import prod
from pathlib import Path

import h5py
import numpy as np

from genomepred.data.examples import Codes
from genomepred.errors import OutputError
from genomepred.files import output_error, require_space
from genomepred.sequences.codes import UNKNOWN

# Bytes of codes kept in memory: a plant genome, or 700,000 sequences of 3 kb. More is mapped, so
# that what a batch touches is read and what memory is free caches it.
MOST_IN_MEMORY = 2 << 30


def allocate(shape: tuple[int, ...], scratch: Path, name: str) -> Codes:
    """A writable array of unknown bases.

    Parameters
    ----------
    shape : tuple of int
    scratch : Path
        Folder for ``NAME.h5``, made if absent; unused if the codes fit into memory.
    name : str
        Name of the file; one of that name is replaced.

    Returns
    -------
    uint8 array of ``shape``
        All 4. If it is mapped, what is written goes to the dataset ``codes`` of the file, which
        lies in one piece.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    if prod(shape) <= MOST_IN_MEMORY:
        return np.full(shape, UNKNOWN, np.uint8)
    path = scratch / f"{name}.h5"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # another run may still read the old one
        require_space(scratch, prod(shape))
        mapped = np.memmap(path, np.uint8, "r+", _create(path, shape), shape)
    except OSError as error:
        raise output_error(path, error) from error
    except (RuntimeError, ValueError) as error:  # what HDF5's own errors become
        path.unlink(missing_ok=True)
        raise OutputError(
            f"{path}: {prod(shape) / 1e9:,.1f} GB of codes cannot be written; is the disk full?"
        ) from error
    return np.asarray(mapped)


def _create(path: Path, shape: tuple[int, ...]) -> int:
    """Write a dataset of unknown bases; its offset in the file.

    Every byte is written: a full disk is found here, not by a signal when the map is used.
    """
    with h5py.File(path, "w") as file:
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_value(np.array(UNKNOWN, np.uint8))
        space = h5py.h5s.create_simple(shape)
        dataset = h5py.h5d.create(file.id, b"codes", h5py.h5t.STD_U8LE, space, layout)
        return int(dataset.get_offset())
