"""The command line: one short function a command, over one library call each."""

from __future__ import annotations

import sys
import time
from importlib import import_module

import click

from genomepred import __version__
from genomepred.errors import GenomepredError

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
    "train": "genomepred.cli.models",
    "doctor": "genomepred.cli.doctor",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

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
    """Entry point: runs the command and turns our own errors into one line and an exit code."""
    try:
        cli.main(prog_name="genomepred", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("genomepred: interrupted; run the same command again to continue", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except GenomepredError as error:
        if "--debug" in sys.argv:
            raise
        click.echo(f"genomepred: error: {error}", err=True)
        sys.exit(error.exit_code)
