"""Findings of a pass over a FASTA: its records and the digest of its sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import xxhash


class Record(NamedTuple):
    """One line of a .fai; ``offset`` is that of the first base in the uncompressed bytes."""

    name: str
    length: int
    offset: int
    line_bases: int
    line_width: int


@dataclass(frozen=True)
class Scan:
    """Findings of a pass over a whole FASTA.

    Parameters
    ----------
    records : list of Record
        In file order; offset, line bases and line width of empty contigs are 0.
    even : bool
        Whether arithmetic on lines finds every base, so that a .fai can be written.
    digest : str
        See :class:`SequenceDigest`.
    """

    records: list[Record]
    even: bool
    digest: str


class SequenceDigest:
    """XXH3-128 of the codes of all contigs in file order, then of their names and lengths."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()

    def update(self, codes: memoryview) -> None:
        """Add the next codes."""
        self._hash.update(codes)

    def finish(self, contigs: Iterable[tuple[str, int]]) -> str:
        """Add names and lengths; the digest as 32 hexadecimal digits."""
        self._hash.update("".join(f"{name}\t{length}\n" for name, length in contigs).encode())
        return self._hash.hexdigest()
