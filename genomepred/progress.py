"""Progress on stderr: a bar on a terminal, one line a minute into a file."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from genomepred.messages import counted

if TYPE_CHECKING:
    _Bar = tqdm[Any]
else:
    _Bar = tqdm

_INTERVAL = 60.0  # seconds between the lines of a log


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


@dataclass(eq=False)
class Watch:
    """Told by several threads how a run gets on; this one only counts the bases.

    Attributes
    ----------
    bases : int
        Computed so far.
    workers : int
        Of a cluster, the most that were at it at once.
    """

    bases: int = field(default=0, init=False)
    workers: int = field(default=0, init=False)
    _counting: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def done(self, bases: int) -> None:
        """So many bases more are computed."""
        with self._counting:
            self.bases += bases

    def see(self, name: str, bases: int) -> None:
        """Take note of a genome at first sight, and of the bases that are to be computed of it."""

    def tell_workers(self, count: int) -> None:
        """Take note of how many workers of a cluster are at it."""
        self.workers = max(self.workers, count)

    def note(self, text: str) -> None:
        """Say more of what is done than bases tell."""

    def wait(self) -> None:
        """Take note that nothing is left to do but to wait for others."""


class Outlook(Watch):
    """Work that a run still has to do, told to its bar from the start.

    Genomes that are not looked at yet count as the mean of those that are. Of one that several
    processes of the run look at counts what the first of them found to do.

    Parameters
    ----------
    bar : Progress
        Its total becomes the bases of all genomes, its postfix the genomes seen.
    genomes : int
        How many there are.
    workers : int, optional
        Processes that this one has started, itself included.
    """

    def __init__(self, bar: Progress, genomes: int, workers: int = 1) -> None:
        super().__init__()
        self._others = "the other workers" if workers > 1 else "other processes on this run"
        self._bar, self._genomes = bar, genomes
        self._seen: dict[str, int] = {}
        self._to_do = self._open = 0

    def done(self, bases: int) -> None:
        """Count bases, and show them."""
        with self._counting:
            self.bases += bases
            self._bar.total = max(self._bar.total or 0, self.bases)
            self._bar.update(bases)

    def see(self, name: str, bases: int) -> None:
        """Take note of a genome, and of the bases that are to be computed of it."""
        with self._counting:
            before = self._seen.get(name, -1)
            if bases <= before:
                return
            self._seen[name] = bases
            self._to_do += bases - max(before, 0)
            self._open += before <= 0 < bases
            mean = self._to_do / max(self._open, 1)
            total = round(self._to_do + mean * (self._genomes - len(self._seen)))
            self._bar.total = max(total, self.bases)
            self._bar.set_postfix_str(f"genome {len(self._seen):,} of {self._genomes:,}", False)

    def note(self, text: str) -> None:
        """Say it behind the bar, in place of the genomes seen."""
        with self._counting:
            self._bar.set_postfix_str(text, refresh=False)

    def tell_workers(self, count: int) -> None:
        """Say how many workers of a cluster are at it."""
        super().tell_workers(count)
        self._bar.set_description_str(counted(count, "worker"), refresh=False)

    def wait(self) -> None:
        """Say that nothing is left to do but to wait."""
        self._bar.set_description_str(f"waiting for {self._others}")
