"""Commands that explain a model: ``explain ism|gradients|filters|attention``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from genomepred.cli.options import (
    UserPath,
    debug_option,
    device_option,
    echo_json,
    json_option,
    model_option,
    trust_code_option,
)

if TYPE_CHECKING:
    from genomepred.explain.run import Report
    from genomepred.explain.windows import Window
    from genomepred.models.layers import SequenceModel

Command = Callable[..., None]


def _written_paths(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> Any:
    """The texts as they are; an OutputError if one is no path, which a region begins with too."""
    from genomepred.files import user_path

    for value in values:
        user_path(value)
    return values


def _explained(command: Callable[..., Report]) -> Command:
    """Command that opens a model and what it is to explain, and prints the files written."""

    @wraps(command)
    def explained(
        model: str,
        inputs: tuple[str, ...],
        column: str | None,
        device: str,
        trust_code: str | None,
        as_json: bool,
        **how: Any,
    ) -> None:
        from genomepred.explain.windows import read_windows
        from genomepred.inference.engine import find_device
        from genomepred.models.checkpoint import load_model

        loaded = load_model(model, find_device(device), trust_code)
        report = command(loaded, read_windows(inputs, loaded.card, column), **how)
        if as_json:
            echo_json({"windows": report.windows, "files": [str(path) for path in report.files]})
            return
        for path in report.files:
            click.echo(str(path))

    return explained


def _common(command: Callable[..., Report]) -> Command:
    """Add the options of all four explanations; the command is given the model and its windows."""
    decorated = _explained(command)
    options = [
        model_option,
        click.option(
            "--input",
            "inputs",
            required=True,
            multiple=True,
            callback=_written_paths,
            metavar="FILE_OR_REGION",
            help="FASTA, table (.csv, .tsv, .xlsx, .parquet), or GENOME.fa:CONTIG:START-END "
            "(1-based, inclusive); repeatable.",
        ),
        click.option(
            "--out",
            required=True,
            type=UserPath(folder=True, file_okay=False),
            help="Folder to write into.",
        ),
        click.option(
            "--sequence",
            "column",
            metavar="COLUMN",
            help="Column of a table with the sequences.  [default: sequence, seq, seqs or utr]",
        ),
        click.option(
            "--pictures",
            type=click.IntRange(0),
            default=20,
            show_default=True,
            help="Windows to draw: the first so many, in a PNG each.",
        ),
        device_option,
        trust_code_option,
        json_option,
        debug_option,
    ]
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def _output(command: Command) -> Command:
    """Add the options that choose the number explained."""
    track = click.option(
        "--track", metavar="NAME", help="Track to explain.  [default: the model's only one]"
    )
    bin_ = click.option(
        "--bin",
        "bin_",
        type=click.IntRange(0),
        help="Output bin to explain, counted from 0.  [default: the sum of all that touch the "
        "bases asked for]",
    )
    return track(bin_(command))


@click.group()
def explain() -> None:
    """Show what a model's outputs come from."""


@explain.command()
@_output
@_common
def ism(
    model: SequenceModel, windows: Iterator[Window], track: str | None, bin_: int | None, **how: Any
) -> Report:
    """Substitute every base by each other and show the effects.

    Effects are differences of raw values (logits of a sigmoid, log probabilities of a softmax).
    A sequence shorter than the window is centered in it, a region with the genome around it; a
    longer one takes several windows side by side. Writes ism.h5, ism.tsv and pictures.
    """
    from genomepred.explain import run
    from genomepred.explain.windows import Output

    return run.ism(model, windows, Output(model.card, track, bin_), **how)


@explain.command()
@click.option(
    "--method",
    type=click.Choice(["gradient", "gradient-x-input", "integrated"]),
    default="integrated",
    show_default=True,
    help="Gradient of the output, times the input, or averaged from a baseline to the input.",
)
@click.option(
    "--baseline",
    type=click.Choice(["zeros", "uniform"]),
    default="zeros",
    show_default=True,
    help="With integrated: input to start from, all channels 0 or 0.25.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="With integrated: points between baseline and input.",
)
@_output
@_common
def gradients(
    model: SequenceModel, windows: Iterator[Window], track: str | None, bin_: int | None, **how: Any
) -> Report:
    """Show gradients of the output by the input.

    Integrated gradients sum to the difference between the outputs for the input and for the
    baseline, both of which are written. Inputs and outputs as in `explain ism`. Writes
    gradients.h5, gradients.tsv and pictures.
    """
    from genomepred.explain import run
    from genomepred.explain.windows import Output

    return run.gradients(model, windows, Output(model.card, track, bin_), **how)


@explain.command()
@click.option(
    "--motifs",
    type=UserPath(exists=True, dir_okay=False),
    help="Motifs in MEME format to compare the filters with.  [default: none]",
)
@click.option(
    "--sites",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Sites of a filter that make its motif, at most.",
)
@_common
def filters(model: SequenceModel, windows: Iterator[Window], **how: Any) -> Report:
    """Show what the first convolution's filters look for.

    A filter's motif is made of the subsequences of the input that activate it most; information
    is in bits over the base frequencies of the input. Compared with known motifs, the p-value is
    the chance that a motif of randomly drawn columns matches as well at any offset, on any
    strand. Writes filters.meme, filters.tsv, filters.h5 and filters.png.
    """
    from genomepred.explain import run

    return run.filters(model, windows, **how)


@explain.command()
@_common
def attention(model: SequenceModel, windows: Iterator[Window], **how: Any) -> Report:
    """Show the attention maps of a transformer.

    Writes attention.h5 (maps of every layer and head, and what each base receives),
    attention.tsv and pictures. Maps are kept whole, as float16: a window takes 2 x layers x heads
    x queries x positions bytes, somewhat less once compressed.
    """
    from genomepred.explain import run

    return run.attention(model, windows, **how)
