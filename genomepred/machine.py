"""Processors and memory that this process may use, and how it starts further ones.

Containers and schedulers limit by control groups (both versions), affinity, ``ulimit`` and
variables; the least of them counts. Also how further processes are started. Nothing here imports
anything heavy.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from genomepred.errors import MemoryLimitError

# Address space that torch and the compiler of kernels reserve before a first window is computed;
# below it they end the process or stand still, rather than say that memory is out.
_ADDRESS_SPACE = 1_400_000_000
# A number that a variable of a scheduler says, unless it is 0.
_NUMBER = re.compile(r"0*[1-9][0-9]{0,14}")
# Limits from here on are how control groups and Slurm write "none".
_NONE = 1 << 60
_MEMORY_TOLD = re.compile(
    r"can't allocate memory|cannot allocate memory|unable to allocate|not enough memory|bad_alloc"
    r"|out of memory|can't start new thread|failed to map segment|thread creation failed"
    r"|find/load shared object file",
    re.IGNORECASE,
)


class Limit(NamedTuple):
    """An amount, and what sets it."""

    amount: int
    why: str


def usable_cpus() -> Limit:
    """Processors that this process may keep busy: at least one."""
    limits = [Limit(len(os.sched_getaffinity(0)), "processors of this process (affinity)")]
    for name, quota in _group_limits("cpu"):
        limits.append(Limit(int(quota), f"CPU quota of {quota:g} of {name}"))
    tasks = _NUMBER.fullmatch(os.environ.get("SLURM_CPUS_PER_TASK", ""))
    if tasks:
        limits.append(Limit(int(tasks[0]), "SLURM_CPUS_PER_TASK"))
    least = min(limits)
    return least._replace(amount=max(least.amount, 1))


def usable_memory() -> Limit:
    """Bytes that all processes of this command may hold together."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    limits = [Limit(pages * size, "memory of the machine")]
    for name, limit in _group_limits("memory"):
        limits.append(Limit(int(limit), f"memory limit of {name}"))
    told = {key: int(word) for key, word in os.environ.items() if _NUMBER.fullmatch(word)}
    if "SLURM_MEM_PER_NODE" in told:
        limits.append(Limit(told["SLURM_MEM_PER_NODE"] << 20, "SLURM_MEM_PER_NODE"))
    if "SLURM_MEM_PER_CPU" in told:
        count = told.get("SLURM_CPUS_ON_NODE") or usable_cpus().amount
        limits.append(Limit(count * told["SLURM_MEM_PER_CPU"] << 20, "SLURM_MEM_PER_CPU"))
    return min(limits)


def isolated_command(body: str, *arguments: str) -> list[str]:
    """Command that runs Python code isolated, with this process's module path as first argument.

    It sees neither the current folder nor PYTHON* of the environment.
    """
    path = [place for place in sys.path if place]  # "" is the current folder
    options = [f"-W{option}" for option in sys.warnoptions]
    utf8 = f"utf8={sys.flags.utf8_mode}"
    return [sys.executable, "-I", "-X", utf8, *options, "-c", body, json.dumps(path), *arguments]


def process_memory() -> Limit:
    """Bytes that this one process may map; ``ulimit -v`` and ``-d`` count here."""
    limits = [usable_memory()]
    for number, name in ((resource.RLIMIT_AS, "v"), (resource.RLIMIT_DATA, "d")):
        soft = resource.getrlimit(number)[0]
        if 0 <= soft < _NONE:
            limits.append(Limit(soft, f"address space of a process (ulimit -{name})"))
    return min(limits)


def tell_memory() -> str:
    """The least limit of memory, in words."""
    amount, why = process_memory()
    return f"{amount / 1e9:,.1f} GB, {why}"


def require_address_space() -> None:
    """Refuse a limit under which libraries end the process before they can say why.

    Raises
    ------
    MemoryLimitError
        If ``ulimit -v`` is too low to begin with.
    """
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if 0 <= soft < _ADDRESS_SPACE:
        raise MemoryLimitError(
            f"the address space of a process is limited to {soft / 1e9:,.2f} GB (ulimit -v): torch "
            f"and compiled kernels reserve {_ADDRESS_SPACE / 1e9:,.1f} GB before they start; raise "
            "the limit (h_vmem of schedulers)"
        )


def out_of_memory(error: BaseException | None) -> MemoryLimitError | None:
    """One line for an error that says, in whatever form, that memory or threads ran out."""
    seen = 0
    while error is not None and seen < 20:
        told = isinstance(error, (RuntimeError, OSError, ImportError, SystemError))
        if isinstance(error, MemoryError) or (told and _MEMORY_TOLD.search(str(error))):
            return MemoryLimitError(
                f"out of memory ({_first_line(error)}); the limit is {tell_memory()}: raise it, or "
                "use fewer --jobs, a smaller --batch-size or a smaller model"
            )
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:200]


# -- control groups ------------------------------------------------------------------------------

# Limits of CPUs are a quota of time and the period that it is of.
_FILES = {
    ("cpu", "cgroup"): ["cpu.cfs_quota_us", "cpu.cfs_period_us"],
    ("cpu", "cgroup2"): ["cpu.max"],
    ("memory", "cgroup"): ["memory.limit_in_bytes"],
    ("memory", "cgroup2"): ["memory.max", "memory.high"],
}
# Lines of /proc/self/cgroup, and those of hierarchies in /proc/self/mountinfo.
_GROUP = re.compile(r"^[0-9]+:(.*?):(.*)$", re.MULTILINE)
_MOUNT = re.compile(r"^\S+ \S+ \S+ (\S+) (\S+) .*? - (cgroup2?) \S+ (\S+)$", re.MULTILINE)


def _group_limits(kind: str, proc: Path = Path("/proc/self")) -> Iterator[tuple[str, float]]:
    """Limits of this process's control groups and all above: CPUs or bytes."""
    for mount, group, system in _groups(kind, proc):
        for folder in [group, *group.parents]:
            numbers: list[float] = []
            for name in _FILES[kind, system]:
                with suppress(OSError, ValueError):  # absent, or "max"
                    numbers += [float(word) for word in (folder / name).read_text().split()]
            if kind == "cpu":
                whole = len(numbers) == 2 and min(numbers) > 0
                numbers = [numbers[0] / numbers[1]] if whole else []
            if numbers and min(numbers) < _NONE:
                yield f"control group {folder}", min(numbers)
            if folder == mount:
                break


def _groups(kind: str, proc: Path) -> Iterator[tuple[Path, Path, str]]:
    """Mount point, this process's group, and system of each hierarchy that limits ``kind``."""
    try:
        groups = (proc / "cgroup").read_text(errors="surrogateescape")
        mounts = (proc / "mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return
    paths = {name: path for names, path in _GROUP.findall(groups) for name in names.split(",")}
    for root, mount, system, options in _MOUNT.findall(mounts):
        if system == "cgroup" and kind not in options.split(","):
            continue
        path = paths.get("" if system == "cgroup2" else kind)
        if path is None:
            continue
        # A container sees its own group mounted, under the path that it has outside.
        if root != "/" and f"{path}/".startswith(f"{root}/"):
            path = path[len(root) :]
        inner = "" if ".." in path.split("/") else path.lstrip("/")
        yield Path(mount), Path(mount) / inner, system
