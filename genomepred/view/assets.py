"""Files of the page, by name, read once: no request leads to another file."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

_KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".txt": "text/plain",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """Bytes and their media type."""

    data: bytes
    kind: str

    @cached_property
    def packed(self) -> bytes:
        """The bytes through gzip."""
        return gzip.compress(self.data, 6, mtime=0)


def assets() -> dict[str, Asset]:
    """All files of the page."""
    folder = resources.files("genomepred.view") / "static"
    found = {}
    for file in folder.iterdir():
        kind = _KINDS.get("." + file.name.rpartition(".")[2])
        if kind is not None:
            found[file.name] = Asset(file.read_bytes(), kind)
    return found
