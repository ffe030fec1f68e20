"""Commands on models: ``models list|show|check``."""

from __future__ import annotations

import ast
import json
from importlib.util import find_spec
from pathlib import Path

import click

from genomepred.cli.options import debug_option, echo_json, json_option, trust_code_option
from genomepred.models import MODELS


@click.group()
def models() -> None:
    """List, show and check models."""


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
    click.echo("bundled models (--model NAME of predict):")
    for name, card in cards.items():
        tracks = ", ".join(track.name for track in card.tracks)
        click.echo(f"  {name:<12} {card.architecture}, window {card.window}, tracks: {tracks}")
    click.echo("architectures (--model NAME of train):")
    for name, line in first_lines.items():
        click.echo(f"  {name:<12} {line}")


def _first_line(home: str) -> str:
    """First line of the docstring of a ``module:class``, read without importing torch."""
    module, _, name = home.partition(":")
    found = find_spec(module)
    assert found is not None
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return (ast.get_docstring(classes[name]) or "").split("\n")[0]


@models.command()
@click.argument("model")
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
@click.argument("model")
@click.option("--device", default="cpu", show_default=True, help="Where to compute.")
@trust_code_option
@json_option
@debug_option
def check(model: str, device: str, trust_code: str | None, as_json: bool) -> None:
    """Check that MODEL is whole and reproduces its golden outputs on this machine."""
    from genomepred.models.checkpoint import check_golden, load_model

    loaded = load_model(model, device, trust_code)
    worst, allowed = check_golden(loaded), loaded.card.tolerance["fp32"]
    if as_json:
        echo_json(
            {
                "model": loaded.card.name,
                "device": device,
                "weights_sha256": loaded.card.weights_sha256,
                "largest_difference": worst,
                "tolerance": allowed,
            }
        )
        return
    click.echo(f"{loaded.card.name}: weights match sha256 {loaded.card.weights_sha256}")
    click.echo(
        f"{loaded.card.name}: golden outputs on {device} differ by at most {worst:.3g} "
        f"(tolerance {allowed:g}, |difference| / (1 + |golden|))"
    )
