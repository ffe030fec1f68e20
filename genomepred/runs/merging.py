"""Merging: publish what is complete, without computing and without the sequences."""

from __future__ import annotations

from pathlib import Path

from genomepred.errors import GenomepredError, GenomesFailedError, OutputError
from genomepred.files import own_folder
from genomepred.messages import counted
from genomepred.runs.folder import PARTS, tidy
from genomepred.runs.manifest import Run
from genomepred.runs.work import GenomeResult, Work, disk_error
from genomepred.store.schema import read_sidecar


def merge(out: str | Path) -> list[GenomeResult]:
    """Publish every genome of a run whose shards are all there.

    Returns
    -------
    list of GenomeResult
        Of the genomes that had not been published.

    Raises
    ------
    GenomesFailedError
        If any cannot be published; the message says how many, and of the first why.
    """
    run = Run(out)
    tidy(run.out)
    results = [_merge_genome(run.work(name)) for name in run.begun()]
    unfinished = [result for result in results if result.outcome != "finished"]
    if unfinished:
        raise GenomesFailedError(
            f"{len(unfinished)} of {counted(len(results), 'begun genome')} not published; first: "
            f"{unfinished[0].name}: {unfinished[0].error}",
            results,
        )
    return results


def _merge_genome(work: Work) -> GenomeResult:
    why = ""
    try:
        own_folder(work.terms.out, PARTS, work.name)
        identity = work.read_identity()
        if identity is not None:
            work.path = Path(identity["path"])
            work.adopt(identity)
            if missing := len(work.missing()):
                why = f"{missing} of {counted(len(work.parts), 'shard')} missing"
            elif not work.publish():
                why = "a part was damaged and is removed, or another process is publishing"
        if why:
            why = f"{why}; run predict on this --out again"
            return GenomeResult(work.name, "partial", work.final, error=why)
        noted = read_sidecar(work.sidecar)
    except OSError as error:
        raise disk_error(error, work) from error
    except OutputError:
        raise
    except GenomepredError as error:
        return GenomeResult(work.name, "failed", work.final, error=str(error))
    return GenomeResult(work.name, "finished", work.final, noted["rows"], noted["bases"])
