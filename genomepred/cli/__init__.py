"""The command line: one short function a command, over one library call each."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from genomepred import __version__
from genomepred.cli.options import RESULT, envelope, refuse_repeated
from genomepred.errors import GenomepredError, OutputError

_AS_JSON, _COMMAND = "genomepred.as_json", "genomepred.command"

STARTED = time.perf_counter()  # the clock of "start-up included"

# Command -> module that defines a click command of the same name. Modules are imported when a
# command is looked up and must stay light: torch, numba and h5py are imported inside functions.
_COMMANDS = {
    "predict": "genomepred.cli.predict",
    "plan": "genomepred.cli.predict",
    "merge": "genomepred.cli.predict",
    "verify": "genomepred.cli.predict",
    "info": "genomepred.cli.store",
    "query": "genomepred.cli.store",
    "export": "genomepred.cli.store",
    "plot": "genomepred.cli.store",
    "models": "genomepred.cli.models",
    "data": "genomepred.cli.data",
    "train": "genomepred.cli.train",
    "evaluate": "genomepred.cli.train",
    "sweep": "genomepred.cli.train",
    "explain": "genomepred.cli.explain",
    "bench": "genomepred.cli.bench",
    "doctor": "genomepred.cli.doctor",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Read from the argument list, so that errors raised before parsing ends obey it too.
        ctx.meta[_AS_JSON] = "--json" in args
        ctx.meta[_COMMAND] = _named(ctx, self, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return self._invoke_for_json(ctx) if ctx.meta[_AS_JSON] else super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)

    def _invoke_for_json(self, ctx: click.Context) -> object:
        """Print one document however the command ends; errors go on to where they are told."""
        error: dict[str, Any] | None = None
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, SystemExit, BrokenPipeError):
            ctx.meta[_AS_JSON] = False
            raise
        except BaseException as raised:
            message, code = _described(raised)
            error = {"kind": type(raised).__name__.strip("_"), "message": message}
            error["exit_code"] = code
            raise
        finally:
            if ctx.meta[_AS_JSON]:
                click.echo(envelope(ctx.meta[_COMMAND], ctx.meta.get(RESULT), error))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing:
            refuse_repeated(command, rest, ctx)
        return name, command, rest


def _named(ctx: click.Context, group: click.Group, args: Sequence[str]) -> str:
    """Full name of the command that an argument list asks for, without the program's."""
    names: list[str] = []
    command: click.Command | None = group
    for arg in args:
        if not isinstance(command, click.Group):
            break
        command = command.get_command(ctx, arg)
        names += [arg] if command else []
    return " ".join(names)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="genomepred")
def cli() -> None:
    """Run trained sequence models over genomes, into HDF5 that can be verified."""


def main() -> None:
    """Entry point: turns errors into one line and an exit code (``--debug`` shows them whole)."""
    signal.signal(signal.SIGTERM, _terminate)
    with suppress(AttributeError):  # no text stream: closed, or replaced by a caller
        # Paths that are no text go out as the bytes they are.
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    with suppress(AttributeError):  # no text stream: closed, or replaced by a caller
        # Paths that are no text go out as the bytes they are.
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    with suppress(AttributeError):  # no text stream: closed, or replaced by a caller
        # Paths that are no text go out as the bytes they are.
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    try:
        cli.main(prog_name="genomepred", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SystemExit:
        raise
    except BaseException as error:
        if "--debug" in sys.argv and isinstance(error, Exception):
            raise
        message, code = _described(error)
        prefix = "error: " if isinstance(error, GenomepredError | OSError) else ""
        click.echo(f"genomepred: {prefix}{message}", err=True)
        sys.exit(code)


class _TerminatedError(BaseException):
    """SIGTERM, as a scheduler sends before its time limit."""


def _terminate(number: int, frame: object) -> None:
    raise _TerminatedError


def _described(error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, GenomepredError):
        return str(error), error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "interrupted; run the same command again to continue", 130
    if isinstance(error, _TerminatedError):
        return "terminated; run the same command again to continue", 143
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", OutputError.exit_code
    return f"a defect: {type(error).__name__}: {error}; please report it with --debug's output", 1
