"""Commands that make training data: ``data synthetic-motifs``."""

from __future__ import annotations

from pathlib import Path

import click

from genomepred.cli.options import UserPath, debug_option, echo_json, json_option
from genomepred.messages import counted


@click.group()
def data() -> None:
    """Make training data."""


@data.command("synthetic-motifs")
@click.option(
    "--out",
    required=True,
    type=UserPath(dir_okay=False),
    help="CSV file to write: sequence, label, dataset.",
)
@click.option(
    "--length",
    default=8,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Bases of a sequence.",
)
@click.option(
    "--count",
    type=click.IntRange(1),
    help="How many random sequences.  [default: all there are, up to length 10]",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Of the sample and of the split into train, valid and test (80, 10, 10%).",
)
@json_option
@debug_option
def synthetic_motifs(out: Path, length: int, count: int | None, seed: int, as_json: bool) -> None:
    """Write sequences scored by a known rule.

    The label is the mean of A 20, C 17, G 14, T 11; TAT anywhere adds 10, GCG takes 10 away.
    """
    from genomepred.data.synthetic import synthetic_motifs as make
    from genomepred.data.synthetic import write_table

    frame = make(length, count, seed)
    write_table(frame, out)
    counts = frame["dataset"].value_counts().to_dict()
    if as_json:
        echo_json({"file": str(out), "sequences": len(frame), "dataset": counts})
        return
    shown = ", ".join(f"{n:,} {name}" for name, n in counts.items())
    click.echo(f"{out}: {counted(len(frame), 'sequence')} of {counted(length, 'base')} ({shown})")
