"""The state of a run, and taking genomes out of it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from genomepred.documents import seal
from genomepred.errors import GenomepredError, OutputError
from genomepred.files import own_folder, write_whole
from genomepred.runs.folder import PARTS, RUN_FILE, is_at_work, tidy
from genomepred.runs.manifest import Run
from genomepred.runs.spec import genome_name
from genomepred.runs.work import Work
from genomepred.store.schema import sidecar_path


@dataclass(frozen=True)
class GenomeStatus:
    """The state of one genome.

    Attributes
    ----------
    name : str
    state : {"finished", "failed", "begun", "new"}
    shards : int, optional
        All of its shards; None while that is not known, or not any more.
    missing : int
        Shards that are not on disk.
    error : str
        Why it failed, or cannot be told.
    shares : tuple of int
        Shares, counted from 1, that have shards to compute.
    """

    name: str
    state: str
    shards: int | None = None
    missing: int = 0
    error: str = ""
    shares: tuple[int, ...] = ()


@dataclass(frozen=True)
class Status:
    """The state of a run; ``shares_missing`` of its ``shares`` have work left."""

    genomes: list[GenomeStatus]
    finished: int
    shares: int
    shares_missing: list[int]


def status(out: str | Path, shares: int | None = None) -> Status:
    """The state of every genome of a run; reads no sequence and changes nothing.

    Parameters
    ----------
    out : path
        The ``--out`` of predict.
    shares : int, optional
        The N of ``--shard I/N``; by default that of the command that started the run.

    Raises
    ------
    OutputError
        If there is no run, or it cannot be read.
    """
    run = Run(out)
    shares = shares or _shares_of(run.document["command"])
    names = list(dict.fromkeys([*run.genomes, *run.begun(), *_noted(run.out)]))
    genomes = [_status_of(run.work(name), shares) for name in names]
    return Status(
        genomes=genomes,
        finished=sum(genome.state == "finished" for genome in genomes),
        shares=shares,
        shares_missing=sorted({share for genome in genomes for share in genome.shares}),
    )


def _noted(out: Path) -> list[str]:
    """Names of genomes that have sidecars."""
    return sorted(path.name[: -len(".h5.json")] for path in out.glob("*.h5.json"))


def _shares_of(command: list[str]) -> int:
    found = re.search(r"--shard[= ](\d{1,9})/(\d{1,9})", " ".join(command))
    return max(int(found[2]), 1) if found else 1


def _status_of(work: Work, shares: int) -> GenomeStatus:
    noted = work.outcome()
    if noted is not None and noted["outcome"] == "finished":
        return GenomeStatus(work.name, "finished")
    error, failed = (noted["error"], "failed") if noted is not None else ("", "")
    every = tuple(range(1, shares + 1))
    try:
        if (identity := work.read_identity()) is not None:
            work.adopt(identity)
    except (GenomepredError, OSError) as damaged:
        identity, error = None, error or str(damaged)
    if identity is None:
        return GenomeStatus(work.name, failed or "new", error=error, shares=every)
    missing = work.missing()
    numbers = {shard: k for k, shard in enumerate(work.parts)}
    left = sorted({(numbers[shard] + work.number) % shares + 1 for shard in missing})
    due = tuple(left) or every[:1]  # complete: any share publishes it
    return GenomeStatus(work.name, failed or "begun", len(numbers), len(missing), error, due)


def forget(out: str | Path, names: Iterable[str]) -> list[Path]:
    """Remove genomes from a run: their files, sidecars and shards, and their names.

    Returns
    -------
    list of Path
        What was removed.

    Raises
    ------
    OutputError
        If the run has no genome of a name, or a process is at work on it.
    """
    run = Run(out)
    tidy(run.out)
    names = list(dict.fromkeys(names))
    known = {*run.genomes, *run.begun(), *_noted(run.out)}
    for name in names:
        if name not in known or genome_name(name) != name:
            raise OutputError(
                f"{run.out}: no genome {name!r} in this run; `genomepred status` lists them"
            )
        if is_at_work(run.out / PARTS / name):
            raise OutputError(f"{name}: another process is computing it; stop that first")
    removed = [path for name in names for path in _remove(run.out, name)]
    left = [name for name in run.genomes if name not in names]
    if len(left) < len(run.genomes):
        write_whole(run.out / RUN_FILE, seal({**run.document, "genomes": left}))
    return removed


def _remove(out: Path, name: str) -> list[Path]:
    final, folder = out / f"{name}.h5", out / PARTS / name
    removed = []
    for path in (sidecar_path(final), final):  # a file without a sidecar is not taken for finished
        if os.path.lexists(path):
            path.unlink()
            removed.append(path)
    if os.path.lexists(folder):
        shutil.rmtree(own_folder(out, PARTS, name))
        removed.append(folder)
    return removed
