"""The numerics signature: everything that can change a bit of the output.

It is decided once, when a run starts, written to ``OUT/run.json`` and obeyed by every process that
works on the run afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import torch

from genomepred import __version__
from genomepred.documents import seal
from genomepred.errors import OutputError, SignatureError
from genomepred.files import create_whole
from genomepred.inference.engine import Numerics, describe_device
from genomepred.models.card import Card
from genomepred.runs.folder import RUN_FILE, now
from genomepred.runs.manifest import read_run
from genomepred.sequences.bed import described_sha256
from genomepred.sequences.grid import Geometry
from genomepred.store.hdf5 import Layout

# What is chosen by probing when a run starts; the rest follows from input and environment.
_DECIDED = ("precision", "kernels", "compute_batch", "overlap")


def facts(
    card: Card,
    geometry: Geometry,
    layout: Layout,
    device: torch.device,
    *,
    strand: str,
    regions: Path | None,
    center: bool,
    code_sha256: str | None,
) -> dict[str, Any]:
    """The part of the signature that follows from the command and the machine."""
    described = json.loads(card.to_json())
    for prose in ("training", "metrics", "license", "name"):
        described.pop(prose, None)
    return {
        "model": card.name,
        "weights_sha256": card.weights_sha256,
        "code": code_sha256,
        "card": hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
        "window": geometry.window,
        "crop": geometry.crop,
        "bins": geometry.bins,
        "bin_size": geometry.bin_size,
        "stride": geometry.stride,
        "regions": described_sha256(regions) if regions else None,
        "center": center,
        "strand": strand,
        "store_dtype": layout.dtype,
        "compression": layout.compression,
        "device": describe_device(device),
        "threads": 1,
        "genomepred": __version__,
        "torch": torch.__version__,
        "triton": _triton_version() if device.type == "cuda" else None,
        "numba": _numba_version() if device.type == "cpu" else None,
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "zstandard": version("zstandard") if layout.compression == "zstd" else None,
        "hdf5": h5py.version.hdf5_version,
    }


def _triton_version() -> str | None:
    try:
        import triton  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    return str(triton.__version__)


def _numba_version() -> str:
    """Versions of what compiles for a CPU, and the CPU it is told to compile for, if it is."""
    target = [
        os.environ[key] for key in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES") if key in os.environ
    ]
    return " ".join([version("numba"), "llvmlite", version("llvmlite"), *target])


def start_run(
    out: Path, expected: Mapping[str, Any], numerics: Numerics, about: Mapping[str, Any]
) -> None:
    """Write ``OUT/run.json``, complete and at once; if another process was first, its file stays.

    Parameters
    ----------
    out : Path
        Output folder; made if absent.
    expected : mapping
        What this process would use (see :func:`facts`).
    numerics : Numerics
        What was decided.
    about : mapping
        What else it says of the run: all that merging needs to know.

    Raises
    ------
    OutputError
        If the folder cannot be made or written.
    """
    decided = {name: getattr(numerics, name) for name in _DECIDED}
    decided["kernels"] = list(numerics.kernels)
    document = {
        "created": now(),
        "id": uuid.uuid4().hex,
        **about,
        "signature": {**expected, **decided},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        create_whole(out / RUN_FILE, seal(document))
    except OSError as error:
        raise _unusable(out, error) from error


def numerics_of(signature: Mapping[str, Any]) -> Numerics:
    """Numerics that a signature says to obey."""
    decided = {name: signature[name] for name in (*_DECIDED, "strand")}
    return Numerics(**{**decided, "kernels": tuple(signature["kernels"])})


def join_run(out: Path, expected: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Contents of ``OUT/run.json``, whose signature this process can match.

    Parameters
    ----------
    out, expected
        See :func:`start_run`.
    asked : mapping
        Of what is otherwise decided, what the user has fixed (``precision``, ``kernels``,
        ``overlap``).

    Raises
    ------
    SignatureError
        If the run was started with something that changes its numbers; the message names it.
    OutputError
        If the folder holds no run that can be read.
    """
    try:
        document = read_run(out)
    except OSError as error:
        raise _unusable(out, error) from error
    signature, wanted = document["signature"], {**expected, **asked}
    differing = [name for name in wanted if signature.get(name) != wanted[name]]
    if differing:
        raise SignatureError(
            f"{out} was started with "
            + ", ".join(f"{name} {_short(signature.get(name))}" for name in differing)
            + "; now "
            + ", ".join(f"{name} {_short(wanted[name])}" for name in differing)
            + ": continue it as it was started, or use another --out"
        )
    return document


def _unusable(out: Path, error: OSError) -> OutputError:
    why = "it is a file" if out.is_file() else error.strerror
    return OutputError(f"{out}: cannot be used as output folder: {why}")


def _short(value: Any) -> str:
    text = ",".join(value) if isinstance(value, list) else str(value)
    if value is None:
        return "unset"
    return text[:12] + "..." if len(text) == 64 else text
