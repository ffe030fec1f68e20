"""A short form of `make torture`: real processes, really killed."""

from __future__ import annotations

import pytest

from tests.helpers import genomepred, hashes
from tests.torture import Runs, check_processes, leftovers, parts


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("torture"), bases=140_000, stride=1)


def finish(runs, out):
    """As a run of its own process, but in this one, which has begun already."""
    genomepred(*runs.command(out)[3:])
    return hashes(out)


def test_a_killed_run_leaves_the_same_bytes(tmp_path):
    runs = Runs(tmp_path, bases=140_000, stride=1, others=20_000)
    wanted = finish(runs, runs.fresh())
    assert len(wanted) == 5
    out = runs.fresh()
    assert runs.kill(out, lambda: parts(out) == 1)
    assert not hashes(out)
    assert finish(runs, out) == wanted
    assert not leftovers(out)


@pytest.mark.slow
def test_killed_and_shared_runs_leave_the_same_bytes(runs):
    wanted = runs.finish(runs.fresh())
    assert len(wanted) == 5
    check_processes(runs, wanted, (2,))
    out = runs.fresh()
    assert runs.kill(out, lambda: parts(out) == 1)
    assert parts(out) == 1
    assert not hashes(out)
    assert runs.kill(out, lambda: len(hashes(out)) > 1 and parts(out) > 0, "--jobs", "2")
    assert 1 < len(hashes(out)) < 5
    assert runs.finish(out) == wanted
    assert not leftovers(out)
