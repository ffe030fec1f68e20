"""Commands on training: ``train``, ``evaluate`` and ``sweep``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from genomepred.cli.options import (
    UserPath,
    config_option,
    debug_option,
    device_option,
    echo_json,
    json_option,
    model_option,
    option,
    trust_code_option,
)
from genomepred.data.source import Source
from genomepred.models import MODELS

if TYPE_CHECKING:
    from genomepred.training.spec import TrainingSpec

Made = TypeVar("Made")

_EXISTING = UserPath(exists=True, dir_okay=False)
_THREADS = option(
    "--threads",
    default=1,
    type=click.IntRange(1),
    help="CPU threads; another number changes the last bits.",
)

# Fields of Source that say what the examples are.
_SOURCE_OPTIONS = [
    option(
        "--data",
        required=True,
        type=_EXISTING,
        help="Table (.csv, .tsv, .xlsx, .parquet), FASTA with --labels, peaks with --genome (BED, "
        "narrowPeak, or FASTA with headers CONTIG:START-END), or manifest of several genomes "
        "(.tsv: name, genome, peaks).",
    ),
    option(
        "--labels",
        type=_EXISTING,
        help="Table of the FASTA's names and labels.  [default: none]",
    ),
    option(
        "--genome",
        type=_EXISTING,
        help="FASTA of (part of) the peaks' genome.  [default: none]",
    ),
    option(
        "--bigwig",
        multiple=True,
        type=_EXISTING,
        help="Signal whose mean over a window is its label; repeatable, a track each.  [default: "
        "peaks are 1, other windows 0]",
    ),
    option(
        "--peak-format",
        default="auto",
        type=click.Choice(["auto", "bed", "narrowPeak"]),
        help="Whether column ten of the peaks is a summit. auto: as their name (.narrowPeak) or "
        "header says.",
    ),
    option(
        "--sequence",
        help="Column of sequences.  [default: the first of sequence, seq, seqs, utr]",
    ),
    option(
        "--target",
        "targets",
        multiple=True,
        help="Column of labels; repeatable, a track each.  [default: the first of label, labels, "
        "target, rl, mrl, TPM]",
    ),
    option(
        "--transform",
        default="none",
        type=click.Choice(["none", "log1p", "log2p1"]),
        help="Of the labels: ln(1 + y) or log2(1 + y).",
    ),
    option(
        "--task",
        default="auto",
        type=click.Choice(["auto", "regression", "binary", "profile"]),
        help="auto: binary if all labels are 0 or 1, else regression. profile: the labels are "
        "shares of one whole.",
    ),
    option(
        "--window",
        type=click.IntRange(1),
        help="Bases of an example.  [default: the longest sequence; the peaks' length]",
    ),
    option(
        "--pad",
        type=click.Choice(["left", "right"]),
        help="Side on which shorter sequences get N.  [default: all must be equally long]",
    ),
    option(
        "--validation",
        multiple=True,
        help="Examples that choose the best epoch. Peaks: region, CONTIG or CONTIG:START-END. "
        "Tables: COLUMN=VALUE, rows FIRST-LAST, or a share such as 0.1. Repeatable.  [default: "
        "column dataset or split, else 0.1]",
    ),
    option(
        "--test",
        multiple=True,
        help="Examples kept from training altogether, like --validation; repeatable.  [default: "
        "as for --validation]",
    ),
    option(
        "--shuffled",
        default=1,
        type=click.IntRange(0),
        help="Dinucleotide-shuffled negatives a peak.",
    ),
    option("--matched", default=1, type=click.IntRange(0), help="GC-matched windows a peak."),
    option("--random", default=4, type=click.IntRange(0), help="Random windows a peak."),
]

# The rest of Source: what is drawn in training.
_SAMPLING_OPTIONS = [
    option(
        "--reverse-complement/--no-reverse-complement",
        default=None,
        help="Show examples on a random strand.  [default: on for peaks, off for tables]",
    ),
    option(
        "--shift",
        default=0,
        type=click.IntRange(0),
        help="Most bases by which training moves windows at random.",
    ),
    option("--seed", default=0, type=click.IntRange(0), help="Of weights, order and sampling."),
]

# One for each field of Settings but the seed, which Source has.
_SETTINGS_OPTIONS = [
    option("--epochs", default=10, type=click.IntRange(1), help="Passes at most."),
    option(
        "--batch-size",
        type=click.IntRange(1),
        help="Examples a step.  [default: 256, or fewer if memory does not suffice]",
    ),
    option(
        "--optimizer",
        default="adamw",
        type=click.Choice(["adamw", "adam"]),
        help="Adam with decoupled weight decay, or with L2.",
    ),
    option(
        "--learning-rate",
        default=1e-3,
        type=click.FloatRange(0, min_open=True),
        help="Highest rate.",
    ),
    option(
        "--weight-decay",
        default=1e-2,
        type=click.FloatRange(0),
        help="Weight decay of the optimizer.",
    ),
    option(
        "--schedule",
        default="cosine",
        type=click.Choice(["cosine", "constant"]),
        help="Course of the learning rate.",
    ),
    option(
        "--warmup",
        default=0.02,
        type=click.FloatRange(0, 1),
        help="Share of the steps in which the rate rises from zero.",
    ),
    option(
        "--clip",
        default=1.0,
        type=click.FloatRange(0, min_open=True),
        help="Largest norm of a step's gradient.",
    ),
    option(
        "--patience",
        default=3,
        type=click.IntRange(1),
        help="Epochs without improvement before training stops.",
    ),
    option(
        "--precision",
        default="auto",
        type=click.Choice(["auto", "fp32", "fp16", "bf16"]),
        help="Of the layers in training. auto: fp32 on a CPU; bf16, else fp16, on a GPU.",
    ),
    option(
        "--class-weights",
        default="none",
        help="Weight of positive labels: none, balanced, or a number, one or one a track with "
        "commas between.",
    ),
]

_DESCRIPTION_OPTIONS = [
    option("--name", default="model", help="Name on the card."),
    option(
        "--track",
        "tracks",
        multiple=True,
        help="Name of an output; repeatable, one a track.  [default: the columns of the labels]",
    ),
    option(
        "--description",
        "descriptions",
        multiple=True,
        help="Description of an output; repeatable, one a track.  [default: none]",
    ),
    option(
        "--unit",
        "units",
        multiple=True,
        help="Unit of an output; repeatable, one a track.  [default: none]",
    ),
    option("--license", default="", help="License on the card."),
    option("--source", default="", help="Origin of the data, for the card."),
]


def _with(options: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Decorator that gives a command some options, in their order."""
    return lambda command: reduce(lambda f, option: option(f), reversed(options), command)


