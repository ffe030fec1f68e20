"""Sources of sequence: contigs of codes with an identity, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from genomepred.sequences.codes import Codes

Self = TypeVar("Self")


@runtime_checkable
class SequenceSource(Protocol):
    """Contigs of codes: a :class:`~genomepred.sequences.fasta.Genome`, or anything like one.

    Several threads may read at once. Whoever implements it shows with the suite in
    ``tests/sequences/source_suite.py`` that it keeps to what is said here.
    """

    @property
    def name(self) -> str:
        """Name of the genome, for outputs and messages."""
        ...

    @property
    def path(self) -> Path:
        """File that messages name."""
        ...

    @property
    def contigs(self) -> Mapping[str, int]:
        """Length of each contig, in an order that never changes."""
        ...

    @property
    def stamp(self) -> tuple[int, int]:
        """A stamp that changes when the file does, as on opening; cheap, unlike the digest."""
        ...

    def codes(self, contig: str, start: int, end: int, out: Codes | None = None) -> Codes:
        """Codes of ``[start, end)``, uint8 ``[end - start]``; 4 outside the contig.

        Parameters
        ----------
        contig : str
        start, end : int
            0-based half-open; may reach outside the contig.
        out : uint8 array, [end - start], optional
            C-contiguous buffer to fill; it is returned.

        Raises
        ------
        RegionError
            If there is no such contig or ``end < start``.
        SequenceError
            If the sequence cannot be read, or is no longer what was opened.
        ValueError
            If ``out`` is no such buffer, or the source is closed.
        """
        ...

    def digest(self) -> str:
        """Digest of names, lengths and codes, 32 hexadecimal digits; equal for equal sequences."""
        ...

    def discard_cache(self) -> None:
        """Remove what lies in a cache folder for this source; open ones can go on reading."""
        ...

    def close(self) -> None:
        """Let go of files; may be called again."""
        ...

    def __enter__(self: Self) -> Self: ...

    def __exit__(self, *_: object) -> object: ...
