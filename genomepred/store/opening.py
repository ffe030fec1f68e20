"""Opening whatever a user names: a prediction file, or one haplotype of a cohort's file.

Apart from :mod:`genomepred.store.cohort`, so that readers of plain files do not wait for Numba.
"""

from __future__ import annotations

from pathlib import Path

import h5py

from genomepred.errors import StoreError
from genomepred.files import open_regular
from genomepred.store.reader import READ_ERRORS, PredictionStore
from genomepred.store.schema import read_attributes

COHORT_FORMAT = "genomepred cohort"


def is_cohort(path: Path) -> bool:
    """Whether a file says that it is a cohort's; False for what cannot be read."""
    try:
        with (
            open(open_regular(path), "rb") as raw,
            h5py.File(raw, "r") as file,
        ):
            return read_attributes(file, "format").get("format") == COHORT_FORMAT
    except READ_ERRORS:
        return False


def cohort_of(files: list[Path]) -> Path | None:
    """The cohort's file, if it is the only one; None for files of genomes.

    Raises
    ------
    StoreError
        If there are files of both kinds, or several cohorts.
    """
    cohorts = [path for path in files if is_cohort(path)]
    if cohorts and len(files) > 1:
        raise StoreError(
            f"{cohorts[0]}: holds a cohort, and {len(files) - 1} other files lie beside it; name "
            "the file instead of the folder"
        )
    return cohorts[0] if cohorts else None


def open_store(path: Path, sample: str | None = None) -> PredictionStore:
    """A prediction file, or one haplotype of a cohort file.

    Raises
    ------
    StoreError
        If a sample is asked of a file that is no cohort's, or none is of one that is.
    """
    if sample is None:
        if is_cohort(path):
            raise StoreError(f"{path}: holds a cohort; say which haplotype with --sample S or S.1")
        return PredictionStore(path)
    from genomepred.store.cohort import open_haplotype

    return open_haplotype(path, sample)
