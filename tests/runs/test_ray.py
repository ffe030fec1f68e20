from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.ray_cluster import ADDRESS, Cluster, Namespace, kill, wait_for, why_not
from tests.sequences.panels import random_panel
from tests.torture import Runs, hashes, leftovers, parts


@contextmanager
def started(nodes: int, **how: bool) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(nodes, **how)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def cluster():
    with started(3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("ray"), bases=140_000, stride=1)


@pytest.fixture(scope="module")
def wanted(runs):
    return runs.finish(runs.fresh(), "--jobs", "2")


def begin(cluster: Cluster, runs: Runs, out: Path) -> subprocess.Popen[str]:
    return cluster.start(runs.command(out, "--cluster", ADDRESS))


def begin_and_wait(cluster: Cluster, runs: Runs, out: Path) -> subprocess.Popen[str]:
    """A command that has computed something, and is not done."""
    process = begin(cluster, runs, out)
    assert wait_for(lambda: parts(out) or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    said = process.communicate(timeout=500)[1]
    assert process.returncode == code, said
    return said


def send(processes: list[int], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # gone with its node
            os.kill(process, number)


@pytest.mark.slow
def test_a_killed_worker_and_a_node_that_computes_other_bits(runs, wanted):
    out = runs.fresh()
    with started(2) as cluster:
        process = begin_and_wait(cluster, runs, out)
        kill(cluster.actors()[0])  # until there is another, the slow one has joined or not
        said = end(process)
    assert hashes(out) == wanted
    assert not leftovers(out)
    assert "node slow (127.0.0.1:" in said
    assert "is left out: " in said
    assert "now device cpu DEFAULT" in said


@pytest.mark.slow
def test_a_killed_driver_a_terminated_command_and_what_continues_them(cluster, runs, wanted):
    out = runs.fresh()
    process = begin_and_wait(cluster, runs, out)
    kill(cluster.drivers()[0])
    said = end(process, 3)
    assert "the connection to the Ray cluster is lost" in said
    assert wait_for(lambda: not cluster.actors(), 30)
    found = len(hashes(out)) + parts(out)
    assert found
    process = begin(cluster, runs, out)
    wait_for(lambda: len(hashes(out)) + parts(out) > found)
    inside = cluster.find("genomepred", "predict", "--cluster")
    os.kill(inside[0], signal.SIGTERM)
    assert "terminated; run the same command again" in end(process, 143)
    assert wait_for(lambda: not cluster.actors() and not cluster.drivers(), 30)
    end(begin(cluster, runs, out))
    assert hashes(out) == wanted
    assert not leftovers(out)


@pytest.mark.slow
def test_a_killed_node(runs, wanted):
    out = runs.fresh()
    with started(2, slow=False) as cluster:
        process = begin_and_wait(cluster, runs, out)
        stopped = cluster.actors()[:1]  # so that the run cannot end before the node does
        send(stopped, signal.SIGSTOP)
        assert wait_for(lambda: len(cluster.actors()) > 1)
        kill(cluster.raylets()[1])
        assert process.stderr is not None
        said = process.stderr.readline()  # or the test's own time is up
        send(stopped, signal.SIGCONT)
        end(process)
    assert "others take over its work" in said
    assert hashes(out) == wanted
    assert not leftovers(out)


@pytest.mark.slow
def test_a_killed_head(runs, wanted):
    out = runs.fresh()
    with started(2, slow=False) as cluster:
        process = begin_and_wait(cluster, runs, out)
        kill(cluster.head()[0])
        said = end(process, 3)
        assert "the connection to the Ray cluster is lost" in said
        assert said.count("\n") == 1
    assert runs.finish(out) == wanted  # as without a cluster
    assert not leftovers(out)


@pytest.mark.slow
def test_a_cluster_on_this_machine_alone(runs, wanted):
    """Started by the command; nothing of it listens beyond loopback, or is left behind."""
    if reason := why_not():
        pytest.skip(reason)
    alone, out = Namespace(), runs.fresh()
    try:
        process = alone.start(runs.command(out, "--cluster", "auto"))
        assert wait_for(lambda: parts(out) or process.poll() is not None)
        listening = alone.start(["cat", "/proc/net/tcp", "/proc/net/tcp6"]).communicate()[0]
        places = [line.split()[1] for line in listening.splitlines() if " 0A " in line]
        assert places
        assert all(place.split(":")[0].endswith("0100007F") for place in places), places
        end(process)
        assert wait_for(lambda: not alone.find("raylet") and not alone.find("gcs_server"), 20)
    finally:
        alone.close()
    assert hashes(out) == wanted


@pytest.mark.slow
def test_a_panel(cluster, runs, tmp_path):
    """One genome under a panel, on workers of two nodes; the third is left out."""
    panel = random_panel(3, samples=40, length=60_000, rate=0.01)
    fasta, vcf = panel.fasta(tmp_path / "ref.fa"), panel.vcf(tmp_path / "panel.vcf")
    command = [sys.executable, "-m", "genomepred", "predict", "--genomes", fasta, "--json"]
    command += ["--variants", vcf, "--model", runs.model, "--stride", "1"]
    found = []
    for how in (["--jobs", "1"], ["--cluster", ADDRESS]):
        out = tmp_path / how[0].strip("-")
        process = cluster.start(list(map(str, [*command, "--out", out, *how])))
        said, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        found.append((json.loads(said)["result"], hashes(out)))
    (plain, wanted), (spread, files) = found
    assert files == wanted
    assert plain["workers"] == 1
    assert spread["workers"] == 2
    assert spread["computed"] == plain["computed"]
