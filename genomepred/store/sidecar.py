"""Sidecars: what became of a genome, noted as ``<file>.json`` beside its prediction file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genomepred.documents import DocumentError, read_document, seal
from genomepred.errors import StoreError
from genomepred.files import write_whole


def sidecar_path(path: Path) -> Path:
    """Where the outcome of a prediction file is noted."""
    return path.with_name(path.name + ".json")


def write_sidecar(path: Path, document: Mapping[str, Any]) -> None:
    """Publish a sidecar: sealed JSON, synced, whole or absent."""
    write_whole(path, seal(document))


def read_sidecar(path: Path) -> dict[str, Any]:
    """Contents of a sidecar.

    Raises
    ------
    StoreError
        If it is absent, unreadable, no JSON object, or altered since it was written.
    """
    try:
        return read_document(path, {}, sealed=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise StoreError(
            f"{path}: damaged sidecar ({error}); delete it and run predict again"
        ) from error
