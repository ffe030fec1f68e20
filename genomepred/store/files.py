"""Files that are whole or absent: synced renames, one-line errors, hashes, sidecars."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from genomepred.errors import OutputError, StoreError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class MissingFolderError(OutputError, FileNotFoundError):
    """The folder to write into does not exist, or was removed meanwhile."""


@contextmanager
def publishing(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """Temporary path in the same folder; synced and renamed to ``path`` at the end.

    It is removed if anything is raised meanwhile, so ``path`` is whole or as it was before.

    Raises
    ------
    OutputError
        In place of any ``OSError``: disk full, no permission, not a regular file.
    """
    path = Path(os.path.realpath(path))  # what a link names is written, the link stays
    owner = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
    temporary = path.parent / f"{path.stem[:120]}.{owner}{suffix}"
    try:
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a regular file; choose another output")
        yield temporary
        sync_file(temporary)
        os.rename(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise output_error(path, error) from error
        raise


def discard_abandoned(path: Path) -> None:
    """Remove temporaries of a path that killed processes of this host have left."""
    stem, host = re.escape(path.stem[:120]), re.escape(socket.gethostname())
    name = re.compile(rf"{stem}\.{host}\.(\d+)\.[0-9a-f]+\.tmp")
    for temporary in path.parent.glob("*.tmp"):
        found = name.fullmatch(temporary.name)
        if found and not _is_alive(int(found[1])):
            temporary.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def output_error(path: Path, error: OSError) -> OutputError:
    """One line for an output that the system refused to write."""
    if error.errno in _FULL:
        return OutputError(
            f"{path}: the disk or quota of {path.parent} is full; free some space and run the same "
            "command again"
        )
    if error.errno in _FORBIDDEN:
        return OutputError(f"{path}: no permission to write into {path.parent}")
    if error.errno == errno.ENOENT:
        return MissingFolderError(f"{path}: there is no folder {path.parent}; make it first")
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")


def require_space(folder: Path, size: int) -> None:
    """Raise an OutputError unless the folder's disk has ``size`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OutputError(
            f"{folder}: {size / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB are free; free "
            "some space and run the same command again"
        )


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until a folder's entries are on the disk, where the file system offers that."""
    with suppress(OSError):  # some network file systems refuse to sync a folder
        sync_file(path)


def write_whole(path: Path, data: bytes) -> None:
    """Write, sync and publish a small file."""
    with publishing(path) as temporary, open(temporary, "xb", buffering=0) as file:
        write_all(file.fileno(), data)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """``os.write`` until everything is written."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes, in hexadecimal, read a megabyte at a time."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sidecar_path(path: Path) -> Path:
    """Where the outcome of a prediction file is noted: ``<file>.json`` beside it."""
    return path.with_name(path.name + ".json")


def write_sidecar(path: Path, document: Mapping[str, Any]) -> None:
    """Publish a sidecar: sorted JSON, synced, whole or absent."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_whole(path, (text + "\n").encode())


def read_sidecar(path: Path) -> dict[str, Any]:
    """Contents of a sidecar.

    Raises
    ------
    StoreError
        If it is absent, unreadable, or no JSON object.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(
            f"{path}: damaged sidecar, not JSON ({error}); delete it and run predict again"
        ) from error
    if not isinstance(document, dict):
        raise StoreError(f"{path}: damaged sidecar, not an object; delete it and predict again")
    return document
