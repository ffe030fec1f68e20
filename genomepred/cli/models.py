"""Commands on models: ``models list|show|check|import``."""

from __future__ import annotations

import ast
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from genomepred.cli.options import (
    UserPath,
    complete_model,
    config_option,
    debug_option,
    device_option,
    echo_json,
    json_option,
    option,
    trust_code_option,
)
from genomepred.messages import counted
from genomepred.models import MODELS
from genomepred.models.card import ACTIVATIONS, INPUTS, N_POLICIES, OUTPUTS, Track


@click.group()
def models() -> None:
    """List, show, check and import models."""


@models.command("list")
@json_option
@debug_option
def list_models(as_json: bool) -> None:
    """List the bundled models and the architectures that can be trained."""
    from genomepred.models.card import bundled_models, read_card

    cards = {name: read_card(path) for name, path in bundled_models().items()}
    first_lines = {name: _first_line(home) for name, home in MODELS.items()}
    if as_json:
        bundled = {name: json.loads(card.to_json()) for name, card in cards.items()}
        echo_json({"bundled": bundled, "architectures": first_lines})
        return
    width = max(map(len, [*cards, *first_lines]))
    click.echo("bundled models (--model NAME of predict):")
    for name, card in cards.items():
        tracks = ", ".join(track.name for track in card.tracks)
        click.echo(
            f"  {name:<{width}}  {card.architecture}, window {card.window}, tracks: {tracks}"
        )
    click.echo("architectures (--model NAME of train):")
    for name, line in first_lines.items():
        click.echo(f"  {name:<{width}}  {line}")


def _first_line(home: str) -> str:
    """First line of the docstring of a ``module:class`` as plain text, without importing torch."""
    module, _, name = home.partition(":")
    found = find_spec(module)
    assert found is not None
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return (ast.get_docstring(classes[name]) or "").split("\n")[0].replace("``", "")


@models.command()
@click.argument("model", shell_complete=complete_model)
@json_option
@debug_option
def show(model: str, as_json: bool) -> None:
    """Show the card of MODEL, a bundled name or a checkpoint directory."""
    from genomepred.models.card import flatten, read_card

    document = json.loads(read_card(model).to_json())
    if as_json:
        echo_json(document)
        return
    document["tracks"] = {track.pop("name"): track for track in document["tracks"]}
    flat = flatten(document)
    width = max(map(len, flat))
    for name, value in flat.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        click.echo(f"{name:<{width}}  {text or '-'}")


@models.command()
@click.argument("model", shell_complete=complete_model)
@device_option
@trust_code_option
@json_option
@debug_option
def check(model: str, device: str, trust_code: str | None, as_json: bool) -> None:
    """Check that MODEL is whole and computes here the outputs that are stored beside it."""
    from genomepred.inference.engine import find_device
    from genomepred.models.checkpoint import check_golden, load_model
    from genomepred.models.external import told_of_code

    found = find_device(device)
    loaded = load_model(model, found, trust_code)
    if note := told_of_code(loaded):
        click.echo(f"genomepred: note: {note}", err=True)
    worst, allowed = check_golden(loaded), loaded.card.tolerance["fp32"]
    if as_json:
        echo_json(
            {
                "model": loaded.card.name,
                "device": str(found),
                "weights_sha256": loaded.card.weights_sha256,
                "largest_difference": worst,
                "tolerance": allowed,
            }
        )
        return
    click.echo(f"{loaded.card.name}: weights match sha256 {loaded.card.weights_sha256}")
    click.echo(
        f"{loaded.card.name}: golden outputs on {found} differ by at most {worst:.3g} "
        f"(tolerance {allowed:g}, |difference| / (1 + |golden|))"
    )


_FILE = UserPath(exists=True, dir_okay=False)


def _tracks(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[Track, ...]:
    parts = [value.partition("=") for value in values]
    return tuple(Track(name, description) for name, _, description in parts)


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{value!r} is not track numbers, as 1,0,2")
    return tuple(map(int, parts))


@models.command("import")
@click.argument("weights", type=_FILE)
@option("--to", required=True, type=UserPath(folder=True), help="Folder of the checkpoint.")
@option(
    "--architecture",
    type=click.Choice(sorted(MODELS)),
    help="Architecture of the package that the weights belong to.  [default: optimus5p for Keras "
    "weights; else --trust-code names a module]",
)
@trust_code_option
@config_option
@option(
    "--key-map",
    type=_FILE,
    help="JSON object, old name or prefix of a tensor: new one, or null to leave it out.  "
    "[default: the names fit]",
)
@option("--name", help="Name on the card.  [default: that of the folder]")
@option(
    "--track",
    "tracks",
    multiple=True,
    callback=_tracks,
    metavar="NAME[=DESCRIPTION]",
    help="Output; repeatable, in order.  [default: score, or track1, track2, ...]",
)
@option("--window", type=click.IntRange(1), help="Bases seen.  [default: the architecture's]")
@option("--crop", type=click.IntRange(0), help="Bases without output at each end.  [default: 0]")
@option("--bins", type=click.IntRange(1), help="Output positions of a window.  [default: 1]")
@option(
    "--input",
    "input_",
    type=click.Choice(INPUTS),
    help="What your module is called with.  [default: codes]",
)
@option(
    "--output",
    default="bins_tracks",
    type=click.Choice(OUTPUTS),
    help="Axes of what your module returns, after the batch.",
)
@option("--base-order", help="Base of each channel or code.  [default: the architecture's, ACGT]")
@option(
    "--n-policy",
    type=click.Choice(sorted(N_POLICIES)),
    help="One-hot of an unknown base.  [default: the architecture's, zeros]",
)
@option(
    "--activation", default="none", type=click.Choice(ACTIVATIONS), help="Applied to the outputs."
)
@option(
    "--reverse-tracks",
    callback=_numbers,
    metavar="N,N,...",
    help="Track (from 0) that each is on the other strand.  [default: itself]",
)
@option("--stride", type=click.IntRange(1), help="Default stride.  [default: bases of output]")
@option(
    "--min-bases",
    default=1,
    type=click.IntRange(0),
    help="Known bases below which a window has no prediction; 0 predicts unknown bases as well.",
)
@option("--license", default="", help="License of the weights.")
@option(
    "--golden",
    type=_FILE,
    help="FASTA to cut the inputs from whose outputs are stored (golden).  [default: human "
    "chr22:20-21 Mb, bundled]",
)
@json_option
@debug_option
def import_(
    weights: Path, to: Path, name: str | None, input_: str | None, as_json: bool, **fields: Any
) -> None:
    """Make a checkpoint of WEIGHTS: Keras HDF5, safetensors or a torch state dict."""
    from genomepred.models.convert import Request, import_weights

    request = Request(name=name or to.resolve().name, input=input_, **fields)
    card = import_weights(weights, to, request)
    if as_json:
        echo_json(json.loads(card.to_json()))
        return
    click.echo(
        f"{card.name}: {card.architecture}, window {card.window}, {counted(card.bins, 'bin')} of "
        f"{card.bin_size}, tracks: {', '.join(track.name for track in card.tracks)}"
    )
    click.echo(f"checkpoint: {to}")
