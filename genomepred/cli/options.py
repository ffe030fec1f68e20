"""Options that several commands share, so that each means the same everywhere."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem as Completion

option = partial(click.option, show_default=True)

# In a context's ``meta``: whether --json is asked for, the command's name, and where a command
# leaves the result that the document will hold.
AS_JSON, COMMAND, RESULT = "genomepred.as_json", "genomepred.command", "genomepred.result"

# Of integers: coordinates of arrays stay in range when it is added to them.
_LARGEST = 1 << 62

if TYPE_CHECKING:
    _PathType = click.Path[Path]
else:
    _PathType = click.Path


class UserPath(_PathType):
    """A path that a user writes: not empty, no URL, no ``~`` that no shell has expanded.

    Parameters
    ----------
    folder : bool
        What is named is a folder to write into, which ``-`` is not.
    **checks
        Of click's own path type.
    """

    def __init__(self, folder: bool = False, **checks: Any) -> None:
        super().__init__(path_type=Path, **checks)
        self._folder = folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; an OutputError if it is none of this machine."""
        from genomepred.files import refuse_stream, user_path

        if isinstance(value, str):
            user_path(value)
        if self._folder:
            refuse_stream(Path(value), "folder")
        return super().convert(value, param, ctx)


def file_or_stdout(path: Path | None, as_json: bool) -> Path | None:
    """Output file; None for standard output, which ``-`` also means, and ``--json`` excludes."""
    from genomepred.files import is_stdout

    if path is not None and not is_stdout(path):
        return path
    if as_json:
        raise click.UsageError("--json needs a file: give -o PATH")
    return None


def refuse_repeated(command: click.Command, args: list[str], parent: click.Context) -> None:
    """Refuse an option that is given twice and takes one value, and numbers that are none.

    Of values click would use the last. Called by the program's group for whatever command was
    asked for, so it holds for all.
    """
    context = click.Context(command, parent, command.name, **command.context_settings)
    values, rest, given = command.make_parser(context).parse_args(args=list(args))
    if any(set(parameter.opts) & set(context.help_option_names) for parameter in given):
        return
    for parameter in dict.fromkeys(given):
        _refuse_odd_numbers(parameter, values.get(parameter.name or ""), context)
        if given.count(parameter) > 1 and _takes_one_value(parameter):
            message = (
                f"{parameter.opts[0]} is given {given.count(parameter)} times; it takes one value"
            )
            raise click.UsageError(message, context)
    if isinstance(command, click.Group) and rest:
        inner = command.get_command(context, rest[0])
        if inner is not None:
            refuse_repeated(inner, rest[1:], context)


def _refuse_odd_numbers(parameter: click.Parameter, value: Any, context: click.Context) -> None:
    """Refuse NaN, which passes every range, and integers that no array can hold."""
    if not isinstance(parameter.type, click.types.IntParamType | click.types.FloatParamType):
        return
    whole = isinstance(parameter.type, click.types.IntParamType)
    for text in value if isinstance(value, list) else [value]:
        with suppress(TypeError, ValueError):  # told by click, with the type it should have
            if whole and abs(int(text)) > _LARGEST:
                raise click.UsageError(f"{parameter.opts[0]} {text} is too large", context)
            if not whole and math.isnan(float(text)):
                raise click.UsageError(f"{parameter.opts[0]} {text} is no number", context)


def _takes_one_value(parameter: click.Parameter) -> bool:
    """Whether a second use would silently replace the first; a switch may be set twice."""
    if not isinstance(parameter, click.Option) or parameter.multiple or parameter.count:
        return False
    return not parameter.is_flag or bool(parameter.secondary_opts)


class Checkpoint(click.ParamType[str]):
    """A checkpoint folder or bundled name, looked for before anything heavy is imported."""

    name = "checkpoint"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is; a ModelError if there is no such checkpoint."""
        from genomepred.models.card import find_checkpoint

        find_checkpoint(value)
        return value


def complete_model(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[Completion]:
    """Bundled names and checkpoint folders; where there are none, folders on the way to one."""
    from genomepred.models.card import CARD, bundled_models

    names = [name for name in bundled_models() if name.startswith(incomplete)]
    folder, _, start = incomplete.rpartition("/")
    base = Path(folder + "/" if folder or incomplete.startswith("/") else ".")
    with suppress(OSError):
        inside = sorted(path.name for path in base.expanduser().iterdir())
        near = [name for name in inside if name.startswith(start)]
        shown = incomplete[: len(incomplete) - len(start)]
        names += [shown + name for name in near if (base.expanduser() / name / CARD).is_file()]
    return list(map(Completion, names)) or [Completion(incomplete, type="dir")]


model_option = click.option(
    "--model",
    required=True,
    type=Checkpoint(),
    metavar="DIR_OR_NAME",
    shell_complete=complete_model,
    help="Checkpoint folder, or name of a bundled model (`genomepred models list`).",
)
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object to stdout: command, ok, result, error.  [default: off]",
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
    help="Code of a model that comes with its own: a Python file, MODULE:CLASS of an installed "
    "module, or FOLDER:MODULE:CLASS. It is executed.  [default: no code is run]",
)


_PANEL = (
    option(
        "--missing",
        type=click.Choice(["reference", "n"]),
        default="reference",
        help="With a panel: what a missing allele is; n (N) makes sequences differ.",
    ),
    option(
        "--unphased",
        type=click.Choice(["error", "first", "n"]),
        default="error",
        help="With a panel: heterozygotes without phase are refused, taken as written, or N "
        "(indels: reference).",
    ),
    click.option(
        "--inbred",
        is_flag=True,
        help="With a panel: one haplotype a sample; heterozygotes follow --unphased.  "
        "[default: off]",
    ),
)


def panel_options(command: Any) -> Any:
    """Add the options that say how genotypes become haplotypes."""
    for decorate in reversed(_PANEL):
        command = decorate(command)
    return command


tracks_option = click.option(
    "--track",
    "tracks",
    metavar="NAME",
    multiple=True,
    help="Only this track; repeatable.  [default: all]",
)

sample_option = click.option(
    "--sample",
    metavar="S[.COPY]",
    help="Of a cohort's file: this sample, and which of its copies.  [default: none]",
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


def echo_json(result: dict[str, Any]) -> None:
    """Give the result of a command under ``--json``; it is printed when the command ends."""
    click.get_current_context().meta[RESULT] = result


def echo_json_now(result: dict[str, Any]) -> None:
    """Print the document of a command that goes on until it is stopped."""
    meta = click.get_current_context().meta
    click.echo(envelope(meta[COMMAND], result))
    meta[AS_JSON] = False


def envelope(command: str, result: Any, error: dict[str, Any] | None = None) -> str:
    """The document that every command prints under ``--json``, as indented JSON.

    Its keys are ``command``, ``ok``, ``result`` (null if there is none) and ``error`` (null, or
    ``kind``, ``message`` and ``exit_code``). NaN becomes null and an infinity text, as JSON has
    neither.
    """
    document = {"command": command, "ok": error is None, "result": result, "error": error}
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
