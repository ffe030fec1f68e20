"""Commands around runs: predict, plan, merge, verify."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from genomepred.cli import STARTED
from genomepred.cli.options import (
    UserPath,
    debug_option,
    echo_json,
    json_option,
    panel_options,
    trust_code_option,
)

if TYPE_CHECKING:
    from genomepred.runs.plan import Estimate
    from genomepred.runs.run import GenomeResult
    from genomepred.runs.setup import Options
    from genomepred.sequences.cohort import PanelOptions

Command = Callable[..., None]
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


def _run_options(command: Command) -> Command:
    """Add the options that predict and plan share."""
    options = [
        click.argument("more_genomes", nargs=-1, type=UserPath()),
        click.option(
            "--genomes",
            multiple=True,
            type=UserPath(readable=False),
            help="FASTA file (plain, gzip, bgzip, xz), folder, glob, or .tsv manifest with the "
            "columns name and path; repeatable, and trailing paths are added.",
        ),
        click.option(
            "--model",
            required=True,
            metavar="DIR_OR_NAME",
            help="Checkpoint folder, or name of a bundled model (`genomepred models list`).",
        ),
        click.option(
            "--out",
            required=True,
            type=UserPath(),
            help="Output folder; a run that was stopped continues there.",
        ),
        click.option(
            "--stride",
            type=click.IntRange(1, 2**31),
            help="Bases between windows.  [default: the card's]",
        ),
        click.option(
            "--regions",
            type=UserPath(readable=False),
            help="BED file: only rows that meet its regions; with an explicit --overlap, the same "
            "bits as in a run without.  [default: whole genomes]",
        ),
        click.option(
            "--centre",
            is_flag=True,
            help="With --regions: one window centred on each record.  [default: off]",
        ),
        click.option(
            "--strand",
            type=click.Choice(["forward", "reverse", "mean", "each"]),
            default="forward",
            show_default=True,
            help="Strand to predict; mean averages both, each gives two tracks.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(1),
            help="Windows handed to the device at a time; never changes a value.  "
            "[default: by window and device]",
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
            default="auto",
            show_default=True,
            help="auto: fp32 on CPU, else the fastest that the card's tolerance allows.",
        ),
        click.option(
            "--overlap",
            type=click.Choice(["auto", "share", "naive"]),
            default="auto",
            show_default=True,
            help="share: convolve a base once for all windows that see it; naive: every window by "
            "itself; auto: share where that is clearly faster for the rows asked for.",
        ),
        click.option(
            "--kernels",
            type=click.Choice(["auto", "triton", "cudnn", "cpu", "reference"]),
            default="auto",
            show_default=True,
            help="What computes convolutions. auto: for each the fastest known for the device "
            "(`genomepred doctor` tells); reference: the model as written.",
        ),
        click.option(
            "--store-dtype",
            type=click.Choice(["float32", "float16"]),
            default="float32",
            show_default=True,
            help="Type of the stored predictions; float16 rounds to 11 bits and ends at 65,504.",
        ),
        click.option(
            "--compression",
            default="deflate",
            show_default=True,
            help="deflate, deflate-1 to deflate-9, zstd (needs a plug-in to read) or none.",
        ),
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
        click.option(
            "--shard",
            type=_Share(),
            default="1/1",
            show_default=True,
            help="Compute share I of N, as for task I of a SLURM array of N.",
        ),
        click.option(
            "--jobs",
            type=click.IntRange(1),
            help="Worker processes.  [default: one a core or GPU, if there is work for them]",
        ),
        trust_code_option,
        json_option,
        debug_option,
    ]
    for option in reversed(options):
        command = option(command)
    return cast(Command, panel_options(command))


def _panel(fields: dict[str, Any]) -> tuple[Path, PanelOptions] | None:
    """Take the options of a panel out of all others: its file and how to read it."""
    variants, samples = fields.pop("variants"), fields.pop("samples")
    how = {name: fields.pop(name) for name in ("missing", "unphased", "inbred")}
    if variants is None:
        if samples is not None or how["inbred"] or {"n", "first"} & set(map(str, how.values())):
            raise click.UsageError(
                "--samples, --missing, --unphased and --inbred say how to read --variants"
            )
        return None
    from genomepred.sequences.cohort import PanelOptions, read_samples

    return variants, PanelOptions(**how, samples=read_samples(samples) if samples else None)


def _options(genomes: tuple[Path, ...], more_genomes: tuple[Path, ...], **fields: Any) -> Options:
    from genomepred.runs.inputs import find_genomes, for_any_process
    from genomepred.runs.setup import Options

    if fields["centre"] and fields["regions"] is None:
        raise click.UsageError("--centre needs --regions: a window is centred on each BED record")
    if not genomes + more_genomes:
        raise click.UsageError("no genomes; give --genomes PATH or paths after the options")
    if fields["regions"] is not None:
        fields["regions"] = for_any_process(fields["regions"])
    return Options(genomes=tuple(find_genomes(genomes + more_genomes)), **fields)


@click.command()
@_run_options
def predict(as_json: bool, **fields: Any) -> None:
    """Predict genomes into OUT, one HDF5 file each; with --variants, a panel into one file.

    Stop it anywhere and run the same command again: it continues, and the files are the same to
    the byte. Any number of such commands may work on one OUT at once.
    """
    from genomepred.errors import GenomesFailedError
    from genomepred.runs.run import RunReport, run

    failure, panel = None, _panel(fields)
    try:
        if panel is not None:
            from genomepred.runs.cohort import run_cohort

            report = run_cohort(_options(**fields), *panel, progress=True)
        else:
            report = run(_options(**fields), progress=True)
    except GenomesFailedError as error:
        failure, report = error, RunReport(error.results, 0)
    seconds = time.perf_counter() - STARTED
    if as_json:
        genomes = [vars(result) | {"path": str(result.path)} for result in report.genomes]
        echo_json({"seconds": seconds, "computed": report.computed, "genomes": genomes})
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
            click.echo(f"{result.path}\t{result.bases:,} bases\t{result.rows:,} rows")
        elif result.outcome == "partial":
            click.echo(f"{result.path}\tthis share is done, others are not")
        else:
            click.echo(f"genomepred: {result.name} failed: {result.error}", err=True)


@click.command()
@_run_options
def plan(as_json: bool, **fields: Any) -> None:
    """Show rows, shards, bytes and time of a run; writes nothing."""
    from genomepred.runs.plan import plan as make_plan

    if (panel := _panel(fields)) is not None:
        _plan_cohort(_options(**fields), *panel, as_json)
        return
    estimate = make_plan(_options(**fields))
    if as_json:
        numerics, genomes = vars(estimate.numerics), [vars(g) for g in estimate.genomes]
        echo_json(vars(estimate) | {"numerics": numerics, "genomes": genomes})
        _refuse_unreadable(estimate)
        return
    click.echo("genome\tcontigs\tbases\twindows\trows\tshards")
    for genome in estimate.genomes:
        if genome.error:
            click.echo(f"{genome.name}\tcannot be read: {genome.error}")
        else:
            click.echo(
                f"{genome.name}\t{genome.contigs:,}\t{genome.bases:,}\t{genome.windows:,}\t"
                f"{genome.rows:,}\t{genome.shards:,}"
            )
    numerics_ = estimate.numerics
    click.echo(
        f"{numerics_.precision}, batches of {numerics_.compute_batch} windows, "
        f"{estimate.workers} workers\nkernels: {_counted(numerics_.kernels)}\n"
        f"{_overlap(estimate, fields['overlap'])}\n"
        f"about {estimate.bytes_on_disk / 1e6:,.1f} MB on disk and {estimate.seconds:,.0f} s "
        f"({estimate.bases_per_second:,.0f} bases/s), start-up not included"
    )
    if estimate.samples:
        click.echo("the stride leaves bases between windows: this samples the genome")
    _refuse_unreadable(estimate)


def _plan_cohort(
    options: Options, variants: Path, panel_options: PanelOptions, as_json: bool
) -> None:
    from genomepred.runs.cohort import plan_cohort

    estimate = plan_cohort(options, variants, panel_options)
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
        f"about {estimate.bytes_on_disk / 1e6:,.1f} MB on disk at most and "
        f"{estimate.seconds:,.0f} s on {estimate.workers} workers, start-up not included"
    )
    for line in estimate.warnings:
        click.echo(line)


def _counted(kernels: str) -> str:
    """Neighbours of one name as one: ``kmers, 3 direct``."""
    groups = [(name, len(list(same))) for name, same in groupby(kernels.split(","))]
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in groups)


def _overlap(estimate: Estimate, asked: str) -> str:
    used = estimate.numerics.overlap
    saving = f", {estimate.saving:.1f} times less work" if used == "share" else ""
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
    from genomepred.runs.run import merge as merge_run

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
@json_option
@debug_option
def verify(out: str, as_json: bool) -> None:
    """Check every file of OUT against its sidecar, byte for byte."""
    from genomepred.errors import VerificationError
    from genomepred.runs.run import verify as verify_run

    reports = verify_run(out)
    if as_json:
        echo_json({"genomes": [vars(r) | {"path": str(r.path)} for r in reports]})
    else:
        for report in reports:
            for problem in report.problems or ["ok"]:
                click.echo(f"{report.path}\t{problem}")
    bad = [report for report in reports if report.problems]
    if bad:
        raise VerificationError(
            f"{len(bad)} of {len(reports)} genomes are not sound; first: {bad[0].problems[0]}"
        )
