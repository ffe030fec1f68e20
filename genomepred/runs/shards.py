"""Shards: row ranges on their way through the pipeline, into parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import GenomepredError, OutputError, SequenceError
from genomepred.files import Claim
from genomepred.runs.genome import GenomeWork
from genomepred.store.hdf5 import encode_chunk, write_part


def nothing_more(shard: Shard) -> None:
    """Leave a genome as it is when a shard of it is written."""


class Shard:
    """A shard that is this process's to compute (a ``pipeline.ShardJob``).

    Parameters
    ----------
    work : GenomeWork
        Its genome, prepared.
    first, last : int
        Rows ``[first, last)``.
    claim : Claim, optional
        The lock by which it is ours; none if somebody has told us to compute it.
    then : callable
        Called with the shard once its part is on disk, on the thread that wrote it.
    """

    def __init__(
        self,
        work: GenomeWork,
        first: int,
        last: int,
        claim: Claim | None = None,
        then: Callable[[Shard], object] = nothing_more,
    ) -> None:
        assert work.prepared is not None
        self.work, self.prepared, self.first, self.last = work, work.prepared, first, last
        self._then = then
        work.begin(first, last, claim)
        self.genome, self.grid = work.genome(), self.prepared.grid

    def finish(self, values: NDArray[np.float32]) -> None:
        """Compress and write the shard."""
        work = self.work
        try:
            self._write(self._encode(values), len(values))
            work.written(self.first, self.last)
            self._then(self)
        except OutputError:
            raise
        except GenomepredError as error:
            work.fail(error)
        except OSError as error:
            raise output_error(error, work) from error
        finally:
            work.landed(self.first, self.last)

    def _encode(self, values: NDArray[np.float32]) -> list[bytes]:
        layout = self.work.plan.layout
        starts = range(0, len(values), layout.chunk_rows)
        pieces = [values[row : row + layout.chunk_rows] for row in starts]
        return list(
            _compressors(self.work.plan.compressors).map(
                partial(encode_chunk, layout=layout), pieces
            )
        )

    def _write(self, chunks: Sequence[bytes], rows: int) -> None:
        work = self.work
        work.check_source(self.genome, self.prepared)
        if work.has(self.first, self.last):
            work.duplicates += 1  # locks keep nobody out here; equal work gives equal bytes
            return
        part = work.part(self.first, self.last)
        attributes = work.part_attributes(self.prepared, self.first, self.last)
        try:
            write_part(part, chunks, rows, work.plan.layout, attributes)
        except FileNotFoundError:
            if not work.settled():  # published by others, who computed the same shard
                raise

    def fail(self, error: GenomepredError) -> None:
        """Give the genome up."""
        if isinstance(error, SequenceError):
            try:  # what a file that changes under way looks like to its reader is no explanation
                self.work.check_source(self.genome, self.prepared)
            except SequenceError as changed:
                error = changed
        try:
            self.work.fail(error)
        finally:
            self.work.landed(self.first, self.last)


@cache
def _compressors(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="compress")


def output_error(error: OSError, work: GenomeWork) -> OutputError:
    """One line for a system error that is no fault of the genome."""
    return OutputError(
        f"{error.filename or work.plan.out}: {error.strerror or error} while working on "
        f"{work.name}; finished shards are kept: mend it and run the same command again"
    )
