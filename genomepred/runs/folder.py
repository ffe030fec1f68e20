"""The folder of a run: its places, its ``run.json``, and what all genomes have in common.

``run.json`` holds the signature: all that can change a bit of the output, decided once, when a run
starts, and obeyed by every process that works on the run afterwards.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genomepred.documents import COUNT, DocumentError, read_document, seal
from genomepred.errors import OutputError, SignatureError, StoreError
from genomepred.files import (
    Claim,
    own_folder,
    sha256_of,
    sweep_abandoned,
    write_whole,
)
from genomepred.sequences.bed import read_bed
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store.schema import Layout, read_sidecar

if TYPE_CHECKING:
    from genomepred.inference.engine import Numerics

RUN_FILE, PARTS, CACHE = "run.json", ".parts", ".cache"
# A million genomes with names of 50 letters, or 100,000 with the longest names.
_LARGEST_RUN = 1 << 26
# What JSON must hold for a field, by its type, unless the field says otherwise.
_SCHEMAS: dict[Any, Any] = {
    "str": str,
    "str | None": (str, None),
    "bool": bool,
    "int": range(1, 1 << 62),
    "tuple[str, ...]": [str],
}


@dataclass(frozen=True)
class Signature:
    """Identity of a run's results; equal signatures and sequences give equal bytes.

    ``precision``, ``kernels``, ``compute_batch`` and ``overlap`` are chosen when the run starts;
    the rest follows from input and environment. ``reference`` and ``panel`` are a cohort's.
    """

    model: str
    weights_sha256: str
    code: str | None
    card: str
    window: int
    crop: int = field(metadata={"schema": COUNT})
    bins: int
    bin_size: int
    stride: int
    regions: str | None
    center: bool
    strand: str
    store_dtype: Literal["float32", "float16"] = field(metadata={"schema": str})
    compression: str
    device: str
    threads: int
    genomepred: str
    torch: str
    triton: str | None
    numba: str | None
    zlib: str
    zstandard: str | None
    hdf5: str
    precision: str
    kernels: tuple[str, ...]
    compute_batch: int = field(metadata={"schema": range(1, 1 << 31)})
    overlap: str
    reference: str | None = None
    panel: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The values as JSON holds them."""
        told = {option.name: getattr(self, option.name) for option in fields(self)}
        told["kernels"] = list(self.kernels)
        return {k: v for k, v in told.items() if v is not None or k not in ("reference", "panel")}

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> Signature:
        """The signature that :meth:`to_json` has told; further keys are left out."""
        known = {option.name: told[option.name] for option in fields(cls) if option.name in told}
        return cls(**{**known, "kernels": tuple(told["kernels"])})

    @cached_property
    def text(self) -> str:
        """One line of JSON, as parts carry it."""
        return json.dumps(self.to_json(), sort_keys=True)

    @property
    def numerics(self) -> Numerics:
        """Numerics that an engine is to obey."""
        from genomepred.inference.engine import Numerics

        return Numerics(**{option.name: getattr(self, option.name) for option in fields(Numerics)})

    def attributes(self, name: str, digest: str) -> dict[str, str]:
        """Return what a published file says of its run, in the order in which files have it."""
        panel = {} if self.panel is None else {"panel": self.panel}
        return {
            "genome": name,
            "sequence_digest": digest,
            **panel,
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "strand": self.strand,
            "precision": self.precision,
            "package_version": self.genomepred,
        }


@dataclass(frozen=True)
class RunTerms:
    """The terms that all genomes of a run have in common.

    ``regions`` is the run's own copy of a BED that messages call ``regions_called``.
    ``share`` is ``(i, n)``: of every genome, this process computes the shards whose number plus
    the genome's number is ``i`` modulo ``n``. ``session`` tells failures of this command, its
    workers included, from those of an earlier one. ``compressors`` threads encode chunks.
    ``run_id`` tells the run's folder from others, ``fingerprint`` engines that compute its bits.
    """

    out: Path
    geometry: Geometry
    layout: Layout
    regions: Path | None
    center: bool
    signature: Signature
    tracks: tuple[tuple[str, str], ...]
    regions_called: str | None = None
    share: tuple[int, int] = (0, 1)
    compressors: int = 4
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str = ""
    fingerprint: str = ""


def make_grid(
    contigs: Mapping[str, int],
    geometry: Geometry,
    regions: Path | None,
    center: bool,
    called: str | None = None,
) -> Grid:
    """Grid of a genome: all of it, the rows that meet a BED's regions, or one window a record."""
    if regions is None:
        return Grid.whole(contigs, geometry)
    records = read_bed(regions, contigs, called)
    make = Grid.centered if center else Grid.of_regions
    return make(contigs, geometry, records)


def regions_path(out: Path, sha256: str) -> Path:
    """Path of a run's copy of a BED: a name that no genome's folder can have."""
    return out / PARTS / f".regions-{sha256[:16]}.bed"


def check_regions(path: Path, sha256: str | None) -> None:
    """Raise an OutputError unless a run's copy of its BED is what the run was started with."""
    with suppress(OSError):
        if sha256_of(path, follow=False) == sha256:
            return
    raise OutputError(f"{path}: the run's copy of the BED is missing or altered; run predict again")


