"""Cohort runs: a reference and a panel in, one file out; each distinct window computed once.

Any number of processes work on the shards of one folder; whoever finds the last one finished joins
them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from genomepred.compiled import tell_of_compiling
from genomepred.errors import GenomepredError, OutputError
from genomepred.inference.cohort import compute_shard
from genomepred.inference.pipeline import Stop
from genomepred.models.card import Card
from genomepred.models.layers import SequenceModel
from genomepred.runs.cohort_setup import CohortSetup
from genomepred.runs.cohort_work import CohortWork
from genomepred.runs.executors import Job, processes
from genomepred.runs.executors.local import Watch
from genomepred.runs.folder import read_run
from genomepred.runs.run import GenomeRun, RunReport, cluster_of, execute, in_memory
from genomepred.runs.spec import RunSpec
from genomepred.runs.work import GenomeResult, Shard, Work
from genomepred.sequences.cohort import PanelOptions


class CohortRun(GenomeRun):
    """A run on one reference and one panel, in one process (an ``executors.Job``).

    Parameters
    ----------
    spec : RunSpec
        Of one genome, the reference.
    variants : Path
        VCF or BCF.
    options : PanelOptions
    told : mapping, optional
        What another process says of the run that is to be joined.
    model : SequenceModel, optional
        A model in memory, in place of the spec's.

    Raises
    ------
    GenomepredError
        If model, reference, panel or options do not fit, or the run was started with others.
    """

    def __init__(
        self,
        spec: RunSpec,
        variants: Path,
        options: PanelOptions,
        told: Mapping[str, Any] | None = None,
        model: SequenceModel | None = None,
    ) -> None:
        self.variants, self.options = variants, options
        if told is not None:
            read_run(spec.out)  # a process that does not see the run creates nothing
        self.spec = spec
        self.setup: CohortSetup = CohortSetup(spec, variants, options, model=model)
        self.terms, self.workers = self.setup.open(told), self.setup.workers
        panel = self.setup.panel
        self.works = [CohortWork(panel.name, variants, self.terms, panel)]
        self.step = self.setup.geometry.stride
        self._windows = self._distinct = 0
        self._note: Callable[[str], object] = lambda text: None

    def more(self) -> dict[str, Any]:
        """Return what another process is to be told beside the spec."""
        panel = {"variants": str(self.variants), "panel": asdict(self.options)}
        return super().more() | panel

    @classmethod
    def join(cls, spec: RunSpec, told: Mapping[str, Any]) -> CohortRun:
        """The same run in another process."""
        samples = told["panel"]["samples"]
        how = {**told["panel"], "samples": None if samples is None else tuple(samples)}
        return cls(spec, Path(told["variants"]), PanelOptions(**how), told)

    def work(self, number: int, name: str, path: Path) -> Work:
        """The panel's file."""
        return self.works[number]

    def compute(
        self,
        shards: Iterable[Shard],
        stop: Stop | None = None,
        progress: Callable[[int], object] = lambda rows: None,
        last: Callable[[], object] = lambda: None,
    ) -> None:
        """Compute shards as they come, one after the other (see ``Job``)."""
        setup = self.setup
        slots = setup.slots(self.terms.signature.compute_batch)
        try:
            for shard in shards:
                place = shard.grid, shard.first, shard.last
                try:
                    found = compute_shard(self.engine, setup.panel, *place, slots)
                except OutputError:
                    raise
                except GenomepredError as error:
                    shard.fail(error)
                    continue
                shard.finish(found)
                self._count(shard.last - shard.first, len(found.leader))
                progress(shard.last - shard.first)
        finally:
            last()

    def _count(self, windows: int, distinct: int) -> None:
        self._windows += windows
        self._distinct += distinct
        each, haplotypes = self._distinct / self._windows, len(self.setup.panel.haplotypes)
        self._note(f"{each:.1f} of {haplotypes:,} haplotypes distinct")

    def execute(self, job: Job, watch: Watch) -> None:
        """Compute it by this machine's processes, telling what is distinct (an ``Executor``)."""
        self._note = watch.note
        processes.compute(job, watch)

    def close(self) -> None:
        """Close reference and panel."""
        self.setup.close()


def run_cohort(
    spec: RunSpec,
    variants: Path,
    options: PanelOptions,
    progress: bool = False,
    model: SequenceModel | None = None,
) -> RunReport:
    """Start or continue a cohort run; see :func:`predict_cohort`."""
    threads = torch.get_num_threads()
    if progress:
        tell_of_compiling()
    try:
        # It may be absent: that is found out before anything is written.
        cluster = None if spec.cluster is None else cluster_of(spec)
        run = CohortRun(spec, variants, options, model=model)
        try:
            if progress:
                for line in run.setup.panel.warnings():
                    tqdm.write(f"genomepred: {variants}: {line}", sys.stderr)
            return execute(run, progress, cluster or run.execute)
        finally:
            run.close()
    finally:
        torch.set_num_threads(threads)


def predict_cohort(
    reference: str | Path,
    variants: str | Path,
    model: str | Path | nn.Module,
    out: str | Path,
    *,
    card: Card | None = None,
    missing: str = "reference",
    unphased: str = "error",
    inbred: bool = False,
    samples: tuple[str, ...] | None = None,
    progress: bool = False,
    **options: Any,
) -> GenomeResult:
    """Predict all haplotypes of a panel into one file in ``out``; call again to continue.

    Parameters
    ----------
    reference : path
        FASTA that the panel was called on.
    variants : path
        VCF or BCF; plain, gzip or bgzip.
    model : str, path or nn.Module
        As of :func:`genomepred.predict`.
    out : path
        Output folder.
    card : Card, optional
        Of a module in memory that has no attribute ``card``.
    missing : {"reference", "n"}
        What a missing allele is.
    unphased : {"error", "first", "n"}
        What heterozygotes without phase are.
    inbred : bool
        One haplotype a sample.
    samples : tuple of str, optional
        Selected samples; all by default.
    progress : bool
        Show progress on stderr.
    **options
        As of :func:`genomepred.predict`: stride, strand, device, precision, jobs and so on.

    Returns
    -------
    GenomeResult

    Raises
    ------
    GenomepredError
        Whatever stops the run, as in :func:`genomepred.predict`.
    """
    from genomepred.runs.spec import find_genomes

    elsewhere = {name: options.get(name) for name in ("jobs", "cluster", "trust_code")}
    held, name = None, str(model)
    if isinstance(model, nn.Module) or card is not None:
        held = in_memory(model, card, **elsewhere)
        name, options = held.card.name, {**options, "jobs": 1}
    asked = RunSpec(genomes=tuple(find_genomes([reference])), model=name, out=Path(out), **options)
    panel_options = PanelOptions(missing, unphased, inbred, samples)  # type: ignore[arg-type]
    return run_cohort(asked, Path(variants), panel_options, progress, held).genomes[0]
