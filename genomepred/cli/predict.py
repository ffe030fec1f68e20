"""Commands around runs: predict, plan, merge, status, forget, verify."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import Field, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genomepred.cli import STARTED
from genomepred.cli.options import (
    UserPath,
    debug_option,
    device_option,
    echo_json,
    json_option,
    model_option,
    panel_options,
    trust_code_option,
)
from genomepred.messages import counted
from genomepred.runs.spec import LARGEST, Option, RunSpec

if TYPE_CHECKING:
    from genomepred.runs.plan import Estimate
    from genomepred.runs.status import GenomeStatus
    from genomepred.runs.work import GenomeResult
    from genomepred.sequences.cohort import PanelOptions

Command = Callable[..., Any]
# What cannot be read is reported by what reads it, with its own exit code.
_GENOMES = UserPath(readable=False)


class _Share(click.ParamType[tuple[int, int]]):
    name = "I/N"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        i, slash, n = str(value).partition("/")
        if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
            self.fail(f"{value!r}: write I/N with 1 <= I <= N, as 3/20", param, ctx)
        return int(i), int(n)


# Fields of a run that commands take in their own ways, that other commands have too, and that need
# a type of their own.
_GIVEN = {"genomes", "model", "out", "cluster"}
_SHARED: dict[str, Any] = {
    "device": device_option,
    "trust_code": trust_code_option,
}
_TYPES = {"regions": UserPath(readable=False), "shard": _Share()}


def _run_options(command: Command) -> Command:
    """Add the options that predict and plan share: those that a run declares."""
    decorators = [
        click.argument("more_genomes", nargs=-1, type=UserPath()),
        click.option(
            "--genomes",
            multiple=True,
            type=_GENOMES,
            help="FASTA file (plain, gzip, bgzip, xz), folder, glob, or .tsv manifest with the "
            "columns name and path; repeatable, and trailing paths are added.",
        ),
        model_option,
        click.option(
            "--out",
            required=True,
            type=UserPath(folder=True),
            help="Output folder; a run that was stopped continues there.",
        ),
        *[_declared(declared) for declared in fields(RunSpec) if declared.name not in _GIVEN],
        click.option(
            "--variants",
            type=UserPath(readable=False),
            help="VCF or BCF of a panel on the one genome given: predict every haplotype, each "
            "distinct window once.  [default: none]",
        ),
        click.option(
            "--samples",
            metavar="LIST_OR_FILE",
            help="With --variants: names with commas between, or a file with one a line, in this "
            "order.  [default: all]",
        ),
        panel_options,
        json_option,
        debug_option,
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def _declared(declared: Field[Any]) -> Any:
    """The option of a field of a run's declaration."""
    if declared.name in _SHARED:
        return _SHARED[declared.name]
    option: Option = declared.metadata["option"]
    flag = "--" + declared.name.replace("_", "-")
    how: dict[str, Any] = {"help": option.help}
    if declared.default is False:
        return click.option(flag, is_flag=True, **how)
    if declared.default is not None:
        default = declared.default
        how |= {"default": "1/1" if declared.name == "shard" else default, "show_default": True}
    if declared.name in _TYPES:
        how["type"] = _TYPES[declared.name]
    elif option.range is not None:
        ends = option.range.start, option.range.stop - 1
        how["type"] = click.IntRange(ends[0], ends[1] if ends[1] < LARGEST else None)
    elif option.choices and option.listed:
        how["type"] = click.Choice(option.choices)
    return click.option(flag, **how)


_cluster_option: Callable[[Command], Command] = _declared(RunSpec.__dataclass_fields__["cluster"])


def _panel(values: dict[str, Any]) -> tuple[Path, PanelOptions] | None:
    """Take the options of a panel out of all others: its file and how to read it."""
    variants, samples = values.pop("variants"), values.pop("samples")
    how = {name: values.pop(name) for name in ("missing", "unphased", "inbred")}
    if variants is None:
        if samples is not None or how["inbred"] or {"n", "first"} & set(map(str, how.values())):
            raise click.UsageError(
                "--samples, --missing, --unphased and --inbred say how to read --variants"
            )
        return None
    from genomepred.compiled import begin_numba

    begin_numba()
    from genomepred.sequences.cohort import PanelOptions, read_samples

    return variants, PanelOptions(**how, samples=read_samples(samples) if samples else None)


def _spec(genomes: tuple[Path, ...], more_genomes: tuple[Path, ...], **values: Any) -> RunSpec:
    from genomepred.runs.spec import find_genomes, for_any_process

    if not genomes + more_genomes:
        raise click.UsageError("no genomes; give --genomes PATH or paths after the options")
    if values["regions"] is not None:
        values["regions"] = for_any_process(values["regions"])
    return RunSpec(genomes=tuple(find_genomes(genomes + more_genomes)), **values)


