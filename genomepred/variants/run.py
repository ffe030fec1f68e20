"""Effects of all variants of a file: checked, computed in blocks, published as one table."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from genomepred import __version__
from genomepred.errors import OptionError, OutputError, SequenceError
from genomepred.files import output_place, refuse_inputs
from genomepred.inference.engine import Numerics, describe_device, find_device
from genomepred.inference.predictor import Predictor
from genomepred.models.checkpoint import load_model
from genomepred.models.external import External
from genomepred.progress import Progress
from genomepred.runs.executors.processes import Workers, devices_of, serving
from genomepred.sequences.edits import LETTERS, NOTHING
from genomepred.sequences.fasta import Genome
from genomepred.variants.parts import Parts
from genomepred.variants.scoring import Measure, Scorer, default_measures
from genomepred.variants.sites import Checked, Sites, check, describe_mismatch, read_blocks
from genomepred.variants.tables import Column, columns_of, format_of, open_table, require_writable

# Seconds between looks at parts that other processes are computing.
_WAIT = 0.1


@dataclass(frozen=True)
class EffectsSpec:
    """Declaration of a run of effects; see :func:`effects`."""

    genome: Path
    variants: Path
    model: str
    out: Path
    range: int | None = None
    stride: int | None = None
    strand: Literal["forward", "reverse", "mean", "each"] = "forward"
    skip_mismatches: bool = False
    device: str = "auto"
    precision: str = "auto"
    overlap: str = "auto"
    jobs: int = 1
    trust_code: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("range", 0), ("stride", 1), ("jobs", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise OptionError(f"--{name} {value!r}: an integer from {least} on")
        for name, allowed in (
            ("strand", ("forward", "reverse", "mean", "each")),
            ("overlap", ("auto", "share", "naive")),
        ):
            if getattr(self, name) not in allowed:
                raise OptionError(f"--{name} {getattr(self, name)!r}: one of {', '.join(allowed)}")

    def to_json(self, **more: Any) -> str:
        """One line for another process, with whatever else it is to be told."""
        return json.dumps({**asdict(self), **more}, default=str)

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> EffectsSpec:
        """The spec that :meth:`to_json` has told, further keys left out."""
        values = {name: told[name] for name in cls.__dataclass_fields__}
        for name in ("genome", "variants", "out"):
            values[name] = Path(values[name])
        return cls(**values)


@dataclass
class EffectsReport:
    """Counts of a variant file's records by what became of them.

    Parameters
    ----------
    out : Path
    records, alternatives, scored : int
    without_value : int
        Scored alternatives with a missing prediction: too few known bases around them.
    mismatches : int
        Records that were skipped because their REF is not the genome.
    without_alternative : int
        Records without ALT.
    overlapping_deletion : int
        Alternatives ``*``, which say nothing of their own.
    symbolic : dict of str to int
        Alternatives that are no sequence, ``breakend`` among them, by name.
    computed : int
        Records that this command has computed; the others were there.
    """

    out: Path
    records: int = 0
    alternatives: int = 0
    scored: int = 0
    without_value: int = 0
    mismatches: int = 0
    without_alternative: int = 0
    overlapping_deletion: int = 0
    symbolic: dict[str, int] = field(default_factory=dict)
    computed: int = 0


def effects(
    genome: str | os.PathLike[str],
    variants: str | os.PathLike[str],
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    measures: Mapping[str, Measure] | None = None,
    progress: bool = False,
    **options: Any,
) -> EffectsReport:
    """Compute what each alternative of a VCF or BCF does to a model's predictions.

    An interrupted call that is made again continues, and writes the same bytes.

    Parameters
    ----------
    genome : path
        FASTA.
    variants : path
        VCF or BCF: plain, gzip or bgzip; genotypes are ignored.
    model : str or path
        A checkpoint directory, or the name of a bundled model.
    out : path
        ``.tsv``, ``.parquet`` or ``.vcf.gz``.
    measures : mapping of str to callable, optional
        What is computed of the reference's and the alternatives' predictions, by name: functions of
        two :class:`genomepred.variants.scoring.Prediction` that return ``[windows, columns]``. By
        default ``difference`` and, of a sigmoid, ``log_odds``. With others ``jobs`` is 1.
    progress : bool
        Show a bar on stderr.
    **options
        ``range``, ``stride``, ``strand``, ``skip_mismatches``, ``device``, ``precision``,
        ``overlap``, ``jobs`` and ``trust_code``, as of ``genomepred effects``.

    Returns
    -------
    EffectsReport

    Raises
    ------
    SequenceError
        If a file cannot be read, or a record does not fit the genome.
    SignatureError
        If the output was begun with other options or files.
    OptionError, ModelError, OutputError, DependencyError
        If an option, the model or the output cannot be used.
    """
    paths = (Path(genome), Path(variants), os.fspath(model), Path(out))
    spec = EffectsSpec(*paths, **options)
    if measures is not None and spec.jobs > 1:
        raise OptionError("measures of your own are computed by one process; leave jobs out")
    format_of(spec.out)
    refuse_inputs(output_place(spec.out), [spec.genome, spec.variants])
    parts = Parts(spec.out)
    with Genome(spec.genome) as reference:
        run = _Run(spec, reference, parts, measures)
        require_writable(spec.out, run.columns(), spec.variants)
        parts.take()
        done = False
        try:
            report, digests = _checked_blocks(spec, reference)
            run.begin(digests)
            report.computed = run.compute_all(report.records, progress)
            run.publish(report)
            done = True
        finally:
            parts.end(done)
    return report


def _checked_blocks(spec: EffectsSpec, genome: Genome) -> tuple[EffectsReport, list[str]]:
    """Look at all records before the first is computed; the digest of each block.

    Raises
    ------
    SequenceError
        If one of them does not fit the genome.
    """
    report, digests, names = EffectsReport(spec.out), [], Counter[str]()
    first_mismatch = ""
    for sites in read_blocks(spec.variants, reference=genome):
        found = check(sites, genome, spec.variants)
        digests.append(sites.digest())
        wrong = np.flatnonzero(found.mismatch)
        if len(wrong) and not first_mismatch:
            first_mismatch = describe_mismatch(sites, int(wrong[0]), genome)
        report.records += len(sites)
        report.mismatches += len(wrong)
        report.alternatives += len(sites.alts)
        report.without_alternative += int((np.diff(sites.ref) == 1).sum())
        report.overlapping_deletion += int((found.kind == NOTHING).sum())
        names.update(_symbols(sites, found))
    report.symbolic = dict(sorted(names.items()))
    if first_mismatch and not spec.skip_mismatches:
        raise SequenceError(
            f"{spec.variants}: REF is not the genome at {report.mismatches:,} of "
            f"{report.records:,} records, first at {first_mismatch}; give the FASTA that the "
            "variants were called on, or --skip-mismatches"
        )
    return report, digests


def _symbols(sites: Sites, found: Checked) -> Iterator[str]:
    """Name of each alternative that is no sequence."""
    for k in np.flatnonzero((found.kind != LETTERS) & (found.kind != NOTHING)).tolist():
        text = sites.text(int(sites.alts[k]))
        yield text if text.startswith("<") else "breakend"


class _Run:
    """A run of effects in this process."""

    def __init__(
        self,
        spec: EffectsSpec,
        genome: Genome,
        parts: Parts,
        measures: Mapping[str, Measure] | None = None,
    ) -> None:
        self._spec, self._genome, self._parts, self._measures = spec, genome, parts, measures
        self._model = load_model(spec.model, trust_code=spec.trust_code)
        self.card = self._model.card
        self._geometry = self.card.geometry(spec.stride)
        self._device = find_device(spec.device)
        self._digests: list[str] = []
        self._numerics: dict[str, Any] = {}
        self._scorer: Scorer | None = None

    def begin(self, digests: list[str]) -> None:
        """Begin, or continue what was begun; parts that are not of this run go."""
        self._digests = digests
        self._numerics = self._parts.begin(
            self._signature(), lambda: asdict(self._predictor(None).numerics)
        )
        for number, digest in enumerate(digests):
            if self._parts.exists(number) and self._parts.read(number, digest) is None:
                self._parts.discard(number)

    def join(self, numerics: dict[str, Any]) -> None:
        """Be a worker of a run that has begun."""
        self._numerics = numerics
        self._parts.join(self._signature(), numerics)

    def _predictor(self, numerics: Numerics | None) -> Predictor:
        spec = self._spec
        return Predictor(
            self._model,
            device=spec.device,
            strand="each" if spec.strand == "mean" else spec.strand,
            precision=spec.precision,
            numerics=numerics,
            activation=False,
        )

    def _signature(self) -> dict[str, Any]:
        """All that can change a value or the table, beside the numerics."""
        spec, code = self._spec, None
        if isinstance(self._model, External):
            code = self._model.code.sha256
        return {
            "genome": self._genome.digest(),
            "weights_sha256": self.card.weights_sha256,
            "code": code,
            "stride": self._geometry.stride,
            "range": spec.range,
            "strand": spec.strand,
            "overlap": spec.overlap,
            "measures": list(self._measures) if self._measures is not None else None,
            "device": describe_device(self._device),
            "genomepred": __version__,
            "torch": torch.__version__,
            "numba": version("numba"),
        }

    @property
    def scorer(self) -> Scorer:
        """Scorer of blocks; made when the first is needed."""
        if self._scorer is None:
            kernels = tuple(self._numerics["kernels"])
            numerics = Numerics(**{**self._numerics, "kernels": kernels})
            self._scorer = Scorer(
                self._predictor(numerics),
                self.card,
                self._geometry,
                mean=self._spec.strand == "mean",
                span=self._spec.range,
                overlap=self._spec.overlap,
                measures=self._measures,
            )
        return self._scorer

    def compute(self, count: Callable[[int], object]) -> None:
        """Compute blocks that no other process has or has had, told the records of each."""
        for number, sites in enumerate(read_blocks(self._spec.variants)):
            if self._parts.exists(number):
                continue
            claim = self._parts.claim(number)
            if claim is None:
                continue
            try:
                checked = check(sites, self._genome, self._spec.variants)
                scores = self.scorer.score(sites, checked, self._genome)
                self._parts.write(number, sites.digest(), scores)
            finally:
                self._parts.release(number, claim)
            count(len(sites))

    def compute_all(self, records: int, progress: bool) -> int:
        """Compute what is missing, with helping processes; the records computed."""
        computed = 0
        missing = self._missing()
        if not missing:
            return 0

        def count(more: int) -> None:
            nonlocal computed
            computed += more
            bar.update(more)

        bar = Progress(total=records, unit=" records", desc="effects", shown=progress)
        devices = devices_of(self._spec.device, min(self._spec.jobs, len(missing)))[1:]
        told = [
            replace(self._spec, device=device).to_json(numerics=self._numerics)
            for device in devices
        ]
        with bar, Workers(told, count, __name__) as workers:
            while self._missing():
                self.compute(count)
                self._await_others(workers)
        return computed

    def _missing(self) -> list[int]:
        return [n for n in range(len(self._digests)) if not self._parts.exists(n)]

    def _await_others(self, workers: Workers) -> None:
        """Wait for blocks that others have claimed, as long as they are at work on them."""
        for number in self._missing():
            while not self._parts.exists(number):
                claim = self._parts.claim(number)
                if claim is not None:  # whoever had it has died
                    self._parts.release(number, claim)
                    return
                workers.look()
                time.sleep(_WAIT)

    def publish(self, report: EffectsReport) -> None:
        """Write the table from all parts, in order."""
        spec, columns = self._spec, self.columns()
        contigs = dict(self._genome.contigs)
        with open_table(spec.out, columns, spec.variants, contigs, self.card.name) as table:
            for number, sites in enumerate(read_blocks(spec.variants)):
                digest = sites.digest()
                if number >= len(self._digests) or digest != self._digests[number]:
                    raise SequenceError(f"{spec.variants}: changed while it was read; run again")
                scores = self._parts.read(number, digest)
                if scores is None:
                    raise OutputError(
                        f"{self._parts.folder}: part {number} is damaged; run the same command "
                        "again, and check the disk if it happens again"
                    )
                report.scored += len(scores.alts)
                change = scores.values["alternative"] - scores.values["reference"]
                report.without_value += int(np.isnan(change).any(1).sum())
                table.add(sites, scores)

    def columns(self) -> list[Column]:
        """Columns of the table."""
        tracks = [track.name for track in self.card.tracks]
        if self._spec.strand == "each":
            tracks = [name + sign for sign in "+-" for name in tracks]
        measures = default_measures(self.card) if self._measures is None else self._measures
        return columns_of(tracks, list(measures), self._spec.range is not None)


def work() -> None:
    """Body of a helping process: computes blocks until none are left."""
    with serving() as (told, watch):
        spec = EffectsSpec.of_json(told)
        with Genome(spec.genome) as genome:
            run = _Run(spec, genome, Parts(spec.out))
            run.join(told["numerics"])
            run.compute(watch.done)
