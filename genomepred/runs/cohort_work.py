"""All haplotypes of a panel as the work of a run: one file, whose shards are ranges of windows.

What merging needs of the panel is noted beside the parts, so that neither it nor the reference is
read again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from genomepred.documents import COUNT, seal
from genomepred.errors import SequenceError, StoreError
from genomepred.files import own_folder, write_whole
from genomepred.runs.folder import PARTS, RunTerms, now
from genomepred.runs.work import IDENTITY, Work
from genomepred.sequences.grid import Grid
from genomepred.sequences.source import SequenceSource
from genomepred.store.cohort_writing import INDEX_CHUNK, join_cohort, write_cohort_part

if TYPE_CHECKING:
    from genomepred.inference.cohort import ShardResult
    from genomepred.sequences.cohort import Panel

# Bytes that the values of all haplotypes of a shard may take if no two are equal, and windows of a
# shard at most: what a kill loses, and what is read again for its margins.
_SHARD_BYTES = 1 << 28
_SHARD_WINDOWS = 1 << 12


def shard_windows(haplotypes: int, tracks: int) -> int:
    """Windows of a shard: whole chunks of the index, as many as memory may hold."""
    fitting = _SHARD_BYTES // (4 * haplotypes * tracks)
    return max(min(fitting, _SHARD_WINDOWS) // INDEX_CHUNK, 1) * INDEX_CHUNK


class CohortWork(Work):
    """The file of a panel.

    Parameters
    ----------
    name : str
    path : Path
        The panel's file.
    terms : RunTerms
        The run; its signature says reference and panel.
    panel : Panel, optional
        Stays the caller's to close; merging and looking need none.
    """

    schema: ClassVar = {
        "name": str,
        "path": str,
        "reference": {"path": str, "size": COUNT, "mtime_ns": int},
        "started": str,
        "contigs": [str],
        "lengths": [COUNT],
        "samples": [str],
        "copies": [range(1, 256)],
        "shard_windows": range(1, 1 << 31),
    }

    def __init__(self, name: str, path: Path, terms: RunTerms, panel: Panel | None = None) -> None:
        super().__init__(name, path, terms)
        self._panel = panel

    def prepare(self) -> bool:
        """Note what the panel is, unless a process has."""
        if not self.prepared:
            own_folder(self.terms.out, PARTS, self.name)
            try:
                identity = self.read_identity()
            except StoreError:
                identity = None
            if identity is None:
                identity = self._found()
                write_whole(self.folder / IDENTITY, seal(identity))
            self.adopt(identity)
        return True

    def _found(self) -> dict[str, Any]:
        assert self._panel is not None
        reference = self._panel.reference
        size, mtime_ns = reference.stamp
        return {
            "name": self.name,
            "path": str(self.path),
            "reference": {"path": str(reference.path), "size": size, "mtime_ns": mtime_ns},
            "started": now(),
            "contigs": list(reference.contigs),
            "lengths": list(reference.contigs.values()),
            "samples": [sample for sample, _ in self._panel.haplotypes],
            "copies": [copy for _, copy in self._panel.haplotypes],
            "shard_windows": shard_windows(len(self._panel.haplotypes), self.terms.layout.tracks),
        }

    def division(self, identity: dict[str, Any], grid: Grid) -> tuple[int, int, dict[str, Any]]:
        """Shards are ranges of windows; the sequence is the reference's."""
        origin = {**identity["reference"], "digest": self.terms.signature.reference}
        return grid.rows // grid.geometry.bins, identity["shard_windows"], origin

    def source(self) -> SequenceSource:
        """The reference."""
        assert self._panel is not None
        return self._panel.reference

    def check_source(self) -> None:
        """Refuse a panel or a reference that was changed since it was opened."""
        if self._panel is None:  # merging reads neither
            return
        for source in (self._panel.reference, self._panel):
            found = source.path.stat() if source.path.exists() else None
            if found is None or (found.st_size, found.st_mtime_ns) != source.stamp:
                raise SequenceError(
                    f"{source.path} changed while it was being predicted: restore it and run "
                    "again, or use another --out"
                )

    def accept(self, noted: dict[str, Any]) -> None:
        """Nothing is left to refuse: reference and panel are part of the signature."""

    def write(self, first: int, last: int, values: ShardResult) -> None:
        """Write a shard, unless its part is there."""
        self.check_source()
        if self.has(first, last):
            self.duplicates += 1
            return
        write_cohort_part(
            self.parts[first, last],
            values.values,
            values.counts,
            values.leader,
            values.index,
            self.terms.layout,
            self._attributes(first, last),
        )

    def _attributes(self, first: int, last: int) -> dict[str, str | int]:
        """Return what a part says of itself."""
        return {
            "genome": self.name,
            "first_window": first,
            "last_window": last,
            "signature": self.terms.signature.text,
        }

    def join(self, joined: Path) -> str:
        """Join all parts."""
        self.check_source()
        said, identity = self.terms.signature, self.identity
        assert said.reference is not None
        return join_cohort(
            list(self.parts.values()),
            joined,
            self.terms.layout,
            self.grid,
            self.terms.tracks,
            list(zip(identity["samples"], identity["copies"], strict=True)),
            said.attributes(self.name, said.reference),
            [self._attributes(*shard) for shard in self.parts],
        )

    def clear(self) -> None:
        """Remove the parts; what is kept of the panel stays for other runs on this folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