@click.command()
@_run_options
@_cluster_option
def predict(as_json: bool, **values: Any) -> None:
    """Predict genomes into OUT, one HDF5 file each; with --variants, a panel into one file.

    Stop it anywhere and run the same command again: it continues, and the files are the same to
    the byte. Any number of such commands may work on one OUT at once.
    """
    failure, panel, spec = None, _panel(values), _spec(**values)
    from genomepred.errors import GenomesFailedError
    from genomepred.runs.run import RunReport, run

    try:
        if panel is not None:
            from genomepred.runs.cohort import run_cohort

            report = run_cohort(spec, *panel, progress=True)
        else:
            report = run(spec, progress=True)
    except GenomesFailedError as error:
        failure, report = error, RunReport(error.results, 0, 0)
    seconds = time.perf_counter() - STARTED
    if as_json:
        genomes = [vars(result) | {"path": str(result.path)} for result in report.genomes]
        told = {"seconds": seconds, "computed": report.computed, "workers": report.workers}
        echo_json(told | {"genomes": genomes})
    else:
        _print_results(report.genomes)
        if report.computed:
            click.echo(
                f"{report.computed:,} bases in {seconds:.1f} s, start-up included: "
                f"{report.computed / seconds:,.0f} bases/s"
            )
    if failure is not None:
        raise failure


def _print_results(results: list[GenomeResult]) -> None:
    for result in results:
        if result.outcome == "finished":
            click.echo(
                f"{result.path}\t{counted(result.bases, 'base')}\t{counted(result.rows, 'row')}"
            )
        elif result.outcome == "partial":
            click.echo(f"{result.path}\tthis share is done, others are not")
        else:
            click.echo(f"genomepred: {result.name} failed: {result.error}", err=True)


@click.command()
@_run_options
def plan(as_json: bool, **values: Any) -> None:
    """Show rows, shards, bytes and time of a run; writes nothing."""
    panel, spec = _panel(values), _spec(**values)
    if panel is not None:
        _plan_cohort(spec, *panel, as_json)
        return
    from genomepred.runs.plan import plan as make_plan

    estimate = make_plan(spec)
    if as_json:
        numerics, genomes = vars(estimate.numerics), [vars(g) for g in estimate.genomes]
        echo_json(vars(estimate) | {"numerics": numerics, "genomes": genomes})
        _refuse_unreadable(estimate)
        return
    click.echo("genome\tcontigs\tbases\twindows\trows\tshards\tfinished")
    for genome in estimate.genomes:
        if genome.error:
            click.echo(f"{genome.name}\tcannot be read: {genome.error}")
        else:
            click.echo(
                f"{genome.name}\t{genome.contigs:,}\t{genome.bases:,}\t{genome.windows:,}\t"
                f"{genome.rows:,}\t{genome.shards:,}\t{genome.finished:,}"
            )
    numerics_ = estimate.numerics
    click.echo(
        f"{numerics_.precision}, batches of {numerics_.compute_batch} windows, "
        f"{counted(estimate.workers, 'worker')}\nkernels: {_grouped(numerics_.kernels)}\n"
        f"{_overlap(estimate, values['overlap'])}\n"
        f"about {_size(estimate.bytes_on_disk)} on disk and {_seconds(estimate.seconds)} "
        f"({estimate.bases_per_second:,.0f} bases/s), start-up not included"
    )
    if estimate.samples:
        click.echo("the stride leaves bases between windows: this samples the genome")
    _refuse_unreadable(estimate)


def _plan_cohort(spec: RunSpec, variants: Path, panel_options: PanelOptions, as_json: bool) -> None:
    from genomepred.runs.cohort_plan import plan_cohort

    estimate = plan_cohort(spec, variants, panel_options)
    if as_json:
        echo_json(vars(estimate))
        return
    click.echo(
        f"haplotypes\t{estimate.haplotypes:,}\nwindows\t{estimate.windows:,}\n"
        f"shards\t{estimate.shards:,}\nmissing alleles\t{estimate.missing:,}\n"
        f"heterozygotes without phase\t{estimate.unphased:,}\n"
        f"distinct windows a grid window\t{estimate.distinct:.2f}\n"
        + (f"distinct tiles a grid window\t{estimate.tiles:.2f}\n" if estimate.tiles else "")
        + f"{estimate.saving:,.1f} times less work than window by window, sample by sample\n"
        f"about {_size(estimate.bytes_on_disk)} on disk at most and "
        f"{_seconds(estimate.seconds)} on {counted(estimate.workers, 'worker')}, start-up not "
        "included"
    )
    for line in estimate.warnings:
        click.echo(line)


