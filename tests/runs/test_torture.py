"""A short form of `make torture`: real processes, really killed."""

from __future__ import annotations

import pytest

from tests.helpers import hashes
from tests.torture import Runs, check_processes, leftovers, parts


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("torture"), bases=140_000, stride=1)


def test_a_killed_run_leaves_the_same_bytes(runs):
    wanted = runs.finish(runs.fresh())
    assert len(wanted) == 5
    out = runs.fresh()
    assert runs.kill(out, lambda: parts(out) == 1)
    assert not hashes(out)
    assert runs.finish(out) == wanted
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
