"""Work that is done in a process of its own: memory goes with it, and so does whatever kills it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import SequenceError, StoreError, optional
from genomepred.machine import isolated_command
from genomepred.messages import described

Float32 = NDArray[np.float32]

_BODY = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from genomepred.view.jobs import serve; serve()"
)


class JobError(StoreError):
    """The last words of a job, in one line; or that it was killed."""


class Job:
    """One task in a process that ends with this one.

    Parameters
    ----------
    task : str
        Of :data:`TASKS`.
    progress : callable
        Told the share that is done, by the thread that waits.
    **told
        Arguments of the task, as JSON holds them.
    """

    def __init__(self, task: str, progress: Callable[[float], object], **told: Any) -> None:
        self._progress = progress
        self._process = subprocess.Popen(
            isolated_command(_BODY),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the parent's: it ends us
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, **told}).encode() + b"\n")
        self._process.stdin.flush()

    def result(self) -> Any:
        """Wait for it.

        Raises
        ------
        JobError
            If it fails or is killed.
        """
        assert self._process.stdout is not None
        answer: Any = None
        for line in self._process.stdout:
            said = json.loads(line)
            if isinstance(said, float):
                self._progress(said)
            else:
                answer = said
        code = self._process.wait()
        if answer is None:
            raise JobError(f"the process that does it has ended ({code}); is memory enough?")
        if "error" in answer:
            raise JobError(answer["error"])
        return answer["result"]

    def ask(self, question: Any) -> Any:
        """Answer to one question of a task that answers many.

        Raises
        ------
        JobError
            If it cannot be answered, or the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = b""
        if not line:
            raise JobError("the process that reads the sequence has ended; is memory enough?")
        answer = json.loads(line)
        if "error" in answer:
            raise JobError(answer["error"])
        return answer["result"]

    def kill(self) -> None:
        """End it; its temporaries are removed by whoever comes next."""
        self._process.kill()


def serve() -> None:
    """Be the process: do the one task that stdin tells, and say how it went."""
    line = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be mistaken for an answer
    told = json.loads(sys.stdin.readline())
    name = told.pop("task")
    if name in SERVICES:
        _serve_many(SERVICES[name](**told), line)
        os._exit(0)
    task = TASKS[name]
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def progress(share: float) -> None:
        line.write(json.dumps(float(share)) + "\n")

    _answer(line, lambda: task(progress, **told))
    line.flush()
    os._exit(0)


def _serve_many(service: Callable[..., Any], line: TextIO) -> None:
    """Answer questions, one a line, until there are no more."""
    for question in sys.stdin:
        _answer(line, partial(service, *json.loads(question)))


def _answer(line: TextIO, call: Callable[[], Any]) -> None:
    try:
        answer = {"result": call()}
    except Exception as error:
        answer = {"error": described(error)[0].removeprefix("error: ")}
    line.write(json.dumps(answer) + "\n")


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


# -- tasks ----------------------------------------------------------------------------------------


def build(
    progress: Callable[[float], object],
    files: list[str],
    reference: str | None,
    identity: Mapping[str, Any],
    path: str,
) -> str:
    """Make the pyramid of files; where it lies."""
    from genomepred.store.blocks import open_blocks
    from genomepred.store.pyramid_writer import write_pyramid

    source = open_blocks(list(map(Path, files)), None if reference is None else Path(reference))
    try:
        write_pyramid(source, Path(path), identity, progress)
    finally:
        source.close()
    return path


def order(
    progress: Callable[[float], object],
    path: str,
    track: int,
    statistic: int,
    level: int,
    interval: int,
    first: int,
    last: int,
) -> list[int]:
    """Lines in the order of leaves of a tree: clusters of the values of a view."""
    from genomepred.store.pyramid import Pyramid

    with Pyramid(Path(path)) as pyramid:
        codes = pyramid.codes(track, statistic, level, interval, first, last)
        values = np.append(np.nan, pyramid.scales[track]).astype(np.float32)[codes]
    return [int(line) for line in leaves(values)]


def leaves(values: Float32) -> NDArray[np.int64]:
    """Lines as the leaves of a tree: average linkage of Euclidean distances, SciPy's.

    Equal lines are one leaf, in their own order. What is missing counts as the mean of its column.

    Parameters
    ----------
    values : float32 array, [lines, bins]
        NaN where missing.

    Raises
    ------
    DependencyError
        If SciPy is not installed.
    """
    with optional("similarity", "view"):
        from scipy.cluster.hierarchy import leaves_list, linkage
    filled = _filled(values)
    kinds, label = np.unique(filled, axis=0, return_inverse=True)
    if len(kinds) < 2:
        return np.arange(len(values))
    tree: NDArray[Any] = linkage(kinds, "average")
    place = np.empty(len(kinds), np.int64)
    place[leaves_list(tree)] = np.arange(len(kinds))
    return np.argsort(place[label.reshape(-1)], kind="stable")


def _filled(values: Float32) -> Float32:
    missing = np.isnan(values)
    count = (~missing).sum(axis=0)
    mean = np.where(missing, 0, values).sum(axis=0) / np.maximum(count, 1)
    return np.where(missing, mean, values).astype(np.float32)


def bases(path: str, contigs: Mapping[str, int]) -> Callable[[str, int, int], str]:
    """Reader of a genome's bases, in letters; the genome is opened with the first of them."""
    from genomepred.sequences.codes import letters
    from genomepred.sequences.fasta import Genome

    opened: list[Genome] = []

    def read(contig: str, start: int, end: int) -> str:
        if not opened:
            opened.append(Genome(path))
        if opened[0].contigs.get(contig) != contigs[contig]:
            raise SequenceError(f"{path}: another genome than the one predicted on")
        return letters(opened[0].codes(contig, start, end))

    return read


TASKS: dict[str, Callable[..., Any]] = {"build": build, "order": order}
SERVICES: dict[str, Callable[..., Callable[..., Any]]] = {"bases": bases}
