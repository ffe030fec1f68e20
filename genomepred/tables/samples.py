"""Prediction files that an answer is about: a run's folder, one file, or the genomes of both."""

from __future__ import annotations

from pathlib import Path

from genomepred.errors import StoreError
from genomepred.store.opening import is_cohort


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
