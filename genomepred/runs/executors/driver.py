"""The driver of a run on a Ray cluster: gives shards to one actor a device, and nobody locks.

It connects to the cluster, or starts one on this machine, and places an actor
(:class:`genomepred.runs.executors.device.Device`) on every device of every node, also of nodes that
come later. Each has a few calls under way, so that it never waits for the driver, and the last
shards of a run are spread over all. What a lost actor or node was at is given to another; a node
that does not see the run, or would compute other bits, is left out by name.

What it says, the command hears as lines of JSON: ``{"computed": rows}`` and so on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from genomepred import errors
from genomepred.errors import GenomepredError
from genomepred.machine import usable_cpus
from genomepred.messages import described
from genomepred.runs.executors.device import Device, GenomeCall
from genomepred.runs.work import Rows

# Calls that a device has under way; prepared shards that wait, a device; workers that may die of a
# shard before its genome fails; workers of a node that may die before they have joined.
_CALLS, _READY, _MOST_DEATHS = 3, 3, 3
# Seconds to wait for a call's end, and for news of nodes.
_WAIT, _NEWS = 1.0, 1.0
# Bytes of a local object store, which holds nothing; 75 MB is Ray's least.
_STORE = 100_000_000
# Bytes that an actor holds, about: Ray's own, torch, a model, blocks and shards.
_MEMORY = 800_000_000
# How far to look ahead for a shard of the genome that a device has open.
_SIGHT = 64


def drive() -> None:
    """Body of the driver's process: what to do on the first line of stdin, whose end means stop."""
    # What libraries print must not be mistaken for what we say.
    line = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        line.write(json.dumps(message) + "\n")

    told = sys.stdin.readline()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.chdir("/")  # Ray lets workers import from the driver's current folder
    try:
        _connect(json.loads(told)["address"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the command's, which ends us
        Driver(told, say).run()
        _ray().shutdown()
    except GenomepredError as error:
        say(error=type(error).__name__, why=str(error))
    line.flush()
    os._exit(0)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _ray() -> Any:
    import ray
    import ray.util.scheduling_strategies

    return ray


def _connect(address: str) -> None:
    """Join a cluster, or start one that only this machine can reach."""
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        how |= {
            "num_cpus": usable_cpus().amount,
            "include_dashboard": False,
            "object_store_memory": _STORE,
            "_node_ip_address": "127.0.0.1",
        }
    try:
        _ray().init(address=address, **how)
    except Exception as error:
        why = str(error.__context__ or error).strip().split("\n")[-1]
        raise GenomepredError(
            f"--cluster {address}: Ray cannot be joined from this machine ({why[:300]}); start "
            "predict on a node of the cluster, with its version of Ray and its token"
        ) from error


@dataclass(eq=False)
class _Genome:
    """A genome, and how many of its shards are to be computed before it is published."""

    call: GenomeCall
    left: int = 0
    settled: bool = False


@dataclass(eq=False)
class _Task:
    """A call of a device, and how many workers have died at it."""

    kind: str
    genome: _Genome
    rows: Rows | None = None
    deaths: int = 0

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (self.genome.call,) if self.rows is None else (self.genome.call, self.rows)


@dataclass(eq=False)
class _Node:
    """A node of the cluster; ``refused`` says why it is left out."""

    name: str
    devices: int
    deaths: int = 0
    refused: str = ""


@dataclass(eq=False)
class _Worker:
    """An actor, the node that it is on, and the calls that it has under way."""

    actor: Any
    node: str
    joined: bool = False
    tasks: list[_Task] = field(default_factory=list)
    genome: _Genome | None = None

    def room(self, most: int) -> int:
        """Calls that it may get now: a shard that workers have died of is computed alone."""
        if not self.joined or any(task.deaths > 1 for task in self.tasks):
            return 0
        return most - len(self.tasks)


class Driver:
    """Gives all that is to be done to the devices of a cluster, until it is done.

    Parameters
    ----------
    told : str
        What devices are told too; the driver needs its ``calls`` and ``gpu``.
    say : callable
        Told, by keywords, what the command is to know.
    """

    def __init__(self, told: str, say: Callable[..., None]) -> None:
        self._ray, self._say = _ray(), say
        facts = json.loads(told)
        self._genomes = deque(_Genome(tuple(call)) for call in facts.pop("calls"))
        self._open = len(self._genomes)
        self._told, self._gpu = json.dumps(facts), facts["gpu"]
        self._ready: deque[_Task] = deque()
        self._suspects: deque[_Task] = deque()
        self._nodes: dict[str, _Node] = {}
        self._workers: list[_Worker] = []
        self._calls: dict[Any, tuple[_Worker, _Task | None]] = {}
        self._looked, self._said = 0.0, 0

    def run(self) -> None:
        """Work until every genome is published or has failed.

        Raises
        ------
        OutputError
            If the output cannot be written.
        SignatureError
            If every node is left out.
        """
        while self._open:
            if time.monotonic() - self._looked > _NEWS:
                self._look()
            self._assign()
            self._collect()

    # -- nodes and workers -----------------------------------------------------------------------

    def _look(self) -> None:
        """See which nodes are there, and start what workers they lack."""
        self._looked = time.monotonic()
        alive = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        for key in [key for key in self._nodes if key not in alive]:
            self._warn(f"node {self._nodes.pop(key).name} is lost; others take over its work")
        for key, node in alive.items():
            if key not in self._nodes:
                self._nodes[key] = _Node(_name(node), self._devices(node["Resources"]))
            known = self._nodes[key]
            have = sum(worker.node == key for worker in self._workers)
            for _ in range(0 if known.refused else known.devices - have):
                self._start(key)
        useful = [node for node in self._nodes.values() if node.devices]
        left_out = [node for node in useful if node.refused]
        if useful and len(left_out) == len(useful):
            raise errors.SignatureError(
                f"no node of the cluster can continue this run; {left_out[0].name}: "
                f"{left_out[0].refused}"
            )

    def _devices(self, resources: Mapping[str, float]) -> int:
        count = int(resources.get("GPU" if self._gpu else "CPU", 0))
        return min(count, max(int(resources.get("memory", 0) // _MEMORY), 1))

    def _start(self, node: str) -> None:
        place = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        device = self._ray.remote(Device).options(
            num_cpus=0 if self._gpu else 1,
            num_gpus=1 if self._gpu else 0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=_CALLS,
            scheduling_strategy=place(node, soft=False),
        )
        worker = _Worker(device.remote(self._told), node)
        self._workers.append(worker)
        self._calls[worker.actor.join.remote()] = worker, None

    def _dismiss(self, worker: _Worker) -> list[_Task]:
        """End a worker; what it was at."""
        self._workers.remove(worker)
        for call in [call for call, (of, _) in self._calls.items() if of is worker]:
            del self._calls[call]
        self._ray.kill(worker.actor)
        self._tell_workers()
        return worker.tasks

    def _leave_out(self, key: str, why: str) -> None:
        node = self._nodes.get(key)
        if node is None or node.refused:
            return
        node.refused = why
        self._warn(f"node {node.name} is left out: {why}")
        for worker in [worker for worker in self._workers if worker.node == key]:
            self._ready.extendleft(self._dismiss(worker))
        self._looked = 0.0

    def _die(self, worker: _Worker, why: str) -> None:
        """Take note that a worker has died: its work goes to others, for a while."""
        if not worker.joined:
            self._dismiss(worker)
            node = self._nodes.get(worker.node)
            if node is not None:
                node.deaths += 1
                if node.deaths >= _MOST_DEATHS:
                    self._leave_out(worker.node, f"its workers end before they have begun: {why}")
            return
        self._warn(f"a worker on {self._named(worker)} is lost ({why}); others take over its work")
        for task in self._dismiss(worker):
            task.deaths += 1
            if task.deaths >= _MOST_DEATHS:
                self._fail(task, why)
            elif not task.genome.settled:
                (self._suspects if task.deaths > 1 else self._ready).appendleft(task)

    def _named(self, worker: _Worker) -> str:
        node = self._nodes.get(worker.node)
        return "a node that is lost too" if node is None else f"node {node.name}"

    def _tell_workers(self) -> None:
        joined = sum(worker.joined for worker in self._workers)
        if joined != self._said:
            self._said = joined
            self._say(workers=joined)

    def _warn(self, text: str) -> None:
        self._say(warning=text)

    # -- what is to be done ----------------------------------------------------------------------

    def _assign(self) -> None:
        """Give every worker as many calls as it may have, the least busy first.

        Of the last few calls, and of few genomes, one gets its part alone: the others may be about
        to join.
        """
        given = sum(len(worker.tasks) for worker in self._workers)
        left = given + len(self._genomes) + len(self._ready) + len(self._suspects)
        most = min(_CALLS, -(-left // max(len(self._workers), 1)))
        while True:
            worker = max(self._workers, key=lambda worker: worker.room(most), default=None)
            if worker is None or worker.room(most) < 1:
                return
            task = self._next(worker)
            if task is None:
                return
            worker.genome = task.genome
            worker.tasks.append(task)
            call = getattr(worker.actor, task.kind).remote(*task.arguments)
            self._calls[call] = worker, task

    def _next(self, worker: _Worker) -> _Task | None:
        if self._suspects and not worker.tasks:
            return self._suspects.popleft()
        if self._genomes and len(self._ready) < _READY * len(self._workers):
            return _Task("prepare", self._genomes.popleft())
        for k in range(min(len(self._ready), _SIGHT)):
            if self._ready[k].genome is worker.genome:
                task = self._ready[k]
                del self._ready[k]
                return task
        return self._ready.popleft() if self._ready else None

    def _collect(self) -> None:
        """Take the answers that are there; wait a moment for a first one."""
        if not self._calls:
            time.sleep(_WAIT)
            return
        calls = list(self._calls)
        self._ray.wait(calls, timeout=_WAIT, fetch_local=False)
        done, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0, fetch_local=False)
        for call in done:
            if call in self._calls:  # not of a worker that has been dismissed meanwhile
                self._take(call, *self._calls.pop(call))

    def _take(self, call: Any, worker: _Worker, task: _Task | None) -> None:
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            self._refuse(worker, task, error.cause)
        except self._ray.exceptions.RayError as error:
            self._die(worker, str(error).strip().split("\n")[0])
        else:
            if task is None:
                worker.joined, self._nodes[worker.node].deaths = True, 0
                self._tell_workers()
                return
            worker.tasks.remove(task)
            self._advance(task, answer)

    def _refuse(self, worker: _Worker, task: _Task | None, cause: BaseException) -> None:
        """Draw the consequence from an error: of the run, a genome, a node or a worker."""
        if task is None and isinstance(cause, GenomepredError | ImportError):
            self._leave_out(worker.node, str(cause).split("\n")[0])
        elif isinstance(cause, errors.OutputError):
            raise cause
        elif isinstance(cause, GenomepredError):
            assert task is not None
            worker.tasks.remove(task)
            self._settle(task.genome)
        else:
            self._die(worker, described(cause)[0])

    def _advance(self, task: _Task, answer: Any) -> None:
        """Draw from an answer what is to be done next of a genome."""
        genome = task.genome
        if genome.settled:
            return
        if task.kind == "compute":
            assert task.rows is not None
            self._say(computed=task.rows[1] - task.rows[0])
            genome.left -= 1
            if not genome.left:
                self._ready.appendleft(_Task("publish", genome))
            return
        rows, missing = answer if task.kind == "prepare" else (0, answer)
        if task.kind == "prepare":
            self._say(seen=genome.call[0], rows=rows)
            self._say(computed=rows - sum(last - first for first, last, _ in missing or ()))
        if missing is None:
            self._settle(genome)
            return
        shards = [shard for stretch in missing for shard in _shards(*stretch)]
        genome.left = len(shards)
        self._ready.extend(_Task("compute", genome, rows) for rows in shards)

    def _fail(self, task: _Task, why: str) -> None:
        rows = "" if task.rows is None else f" rows {task.rows[0]:,} to {task.rows[1]:,}"
        told = (
            f"{_MOST_DEATHS} workers have died at it (to {task.kind}{rows}; the last: {why}); "
            "if memory is short, use a smaller --batch-size"
        )
        self._say(failed=task.genome.call[0], why=f"{task.genome.call[1]}: {told}")
        self._settle(task.genome)

    def _settle(self, genome: _Genome) -> None:
        """Take note that nothing more is to be done of a genome."""
        if genome.settled:
            return
        genome.settled = True
        self._open -= 1
        for line in (self._ready, self._suspects):
            if any(task.genome is genome for task in line):
                kept = [task for task in line if task.genome is not genome]
                line.clear()
                line.extend(kept)


def _name(node: Mapping[str, Any]) -> str:
    """A node in words: two may be on one machine."""
    name, address = node["NodeName"], node["NodeManagerAddress"]
    if name == address:
        name = node["NodeManagerHostname"]
    return f"{name} ({address}:{node['NodeManagerPort']})"


def _shards(first: int, last: int, step: int) -> list[Rows]:
    """Shards of a ``Stretch``."""
    return [(row, min(row + step, last)) for row in range(first, last, step)]
