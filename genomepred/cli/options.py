"""Options that several commands share, so that each means the same everywhere."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import click

option = partial(click.option, show_default=True)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document to stdout.  [default: off]"
)
# Read by main() from the argument list, so that errors raised before parsing ends obey it too.
debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    help="Show the traceback of an error.  [default: one line]",
)
# Read by inference.engine.find_device.
device_option = option(
    "--device",
    default="auto",
    help="auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.",
)
trust_code_option = click.option(
    "--trust-code",
    metavar="PATH[:CLASS]",
    help="Code of a model that comes with its own: a Python file, or MODULE:CLASS of an installed "
    "module. It is executed.  [default: no code is run]",
)


def _settings(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    settings = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    return settings


config_option = click.option(
    "--set",
    "config",
    multiple=True,
    callback=_settings,
    metavar="KEY=VALUE",
    help="Argument of the architecture; repeatable.  [default: its own]",
)


def echo_json(document: Any) -> None:
    """Print a document as indented JSON; NaN becomes null, as JSON has no NaN."""
    click.echo(json.dumps(_without_nan(document), indent=2))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
