"""Failures of the system, injected into calls of this process that concern one folder."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ERRORS = (errno.EIO, errno.ENOSPC, errno.ESTALE)
_OS = ("open", "read", "write", "fsync", "rename", "link", "mkdir", "rmdir", "unlink", "scandir")
_OS += ("stat", "lstat", "replace")


class Faults:
    """Counts calls that concern a folder, and makes one of them fail.

    Parameters
    ----------
    folder : Path
        Calls with a path in it, or with a descriptor of a file in it, count.
    fails : int
        Number of the call that fails, from 0; none if negative.
    error : int
        Its ``errno``.
    delay : callable
        Seconds that a call of the given name takes longer.
    """

    def __init__(
        self,
        folder: Path,
        fails: int = -1,
        error: int = errno.EIO,
        delay: Callable[[str], float] = lambda name: 0,
    ) -> None:
        self.folder, self.fails, self.error, self.delay = str(folder), fails, error, delay
        self.calls: list[str] = []
        self._lock = threading.Lock()

    def concerns(self, what: Any) -> bool:
        if isinstance(what, int):
            try:
                what = os.readlink(f"/proc/self/fd/{what}")
            except OSError:
                return False
        return isinstance(what, str | bytes | os.PathLike) and os.fsdecode(what).startswith(
            self.folder
        )

    def wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if arguments and self.concerns(arguments[0]):
                time.sleep(self.delay(name))
                with self._lock:
                    number = len(self.calls)
                    self.calls.append(name)
                if number == self.fails:
                    path = arguments[0] if not isinstance(arguments[0], int) else None
                    raise OSError(self.error, os.strerror(self.error), path)
            return real(*arguments, **options)

        return call


@contextmanager
def injected(faults: Faults) -> Iterator[Faults]:
    """Let the faults happen."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _OS:
            patch.setattr(os, name, faults.wrapped(name, getattr(os, name)))
        patch.setattr(fcntl, "flock", faults.wrapped("flock", fcntl.flock))
        opening = faults.wrapped("open", builtins.open)
        patch.setattr(builtins, "open", opening)
        patch.setattr(io, "open", opening)
        yield faults


def outcome_of(body: Callable[[], object], seconds: float = 60) -> BaseException | None:
    """Error that a call raises, if any; a call that does not end in time fails the test."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            body()
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert raised, f"has not ended after {seconds} s"
    return raised[0]