def tidy(out: Path) -> None:
    """Remove temporaries that killed processes have left anywhere in a run, in one pass.

    Raises
    ------
    OutputError
        If one of its own places is a link or no folder: it would lead out of it.
    """
    for name in (PARTS, CACHE):
        if os.path.lexists(out / name):
            own_folder(out, name)
    sweep_abandoned(out)
    sweep_abandoned(out / PARTS)
    with suppress(OSError), os.scandir(out / PARTS) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                sweep_abandoned(Path(entry.path))


def files_in(folder: Path) -> set[str]:
    """Names of the regular files in a folder, which may be absent; links and pipes are none."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
    return set()


def now() -> str:
    """The time, as JSON of a run says it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


# -- run.json ---------------------------------------------------------------------------------

# What JSON must hold of a signature.
_SIGNATURE = {
    option.name + ("?" if option.default is None else ""): option.metadata.get("schema")
    or _SCHEMAS[option.type]
    for option in fields(Signature)
}
_RUN = {
    "created": str,
    "id?": str,
    "fingerprint?": str,
    "command": [str],
    "genomes": [str],
    "tracks": [[str]],
    "saving?": float,
    "signature": _SIGNATURE,
}


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


def start_run(out: Path, decided: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write ``OUT/run.json``, complete and at once; if another process was first, its file stays.

    Parameters
    ----------
    out : Path
        Output folder; made if absent.
    decided : mapping
        The fields of its signature.
    about : mapping
        What else it says of the run: all that merging needs to know.

    Raises
    ------
    OutputError
        If the folder cannot be made or written.
    """
    signature = Signature(**decided).to_json()
    told = {"created": now(), "id": uuid.uuid4().hex, **about, "signature": signature}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / RUN_FILE, seal(told), new=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be used as output folder: {error.strerror}") from error


def join_run(out: Path, wanted: Mapping[str, Any]) -> tuple[Signature, dict[str, Any]]:
    """Signature and contents of ``OUT/run.json``, which this process can match.

    Parameters
    ----------
    out : Path
    wanted : mapping
        Of the signature, what follows from the command and the machine, and what the user has
        fixed.

    Raises
    ------
    SignatureError
        If the run was started with something that changes its numbers; the message names it.
    OutputError
        If the folder holds no run that can be read.
    """
    document = read_run(out)
    signature = Signature.of_json(document["signature"])
    if differing := [name for name in wanted if getattr(signature, name) != wanted[name]]:
        was = ", ".join(f"{name} {_short(getattr(signature, name))}" for name in differing)
        now_ = ", ".join(f"{name} {_short(wanted[name])}" for name in differing)
        raise SignatureError(
            f"{out} was started with {was}; now {now_}: continue it as it was started, or use "
            "another --out"
        )
    return signature, document


def _short(value: Any) -> str:
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    if value is None:
        return "unset"
    return text[:12] + "..." if len(text) == 64 else text


def restart_if_mistaken(out: Path, wanted: dict[str, Any], genomes: list[str]) -> None:
    """Let a run of which nothing is computed yet begin again, as it is asked for now.

    A run with a finished shard or a published genome, or at which a process is at work, stays.

    Parameters
    ----------
    out : Path
        Output folder, which may hold a run.
    wanted : dict
        Of the signature, what is asked for now.
    genomes : list of str
        Names of the genomes that are asked for now.
    """
    if not _is_mistaken(out, wanted, genomes):
        return
    lock = Claim.take(own_folder(out, PARTS) / ".restart.lock", wait=True)
    try:
        if _is_mistaken(out, wanted, genomes):  # nobody has been faster
            _restart(out, wanted, genomes)
    finally:
        if lock is not None:
            lock.release()


def _is_mistaken(out: Path, wanted: dict[str, Any], genomes: list[str]) -> bool:
    """Whether a folder's run is another than is asked for now, with nothing to show for itself."""
    try:
        document = read_run(out)
    except OutputError:
        return False
    signature = Signature.of_json(document["signature"])
    if document["genomes"] == genomes and signature == replace(signature, **wanted):
        return False
    folders = list((out / PARTS).glob("*/"))
    if any(next(folder.glob("*-*.h5"), None) for folder in folders):
        return False
    if any(out.glob("*.h5")) or any(map(is_at_work, folders)):
        return False
    for sidecar in out.glob("*.h5.json"):
        with suppress(StoreError):
            if read_sidecar(sidecar)["outcome"] == "finished":
                return False
    return True


def _restart(out: Path, wanted: dict[str, Any], genomes: list[str]) -> None:
    document = read_run(out)
    for sidecar in out.glob("*.h5.json"):
        sidecar.unlink(missing_ok=True)
    signature = Signature.of_json(document["signature"])
    if signature != replace(signature, **wanted):
        (out / RUN_FILE).unlink(missing_ok=True)
    else:
        write_whole(out / RUN_FILE, seal({**document, "genomes": genomes}))


def is_at_work(folder: Path) -> bool:
    """Whether a process holds one of the locks in a genome's folder."""
    for lock in folder.glob("*.lock"):
        claim = Claim.take(lock)
        if claim is None and os.path.lexists(lock):
            return True
        if claim is not None:
            claim.release()
    return False
