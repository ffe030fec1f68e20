"""The driver of runs on Ray, on a cluster that is a model of one: it fails when it is told to."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.errors import OutputError, SequenceError, SignatureError
from genomepred.runs import cohort_work
from genomepred.runs.cohort import CohortRun, predict_cohort
from genomepred.runs.executors import driver as drivers
from genomepred.runs.executors import ray as executor
from genomepred.runs.executors.device import Device, _joined
from genomepred.runs.run import execute
from genomepred.runs.spec import RunSpec, find_genomes
from genomepred.sequences.cohort import PanelOptions
from tests.checkpoints import make_checkpoint
from tests.helpers import examples, hashes
from tests.sequences.panels import random_panel

STEP = 10


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause


class Actor:
    def __init__(self, world: World, node: str) -> None:
        self.world, self.node, self.dead = world, node, node not in world.alive
        self.calls: list[Call] = []

    def __getattr__(self, kind: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.call(kind, arguments))

    def call(self, kind: str, arguments: tuple[Any, ...]) -> Call:
        call = Call(self, kind, arguments)
        assert sum(not call.done for call in self.calls) < 3
        self.calls.append(call)
        self.world.calls.append(call)
        return call


class Call:
    def __init__(self, actor: Actor, kind: str, arguments: tuple[Any, ...]) -> None:
        self.actor, self.kind, self.arguments = actor, kind, arguments
        self.done, self.answer = False, None
        self.error: Exception | None = None


class World:
    """A cluster, the folder that its nodes see, and the faults that they have."""

    def __init__(self, rows: list[int], nodes: dict[str, int], seed: int = 0) -> None:
        self.rows, self.alive, self.random = rows, dict(nodes), Random(seed)
        self.refuses: dict[str, Exception] = {}
        self.fails: dict[int, Exception] = {}
        self.deadly: set[tuple[int, tuple[int, int]]] = set()
        self.kills, self.damages = 0, 0
        self.joins_later: dict[str, int] = {}
        self.calls: list[Call] = []
        self.parts: set[tuple[int, tuple[int, int]]] = set()
        self.published, self.computed = Counter[int](), Counter[tuple[int, tuple[int, int]]]()
        self.said: list[dict[str, Any]] = []
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        place = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
        self.util = SimpleNamespace(scheduling_strategies=place)

    # -- what the driver calls -------------------------------------------------------------------

    def nodes(self) -> list[dict[str, Any]]:
        about = {"NodeManagerAddress": "10.0.0.1", "NodeManagerPort": 1, "NodeManagerHostname": "h"}
        return [
            {"NodeID": name, "NodeName": name, "Alive": True, **about}
            | {"Resources": {"CPU": float(count), "memory": 1e12}}
            for name, count in self.alive.items()
        ]

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(
            options=lambda scheduling_strategy, **how: SimpleNamespace(
                remote=lambda told: Actor(self, scheduling_strategy)
            )
        )

    def kill(self, actor: Actor) -> None:
        actor.dead = True

    def wait(
        self, calls: list[Call], num_returns: int = 1, timeout: float = 0, fetch_local: bool = True
    ) -> tuple[list[Call], list[Call]]:
        if num_returns == 1:
            self.happen(calls)
        return [call for call in calls if call.done], [call for call in calls if not call.done]

    def get(self, call: Call) -> Any:
        assert call.done
        if call.error is not None:
            raise call.error
        return call.answer

    # -- what happens meanwhile ------------------------------------------------------------------

    def happen(self, calls: list[Call]) -> None:
        if self.joins_later:
            name, count = self.joins_later.popitem()
            self.alive[name] = count
        if self.kills and self.random.random() < 0.2:
            self.kills -= 1
            actor = self.random.choice(calls).actor
            if any(call.kind == "join" for call in actor.calls if not call.done):
                return  # thrice, and its node is left out
            if self.random.random() < 0.3 and len(self.alive) > 1:
                self.alive.pop(actor.node, None)
            else:
                actor.dead = True
        for call in self.random.sample(calls, self.random.randint(1, len(calls))):
            self.answer(call)

    def answer(self, call: Call) -> None:
        actor = call.actor
        if actor.node not in self.alive:
            actor.dead = True
        if not call.done and not actor.dead:
            try:
                call.answer = getattr(self, call.kind)(actor, *call.arguments)
            except Exception as error:
                call.error = RayTaskError(error)
        if actor.dead:
            call.error = RayError("The actor died.\nIts log is long.")
        call.done = True

    def join(self, actor: Actor) -> None:
        if actor.node in self.refuses:
            raise self.refuses[actor.node]

    def missing(self, number: int) -> list[tuple[int, int]]:
        rows = self.rows[number]
        shards = [(row, min(row + STEP, rows)) for row in range(0, rows, STEP)]
        return [shard for shard in shards if (number, shard) not in self.parts]

    def prepare(self, actor: Actor, genome: tuple[int, str, str]) -> Any:
        number = genome[0]
        if number in self.fails:
            raise self.fails[number]
        if self.published[number]:
            return 0, None
        missing = self.missing(number)
        rows = sum(last - first for first, last in missing)
        if len(missing) > 1:
            return rows, [(*shard, STEP) for shard in missing]
        for shard in missing:
            self.compute(actor, genome, shard)
        return rows, None if actor.dead else self.publish(actor, genome)

    def compute(self, actor: Actor, genome: tuple[int, str, str], rows: tuple[int, int]) -> None:
        if (genome[0], rows) in self.deadly:
            actor.dead = True
            return
        assert not self.published[genome[0]]
        self.computed[genome[0], rows] += 1
        self.parts.add((genome[0], rows))

    def publish(self, actor: Actor, genome: tuple[int, str, str]) -> Any:
        number = genome[0]
        if self.published[number]:  # by a worker that died before it said so
            return None
        assert not self.missing(number)
        if self.damages and self.rows[number]:
            self.damages -= 1
            self.parts.discard((number, (0, min(STEP, self.rows[number]))))
            return [(*shard, STEP) for shard in self.missing(number)]
        self.published[number] += 1
        return None

    # -- the whole -------------------------------------------------------------------------------

    def run(self) -> None:
        calls = [[k, f"g{k}", f"g{k}.fa"] for k in range(len(self.rows))]
        told = json.dumps({"calls": calls, "gpu": False})
        driver = drivers.Driver(told, lambda **message: self.said.append(message))
        driver.run()

    def heard(self, what: str) -> list[Any]:
        return [message[what] for message in self.said if what in message]


@pytest.fixture(autouse=True)
def model(monkeypatch):
    """Ray as the driver sees it is the world that was made last; every look is a new one."""
    worlds: list[World] = []
    made = World.__init__

    def make(world: World, *arguments: Any, **options: Any) -> None:
        made(world, *arguments, **options)
        worlds.append(world)

    monkeypatch.setattr(World, "__init__", make)
    monkeypatch.setattr(drivers, "_ray", lambda: worlds[-1])
    monkeypatch.setattr(drivers, "_NEWS", -1.0)
    monkeypatch.setattr(drivers, "_WAIT", 0.0)


@settings(max_examples=examples(150))
@given(
    rows=st.lists(st.integers(0, 95), min_size=1, max_size=12),
    nodes=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 3), min_size=1),
    seed=st.integers(0, 10**6),
)
def test_every_shard_is_computed_once_and_every_genome_published_once(rows, nodes, seed):
    world = World(rows, nodes, seed)
    world.run()
    assert set(world.published.values()) <= {1}
    assert len(world.published) == len(rows)
    assert set(world.computed.values()) <= {1}
    assert sum(last - first for _, (first, last) in world.computed) == sum(rows)
    assert sum(world.heard("computed")) == sum(rows)
    assert sum(message["rows"] for message in world.said if "seen" in message) == sum(rows)
    assert not world.heard("warning")


@settings(max_examples=examples(150))
@given(
    rows=st.lists(st.integers(0, 95), min_size=1, max_size=8),
    nodes=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 3), min_size=1),
    kills=st.integers(1, 30),
    damages=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
def test_lost_workers_and_nodes_lose_nothing(rows, nodes, kills, damages, seed):
    world = World(rows, nodes, seed)
    world.kills, world.damages = kills, damages
    world.joins_later = {"late": 2}
    world.run()
    failed = set(world.heard("failed"))  # by so many kills of what is at one shard
    assert failed | set(world.published) == set(range(len(rows)))
    assert set(world.published.values()) <= {1}


def test_few_genomes_are_kept_for_a_worker_that_is_about_to_join(monkeypatch):
    world, given_to_a = World([5] * 4, {"a": 1, "b": 1}), list[int]()

    def happen(calls):
        under_way = [call for call in calls if call.actor.node == "a"]
        if world.said and not given_to_a:
            given_to_a.append(len(under_way))
        joined = {"workers": 1} in world.said
        for call in calls if joined else under_way:
            world.answer(call)

    monkeypatch.setattr(world, "happen", happen)
    world.run()
    assert given_to_a == [2]
    assert len(world.published) == 4


def test_what_kills_three_workers_fails_its_genome_alone():
    world = World([50, 50, 50], {"a": 2, "b": 2})
    world.deadly = {(1, (20, 30))}
    world.run()
    assert set(world.published) == {0, 2}
    assert world.heard("failed") == [1]
    (why,) = world.heard("why")
    assert why.startswith("g1: 3 workers have died at it (to compute rows 20 to 30; the last: The ")
    assert sum(call.error is not None for call in world.calls) >= 3
    assert len({id(c.actor) for c in world.calls if c.kind == "compute" and c.error}) == 3


def test_a_node_that_would_compute_other_bits_is_left_out_by_name():
    world = World([50, 5, 50], {"good": 1, "odd": 2})
    world.refuses = {"odd": SignatureError("out was started with device X; now device Y")}
    world.run()
    assert len(world.published) == 3
    (warning,) = world.heard("warning")
    assert warning.startswith("node odd (10.0.0.1:1) is left out: out was started with device X")
    assert {call.actor.node for call in world.calls if call.kind != "join"} == {"good"}
    assert world.heard("workers")[-1] == 1


def test_nodes_that_are_all_left_out_end_the_run():
    world = World([50], {"a": 1, "b": 1})
    world.refuses = {name: SignatureError("differs") for name in "ab"}
    with pytest.raises(SignatureError, match=r"no node of the cluster can continue this run; a "):
        world.run()


def test_a_node_whose_workers_do_not_start_is_left_out():
    world = World([50], {"a": 1, "b": 1})
    world.join = lambda actor: setattr(actor, "dead", actor.node == "a")  # type: ignore[method-assign]
    world.run()
    (warning,) = world.heard("warning")
    assert "node a (10.0.0.1:1) is left out: its workers end before they have begun" in warning
    assert "log" not in warning


def test_a_bad_genome_fails_alone_and_a_full_disk_ends_the_run():
    world = World([50, 50], {"a": 1})
    world.fails = {0: SequenceError("no FASTA")}
    world.run()
    assert set(world.published) == {1}
    world = World([50, 50], {"a": 1})
    world.fails = {1: OutputError("disk full")}
    with pytest.raises(OutputError, match="disk full"):
        world.run()


def test_a_worker_with_a_defect_is_replaced_and_its_error_told():
    world = World([50, 30], {"a": 1})
    broken = iter([RuntimeError("CUDA error: an illegal access")])
    compute = world.compute

    def once(actor, genome, rows):
        for error in broken:
            raise error
        compute(actor, genome, rows)

    world.compute = once  # type: ignore[method-assign]
    world.run()
    assert len(world.published) == 2
    (warning,) = world.heard("warning")
    assert "a worker on node a (10.0.0.1:1) is lost (a defect: RuntimeError" in warning


def test_shards_that_follow_each_other_are_told_as_one():
    assert _joined([]) == []
    assert _joined([(0, 10), (10, 20), (20, 23)]) == [(0, 23, 10)]
    assert _joined([(10, 20), (40, 50), (60, 63)]) == [(10, 20, 10), (40, 50, 10), (60, 63, 3)]
    assert drivers._shards(0, 23, 10) == [(0, 10), (10, 20), (20, 23)]


class Computing(World):
    """A cluster whose devices compute."""

    def __init__(self, nodes: dict[str, int], kills: int, told: str) -> None:
        super().__init__([], nodes)
        self.kills, self.told = kills, told
        self.devices: dict[Actor, Device] = {}

    def join(self, actor: Actor) -> None:
        self.devices[actor] = Device(self.told)
        self.devices[actor].join()

    def prepare(self, actor: Actor, *arguments: Any) -> Any:
        return self.devices[actor].prepare(*arguments)

    def compute(self, actor: Actor, *arguments: Any) -> None:
        self.devices[actor].compute(*arguments)

    def publish(self, actor: Actor, *arguments: Any) -> Any:
        return self.devices[actor].publish(*arguments)


def test_a_panel_is_computed_by_several_devices_to_the_same_bytes(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cohort_work, "_SHARD_WINDOWS", 256)
    panel = random_panel(3, samples=4, length=9000, rate=0.02)
    fasta, vcf = panel.fasta(tmp_path / "ref.fa"), panel.vcf(tmp_path / "panel.vcf")
    model = make_checkpoint(tmp_path / "tiny", window=40, stride=10)
    predict_cohort(fasta, vcf, model, tmp_path / "plain", jobs=1)
    worlds = []

    @contextmanager
    def driver(told: str) -> Any:
        worlds.append(Computing({"a": 2, "b": 1}, kills=3, told=told))
        said: list[bytes] = []
        drivers.Driver(told, lambda **message: said.append(json.dumps(message).encode())).run()
        yield said

    monkeypatch.setattr(executor, "_driver", driver)
    spec = RunSpec(tuple(find_genomes([fasta])), str(model), tmp_path / "ray", cluster="x:1")
    job = CohortRun(spec, vcf, PanelOptions())
    with pytest.warns(UserWarning, match="is lost"):
        report = execute(job, executor=partial(executor.compute, address="x:1"))
    job.close()
    assert report.workers == 3
    assert report.computed == report.genomes[0].rows * 10
    assert sum(call.kind == "compute" for call in worlds[0].calls) > 3
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "plain")
