"""What a folder says of its run: ``run.json``, and a way to everything that lies beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from genomepred.documents import COUNT, DocumentError, read_document
from genomepred.errors import OutputError, StoreError
from genomepred.files import user_path
from genomepred.runs.folder import PARTS, RUN_FILE, RunPlan, check_regions, regions_path
from genomepred.runs.genome import GenomeWork
from genomepred.runs.inputs import GenomePath
from genomepred.runs.work import Work
from genomepred.sequences.grid import Geometry
from genomepred.store.chunks import Layout
from genomepred.store.reader import PredictionStore
from genomepred.store.sidecar import read_sidecar, sidecar_path

_SIZE = range(1, 1 << 62)
_RUN = {
    "created": str,
    "id?": str,
    "fingerprint?": str,
    "command": [str],
    "genomes": [str],
    "tracks": [[str]],
    "saving?": float,
    "signature": {
        "model": str,
        "weights_sha256": str,
        "code": (str, None),
        "card": str,
        "window": _SIZE,
        "crop": COUNT,
        "bins": _SIZE,
        "bin_size": _SIZE,
        "stride": _SIZE,
        "regions": (str, None),
        "center": bool,
        "strand": str,
        "store_dtype": str,
        "compression": str,
        "device": str,
        "threads": int,
        "genomepred": str,
        "torch": str,
        "triton": (str, None),
        "numba": (str, None),
        "zlib": str,
        "zstandard": (str, None),
        "hdf5": str,
        "precision": str,
        "kernels": [str],
        "compute_batch": range(1, 1 << 31),
        "overlap": str,
        "reference?": str,
        "panel?": str,
    },
}
# A million genomes with names of 50 letters, or 100,000 with the longest names.
_LARGEST_RUN = 1 << 26


def read_run(out: Path) -> dict[str, Any]:
    """Contents of the ``run.json`` of a folder.

    Raises
    ------
    OutputError
        If the folder holds no run, or its ``run.json`` is damaged.
    """
    path = out / RUN_FILE
    try:
        document = read_document(path, _RUN, sealed=True, limit=_LARGEST_RUN, follow=False)
        if any(len(track) != 2 for track in document["tracks"]):
            raise DocumentError("a track is not a name and a description")
    except (FileNotFoundError, NotADirectoryError):
        raise OutputError(
            f"{out}: no run here ({RUN_FILE} is absent); give the --out of predict"
        ) from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise OutputError(
            f"{path} is damaged ({error}): restore it, or start again in another folder"
        ) from error
    return document


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
    signature : dict
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
        self.signature: dict[str, Any] = self.document["signature"]
        self.tracks = tuple((name, text) for name, text in self.document["tracks"])

    def path(self, name: str) -> Path:
        """Where the file of a genome is, or will be."""
        return self.out / f"{name}.h5"

    def outcome(self, name: str) -> dict[str, Any] | None:
        """What the sidecar of a genome says; None if there is none, or a damaged one."""
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
        """A genome's state; without its sequence, whose place its record knows if it has one."""
        if "panel" in self.signature:
            from genomepred.runs.cohort_work import CohortWork  # waits for Numba

            return CohortWork(name, Path(), self.plan)
        index = self._numbers.get(name, 0)
        return GenomeWork(GenomePath(name, Path()), self.plan, index)

    def begun(self) -> list[str]:
        """Names of genomes that have a record, and so have begun and are not published."""
        folders = sorted((self.out / PARTS).glob("*/"))
        return [folder.name for folder in folders if os.path.lexists(folder / "genome.json")]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self.genomes)}

    @cached_property
    def plan(self) -> RunPlan:
        """What all genomes have in common.

        Raises
        ------
        OutputError
            If the run's copy of its BED is missing or altered.
        """
        signature = self.signature
        regions = None
        if signature["regions"]:
            regions = regions_path(self.out, signature["regions"])
            check_regions(regions, signature["regions"])
        sizes = ("window", "stride", "crop", "bins", "bin_size")
        return RunPlan(
            out=self.out,
            geometry=Geometry(**{key: signature[key] for key in sizes}),
            layout=Layout(
                tracks=len(self.tracks),
                dtype=signature["store_dtype"],
                compression=signature["compression"],
                bins=signature["bins"],
            ),
            regions=regions,
            regions_called=str(regions),
            center=signature["center"],
            signature=signature,
            tracks=self.tracks,
        )
