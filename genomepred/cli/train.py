"""Commands on training: ``train``."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from genomepred.cli.options import debug_option, echo_json, json_option
from genomepred.models import MODELS


def _config(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    config = {}
    for value in values:
        key, equals, text = value.partition("=")
        try:
            config[key] = json.loads(text)
        except ValueError:
            config[key] = text
        if not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
    return config


_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
_option = partial(click.option, show_default=True)


@click.command()
@_option(
    "--model",
    "architecture",
    required=True,
    type=click.Choice(sorted(MODELS)),
    help="Architecture.",
)
@_option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the checkpoint best/ and history.csv.",
)
@_option(
    "--positives",
    required=True,
    type=_EXISTING,
    help="FASTA of peaks of one length, headers CONTIG:START-END (0-based half-open).",
)
@_option(
    "--genome",
    required=True,
    type=_EXISTING,
    help="FASTA of (part of) the peaks' genome.",
)
@_option(
    "--validation",
    required=True,
    multiple=True,
    help="Region that chooses the best epoch: CONTIG or CONTIG:START-END; repeatable.",
)
@_option(
    "--test",
    required=True,
    multiple=True,
    help="Region kept from training altogether; repeatable.",
)
@_option(
    "--set",
    "config",
    multiple=True,
    callback=_config,
    metavar="KEY=VALUE",
    help="Argument of the architecture; repeatable.  [default: its own]",
)
@_option("--name", default="model", help="Name on the card.")
@_option("--track", default="peak", help="Name of the output.")
@_option("--description", default="", help="Description of the output.")
@_option("--licence", default="", help="Licence on the card.")
@_option("--source", default="", help="Origin of the data, for the card.")
@_option("--stride", default=20, type=click.IntRange(1), help="Default stride on the card.")
@_option(
    "--min-bases",
    type=click.IntRange(1),
    help="Known bases below which a window has no prediction.  [default: half the window]",
)
@_option(
    "--shuffled",
    default=1,
    type=click.IntRange(0),
    help="Dinucleotide-shuffled negatives a peak.",
)
@_option(
    "--matched",
    default=1,
    type=click.IntRange(0),
    help="GC-matched windows a peak.",
)
@_option(
    "--random",
    "random_",
    default=4,
    type=click.IntRange(0),
    help="Random windows a peak.",
)
@_option("--epochs", default=10, type=click.IntRange(1), help="Passes at most.")
@_option("--batch-size", default=256, type=click.IntRange(1), help="Examples a step.")
@_option(
    "--learning-rate",
    default=1e-3,
    type=click.FloatRange(0, min_open=True),
    help="Highest rate.",
)
@_option(
    "--weight-decay",
    default=1e-2,
    type=click.FloatRange(0),
    help="Weight decay of AdamW.",
)
@_option(
    "--schedule",
    default="cosine",
    type=click.Choice(["cosine", "constant"]),
    help="Course of the learning rate.",
)
@_option(
    "--patience",
    default=3,
    type=click.IntRange(1),
    help="Epochs without improvement before training stops.",
)
@_option("--seed", default=0, type=click.IntRange(0), help="Of weights and sampling.")
@_option(
    "--weights-dtype",
    default="float32",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Type the weights are stored in.",
)
@_option("--device", default="cpu", help="Where to train.")
@_option(
    "--threads",
    default=1,
    type=click.IntRange(1),
    help="CPU threads; another number changes the last bits.",
)
@json_option
@debug_option
def train(
    architecture: str,
    out: Path,
    positives: Path,
    genome: Path,
    validation: tuple[str, ...],
    test: tuple[str, ...],
    config: dict[str, Any],
    name: str,
    track: str,
    description: str,
    licence: str,
    source: str,
    stride: int,
    min_bases: int | None,
    shuffled: int,
    matched: int,
    random_: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    schedule: str,
    patience: int,
    seed: int,
    weights_dtype: str,
    device: str,
    threads: int,
    as_json: bool,
) -> None:
    """Train a model on peaks against shuffled and real negatives, and evaluate it."""
    import torch

    from genomepred.models.card import Track, flatten
    from genomepred.training.data import Mix
    from genomepred.training.loop import Settings
    from genomepred.training.run import Description, Plan
    from genomepred.training.run import train as run

    torch.set_num_threads(threads)
    command = shlex.join(["genomepred", *sys.argv[1:]])
    card = run(
        Plan(
            architecture,
            positives,
            genome,
            validation,
            test,
            Description(name, Track(track, description), licence, source, command),
            config,
            Mix(shuffled, matched, random_),
            Settings(
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                schedule=schedule,
                patience=patience,
                seed=seed,
            ),
            stride,
            min_bases,
            getattr(torch, weights_dtype),
            device,
        ),
        out,
    )
    if as_json:
        echo_json(json.loads(card.to_json()))
        return
    for key, value in flatten(card.metrics).items():
        click.echo(f"{key}: {value}")
    click.echo(f"checkpoint: {out / 'best'}")