def _made(kind: type[Made], options: dict[str, Any]) -> Made:
    """Dataclass of the command's options of the same names."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: options[name] for name in names if name in options})


@click.command()
@option(
    "--model",
    "architecture",
    required=True,
    type=click.Choice(sorted(MODELS)),
    help="Architecture.",
)
@option(
    "--out",
    required=True,
    type=UserPath(folder=True, file_okay=False),
    help="Folder for the checkpoints best/ and last/, history.csv, curves.png and metrics.json.",
)
@config_option
@_with(_SOURCE_OPTIONS)
@_with(_SAMPLING_OPTIONS)
@_with(_SETTINGS_OPTIONS)
@_with(_DESCRIPTION_OPTIONS)
@option(
    "--stride",
    type=click.IntRange(1),
    help="Default stride on the card.  [default: a fifth of the window]",
)
@option(
    "--min-bases",
    type=click.IntRange(1),
    help="Known bases below which a window has no prediction.  [default: half the window, or fewer "
    "if held-out examples have fewer]",
)
@option(
    "--weights-dtype",
    default="float32",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Type the weights are stored in.",
)
@device_option
@_THREADS
@json_option
@debug_option
def train(out: Path, threads: int, as_json: bool, **options: Any) -> None:
    """Train a model on labeled sequences or peaks, and evaluate it on what was held out.

    The same command continues a training that was stopped.
    """
    import torch

    from genomepred.models.card import flatten
    from genomepred.training.folder import METRICS
    from genomepred.training.run import train as run

    torch.set_num_threads(threads)
    spec = _spec(options, shlex.join(["genomepred", *sys.argv[1:]]))
    was_finished = (out / METRICS).exists()
    card = run(spec, out)
    if was_finished:
        click.echo(f"{out}: this training is finished; its result:", err=True)
    if as_json:
        echo_json(json.loads(card.to_json()))
        return
    for key, value in flatten(card.metrics).items():
        click.echo(f"{key}: {value}")
    click.echo(f"checkpoint: {out / 'best'}")


def _spec(options: dict[str, Any], command: str) -> TrainingSpec:
    """The training that the options of ``train`` ask for."""
    import torch

    from genomepred.inference.engine import find_device
    from genomepred.training.fit import Settings
    from genomepred.training.spec import Description, TrainingSpec

    return TrainingSpec(
        options["architecture"],
        _made(Source, options),
        _made(Description, options | {"command": command}),
        options["config"],
        _made(Settings, options),
        options["stride"],
        options["min_bases"],
        getattr(torch, options["weights_dtype"]),
        str(find_device(options["device"])),
    )


@click.command()
@model_option
@option(
    "--out",
    required=True,
    type=UserPath(folder=True, file_okay=False),
    help="Folder for metrics.json, metrics.tsv, predictions.tsv, worst.tsv and a picture.",
)
@_with(_SOURCE_OPTIONS)
@option(
    "--part",
    default="test",
    type=click.Choice(["test", "validation", "training", "all"]),
    help="Examples to judge the model by; all is every row of a table, or every peak.",
)
@option(
    "--bootstrap",
    "resamples",
    default=1000,
    type=click.IntRange(0),
    help="Resamples of the examples behind the 95% intervals; 0 for no intervals.",
)
@option(
    "--seed",
    type=click.IntRange(0),
    help="Of shares, negatives and resamples.  [default: that of training on the same files, else "
    "0]",
)
@option("--worst", default=20, type=click.IntRange(0), help="Worst predictions to list.")
@device_option
@trust_code_option
@json_option
@debug_option
def evaluate(
    model: str,
    out: Path,
    part: str,
    resamples: int,
    seed: int | None,
    worst: int,
    device: str,
    trust_code: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Judge a model by labeled sequences or peaks: metrics with intervals, curves, worst examples.

    The data options are those of train. On the files of the model's own training its columns, split
    and seed are taken from its card, and others refused: they would put training examples into the
    test.
    """
    import torch

    from genomepred.evaluation.judge import evaluate as run
    from genomepred.evaluation.judge import lines, tell, worst_genomes
    from genomepred.inference.engine import find_device
    from genomepred.models.checkpoint import load_model

    torch.set_num_threads(1)
    document = run(
        load_model(model, find_device(device), trust_code),
        _made(Source, options),
        out,
        part=part,
        resamples=resamples,
        seed=seed,
        worst=worst,
    )
    if as_json:
        echo_json(document)
        return
    for name, found in document["sets"].items():
        (left_out,) = found["left_out"].values()
        note = f"; {left_out:,} more have too few known bases for a prediction" if left_out else ""
        click.echo(f"{name}: {found['rows']:,} examples{note}")
        of_set = [line for line in lines(document) if line.set == name]
        width = max(len(line.track) for line in of_set)
        for line in of_set:
            click.echo(f"  {line.track:<{width}}  {line.metric:<21}  {tell(*line[3:])}")
    if document["genomes"]:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in worst_genomes(document))
        click.echo(f"worst of {len(document['genomes'])} genomes: {shown}")
    click.echo(f"written to {out}")


