"""The same run in further processes, which end with this one, however it ends.

A worker is started isolated: it looks for modules where this process does, but never in the current
folder. It says that it is alive every few seconds; one that is silent is ended by name, and what it
had claimed is taken over, as is the share of one that dies.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from genomepred.machine import isolated_command, tell_memory
from genomepred.messages import described, say, say_warnings
from genomepred.progress import Watch
from genomepred.runs.executors import Job, join, local, told

# Seconds between a worker's signs of life, without one until it is given up, and for it to end
# once it is told to.
_BEAT, _SILENCE, _END = 5.0, 60.0, 3.0
_BODY = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from {} import work; work()"


def compute(job: Job, watch: Watch) -> None:
    """Compute a job by as many processes as are worth starting (an ``Executor``)."""
    devices = devices_of(job.spec.device, job.workers)[1:]
    specs = [told(job, replace(job.spec, device=device)) for device in devices]
    with Workers(specs, watch.done, see=watch.see) as workers:
        local.compute(job, watch, workers.look)


class Workers:
    """Further processes on the same job; they end with this one, however it ends.

    Parameters
    ----------
    told : list of str
        What each of them is told, in a line.
    progress : callable
        Told the bases that any of them has done, by several threads.
    module : str, optional
        Where the function ``work`` is that they run.
    see : callable, optional
        Told the genomes that any of them looks at, and the bases to be computed of each.
    """

    def __init__(
        self,
        told: Sequence[str],
        progress: Callable[[int], object],
        module: str = __name__,
        see: Callable[[str, int], object] = lambda name, bases: None,
    ) -> None:
        self._told, self._body = told, _BODY.format(module)
        self._progress, self._see = progress, see
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        try:
            for text in self._told:
                self._workers.append(_Worker(self._body, text, self._progress, self._see))
        except (OSError, RuntimeError) as error:  # no memory, or no more processes or threads
            had = f"{len(self._workers) + 1} of {len(self._told) + 1} workers"
            warnings.warn(f"{had} are at work, no more can be started: {error}", stacklevel=2)
        except BaseException:
            self._end()
            raise
        return self

    def look(self) -> None:
        """End workers that give no sign of life; called while this process waits for others."""
        for worker in self._workers:
            worker.look()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._end()

    def _end(self) -> None:
        for worker in self._workers:
            worker.let_go()
        for worker in self._workers:
            worker.end()


class _Worker:
    """One process, and the thread that hears it."""

    def __init__(
        self,
        body: str,
        text: str,
        progress: Callable[[int], object],
        see: Callable[[str, int], object],
    ) -> None:
        self._progress, self._see, self._heard = progress, see, time.monotonic()
        self._dismissed = False
        self._process = subprocess.Popen(
            isolated_command(body),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the parent's: it ends us
        )
        thread = threading.Thread(target=self._listen, daemon=True)
        try:
            thread.start()
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):  # it has died already, and is named by who listens
                self._process.stdin.write(text.encode() + b"\n")
                self._process.stdin.flush()
        except BaseException:
            self._process.kill()
            raise
        self._thread = thread

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._heard = time.monotonic()
            with suppress(ValueError):  # a line that its death has cut
                self._hear(line)
        code = self._process.wait()
        if code < 0 and not self._dismissed:
            _tell_of_death(self._process.pid, -code)

    def _hear(self, line: bytes) -> None:
        bases, _, name = line.strip().partition(b" ")
        if name:
            self._see(json.loads(name), int(bases))
        elif number := int(bases):
            self._progress(number)

    def look(self) -> None:
        """End it if it is silent."""
        silent = time.monotonic() - self._heard
        if silent > _SILENCE and not self._dismissed and self._process.poll() is None:
            self._dismissed = True
            self._process.kill()
            warnings.warn(
                f"worker {self._process.pid} has been silent for {silent:.0f} s and is ended; "
                "its work is taken over",
                stacklevel=2,
            )

    def let_go(self) -> None:
        """Tell it to end: it does when its stdin ends, whatever it is at."""
        self._dismissed = True
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def end(self) -> None:
        """Wait for its end, and bring it about where it does not come."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END)
        if self._process.poll() is None:
            self._process.kill()
            try:
                self._process.wait(_END)
            except subprocess.TimeoutExpired:  # in a system call that nothing ends
                pid = self._process.pid
                warnings.warn(f"worker {pid} ends when the disk answers it", stacklevel=2)
                return
        self._thread.join(_END)


def _tell_of_death(pid: int, number: int) -> None:
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    why = ""
    if number in (signal.SIGKILL, signal.SIGABRT):
        why = f" (as the system ends it where memory runs out: {tell_memory()})"
    say(f"worker {pid} was ended by {name}; its work is taken over{why}")


def devices_of(device: str, count: int) -> list[str]:
    """Devices of so many processes, this one first."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return [device, *(f"cuda:{k % torch.cuda.device_count()}" for k in range(1, count))]
    return [device] * count


class _Report(Watch):
    """Tells the process that has started this one, a line at a time."""

    def __init__(self) -> None:
        super().__init__()
        # What libraries print must not be mistaken for progress.
        self._line = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def done(self, bases: int) -> None:
        """So many bases more are computed."""
        with self._counting:
            self._line.write(f"{bases}\n")

    def see(self, name: str, bases: int) -> None:
        """A genome that this process looks at, and of which something is to be computed."""
        if bases:
            with self._counting:
                self._line.write(f"{bases} {json.dumps(name)}\n")


@contextmanager
def serving() -> Iterator[tuple[dict[str, Any], Watch]]:
    """Be a worker: what the first line of stdin tells, and whom to tell of bases that are done.

    The process ends with its parent, by one line and an error's exit code, or by itself.
    """
    say_warnings()
    over, report = threading.Event(), _Report()
    try:
        text = json.loads(sys.stdin.readline())
        for body in (_end_with_parent, _beat):
            threading.Thread(target=body, args=(over, report), daemon=True).start()
        yield text, report
    except BaseException as error:
        # The parent takes over what is left, and meets the same obstacle if it is one.
        what, code = described(error)
        say(f"a worker has stopped: {what}")
        os._exit(code)
    over.set()


def _end_with_parent(over: threading.Event, report: _Report) -> None:
    # Not by sys.stdin, whose lock a process that ends would wait for in vain.
    while os.read(0, 1):
        pass
    if not over.is_set():
        os._exit(1)


def _beat(over: threading.Event, report: _Report) -> None:
    with suppress(OSError):  # the parent has gone
        while not over.wait(_BEAT):
            report.done(0)


def work() -> None:
    """Body of a worker: compute the job that it is told of, beside others."""
    with serving() as (text, report):
        local.compute(join(text), report)
