"""Messages to the user on stderr: one line each, whatever bytes a path holds."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

from genomepred.errors import GenomepredError, OutputError
from genomepred.machine import out_of_memory


def say(message: str) -> None:
    """Write one line to stderr; a closed one is no error."""
    line = printable(f"genomepred: {' '.join(message.splitlines())}")
    with suppress(OSError, ValueError, AttributeError):
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        sys.stderr.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stderr.flush()


def printable(text: str) -> str:
    """The text, with what a file may hold but no line shows spelled out.

    Bytes that are not UTF-8, and characters that would command the terminal.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def counted(number: int, noun: str) -> str:
    """A number of things in words: ``1 worker``, ``2,000 workers``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def say_warnings() -> None:
    """Show warnings from here on as one line each, without the source line that raised them."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        say(f"warning: {message}")

    warnings.showwarning = show


def described(error: BaseException) -> tuple[str, int]:
    """An error in one line, and its exit code."""
    if isinstance(error, GenomepredError):
        return f"error: {error}", error.exit_code
    if (told := out_of_memory(error)) is not None:
        return f"error: {told}", told.exit_code
    if isinstance(error, OSError):
        where = (
            f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        )
        return f"error: {where}{error.strerror or error}", OutputError.exit_code
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding():
        return (
            f"error: {error.object!a}: no file name in this locale, whose letters are those of "
            f"{error.encoding}; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        ), OutputError.exit_code
    return f"a defect: {type(error).__name__}: {error}; please report it with --debug's output", 1