# Options of train that a sweep gives itself.
_OF_SWEEP = {"out", "seed", "threads", "json", "debug", "help"}


@click.command()
@click.argument("config", type=_EXISTING)
@option(
    "--out",
    required=True,
    type=UserPath(folder=True, file_okay=False),
    help="Folder for RUN/seedK/ of each training, comparison.tsv and comparison.png.",
)
@option("--seeds", default=1, type=click.IntRange(1), help="Trainings of each run: seeds 0, 1, ...")
@_THREADS
@json_option
@debug_option
def sweep(config: Path, out: Path, seeds: int, threads: int, as_json: bool) -> None:
    """Train the runs that the JSON file CONFIG describes, and compare them.

    CONFIG is {"train": OPTIONS, "runs": {NAME: OPTIONS, ...}, "metric": NAME}. OPTIONS are those
    of train without the dashes: {"model": "linear", "epochs": 5, "set": {"KEY": VALUE}}; those of
    a run come on top of the common ones. "metric", if given, is drawn.

    The same command continues a sweep that was stopped.
    """
    import torch

    from genomepred.training.sweep import Trial, read_config, summary
    from genomepred.training.sweep import sweep as run

    torch.set_num_threads(threads)
    asked = read_config(config)
    trials = {
        name: Trial(
            asked.changes[name],
            [_spec_of_run(config, name, options, seed) for seed in range(seeds)],
        )
        for name, options in asked.runs.items()
    }
    table = run(trials, out, asked.metric)
    if as_json:
        echo_json({"runs": json.loads(table.to_json(orient="records"))})
        return
    for row in summary(table):
        click.echo(row)
    click.echo(f"written to {out}")


def _spec_of_run(config: Path, name: str, options: dict[str, Any], seed: int) -> TrainingSpec:
    """The training of a run, its options read as if they stood on the command line.

    Raises
    ------
    DataError
        If an option is unknown, or its value not allowed.
    """
    from genomepred.errors import DataError

    known = {option.name or "": option for option in train.params}
    spelled = {
        text.removeprefix("--") for o in known.values() for text in o.opts if text[:2] == "--"
    }
    arguments = ["--name", name]
    for key, value in options.items():
        if key not in spelled - _OF_SWEEP:
            there = ", ".join(sorted(spelled - _OF_SWEEP))
            raise DataError(f"{config}: run {name!r}: unknown option {key!r}; there are {there}")
        arguments += _spelled(key, value)
    arguments += ["--seed", str(seed), "--out", name]
    try:
        context = train.make_context("train", list(arguments))
    except click.UsageError as error:
        raise DataError(f"{config}: run {name!r}: {error.format_message()}") from error
    return _spec(context.params, shlex.join(["genomepred", "train", *arguments]))


def _spelled(key: str, value: Any) -> list[str]:
    """An option and its value as arguments."""
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    if isinstance(value, dict):
        return [text for k, v in value.items() for text in (f"--{key}", f"{k}={json.dumps(v)}")]
    values = value if isinstance(value, list) else [value]
    return [text for one in values for text in (f"--{key}", str(one))]
