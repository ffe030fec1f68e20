"""A genome as the one FASTA that a browser reads piece by piece: every contig one line.

The file does not exist; any range of its bytes is made from the codes of the genome, however that
is compressed and wrapped. A process of its own reads them, since what decodes takes much memory.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from genomepred.errors import GenomepredError
from genomepred.view.jobs import Job, JobError

_LONGEST = 1 << 20


class Sequence:
    """Bytes of a virtual FASTA.

    Parameters
    ----------
    path : Path
        FASTA of the genome.
    contigs : mapping of str to int
        Lengths that its contigs must have.
    """

    def __init__(self, path: Path, contigs: Mapping[str, int]) -> None:
        self._path, self._contigs = path, dict(contigs)
        self._lock = threading.Lock()
        self._job: Job | None = None
        names = [name.encode(errors="replace") for name in self._contigs]
        lengths = np.fromiter(self._contigs.values(), np.int64, len(names))
        heads = np.array([len(name) + 2 for name in names], np.int64)
        # Where each contig's header and first base are; a line end stands behind the last.
        self._begin = np.cumsum(heads + lengths + 1) - heads - lengths - 1
        self._first = self._begin + heads
        self.size = int((heads + lengths + 1).sum())

    def index(self) -> bytes:
        """Its .fai."""
        rows = zip(self._contigs.items(), self._first.tolist(), strict=True)
        lines = [f"{name}\t{n}\t{at}\t{max(n, 1)}\t{max(n, 1) + 1}\n" for (name, n), at in rows]
        return "".join(lines).encode(errors="replace")

    def read(self, first: int, last: int) -> bytes:
        """Bytes ``[first, last)``, of which a megabyte at most.

        Raises
        ------
        JobError
            If the genome cannot be read, or is not what was predicted on.
        """
        last = min(last, self.size, first + _LONGEST)
        parts, k = [], max(int(np.searchsorted(self._begin, first, side="right")) - 1, 0)
        for name, length in islice(self._contigs.items(), k, None):
            begin, origin = int(self._begin[k]), int(self._first[k])
            if begin >= last:
                break
            head = f">{name}\n".encode(errors="replace")
            parts.append(head[max(first - begin, 0) : max(last - begin, 0)])
            start, stop = max(first - origin, 0), min(last - origin, length)
            if start < stop:
                parts.append(self._bases(name, start, stop))
            if first <= origin + length < last:
                parts.append(b"\n")
            k += 1
        return b"".join(parts)

    def _bases(self, contig: str, start: int, end: int) -> bytes:
        with self._lock:
            if self._job is None:
                told = {"path": str(self._path), "contigs": self._contigs}
                self._job = Job("bases", lambda share: None, **told)
            try:
                found: str = self._job.ask([contig, start, end])
            except JobError:
                self.close()
                raise
            return found.encode()

    def close(self) -> None:
        """End the process that reads."""
        if self._job is not None:
            self._job.kill()
            self._job = None


def try_sequence(path: Path | None, contigs: Mapping[str, int]) -> Sequence | None:
    """The sequence, if a first base of it can be had."""
    if path is None or not contigs:
        return None
    found = Sequence(path, contigs)
    try:
        found.read(0, int(found._first[0]) + 1)
    except GenomepredError:
        found.close()
        return None
    return found
