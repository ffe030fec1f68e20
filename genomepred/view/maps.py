"""Maps to show: cohorts, single genomes, and genomes that share their coordinates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genomepred.errors import GenomepredError, OutputError, RegionError, StoreError
from genomepred.sequences.grid import Grid
from genomepred.store.opening import is_cohort
from genomepred.store.reader import PredictionStore
from genomepred.store.schema import read_sidecar, sidecar_path


@dataclass(frozen=True)
class Map:
    """Files that are one picture.

    Parameters
    ----------
    key : str
        Its name in addresses.
    title : str
    files : tuple of Path
        A cohort's file, or single genomes of one grid.
    reference : Path or None
        Prediction file of the reference.
    """

    key: str
    title: str
    files: tuple[Path, ...]
    reference: Path | None = None

    @property
    def everything(self) -> tuple[Path, ...]:
        """All files that are read."""
        return self.files if self.reference is None else (*self.files, self.reference)

    def identity(self) -> dict[str, Any]:
        """A stamp that changes when a file does; cheap.

        Raises
        ------
        StoreError
            If a file is gone.
        """
        return {str(k): _identity(path) for k, path in enumerate(self.everything)}

    def is_as(self, identity: Mapping[str, Any]) -> bool:
        """Whether sizes and times of all files are those of an identity; cheaper than a new one."""
        try:
            facts = [path.stat() for path in self.everything]
        except OSError:
            return False
        told = [identity.get(str(k), {}) for k in range(len(facts))]
        return all(
            (one.get("size"), one.get("mtime_ns")) == (now.st_size, now.st_mtime_ns)
            for one, now in zip(told, facts, strict=True)
        )

    def pyramid(self) -> Path:
        """Path of its pyramid: beside the file, or the first of them."""
        first = self.files[0]
        if len(self.everything) == 1:
            return first.with_name(f"{first.name}.pyramid")
        names = "\0".join(str(path.resolve()) for path in self.everything)
        mark = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:8]
        return first.with_name(f"{first.name}.{mark}.pyramid")

    def sequence(self) -> Path | None:
        """FASTA that was predicted on, as the run has noted it, if it is still there."""
        with suppress(StoreError, OSError):
            path = Path(read_sidecar(sidecar_path(self.files[0]))["genome"]["path"])
            return path if path.is_file() else None
        return None


def _identity(path: Path) -> dict[str, Any]:
    try:
        facts = path.stat()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    found: dict[str, Any] = {
        "name": path.name.encode(errors="surrogateescape").decode(errors="replace"),
        "size": facts.st_size,
        "mtime_ns": facts.st_mtime_ns,
    }
    with suppress(StoreError):
        found["sha256"] = read_sidecar(sidecar_path(path)).get("sha256", "")
    return found


def find_maps(target: Path, reference: Path | None = None) -> tuple[list[Map], list[str]]:
    """Maps of a file or of a run's folder, and what is left out, one line each.

    Raises
    ------
    StoreError
        If there is nothing to show.
    """
    files, left = files_of(target)
    groups: dict[Any, list[Path]] = {}
    for path in files:
        try:
            groups.setdefault(_key_of(path), []).append(path)
        except GenomepredError as error:
            if not target.is_dir():
                raise
            left.append(f"{error}; left out")
    if not groups:
        raise StoreError(f"{target}: nothing to show: {left[0] if left else 'no prediction files'}")
    known = None if reference is None else _key_of(reference)
    maps = [
        Map(str(k), _title(group), tuple(group), reference if own in (known, group[0]) else None)
        for k, (own, group) in enumerate(groups.items())
    ]
    if reference is not None and all(map.reference is None for map in maps):
        raise StoreError(
            f"{reference}: other contigs, windows or tracks than {target}; give predictions of one "
            "model on one reference"
        )
    return maps, left


def files_of(target: Path) -> tuple[list[Path], list[str]]:
    """Prediction files of a run's folder, or the one file, and what is unfinished."""
    if not target.is_dir():
        return [target], []
    from genomepred.runs.manifest import Run  # which takes memory that a server of a file can spare

    files = sorted(path for path in target.glob("*.h5") if path.is_file())
    left = []
    with suppress(OutputError):
        run = Run(target)
        cohort = len(files) == 1 and is_cohort(files[0])
        absent = [name for name in run.genomes if not run.path(name).is_file()]
        if absent and not cohort:
            some = f"{len(absent)} of {len(run.genomes)} genomes"
            left.append(f"{target}: {some} are not finished ({absent[0]} is the first); left out")
    return files, left


def _key_of(path: Path) -> Any:
    """A key that files of one picture have in common; a cohort's is its own."""
    if is_cohort(path):
        return path
    with PredictionStore(path) as store:
        if store.grid.names is not None:
            raise RegionError(
                f"{path}: has one window a record of a BED (--center), which is no map; use query "
                "or export tsv"
            )
        return store.tracks, fingerprint(store.grid)


def fingerprint(grid: Grid) -> str:
    """Digest of what a grid's rows are."""
    digest = hashlib.sha256(repr(grid.geometry).encode())
    digest.update("\0".join(grid.contigs.tolist()).encode(errors="surrogateescape"))
    for column in (grid.start, grid.first_row, grid.length):
        digest.update(column.tobytes())
    return digest.hexdigest()


def _title(files: Sequence[Path]) -> str:
    name = files[0].stem
    return name if len(files) == 1 else f"{name} and {len(files) - 1} more"
