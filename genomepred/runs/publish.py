"""Publication: the parts of a genome become one file in its place, and a sidecar says so.

Where locks do not work, two processes may publish the same genome; the bytes are the same.
"""

from __future__ import annotations

import os

from genomepred.errors import SequenceError, StoreError
from genomepred.files import Claim, sync_folder
from genomepred.runs.folder import now
from genomepred.runs.genome import GenomeWork, Prepared
from genomepred.sequences.fasta import Genome
from genomepred.store.hdf5 import DamagedPartError, join

# A part that proves damaged so often is not worth computing once more.
_MOST_DAMAGES = 3


def publish(work: GenomeWork, prepared: Prepared) -> bool:
    """Join all parts of a genome into the published file.

    Parameters
    ----------
    work : GenomeWork
    prepared : Prepared
        What the parts were computed from.

    Returns
    -------
    bool
        False if another process or thread is at it, or if a part proved damaged: that part is
        removed, to be computed again.

    Raises
    ------
    SequenceError
        If the sequence file has changed since it was digested.
    StoreError
        If the same part has proved damaged again and again.
    """
    if not work.publishing.acquire(blocking=False):
        return False
    try:
        claim = Claim.take(work.folder / "publish.lock")
        if claim is None:
            return work.is_published()
        try:
            if not work.is_published():
                return _publish(work, prepared)
            work.clear(prepared.stamp)
            return True
        finally:
            claim.release()
    finally:
        work.publishing.release()


def _publish(work: GenomeWork, prepared: Prepared) -> bool:
    try:
        _recheck_digest(work, prepared)
        joined = work.folder / "joined.h5"
        sha256 = _join(work, prepared)
        os.rename(joined, work.final)
        sync_folder(work.plan.out)
        _write_outcome(work, prepared, sha256)
    except DamagedPartError as error:
        _give_up_part(work, error)
        return False
    except FileNotFoundError:
        return work.is_published()  # without locks two publish, and one clears away first
    work.clear(prepared.stamp)
    return True


def _give_up_part(work: GenomeWork, error: DamagedPartError) -> None:
    """Remove a damaged part, to be computed again."""
    work.damages[error.path] += 1
    if work.damages[error.path] > _MOST_DAMAGES:
        raise StoreError(
            f"{error.path}: damaged again whenever it was computed ({error.reason}); check "
            f"the disk of {work.plan.out}"
        ) from error
    error.path.unlink(missing_ok=True)


def _recheck_digest(work: GenomeWork, prepared: Prepared) -> None:
    if not os.path.exists(work.path):
        return  # merging needs no sequence
    if work.stamp() != prepared.stamp:
        with Genome(work.path, name=work.name, cache=work.plan.cache) as genome:
            digest = genome.digest()
        if digest != prepared.digest:
            raise SequenceError(
                f"{work.path} changed while it was being predicted; restore it and run again, "
                f"or remove {work.folder} to start this genome again"
            )


def _join(work: GenomeWork, prepared: Prepared) -> str:
    signature = work.plan.signature
    attributes = {
        "genome": work.name,
        "sequence_digest": prepared.digest,
        "model": signature["model"],
        "weights_sha256": signature["weights_sha256"],
        "strand": signature["strand"],
        "precision": signature["precision"],
        "package_version": signature["genomepred"],
    }
    return join(
        [work.part(*shard) for shard in prepared.ranges],
        work.folder / "joined.h5",
        work.plan.layout,
        prepared.grid,
        work.plan.tracks,
        attributes,
        [work.part_attributes(prepared, *shard) for shard in prepared.ranges],
    )


def _write_outcome(work: GenomeWork, prepared: Prepared, sha256: str) -> None:
    size, mtime_ns = prepared.stamp
    work.note_published(
        {
            "outcome": "finished",
            "sha256": sha256,
            "bytes": work.final.stat().st_size,
            "rows": prepared.grid.rows,
            "bases": sum(prepared.contigs.values()),
            "genome": {
                "path": str(prepared.path),
                "size": size,
                "mtime_ns": mtime_ns,
                "digest": prepared.digest,
            },
            "signature": work.plan.signature,
            "started": prepared.started,
            "finished": now(),
        }
    )
