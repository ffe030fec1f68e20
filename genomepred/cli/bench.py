"""The commands ``bench kernels``, ``bench models`` and ``bench predict``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from genomepred.cli.options import (
    UserPath,
    complete_model,
    debug_option,
    device_option,
    echo_json,
    json_option,
    option,
)

_PRECISIONS = ("fp32", "fp16", "bf16")


def _complete_architecture(_: object, __: object, incomplete: str) -> list[str]:
    from genomepred.models import MODELS

    return [name for name in sorted(MODELS) if name.startswith(incomplete)]


_compile_option = click.option(
    "--compile/--no-compile",
    "compiled",
    default=None,
    help="Whether torch.compile takes part; on a CPU it compiles for 10 to 60 s a model.  "
    "[default: on a GPU only]",
)
_rounds_option = partial(
    option, "--rounds", type=click.IntRange(1), help="Turns of each contestant; medians are given."
)
_limit_option = click.option(
    "--limit",
    type=click.FloatRange(0, min_open=True),
    default=float("inf"),
    help="Seconds after which nothing further is started; what is left out is named.  "
    "[default: none]",
)


@click.group()
def bench() -> None:
    """Measure this machine: kernels, whole models, whole runs.

    Outputs are compared before anything is timed, and all contestants take turns. Results are those
    of the machine as it is: close other programs first.
    """


@bench.command()
@device_option
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(_PRECISIONS),
    help="Type of features and weights; repeatable.  [default: fp32 on a CPU, all on a GPU]",
)
@click.option(
    "--layer",
    "only",
    multiple=True,
    metavar="TEXT",
    help="Only layers whose names contain this; repeatable.  [default: all]",
)
@_compile_option
@_rounds_option(default=9)
@_limit_option
@click.option(
    "--sizes",
    is_flag=True,
    help="Instead time the CPU's first layers by taps a group.  [default: off]",
)
@json_option
@debug_option
def kernels(
    device: str, compiled: bool | None, rounds: int, sizes: bool, as_json: bool, **how: Any
) -> None:
    """Compare each kernel with PyTorch and with the machine's limits."""
    from genomepred.benchmarks import kernels as benchmark
    from genomepred.benchmarks.measure import device_type

    kind, tell = device_type("cpu" if sizes else device), _tell(as_json)
    if sizes:
        found: list[dict[str, Any]] = []
        for row in benchmark.group_sizes(rounds):
            tell(str(row))
            found.append(row)
        _finish({"device": kind, "rounds": rounds, "sizes": found}, [], as_json)
        return
    result = benchmark.run(kind, tell, compiled=_compiles(compiled, kind), rounds=rounds, **how)
    _finish(result, result["layers"], as_json)


@bench.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="ARCHITECTURE",
    shell_complete=_complete_architecture,
    help="As of `train`; repeatable.  [default: all, each at its default window]",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1),
    help="Windows of a call; repeatable.  [default: 1, 16, the engine's and four times that]",
)
@device_option
@option(
    "--precision",
    default="auto",
    type=click.Choice(("auto", *_PRECISIONS)),
    help="Of the prepared and the compiled form; auto is fp32 on a CPU and fp16 on a GPU.",
)
@_compile_option
@_rounds_option(default=7)
@option(
    "--patience",
    default=60.0,
    type=click.FloatRange(0, min_open=True),
    help="Seconds that one batch size of one model may take; larger ones are left out, and named.",
)
@_limit_option
@json_option
@debug_option
def models(device: str, compiled: bool | None, as_json: bool, **how: Any) -> None:
    """Compare the prepared form of whole models with eager, autocast and torch.compile."""
    from genomepred.benchmarks import models as benchmark
    from genomepred.benchmarks.measure import device_type

    kind = device_type(device)
    result = benchmark.run(kind, _tell(as_json), compiled=_compiles(compiled, kind), **how)
    _finish(result, result["models"], as_json)


@bench.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("ctcf",),
    shell_complete=complete_model,
    help="Bundled name or checkpoint folder, of one bin; `linear` is made on the spot; repeatable."
    "  [default: ctcf]",
)
@click.option(
    "--genome",
    type=UserPath(exists=True, dir_okay=False),
    help="FASTA whose sequence is used.  [default: the bundled megabase of human chromosome 22]",
)
@click.option(
    "--stride", type=click.IntRange(1), help="Of the windows.  [default: the model card's]"
)
@device_option
@option(
    "--scale",
    default=1.0,
    type=click.FloatRange(0, min_open=True),
    help="Multiplies the lengths of all sequences.",
)
@_rounds_option(default=3)
@click.option(
    "--workers",
    is_flag=True,
    help="Also predict 200 genomes by one worker and by two.  [default: off]",
)
@_limit_option
@json_option
@debug_option
def predict(genome: Path | None, device: str, as_json: bool, **how: Any) -> None:
    """Compare whole runs with the engine alone and with the baseline."""
    from genomepred.benchmarks import end_to_end as benchmark
    from genomepred.benchmarks.measure import device_type
    from genomepred.demo import SEQUENCE

    kind = device_type(device)
    result = benchmark.run(kind, _tell(as_json), genome=genome or SEQUENCE, **how)
    _finish(result, [], as_json)


def main(command: str) -> None:
    """Run one of these commands with the options of a script in ``benchmarks/``."""
    from genomepred.cli import main as genomepred

    sys.argv[1:1] = ["bench", command]
    genomepred()


def _compiles(asked: bool | None, kind: str) -> bool:
    return kind == "cuda" if asked is None else asked


def _tell(as_json: bool) -> Callable[[str], None]:
    """Lines go where they do not mix with the document."""
    return partial(click.echo, err=as_json)


def _finish(result: dict[str, Any], rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print the document; rows without times that ought to have some are an error, last."""
    from genomepred.benchmarks.measure import machine
    from genomepred.errors import DeviceError, ModelError

    if as_json:
        echo_json({"machine": machine(), **result})
    for why, kind in (("differs", ModelError), ("failed", DeviceError)):
        if wrong := [row for row in rows if why in row]:
            first = wrong[0]
            raise kind(
                f"{len(wrong)} of {len(rows)} could not be timed, first "
                f"{first.get('name') or first['model']}: {why} {first[why]}"
            )
