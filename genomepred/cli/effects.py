"""Command ``effects``: what each alternative of a VCF does to a model's predictions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genomepred.cli.options import (
    UserPath,
    debug_option,
    device_option,
    echo_json,
    json_option,
    model_option,
    option,
    trust_code_option,
)
from genomepred.messages import counted

if TYPE_CHECKING:
    from genomepred.variants.run import EffectsReport


@click.command()
@click.option(
    "--genomes", required=True, type=UserPath(), help="FASTA that the variants were called on."
)
@click.option(
    "--variants",
    required=True,
    type=UserPath(),
    help="VCF or BCF, plain, gzip or bgzip; genotypes are ignored.",
)
@model_option
@click.option(
    "-o",
    "--out",
    required=True,
    type=UserPath(),
    help="Table to write: .tsv, .parquet, or .vcf.gz (every record, with INFO fields).",
)
@click.option(
    "--range",
    "range_",
    type=click.IntRange(0),
    metavar="N",
    help="Also tell the largest difference among rows of the grid within N bases.  [default: off]",
)
@click.option(
    "--stride", type=click.IntRange(1), help="With --range: of the grid.  [default: the card's]"
)
@option(
    "--strand",
    type=click.Choice(["forward", "reverse", "mean", "each"]),
    default="forward",
    help="Strand to predict; mean averages both, each gives two tracks.",
)
@click.option(
    "--skip-mismatches",
    is_flag=True,
    help="Count records whose REF is not the genome, instead of refusing the file.  [default: off]",
)
@option(
    "--overlap",
    type=click.Choice(["auto", "share", "naive"]),
    default="auto",
    help="share: compute only what a variant can change, and the reference once for all windows "
    "that see it; naive: every window by itself; auto: share where that is clearly faster.",
)
@option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
    default="auto",
    help="auto: fp32 on CPU, else the fastest that the card's tolerance allows.",
)
@option("--jobs", type=click.IntRange(1), default=1, help="Worker processes.")
@device_option
@trust_code_option
@json_option
@debug_option
def effects(
    genomes: Path,
    variants: Path,
    model: str,
    out: Path,
    range_: int | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Tell what each alternative allele of a VCF does to a model's predictions.

    A line an alternative: the prediction for the reference and for the alternative at the window
    centered on the variant, and their difference. Stop it anywhere and run the same command again:
    it continues, and the file is the same to the byte.
    """
    from genomepred.compiled import begin_numba

    begin_numba()
    from genomepred.variants.run import effects as compute

    report = compute(genomes, variants, model, out, range=range_, progress=True, **how)
    if as_json:
        echo_json(dataclasses.asdict(report) | {"out": str(report.out)})
    else:
        _tell(report)


def _tell(report: EffectsReport) -> None:
    click.echo(
        f"{report.out}\t{counted(report.records, 'record')}\t{report.scored:,} of "
        f"{counted(report.alternatives, 'alternative')} scored"
    )
    told = [
        (report.without_value, "alternative", "without a value: too few known bases around it"),
        (report.mismatches, "record", "skipped: REF is not the genome"),
        (report.without_alternative, "record", "without an alternative"),
        (report.overlapping_deletion, "alternative", "* skipped"),
        *((n, "alternative", f"{name} not scored") for name, n in report.symbolic.items()),
    ]
    for count, noun, what in told:
        if count:
            click.echo(f"{counted(count, noun)} {what}")
