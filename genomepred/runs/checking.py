"""Verification: every file of a run against its sidecar, every part against its digest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from genomepred.errors import OutputError
from genomepred.files import user_path
from genomepred.runs.folder import PARTS, RUN_FILE, read_run
from genomepred.store.hdf5 import DamagedPartError, opened_part, verify_file
from genomepred.store.schema import read_attributes


@dataclass(frozen=True)
class FileReport:
    """Report of ``verify`` on one genome: ``problems`` is empty for a sound file."""

    name: str
    path: Path
    problems: list[str]


def verify(out: str | Path) -> list[FileReport]:
    """Check every file of a run against its sidecar: bytes first, then structure.

    Returns
    -------
    list of FileReport
        One for each genome with a file, a sidecar or parts.
    """
    folder = user_path(os.fspath(out))
    if not folder.is_dir():
        raise OutputError(f"{folder}: not a folder; give the --out of a run")
    reports = []
    sidecars = {path.name[: -len(".h5.json")] for path in folder.glob("*.h5.json")}
    files = {path.name[: -len(".h5")] for path in folder.glob("*.h5")}
    begun = set(read_run(folder)["genomes"]) if os.path.lexists(folder / RUN_FILE) else set()
    if not sidecars | files | begun:
        raise OutputError(f"{folder}: nothing to verify; give the --out of a run")
    for name in sorted(sidecars | files | begun):
        path, sidecar = folder / f"{name}.h5", folder / f"{name}.h5.json"
        if name in sidecars:
            problems = verify_file(path, sidecar)
        elif name in files:
            problems = [f"{sidecar.name} is missing: run predict again to check and publish it"]
        else:
            damaged = _damaged_parts(folder / PARTS / name)
            problems = ["unfinished: run predict again to finish it", *damaged]
        reports.append(FileReport(name, path, problems))
    return reports


def _damaged_parts(folder: Path) -> list[str]:
    found = []
    for part in sorted(folder.glob("*-*.h5")):
        try:
            with opened_part(part) as (file, _):
                read_attributes(file)
        except DamagedPartError as error:
            found.append(str(error))
    return found
