"""Sidecars: what became of a genome, noted as ``<file>.json`` beside its prediction file.

They are sealed JSON (:func:`genomepred.documents.seal`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genomepred.documents import COUNT, DocumentError, check_document, read_document
from genomepred.errors import StoreError

#: Values of a signature, in sidecars and in the record of a run.
SIGNATURE = {str: (str, int, bool, float, None, [str])}
_SCHEMAS = {
    "finished": {
        "sha256": str,
        "bytes": COUNT,
        "rows": COUNT,
        "bases": COUNT,
        "genome": {"path": str, "size": COUNT, "mtime_ns": int, "digest": str},
        "signature": SIGNATURE,
        "started": str,
        "finished": str,
    },
    "failed": {
        "error": str,
        "session": str,
        "genome": {"path": str},
        "signature": SIGNATURE,
        "finished": str,
    },
}
# A failed genome's message may quote what it found; everything else is small.
_LARGEST = 1 << 22


def sidecar_path(path: Path) -> Path:
    """Path of the sidecar, which holds the outcome of a prediction file."""
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """Contents of a sidecar: what its outcome requires, each value of its own kind.

    Raises
    ------
    StoreError
        If it is absent, unreadable, no such document, or altered since it was written.
    """
    try:
        noted = read_document(path, {"outcome": str}, sealed=True, limit=_LARGEST)
        if noted["outcome"] not in _SCHEMAS:
            raise DocumentError(f"outcome is {noted['outcome'][:40]!r}")
        check_document(noted, _SCHEMAS[noted["outcome"]])
        return noted
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise StoreError(
            f"{path}: damaged sidecar ({error}); delete it and run predict again"
        ) from error
