"""Progress on stderr: a bar on a terminal, one line a minute into a file."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    _Bar = tqdm[Any]
else:
    _Bar = tqdm

_INTERVAL = 60.0  # seconds between the lines of a log


def tell(text: str) -> None:
    """Write a line to stderr, above the bar if one is drawn."""
    tqdm.write(text, sys.stderr)


class Progress(_Bar):
    """tqdm, but a log gets whole lines, the first after a minute: what is shorter needs none.

    Parameters
    ----------
    *args, **options
        As of tqdm.
    shown : bool
        False for no output at all; without a stderr there is none either.
    """

    def __init__(self, *args: Any, shown: bool = True, **options: Any) -> None:
        self._logs = sys.stderr is not None and not sys.stderr.isatty()
        self._told, self._lines = time.monotonic(), 0
        if self._logs:
            options |= {"mininterval": _INTERVAL, "maxinterval": _INTERVAL, "ncols": 0}
        options |= {"file": sys.stderr, "disable": not shown or sys.stderr is None}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar; into a file, write the line that is due."""
        if not self._logs:
            return super().display(msg, pos)
        if msg != "" and time.monotonic() - self._told >= _INTERVAL:
            self._told, self._lines = time.monotonic(), self._lines + 1
            self._write()
        return None

    def clear(self, nolock: bool = False) -> None:
        """Make room for a message, which a file has anyway."""
        if not self._logs:
            super().clear(nolock)

    def close(self) -> None:
        """Leave the bar as it is at the end; a file that has lines gets a last one."""
        if self._logs:
            self.leave = False
            if self._lines and not self.disable:
                self._write()
        super().close()

    def _write(self) -> None:
        self.fp.write(f"{self}\n")
        self.fp.flush()
