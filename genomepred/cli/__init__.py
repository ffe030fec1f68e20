"""The command line: one short function a command, over one library call each."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import click

from genomepred import __version__
from genomepred.cli.options import AS_JSON, COMMAND, RESULT, envelope, refuse_repeated
from genomepred.compiled import tell_of_compiling
from genomepred.errors import GenomepredError
from genomepred.messages import described, say, say_warnings

# How names of threads begin that may be held up by a disk when a command ends.
THREADS = "genomepred"
STARTED = time.perf_counter()  # the clock of "start-up included"

# Command -> module that defines a click command of the same name, and its line in the list of
# commands, which imports none of them. Modules are imported when a command is looked up and must
# stay light: torch, numba and h5py are imported inside functions.
_COMMANDS = {
    "predict": ("genomepred.cli.predict", "Predict genomes into OUT, one HDF5 file each."),
    "plan": (
        "genomepred.cli.predict",
        "Show rows, shards, bytes and time of a run.",
    ),
    "merge": (
        "genomepred.cli.predict",
        "Publish the genomes of OUT whose shards are all computed.",
    ),
    "status": ("genomepred.cli.predict", "Show what of OUT is done, missing or failed, and why."),
    "forget": ("genomepred.cli.predict", "Remove genomes NAME... from the run in OUT."),
    "verify": ("genomepred.cli.predict", "Check every file of OUT against its checksum."),
    "info": ("genomepred.cli.store", "Summarize a prediction FILE."),
    "query": ("genomepred.cli.store", "Print the rows of FILE that intersect REGION."),
    "export": ("genomepred.cli.store", "Write a prediction file as bigWig, bedGraph or a table."),
    "plot": ("genomepred.cli.store", "Draw REGION of FILE, one panel a track."),
    "sites": ("genomepred.cli.tables", "Find sites in maps: local maxima above a threshold."),
    "table": ("genomepred.cli.tables", "Make a table of regions by samples from OUT."),
    "compare": ("genomepred.cli.tables", "Show where the samples of OUT differ."),
    "view": ("genomepred.cli.view", "Show a run's folder or a prediction file in a browser."),
    "models": ("genomepred.cli.models", "List, show, check and import models."),
    "data": ("genomepred.cli.data", "Make training data."),
    "train": ("genomepred.cli.train", "Train a model on labeled sequences or peaks."),
    "evaluate": ("genomepred.cli.train", "Judge a model by labeled sequences or peaks."),
    "sweep": ("genomepred.cli.train", "Train the runs that the JSON file CONFIG describes."),
    "explain": ("genomepred.cli.explain", "Show what a model's outputs come from."),
    "effects": ("genomepred.cli.effects", "Tell what each alternative allele of a VCF does."),
    "bench": ("genomepred.cli.bench", "Measure this machine: kernels, whole models, whole runs."),
    "doctor": ("genomepred.cli.doctor", "Show versions and devices, what would be used, and why."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Read from the argument list, so that errors raised before parsing ends obey it too.
        ctx.meta[AS_JSON] = "--json" in args
        ctx.meta[COMMAND] = _named(ctx, self, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return self._invoke_for_json(ctx) if ctx.meta[AS_JSON] else super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output has seen enough; click would say 1
            sys.exit(141)

    def _invoke_for_json(self, ctx: click.Context) -> object:
        """Print one document however the command ends; errors go on to where they are told."""
        error: dict[str, Any] | None = None
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, SystemExit, BrokenPipeError):
            ctx.meta[AS_JSON] = False
            raise
        except BaseException as raised:
            message, code = _ending(raised)
            message = message.removeprefix("error: ")
            error = {"kind": type(raised).__name__.strip("_"), "message": message}
            error["exit_code"] = code
            raise
        finally:
            if ctx.meta[AS_JSON]:
                click.echo(envelope(ctx.meta[COMMAND], ctx.meta.get(RESULT), error))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name)
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
    """Entry point: turns errors into one line and an exit code (``--debug`` shows them whole).

    The process ends here and at once: threads that a disk still holds up do not delay it. A signal
    that came is the outcome, whatever became of its exception: where it was swallowed, nobody
    knows what else was left out.
    """
    message, code = "", 0
    with suppress(_EndedError):  # a signal while the outcome of a command is looked at
        message, code = _outcome()
    if _received:
        message, code = _ENDINGS[_received[0]], 128 + _received[0]
    _end(message, code)


def _outcome() -> tuple[str, int]:
    """Run the command; what is left to say, and the exit code."""
    _fill_closed_streams()
    say_warnings()
    tell_of_compiling()
    _write_any_path()
    _draw_into_files()
    try:
        _catch_signals()
        cli.main(prog_name="genomepred", standalone_mode=False)
        sys.stdout.flush()
    except (click.exceptions.Exit, click.ClickException, SystemExit) as error:
        return "", _usage_code(error)
    except BrokenPipeError:  # the reader of our output has seen enough
        return "", 141
    except BaseException as error:
        if "--debug" in sys.argv and isinstance(error, Exception) and not _received:
            traceback.print_exc()
            return "", 1
        return _ending(error)
    return "", 0


def _ending(error: BaseException) -> tuple[str, int]:
    """The message of an error, and the exit code."""
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return _ENDINGS[signal.SIGINT], 128 + signal.SIGINT
    return described(error)


def _usage_code(error: click.exceptions.Exit | click.ClickException | SystemExit) -> int:
    """Exit code of click's own endings; wrong usage is shown."""
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def _end(message: str, code: int) -> None:
    """Say it and end, without waiting for threads that are not done."""
    _at_signals(lambda number, frame: None)  # left to the thread that sees to the end
    if message:
        code = _say_ending(message, code)
    unwritten = code == 141
    try:
        sys.stdout.flush()
    except (OSError, GenomepredError, ValueError, AttributeError):
        unwritten = True
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
    held_up = any(thread.name.startswith(THREADS) for thread in threading.enumerate())
    if held_up or code in {128 + number for number in _ENDINGS}:
        os._exit(code)
    if unwritten:  # what is left for the pipe or disk, which Python would try once more
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


