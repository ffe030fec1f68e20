"""The command line: one short function a command, over one library call each."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module

import click

from genomepred import __version__
from genomepred.errors import GenomepredError, OutputError

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

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)
        return command


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
    except (click.Abort, KeyboardInterrupt):
        _stop("interrupted; run the same command again to continue", 130)
    except _TerminatedError:
        _stop("terminated; run the same command again to continue", 143)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        _stop(*_described(error))


class _TerminatedError(BaseException):
    """SIGTERM, as a scheduler sends before its time limit."""


def _terminate(number: int, frame: object) -> None:
    raise _TerminatedError


def _described(error: Exception) -> tuple[str, int]:
    if isinstance(error, GenomepredError):
        return f"error: {error}", error.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{error.strerror or error}", OutputError.exit_code
    return f"a defect: {type(error).__name__}: {error}; please report it with --debug's output", 1


def _stop(message: str, code: int) -> None:
    click.echo(f"genomepred: {message}", err=True)
    sys.exit(code)
