"""Runs on a Ray cluster, by a driver that gives shards to devices.

The command starts it in a process of its own, for Ray ends the process whose head is lost (see
:mod:`genomepred.runs.executors.driver`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, Any

from genomepred import errors
from genomepred.errors import DependencyError, GenomepredError, OptionError
from genomepred.machine import isolated_command
from genomepred.runs.executors import Job, told
from genomepred.runs.executors.local import Watch
from genomepred.runs.work import Work, failing_alone

# Seconds to wait for an answer of the head, and for the end of the driver.
_PROBE, _END = 5.0, 5.0
_BODY = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from genomepred.runs.executors.driver import drive; drive()"
)


def address_of(cluster: str) -> str:
    """Address of a cluster, which answers; ``local`` for one to be started on this machine.

    Raises
    ------
    DependencyError
        If Ray is not installed.
    OptionError
        If it is no address.
    GenomepredError
        If nothing answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise DependencyError("--cluster needs Ray: pip install 'genomepred[cluster]'")
    named = os.environ.get("RAY_ADDRESS", "")
    address = (named if named not in ("", "auto") else "local") if cluster == "auto" else cluster
    if address == "local":
        return address
    found = re.fullmatch(r"(.+):(\d{1,5})", address)
    if found is None or "/" in address:
        what = f"RAY_ADDRESS {address!r}" if cluster == "auto" else f"--cluster {address!r}"
        raise OptionError(f"{what}: auto, or HOST:PORT of the head of a Ray cluster")
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), _PROBE).close()
    except (OSError, OverflowError) as error:
        raise GenomepredError(
            f"--cluster {address}: no Ray head answers there ({error}); start one by "
            f"`ray start --head --port={found[2]}`, and further nodes by `ray start --address=...`"
        ) from error
    return address


def compute(job: Job, watch: Watch, address: str) -> None:
    """Compute and publish a job on a cluster (an ``Executor``).

    Parameters
    ----------
    job : Job
    watch : Watch
    address : str
        See :func:`address_of`.

    Raises
    ------
    GenomepredError
        Whatever stops the whole run; of ``SignatureError`` if all nodes are left out.
    """
    todo = {work.number: work for work in job.works if not _is_settled(work)}
    for work in job.works:
        if work.number not in todo:
            watch.see(work.name, 0)
    if not todo:
        return
    kind = "cpu" if job.terms.signature.device.startswith("cpu") else "cuda"
    # Genomes go to the devices call by call; a device is the only one that its actor sees.
    spec = replace(job.spec, genomes=job.spec.genomes[:1], device=kind, jobs=1, cluster=None)
    facts = {
        "address": address,
        "folder": os.getcwd(),
        "gpu": kind == "cuda",
        "calls": [[work.number, work.name, os.fspath(work.path)] for work in todo.values()],
    }
    with _driver(json.dumps(json.loads(told(job, spec)) | facts)) as lines:
        for line in lines:
            _hear(json.loads(line), job, todo, watch)


def _hear(message: dict[str, Any], job: Job, todo: dict[int, Work], watch: Watch) -> None:
    match message:
        case {"computed": rows}:
            watch.done(rows * job.step)
        case {"seen": number, "rows": rows}:
            watch.see(todo[number].name, rows * job.step)
        case {"workers": workers}:
            watch.tell_workers(workers)
        case {"warning": text}:
            warnings.warn(text, stacklevel=2)
        case {"failed": number, "why": why} if not todo[number].outcome("finished"):
            todo[number].fail(GenomepredError(why))
        case {"error": kind, "why": why}:
            raise getattr(errors, kind, GenomepredError)(why)


def _is_settled(work: Work) -> bool:
    settled = True
    with failing_alone(work):
        settled = work.settled()
        if work.published is not None:
            work.clear()
    return settled


@contextmanager
def _driver(told: str) -> Iterator[Iterable[bytes]]:
    """Lines of a driver, which ends with this process, however it ends.

    Raises
    ------
    GenomepredError
        If it ends before it has said that all is done.
    """
    with tempfile.TemporaryFile() as log:
        driver = _start(log)
        assert driver.stdin is not None
        assert driver.stdout is not None
        try:
            with suppress(BrokenPipeError):
                driver.stdin.write(told.encode() + b"\n")
                driver.stdin.flush()
            yield driver.stdout
            code = driver.wait(_END)
        finally:
            _end(driver, driver.stdin)
        if code:
            log.seek(0)
            raise GenomepredError(_lost(code, log.read().decode(errors="replace")))


def _start(log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        isolated_command(_BODY),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        start_new_session=True,  # signals are this process's: it ends the driver
    )


def _end(driver: subprocess.Popen[bytes], orders: IO[bytes]) -> None:
    with suppress(OSError):
        orders.close()
    try:
        driver.wait(_END)
    except subprocess.TimeoutExpired:
        driver.kill()


def _lost(code: int, said: str) -> str:
    defect = re.findall(r"^\w*(?:Error|Exception): .*", said, re.MULTILINE)
    why = f" ({defect[-1][:200]})" if defect else ""
    return (
        f"the connection to the Ray cluster is lost{why or f' (exit code {code})'}; finished "
        "shards are kept: run the same command again when its head is there"
    )
