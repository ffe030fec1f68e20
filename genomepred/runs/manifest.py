"""The run of a folder: its ``run.json``, and a way to everything that lies beside it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from genomepred.errors import StoreError
from genomepred.files import user_path
from genomepred.runs.folder import (
    PARTS,
    RUN_FILE,
    RunTerms,
    Signature,
    check_regions,
    read_run,
    regions_path,
)
from genomepred.runs.work import Work
from genomepred.sequences.grid import SIZES, Geometry
from genomepred.sequences.names import some
from genomepred.store.reader import PredictionStore
from genomepred.store.schema import Layout, read_sidecar, sidecar_path


class Run:
    """A run as its folder tells it: where to begin with results, whole or not.

    Importing and using it needs no torch.

    Parameters
    ----------
    out : path
        The ``--out`` of predict.

    Attributes
    ----------
    out : Path
    genomes : tuple of str
        Names of the genomes that the run was started with.
    signature : Signature
        Everything that can change a bit of the numbers.
    tracks : tuple of (name, description)

    Raises
    ------
    OutputError
        If the folder holds no run, or its ``run.json`` is damaged.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = user_path(os.fspath(out))
        self.document = read_run(self.out)
        self.genomes: tuple[str, ...] = tuple(self.document["genomes"])
        self.signature = Signature.of_json(self.document["signature"])
        self.tracks = tuple((name, text) for name, text in self.document["tracks"])

    def path(self, name: str) -> Path:
        """Path of the file of a genome, there or not yet."""
        return self.out / f"{name}.h5"

    def outcome(self, name: str) -> dict[str, Any] | None:
        """Content of a genome's sidecar; None if there is none, or a damaged one."""
        try:
            return read_sidecar(sidecar_path(self.path(name)))
        except StoreError:
            return None

    def outcomes(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Names and outcomes of all genomes that the run was started with."""
        return ((name, self.outcome(name)) for name in self.genomes)

    def store(self, name: str) -> PredictionStore:
        """The predictions of a finished genome, opened for reading.

        Raises
        ------
        StoreError
            If they are not there, or damaged.
        """
        return PredictionStore(self.path(name))

    def work(self, name: str) -> Work:
        """A genome's state; without its sequence, whose place its identity knows if it has one."""
        if self.signature.panel is not None:
            from genomepred.runs.cohort_work import CohortWork  # waits for Numba

            return CohortWork(name, Path(), self.terms)
        index = self._numbers.get(name, 0)
        return Work(name, Path(), self.terms, index)

    def begun(self) -> list[str]:
        """Names of genomes that have an identity, and so have begun and are not published."""
        folders = sorted((self.out / PARTS).glob("*/"))
        return [folder.name for folder in folders if os.path.lexists(folder / "genome.json")]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self.genomes)}

    @cached_property
    def terms(self) -> RunTerms:
        """The terms that all genomes have in common.

        Raises
        ------
        OutputError
            If the run's copy of its BED is missing or altered.
        """
        signature = self.signature
        regions = None
        if signature.regions:
            regions = regions_path(self.out, signature.regions)
            check_regions(regions, signature.regions)
        return RunTerms(
            out=self.out,
            geometry=Geometry(**{key: getattr(signature, key) for key in SIZES}),
            layout=Layout(
                tracks=len(self.tracks),
                dtype=signature.store_dtype,
                compression=signature.compression,
                bins=signature.bins,
            ),
            regions=regions,
            regions_called=str(regions),
            center=signature.center,
            signature=signature,
            tracks=self.tracks,
        )


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
