from __future__ import annotations

import resource
from pathlib import Path

import pytest

from genomepred import machine
from genomepred.errors import MemoryLimitError

VARIABLES = (
    "SLURM_CPUS_PER_TASK",
    "SLURM_MEM_PER_NODE",
    "SLURM_MEM_PER_CPU",
    "SLURM_CPUS_ON_NODE",
)


@pytest.fixture(autouse=True)
def _bare(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_group_limits", lambda kind: iter(()))


def groups(proc: Path, kind: str, cgroup: str, mounts: list[str], files: dict[str, str]) -> list:
    """Limits found where /proc and the control groups say so."""
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text("\n".join(mounts) + "\n")
    for name, text in files.items():
        path = proc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [limit for _, limit in _group_limits(kind, proc)]


_group_limits = machine._group_limits


def test_the_least_of_affinity_quota_and_scheduler_decides(monkeypatch):
    assert machine.usable_cpus().amount == 8
    for quota, cpus in ((2.5, 2), (0.3, 1), (1.0, 1), (64.0, 8)):
        monkeypatch.setattr(machine, "_group_limits", lambda kind, q=quota: iter([("g", q)]))
        assert machine.usable_cpus().amount == cpus
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert machine.usable_cpus() == machine.Limit(3, "SLURM_CPUS_PER_TASK")
    for odd in ("", "x", "-4", "0", "9" * 30, "٣"):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", odd)
        assert machine.usable_cpus().amount == 8


def test_memory_is_what_groups_and_the_scheduler_leave(monkeypatch):
    whole = machine.usable_memory()
    assert whole.why == "memory of the machine"
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert machine.usable_memory() == machine.Limit(200 << 20, "SLURM_MEM_PER_CPU")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "150")
    assert machine.usable_memory().amount == 150 << 20
    monkeypatch.setattr(machine, "_group_limits", lambda kind: iter([("group x", 1e8)]))
    assert machine.usable_memory() == machine.Limit(100_000_000, "memory limit of group x")


def test_groups_of_version_2_limit_with_all_that_are_above(tmp_path):
    mounts = [f"30 20 0:26 / {tmp_path}/fs rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"]
    files = {
        "fs/a/cpu.max": "150000 100000\n",
        "fs/a/b/cpu.max": "max 100000\n",
        "fs/a/memory.max": "max\n",
        "fs/a/b/memory.max": "3000000\n",
        "fs/a/b/memory.high": "2000000\n",
    }
    assert groups(tmp_path, "cpu", "0::/a/b\n", mounts, files) == [1.5]
    assert groups(tmp_path, "memory", "0::/a/b\n", mounts, files) == [2_000_000]


def test_groups_of_version_1_are_found_by_their_controller(tmp_path):
    mounts = [
        f"31 20 0:27 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu,cpuacct",
        f"32 20 0:28 / {tmp_path}/memory rw - cgroup cgroup rw,memory",
    ]
    files = {
        "cpu/job/cpu.cfs_quota_us": "200000\n",
        "cpu/job/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/job/memory.limit_in_bytes": "5000000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    lines = "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n"
    assert groups(tmp_path, "cpu", lines, mounts, files) == [2.0]
    assert groups(tmp_path, "memory", lines, mounts, files) == [5_000_000]


def test_a_container_finds_its_group_under_its_own_mount(tmp_path):
    mounts = [f"31 20 0:27 /docker/c0 {tmp_path}/cpu ro - cgroup cgroup rw,cpu"]
    files = {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert groups(tmp_path, "cpu", "3:cpu:/docker/c0\n", mounts, files) == [0.5]
    assert groups(tmp_path, "cpu", "3:cpu:/docker/elsewhere\n", mounts, files) == [0.5]


def test_files_that_are_absent_or_odd_limit_nothing(tmp_path):
    mounts = [f"30 20 0:26 / {tmp_path}/fs rw - cgroup2 cgroup2 rw", "nonsense - x y z"]
    assert list(_group_limits("cpu", tmp_path / "nothing")) == []
    for text in ("", "max", "a b", "0 0", "1"):
        assert groups(tmp_path, "cpu", "0::/../..\n", mounts[:1], {"fs/cpu.max": text}) == []


def test_a_limit_that_libraries_cannot_start_under_is_refused(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda number: (900_000_000, -1))
    with pytest.raises(MemoryLimitError, match=r"to 0\.90 GB \(ulimit -v\): torch"):
        machine.require_address_space()
    monkeypatch.setattr(machine.resource, "getrlimit", lambda number: (resource.RLIM_INFINITY, -1))
    machine.require_address_space()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("std::bad_alloc"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
    ids=str,
)
def test_memory_that_runs_out_is_told_in_whatever_form(error):
    told = machine.out_of_memory(error)
    assert told is not None
    assert "the limit is" in str(told)
    assert "\n" not in str(told)
    caused = ValueError("x")
    caused.__cause__ = error
    assert machine.out_of_memory(caused) is not None


def test_other_errors_are_not_about_memory():
    for error in (ValueError("out of memory"), OSError(5, "Input/output error"), KeyError("x")):
        assert machine.out_of_memory(error) is None
