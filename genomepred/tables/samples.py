"""Prediction files that an answer is about: a run's folder, one file, or the genomes of both."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from genomepred.errors import StoreError
from genomepred.runs.folder import RUN_FILE
from genomepred.runs.manifest import Run
from genomepred.sequences.names import some
from genomepred.store.cohort import CohortStore
from genomepred.store.opening import is_cohort


def prediction_files(out: Path) -> list[Path]:
    """The prediction files of a folder, in the order of its run; or the one file that is named.

    Genomes of the run that are not finished are left out, and a warning says how many they are.

    Raises
    ------
    StoreError
        If there are none.
    """
    if not out.is_dir():
        return [out]
    files = sorted(path for path in out.glob("*.h5") if path.is_file())
    if os.path.lexists(out / RUN_FILE):
        there = {path.stem: path for path in files}
        names = Run(out).genomes
        files = [there[name] for name in names if name in there]
        missing = [name for name in names if name not in there]
        if missing and files:
            warnings.warn(
                f"{out}: {len(missing):,} of {len(names):,} genomes are not finished and left out: "
                f"{some(missing)}",
                stacklevel=2,
            )
    if not files:
        raise StoreError(f"{out}: a folder without prediction files (*.h5)")
    return files


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


def haplotype_names(store: CohortStore) -> list[str]:
    """Names of a cohort's haplotypes: the sample, with its copy where it has several."""
    copies: dict[str, int] = {}
    for sample, _ in store.haplotypes:
        copies[sample] = copies.get(sample, 0) + 1
    return [
        sample if copies[sample] == 1 else f"{sample}.{copy}" for sample, copy in store.haplotypes
    ]