def _size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.0f} kB"


def _seconds(time: float) -> str:
    """Seconds in words."""
    return f"{time:,.0f} s" if time >= 10 else f"{time:.1f} s"


def _grouped(kernels: tuple[str, ...]) -> str:
    """Neighbors of one name as one: ``kmers, 3 direct``."""
    groups = [(name, len(list(same))) for name, same in groupby(kernels)]
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in groups)


def _overlap(estimate: Estimate, asked: str) -> str:
    used = estimate.numerics.overlap
    saving = f", {estimate.saving:.1f} times less work" if used == "share" else ""
    if estimate.why_alone:
        return f"overlap: {used}: {estimate.why_alone}"
    chosen = f"; auto chose it for these rows, --overlap {used} fixes it for any --regions"
    return f"overlap: {used}{saving}{chosen if asked == 'auto' else ''}"


def _refuse_unreadable(estimate: Estimate) -> None:
    from genomepred.errors import GenomesFailedError

    bad = [genome for genome in estimate.genomes if genome.error]
    if bad:
        raise GenomesFailedError(
            f"{len(bad)} of {len(estimate.genomes)} genomes cannot be read; first: {bad[0].name}: "
            f"{bad[0].error}"
        )


@click.command()
@click.argument("out", type=UserPath())
@json_option
@debug_option
def merge(out: str, as_json: bool) -> None:
    """Publish the genomes of OUT whose shards are all computed."""
    from genomepred.errors import GenomesFailedError
    from genomepred.runs.merging import merge as merge_run

    failure = None
    try:
        results = merge_run(out)
    except GenomesFailedError as error:
        failure, results = error, error.results
    if as_json:
        echo_json({"genomes": [vars(r) | {"path": str(r.path)} for r in results]})
    else:
        for result in results:
            if result.outcome == "finished":
                click.echo(str(result.path))
        if not results:
            click.echo(f"{out}: no shards wait to be merged", err=True)
    if failure is not None:
        raise failure


@click.command()
@click.argument("out", type=UserPath())
@click.option(
    "--shares",
    type=click.IntRange(1),
    metavar="N",
    help="Also tell which of N shares (`--shard I/N`, tasks of a SLURM array) have work left.  "
    "[default: the N of the command that started the run]",
)
@json_option
@debug_option
def status(out: Path, shares: int | None, as_json: bool) -> None:
    """Show what of OUT is done, missing or failed, and why; changes nothing."""
    from genomepred.runs.status import status as status_of

    found = status_of(out, shares)
    if as_json:
        echo_json(vars(found) | {"genomes": [vars(genome) for genome in found.genomes]})
        return
    for genome in found.genomes:
        click.echo("\t".join([genome.name, genome.state, *_progress(genome)]))
    click.echo(f"finished: {found.finished} of {counted(len(found.genomes), 'genome')}")
    if found.shares > 1 and found.shares_missing:
        tasks = ",".join(map(str, found.shares_missing))
        click.echo(f"of {found.shares} shares, these have work left: --array={tasks}")


def _progress(genome: GenomeStatus) -> list[str]:
    if genome.state == "finished":
        return []
    shards = "no shards yet"
    if genome.shards is not None:
        shards = f"{genome.shards - genome.missing:,} of {counted(genome.shards, 'shard')}"
    return [shards, *filter(None, [genome.error])]


@click.command()
@click.argument("out", type=UserPath())
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@json_option
@debug_option
def forget(out: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Remove genomes NAME... from the run in OUT: their files, sidecars and shards."""
    from genomepred.runs.status import forget as forget_genomes

    removed = forget_genomes(out, names)
    if as_json:
        echo_json({"removed": [str(path) for path in removed]})
        return
    for path in removed:
        click.echo(f"removed {path}")


@click.command()
@click.argument("out", type=UserPath())
@json_option
@debug_option
def verify(out: str, as_json: bool) -> None:
    """Check every file of OUT against the checksum in the JSON file beside it."""
    from genomepred.errors import VerificationError
    from genomepred.runs.checking import verify as verify_run

    reports = verify_run(out)
    if as_json:
        echo_json({"genomes": [vars(r) | {"path": str(r.path)} for r in reports]})
    else:
        for report in reports:
            for problem in report.problems or ["ok"]:
                click.echo(f"{report.path}\t{problem}")
    bad = [report for report in reports if report.problems]
    if bad:
        first = bad[0].problems[0]
        if str(bad[0].path) not in first:
            first = f"{bad[0].path}: {first}"
        raise VerificationError(
            f"{len(bad)} of {counted(len(reports), 'genome')} not sound; first: {first}"
        )
