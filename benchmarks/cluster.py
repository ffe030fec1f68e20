"""Runs on Ray against processes of one command, and how many shards a second one driver can give.

Three questions. What does a megabase cost in processor time, by one worker and by two, as processes
and on Ray: the slope between a shorter and a longer job, everything that Ray runs included, so that
start-up cancels. Do all of them write the same bytes. And how many shards a second does the driver
give to devices that compute nothing.

    python benchmarks/cluster.py > benchmarks/results/cluster-MACHINE.json

Everything runs in a network that has loopback and no more; needs root and the extra ``cluster``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from genomepred.benchmarks.many import make_genomes
from genomepred.benchmarks.measure import machine
from genomepred.runs.executors.device import GenomeCall, Stretch
from genomepred.runs.work import Rows
from tests.ray_cluster import Namespace, why_not
from tests.torture import hashes

STEP = 1024
# Seconds between looks at who is at work: what a process does after the last one is not counted.
_LOOK = 0.1
_ARITHMETIC = """
import time
total, begin = 0, time.process_time()
for k in range(20_000_000):
    total += k * k % 7
print(time.process_time() - begin)
"""
_SHARDS = """
import sys; sys.path.insert(0, {root!r})
from genomepred.benchmarks.cluster import give; give({workers}, {shards}, {genomes})
"""


class Idle:
    """A device that computes nothing."""

    def __init__(self, told: str) -> None:
        self._shards = json.loads(told)["shards"]

    def join(self) -> None:
        """Be ready."""

    def prepare(self, genome: GenomeCall) -> tuple[int, list[Stretch] | None]:
        """All of a genome's rows are open."""
        rows = self._shards * STEP
        return (rows, [(0, rows, STEP)]) if self._shards > 1 else (rows, None)

    def compute(self, genome: GenomeCall, rows: Rows) -> None:
        """Nothing."""

    def publish(self, genome: GenomeCall) -> None:
        """Nothing."""


def give(workers: int, shards: int, genomes: int) -> None:
    """Print how long the driver takes, and how long its processor is at it."""
    from genomepred.runs.executors import driver

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    driver.Device = Idle  # type: ignore[misc,assignment]
    driver.usable_cpus = lambda: argparse.Namespace(amount=workers)  # type: ignore[assignment]
    driver._connect("local")
    calls = [[k, f"g{k}", f"g{k}.fa"] for k in range(genomes)]
    told = json.dumps({"calls": calls, "gpu": False, "shards": shards})
    begun: list[tuple[float, float]] = []

    def say(**message: Any) -> None:
        if not begun and message.get("workers") == workers:
            begun.append((time.perf_counter(), time.process_time()))

    driver.Driver(told, say).run()
    wall, processor = time.perf_counter() - begun[0][0], time.process_time() - begun[0][1]
    print(json.dumps({"wall": wall, "driver": processor}), flush=True)
    os._exit(0)


def shards_per_second(workers: int, shards: int, genomes: int) -> dict[str, Any]:
    """Shards and genomes a second of one driver whose devices compute nothing."""
    alone = Namespace()
    try:
        root = str(Path(__file__).parents[1])
        code = _SHARDS.format(root=root, workers=workers, shards=shards, genomes=genomes)
        said, errors = alone.start([sys.executable, "-c", code]).communicate()
    finally:
        alone.close()
    found = json.loads(said.strip().splitlines()[-1]) if said.strip() else sys.exit(errors)
    count = shards * genomes
    return {
        "workers": workers,
        "genomes": genomes,
        "shards_a_genome": shards,
        "shards_per_second": round(count / found["wall"]),
        "shards_per_second_of_the_driver": round(count / found["driver"]),
    }


def processor_seconds(genomes: Path, out: Path, *how: str) -> tuple[float, float]:
    """Processor and wall seconds of one command and all that it starts, killed or not."""
    alone, seen, over = Namespace(), dict[tuple[int, str], int](), threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK):
            alone.look(seen)

    looking = threading.Thread(target=watch)
    looking.start()
    try:
        begin = time.perf_counter()
        command = [sys.executable, "-m", "genomepred", "predict", "--model", "ctcf"]
        process = alone.start([*command, "--genomes", str(genomes), "--out", str(out), *how])
        said = process.communicate()[1]
        if process.returncode:
            sys.exit(said)
        wall = time.perf_counter() - begin
    finally:
        over.set()
        looking.join()
        alone.close()
    return sum(seen.values()) / os.sysconf("SC_CLK_TCK"), wall


def arithmetic(count: int) -> float:
    """Processor seconds of a fixed piece of arithmetic, as the mean of processes side by side."""
    command = [sys.executable, "-c", _ARITHMETIC]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    return statistics.mean(float(process.communicate()[0]) for process in processes)


def costs(rounds: int, bases: int) -> list[dict[str, Any]]:
    """Processor seconds a megabase of each way, in turns; the bytes must be the same.

    ``of_one_process`` is the cost against one process, ``of_arithmetic`` the same less what plain
    arithmetic loses to a second process in the same minute.
    """
    ways = {"1 process": ("--jobs", "1"), "2 processes": ("--jobs", "2")}
    ways |= {"Ray": ("--cluster", "auto")}
    slopes: dict[str, list[float]] = {way: [] for way in ways}
    walls: dict[str, list[float]] = {way: [] for way in ways}
    losses = []
    with tempfile.TemporaryDirectory() as place:
        sizes = (bases // 4, bases)
        folders = [make_genomes(Path(place) / str(size), 4, size // 4) for size in sizes]
        for k in range(rounds):
            wanted: list[dict[str, str]] = []
            losses.append(arithmetic(2) / arithmetic(1))
            for way, how in ways.items():
                outs = [Path(place) / f"{way}-{k}-{size}" for size in sizes]
                pairs = zip(folders, outs, strict=True)
                found = [processor_seconds(folder, out, *how) for folder, out in pairs]
                wanted = wanted or [hashes(out) for out in outs]
                if wanted != [hashes(out) for out in outs]:
                    sys.exit(f"{way}: other bytes")
                megabases = (sizes[1] - sizes[0]) / 1e6
                slopes[way].append((found[1][0] - found[0][0]) / megabases)
                walls[way].append((found[1][1] - found[0][1]) / megabases)
    rows: list[dict[str, Any]] = []
    for way, mine in slopes.items():
        against = np.array(mine) / slopes["1 process"]
        lost = 1 if way == "1 process" else np.array(losses)
        found = {
            "processor_seconds_a_megabase": mine,
            "wall_seconds_a_megabase": walls[way],
            "of_one_process": against,
            "of_arithmetic": against / lost,
        }
        rows.append({"way": way} | {k: round(float(np.median(v)), 3) for k, v in found.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bases", type=int, default=8_000_000)
    arguments = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    drivers = [shards_per_second(2, 500, 4), shards_per_second(2, 1, 1000)]
    result = {"machine": machine(), "load": os.getloadavg()[0], "drivers": drivers}
    result["costs"] = costs(arguments.rounds, arguments.bases)
    result["load_after"] = os.getloadavg()[0]
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