# -- signals -------------------------------------------------------------------------------------

_ENDINGS = {
    signal.SIGINT: "interrupted; run the same command again to continue",
    signal.SIGTERM: "terminated; run the same command again to continue",
    signal.SIGHUP: "the terminal is gone; run the same command again to continue",
}
# Seconds from a signal to the end of the process, if the thread that it interrupts, or what that
# waits for, does not end.
_LAST = 10.0
# The signals that were caught, in order.
_received: list[signal.Signals] = []
# The exit code of the ending that was told, once it is.
_said: list[int] = []
_saying = threading.Lock()


class _EndedError(BaseException):
    """Ctrl-C, SIGTERM as a scheduler sends it, or SIGHUP of a terminal that closes."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.number = number


def _catch_signals() -> None:
    """End on a signal by one line and ``128 + its number``; on a second one at once.

    Python runs handlers between two steps of the main thread, which may stand in a compiled
    function or lose the exception to a destructor. A thread that the kernel's side wakes sees to
    it that the process ends all the same.
    """
    hear, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(hear, True)
    _at_signals(_interrupt)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=_see_to_the_end, args=(hear,), daemon=True).start()
    shown = sys.unraisablehook

    def unraisable(lost: sys.UnraisableHookArgs, /) -> None:
        """End the process where a destructor or a callback has swallowed the exception."""
        if isinstance(lost.exc_value, _EndedError):
            os.write(tell, bytes([lost.exc_value.number]))
        else:
            shown(lost)

    sys.unraisablehook = unraisable


def _at_signals(handler: Callable[[int, object], None]) -> None:
    for number in _ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    """Interrupt the main thread, once: a second signal is for the thread that sees to the end."""
    _received.append(signal.Signals(number))
    if len(_received) == 1:
        raise _EndedError(_received[0])


def _say_ending(message: str, code: int) -> int:
    """Say how the process ends; its exit code.

    The main thread and the one that sees to the end may both be about to, of different signals: the
    first word stands.
    """
    if _saying.acquire(timeout=_LAST):  # whoever is at it may be held up
        if not _said:
            _said.append(code)
            say(message)
        _saying.release()
    return _said[0] if _said else code


def _see_to_the_end(hear: int) -> None:
    first: signal.Signals | None = None
    while True:
        waits, _, _ = select.select([hear], [], [], None if first is None else _LAST)
        numbers = [number for number in os.read(hear, 1) if number in _ENDINGS] if waits else []
        if waits and not numbers:
            continue  # another signal, SIGCHLD or SIGWINCH
        if first is not None:
            os._exit(_say_ending(_ENDINGS[first], 128 + first))
        first = signal.Signals(numbers[0])


# -- the user's environment ----------------------------------------------------------------------


def _fill_closed_streams() -> None:
    """Put something behind streams that the caller has closed.

    Else the next file that is opened has their number, and what is printed goes into it. Writing
    to a closed standard output fails, messages are lost.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest number that is free
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - open to the end
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


class _Stdout(io.TextIOWrapper):
    """Standard output, whose errors name it."""

    def __init__(self, old: io.TextIOWrapper) -> None:
        super().__init__(old.buffer, old.encoding, old.errors, line_buffering=old.line_buffering)
        self._old = old  # which would close the buffer that it shares

    def write(self, text: str, /) -> int:
        with _naming_stdout():
            return super().write(text)

    def flush(self) -> None:
        with _naming_stdout():
            super().flush()


@contextmanager
def _naming_stdout() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        from genomepred.files import stdout_error

        raise stdout_error(error) from error


def _write_any_path() -> None:
    """File names are bytes: write those that are no text of this locale, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _Stdout(sys.stdout)


def _draw_into_files() -> None:
    """A backend of matplotlib that a notebook gives to its shell does not exist here."""
    os.environ["MPLBACKEND"] = "agg"
