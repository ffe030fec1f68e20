"""A short form of `make torture`: real processes, really killed."""

from __future__ import annotations

import time

import pytest

from tests.torture import Runs, check_kills, check_processes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("torture"), bases=40_000, stride=1)


def test_killed_and_shared_runs_leave_the_same_bytes(runs):
    begin = time.perf_counter()
    wanted = runs.finish(runs.fresh())
    seconds = time.perf_counter() - begin
    assert len(wanted) == 5
    check_processes(runs, wanted, (2,))
    check_kills(runs, wanted, 3, seconds)
